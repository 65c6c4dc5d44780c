"""What a study says: a table for the terminal, one self-contained page for everything else."""

from optikit.bench.report.page import write_page
from optikit.bench.report.table import Summary, summarise

__all__ = ["Summary", "summarise", "write_page"]
