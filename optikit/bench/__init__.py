"""The harness: studies as data, measured trials, one store, one report.

Importing it does not import JAX; running a trial does.
"""

from optikit.bench.executors import EXECUTORS, ExecutorError
from optikit.bench.experiment import Experiment, Results, load
from optikit.bench.query import QueryError, query
from optikit.bench.schema import study_schema
from optikit.bench.spec import ConfigError, Study, load_study
from optikit.bench.status import Progress, progress
from optikit.bench.store import StoreError, compact
from optikit.bench.track import TRACKERS, Tracker, TrackerError

__all__ = [
    "EXECUTORS",
    "TRACKERS",
    "ConfigError",
    "ExecutorError",
    "Experiment",
    "Progress",
    "QueryError",
    "Results",
    "StoreError",
    "Study",
    "Tracker",
    "TrackerError",
    "compact",
    "load",
    "load_study",
    "progress",
    "query",
    "study_schema",
]
