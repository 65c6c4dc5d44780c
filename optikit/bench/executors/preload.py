"""Imported once by the fork server, before any job: everything slow that starts no backend."""

import contextlib

import jax  # noqa: F401

import optikit.bench.execute
import optikit.bench.prices
import optikit.bench.referee
import optikit.bench.replay
import optikit.bench.trial
import optikit.problems  # noqa: F401

with contextlib.suppress(ImportError):
    import pyarrow.parquet  # noqa: F401
    import sklearn.datasets  # noqa: F401
