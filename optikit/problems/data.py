"""Data sets: scikit-learn's bundled ones, files in the data directory, and a user's own loader.

The data directory is the environment variable OPTIKIT_DATA; nothing needs it but the data sets that
say so.
"""

import importlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

DATA_VARIABLE = "OPTIKIT_DATA"


class Data(NamedTuple):
    """Examples by rows.

    Attributes:
      inputs: (examples, features), float64.
      targets: (examples,): float64 for regression, integer classes from 0 otherwise.
      classes: the number of classes; 0 for regression.
    """

    inputs: np.ndarray
    targets: np.ndarray
    classes: int


def bundled(name: str) -> Data:
    """A data set that scikit-learn ships: diabetes, breast_cancer, digits, iris or wine."""
    try:
        from sklearn import datasets
    except ImportError as error:
        msg = f"the data set {name!r} comes with scikit-learn: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    bunch: Any = getattr(datasets, f"load_{name}")()
    return _as_data(bunch.data, bunch.target)


def a9a() -> Data:
    """UCI Adult as 123 binary features, 32,560 examples, from $OPTIKIT_DATA/a9a.svm.gz."""
    from sklearn.datasets import load_svmlight_file

    rows, labels = load_svmlight_file(str(data_file("a9a.svm.gz")), n_features=123)[:2]
    return _as_data(np.asarray(rows.todense()), (labels > 0).astype(int))


def data_file(name: str) -> pathlib.Path:
    """A file of the data directory.

    Raises:
      FileNotFoundError: the directory is not set, or does not hold the file.
    """
    directory = os.environ.get(DATA_VARIABLE)
    if not directory:
        msg = f"{name} is read from a data directory: set {DATA_VARIABLE} to its folder."
        raise FileNotFoundError(msg)
    path = pathlib.Path(directory) / name
    if not path.is_file():
        msg = f"{path} does not exist: {DATA_VARIABLE} is {directory!r}."
        raise FileNotFoundError(msg)
    return path


DATA: dict[str, Callable[[], Data]] = {
    "a9a": a9a,
    "breast_cancer": lambda: bundled("breast_cancer"),
    "diabetes": lambda: bundled("diabetes"),
    "digits": lambda: bundled("digits"),
    "iris": lambda: bundled("iris"),
    "wine": lambda: bundled("wine"),
}


def load(data: str | Callable[[], Any]) -> Data:
    """A data set by name, by import path ("my_lab.data:survey"), or from a function.

    A user's loader returns (inputs, targets): a float matrix and one target per row.

    Raises:
      ValueError: an unknown name, or rows and targets that do not match.
    """
    if callable(data):
        return _as_data(*data())
    if ":" in data:
        module, _, name = data.partition(":")
        return _as_data(*getattr(importlib.import_module(module), name)())
    if data not in DATA:
        msg = f"unknown data set {data!r}: choose from {sorted(DATA)} or give 'module:function'."
        raise ValueError(msg)
    return DATA[data]()


def standardised(inputs: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1; constant columns become 0."""
    spread = inputs.std(axis=0)
    return (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _as_data(inputs: Any, targets: Any) -> Data:
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets)
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
        msg = (
            f"data must be (examples, features) and one target per example; got {inputs.shape} and "
            f"{targets.shape}."
        )
        raise ValueError(msg)
    if not np.issubdtype(targets.dtype, np.integer):
        return Data(inputs, targets.astype(np.float64), 0)
    _, codes = np.unique(targets, return_inverse=True)
    return Data(inputs, codes.astype(np.int32), int(codes.max()) + 1)
