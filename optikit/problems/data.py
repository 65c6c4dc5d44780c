"""Data sets: by name, by address (a file, a web address, OpenML), and by a user's own loader.

Where files are looked for and kept: `optikit.problems.fetch`. Formats: `optikit.problems.readers`.
"""

import hashlib
import pathlib
import tempfile
import urllib.error
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from optikit.problems import fetch, readers
from optikit.problems.imported import loader

A9A = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/a9a"


class Data(NamedTuple):
    """Examples by rows.

    Attributes:
      inputs: (examples, features), float64.
      targets: (examples,): float64 for regression, integer classes from 0 otherwise.
      classes: the number of classes; 0 for regression.
      labels: what the classes are called in the source, in order; None for regression.
    """

    inputs: np.ndarray
    targets: np.ndarray
    classes: int
    labels: np.ndarray | None = None

    def numbers(self) -> np.ndarray:
        """The targets as float64, classes by their labels: for regression on whole numbers.

        Raises:
          ValueError: the labels are words.
        """
        if self.labels is None:
            return self.targets.astype(np.float64)
        if self.labels.dtype.kind not in "iub":
            msg = f"the targets are classes ({', '.join(map(str, self.labels[:5]))}), not numbers."
            raise ValueError(msg)
        return self.labels[self.targets].astype(np.float64)


def bundled(name: str) -> Data:
    """A data set that scikit-learn ships: diabetes, breast_cancer, digits, iris or wine."""
    try:
        from sklearn import datasets
    except ImportError as error:
        msg = f"the data set {name!r} comes with scikit-learn: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    bunch: Any = getattr(datasets, f"load_{name}")()
    return as_data(bunch.data, bunch.target)


def a9a() -> Data:
    """UCI Adult as 123 binary features: $OPTIKIT_DATA/a9a.svm.gz, else the LIBSVM collection's."""
    try:
        path = fetch.data_file("a9a.svm.gz")
    except FileNotFoundError:
        path = fetch.fetch(A9A)
    return as_data(*readers.read_table(path.read_bytes(), path.name, features=123))


def mnist10k() -> Data:
    """10,000 handwritten digits of 28 x 28 pixels, from $OPTIKIT_DATA/mnist10k.npz."""
    path = fetch.data_file("mnist10k.npz")
    return as_data(*readers.read_table(path.read_bytes(), path.name))


def mnist() -> Data:
    """The 70,000 handwritten digits of MNIST, from OpenML."""
    return openml("mnist_784@1")


def fashion_mnist() -> Data:
    """70,000 pieces of clothing, as images of 28 x 28 pixels in ten classes, from OpenML."""
    return openml("Fashion-MNIST@1")


DATA: dict[str, Callable[[], Data]] = {
    "a9a": a9a,
    "breast_cancer": lambda: bundled("breast_cancer"),
    "diabetes": lambda: bundled("diabetes"),
    "digits": lambda: bundled("digits"),
    "fashion-mnist": fashion_mnist,
    "iris": lambda: bundled("iris"),
    "mnist": mnist,
    "mnist10k": mnist10k,
    "wine": lambda: bundled("wine"),
}


def load(data: str | Callable[[], Any]) -> Data:
    """A data set by name, by address, or from a function.

    Addresses:
      file:survey.csv: a file by path, absolute or in $OPTIKIT_DATA or the working directory;
      https://host/rows.svm.bz2: downloaded once, then kept;
      openml:credit-g, openml:credit-g@1 or openml:31: a set of OpenML by name, version or number;
      my_lab.data:survey: a function of the user's, returning (inputs, targets).
    A file's format (LIBSVM text, IDX, CSV, Parquet, NPZ) is told by its content. Files and web
    addresses take a fragment: `#sha256=...` demands a checksum, `#target=price` names the column of
    the targets (the last if absent), `&` joins the two. Whole numbers and words as targets are
    classes. Rows stay dense.

    Raises:
      ValueError: an unknown name or kind of address, a content that cannot be read, values that are
        not finite, or rows and targets that do not match.
      FileNotFoundError: the file is nowhere; the message says where it was looked for.
      ImportError: there is no such module or function.
      ConnectionError: a download failed.

    Example:
      >>> rows = load("wine")
      >>> rows.inputs.shape, rows.classes
      ((178, 13), 3)
    """
    if callable(data):
        return as_data(*data())
    if ":" not in data:
        if data not in DATA:
            msg = (
                f"unknown data set {data!r}: choose from {sorted(DATA)}, give 'module:function', "
                "'file:PATH', 'openml:NAME' or a web address."
            )
            raise ValueError(msg)
        return DATA[data]()
    scheme, _, rest = data.partition(":")
    if scheme == "openml":
        return openml(rest)
    if scheme in ("file", "http", "https"):
        return _from_address(data)
    return as_data(*loader(data, ("file", "http", "https", "openml"))())


def _from_address(address: str) -> Data:
    """The data in a file or behind a web address, checked and read."""
    bare, options = fetch.address(address, {"sha256", "target"})
    content, labels = fetch.content(bare, options.get("sha256")), readers.labels_name(bare)
    if labels is None:
        return as_data(*readers.read_table(content, bare, options.get("target")))
    images = readers.read_idx(content, bare)
    return as_data(readers.flat_rows(images), readers.read_idx(fetch.content(labels), labels))


def openml(which: str) -> Data:
    """A data set of OpenML by "name", "name@version" or number, kept in the cache as arrays.

    Nominal features become their codes.

    Raises:
      FileNotFoundError: it is not in the cache and OPTIKIT_OFFLINE forbids fetching it.
      ConnectionError: OpenML did not deliver it.
      ValueError: there is no such data set.
    """
    name, _, version = which.partition("@")
    number = name.isdecimal()
    if not name or (version and (number or not version.isdecimal())):
        msg = f"openml:{which}: write openml:NAME, openml:NAME@VERSION or openml:NUMBER."
        raise ValueError(msg)
    key = hashlib.sha256(which.encode()).hexdigest()[:12]
    path = fetch.cache_folder() / f"openml-{key}.npz"
    if not path.is_file():
        if fetch.offline():
            msg = (
                f"openml:{which} is not in the cache ({path}) and {fetch.OFFLINE_VARIABLE} forbids "
                "fetching it: unset the variable once."
            )
            raise FileNotFoundError(msg)
        chosen: dict[str, Any] = {"data_id": int(name)} if number else {"name": name}
        if version:
            chosen["version"] = int(version)
        _download_openml(which, chosen, path)
    return as_data(*readers.read_table(path.read_bytes(), f"openml:{which}"))


def _download_openml(which: str, chosen: dict[str, Any], path: pathlib.Path) -> None:
    """Fetch by scikit-learn, keep as NPZ in one atomic step."""
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        msg = "OpenML is read with scikit-learn: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        try:
            bunch: Any = fetch_openml(
                **chosen, as_frame=False, parser="liac-arff", data_home=scratch, n_retries=1
            )
        except (urllib.error.URLError, TimeoutError) as error:
            msg = f"openml:{which} could not be fetched ({error}). Check the name and the network."
            raise ConnectionError(msg) from error
        if bunch.target is None:
            msg = f"openml:{which} has no default target: load it in a function of your own."
            raise ValueError(msg)
        rows = bunch.data.toarray() if hasattr(bunch.data, "toarray") else bunch.data
        targets = np.asarray(bunch.target)
        if targets.dtype == object:
            targets = targets.astype(str)
        part = f"{scratch}/rows.npz"
        np.savez_compressed(part, inputs=np.asarray(rows, np.float64), targets=targets)
        pathlib.Path(part).replace(path)


def standardised(inputs: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1; constant columns become 0."""
    spread = inputs.std(axis=0)
    return (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1)


def as_data(inputs: Any, targets: Any) -> Data:
    """Rows and targets as Data; whole numbers, truth values and words are classes.

    Raises:
      ValueError: shapes that do not match, no examples, or values that are missing or not finite.
    """
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets)
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or not inputs.size:
        msg = (
            f"data must be (examples, features) and one target per example; got {inputs.shape} and "
            f"{targets.shape}."
        )
        raise ValueError(msg)
    _finite(inputs, "inputs")
    if targets.dtype == object:
        targets = targets.astype(str)
    if targets.dtype.kind == "f":
        _finite(targets[:, None], "targets")
        return Data(inputs, targets.astype(np.float64), 0)
    labels, codes = np.unique(targets, return_inverse=True)
    return Data(inputs, codes.astype(np.int32), len(labels), labels)


def _finite(columns: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(columns).all(axis=0))
    if bad.size:
        some = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        msg = (
            f"the {what} are missing or not finite in {bad.size} of {columns.shape[1]} columns "
            f"({some}): drop or impute them."
        )
        raise ValueError(msg)
