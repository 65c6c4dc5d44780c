"""The harness: studies as data, measured trials, one store, one report.

Importing it does not import JAX; running a trial does.
"""

from optikit.bench.experiment import Experiment, Results
from optikit.bench.spec import ConfigError, Study, load_study
from optikit.bench.store import StoreError

__all__ = ["ConfigError", "Experiment", "Results", "StoreError", "Study", "load_study"]
