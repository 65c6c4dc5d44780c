"""Rows and targets from files: LIBSVM text, IDX (MNIST's format), CSV, Parquet and NPZ; and text.

The format is told by the content, not the name; gzip, bzip2 and xz are undone first. Nothing is
unpickled.
"""

import bz2
import gzip
import io
import lzma
import math
import re
import zipfile
from typing import Any

import numpy as np

DENSE_LIMIT = 8 * 2**30
"""Bytes that sparse rows may take as a dense float64 matrix."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_NPZ_NAMES = (
    ("inputs", "targets"),
    ("X", "y"),
    ("x", "y"),
    ("data", "target"),
    ("images", "labels"),
)
_LIBSVM_LINE = re.compile(rb"[-+.\deE]+(,[-+.\deE]+)*([ \t]+(qid|\d+):\S+)*[ \t]*(#.*)?$")


def read_table(
    content: bytes, name: str, target: str | None = None, features: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a file's content; every example a row.

    Args:
      content: the file's bytes, compressed or not.
      name: for messages.
      target: the column of the targets in CSV and Parquet, by name or position from 0; the last if
        absent.
      features: of LIBSVM text, where the file may not show the last ones.

    Raises:
      ValueError: a content that is none of the formats, or not what its format says.
      ImportError: the package that reads it is not installed.
    """
    content = decompressed(content, name)
    if content[:4] == b"PAR1":
        return _parquet(content, name, target)
    if content[:2] == b"PK":
        return _npz(content, name)
    if _is_idx(content):
        msg = f"{name} is one IDX file: its examples and labels are two; see read_idx."
        raise ValueError(msg)
    first = next((line for line in content[:65536].splitlines() if line.strip()), b"")
    if b":" in first and _LIBSVM_LINE.match(first):
        return _libsvm(content, name, features)
    if not first or b"\0" in content[:1024]:
        msg = f"{name} is none of LIBSVM text, IDX, CSV, Parquet and NPZ."
        raise ValueError(msg)
    return _csv(content, name, target)


def decompressed(content: bytes, name: str) -> bytes:
    """The content without gzip, bzip2 or xz around it.

    Raises:
      ValueError: it is damaged.
    """
    kinds = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
    for magic, undo in kinds.items():
        if content.startswith(magic):
            try:
                return undo(content)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
                msg = f"{name} is damaged: {error}."
                raise ValueError(msg) from error
    return content


def read_text(content: bytes, name: str) -> str:
    """The text in a file's content, UTF-8, compressed or not; line ends as on Unix.

    Raises:
      ValueError: it is no UTF-8.
    """
    content = decompressed(content, name)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        msg = f"{name} is no text in UTF-8: {error}."
        raise ValueError(msg) from error


def _is_idx(content: bytes) -> bool:
    return len(content) >= 4 and content[:2] == b"\0\0" and content[2] in _IDX_TYPES


def read_idx(content: bytes, name: str) -> np.ndarray:
    """The array in an IDX file, big-endian with its shape in front.

    Raises:
      ValueError: it is no IDX file, or not all there.

    Reference: LeCun, Cortes & Burges, "The MNIST database", file formats.
    """
    content = decompressed(content, name)
    if not _is_idx(content):
        msg = f"{name} is no IDX file: it does not begin with its magic number."
        raise ValueError(msg)
    dtype, axes = np.dtype(_IDX_TYPES[content[2]]), content[3]
    begin = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:begin], ">i4").tolist())
    expected = math.prod(shape) * dtype.itemsize
    if len(shape) != axes or len(content) - begin != expected:
        msg = f"{name} is damaged: {expected} bytes announced, {len(content) - begin} there."
        raise ValueError(msg)
    return (
        np.frombuffer(content, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="))
    )


def labels_name(images: str) -> str | None:
    """The name of the labels that belong to an IDX file of examples, by MNIST's convention."""
    changed = re.sub(r"(images|patches)([-.]idx)\d", r"labels\g<2>1", images)
    return None if changed == images else changed


def _libsvm(content: bytes, name: str, features: int | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        msg = "LIBSVM text is read with scikit-learn: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    try:
        rows, targets = load_svmlight_file(io.BytesIO(content), n_features=features)[:2]
    except (ValueError, OverflowError) as error:
        msg = f"{name} is no LIBSVM text: {error}"
        raise ValueError(msg) from error
    size = 8 * math.prod(rows.shape)
    if size > DENSE_LIMIT:
        msg = (
            f"{name} has {rows.shape[0]} x {rows.shape[1]} entries, {size / 2**30:.1f} GiB as a "
            f"dense matrix, more than {DENSE_LIMIT / 2**30:.1f} GiB. Select or hash its features "
            "in a loader of your own (data: my_lab.data:rows)."
        )
        raise ValueError(msg)
    whole = np.all(targets == np.round(targets))
    return rows.toarray(), targets.astype(np.int64) if whole else targets


def _npz(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for inputs, targets in _NPZ_NAMES:
                if inputs in arrays and targets in arrays:
                    return flat_rows(arrays[inputs]), arrays[targets]
            held = ", ".join(arrays.files) or "nothing"
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        msg = f"{name} cannot be read as NPZ: {error}"
        raise ValueError(msg) from error
    wanted = " or ".join(f"{a} and {b}" for a, b in _NPZ_NAMES)
    msg = f"{name} holds {held}: an NPZ file of data holds {wanted}."
    raise ValueError(msg)


def flat_rows(array: np.ndarray) -> np.ndarray:
    """One row per example, whatever the examples' shape."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def _parquet(content: bytes, name: str, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        msg = "Parquet is read with pyarrow: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    try:
        table = pq.read_table(io.BytesIO(content))
    except (ValueError, OSError) as error:
        msg = f"{name} cannot be read as Parquet: {error}"
        raise ValueError(msg) from error
    return _columns(table, name, target)


def _csv(content: bytes, name: str, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        from pyarrow import csv
    except ImportError as error:
        msg = "CSV is read with pyarrow: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    first = content.lstrip().splitlines()[0]
    commas = max((b",", b";", b"\t"), key=first.count)
    headless = all(_is_number(cell) for cell in first.split(commas))
    try:
        table = csv.read_csv(
            io.BytesIO(content),
            read_options=csv.ReadOptions(autogenerate_column_names=headless),
            parse_options=csv.ParseOptions(delimiter=commas.decode()),
        )
    except (ValueError, OSError) as error:
        msg = f"{name} cannot be read as CSV: {error}"
        raise ValueError(msg) from error
    return _columns(table, name, target)


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(table: Any, name: str, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    columns = list(table.column_names)
    place = _target_place(columns, name, target)
    words, inputs = [], []
    for i, column in enumerate(columns):
        if i == place:
            continue
        values = table.column(i).to_numpy()
        if values.dtype.kind in "biuf":
            inputs.append(values.astype(np.float64))
        else:
            words.append(column)
    if words:
        msg = f"{name}: columns that are not numbers: {', '.join(words)}. Encode or drop them."
        raise ValueError(msg)
    if not inputs:
        msg = f"{name} has no column besides the target {columns[place]!r}."
        raise ValueError(msg)
    return np.stack(inputs, axis=1), table.column(place).to_numpy()


def _target_place(columns: list[str], name: str, target: str | None) -> int:
    if target is None:
        return len(columns) - 1
    if target in columns:
        return columns.index(target)
    if target.isdecimal() and int(target) < len(columns):
        return int(target)
    msg = f"{name} has no column {target!r}: its columns are {', '.join(columns)}."
    raise ValueError(msg)
