"""What a study says: a table for the terminal, one self-contained page, figures for papers."""

from optikit.bench.report.figures import figures
from optikit.bench.report.page import write_page
from optikit.bench.report.table import Summary, summarise

__all__ = ["Summary", "figures", "summarise", "write_page"]
