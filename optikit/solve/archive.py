"""A pytree of arrays in one safetensors file that is whole or not there.

Each array is stored under its path. What the format or its NumPy reader does not know is stored as
something it does, and the header says what it was: a typed PRNG key as its key data, bfloat16 and
the like as integers of their width.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from optikit.solve.placement import fetched

NATIVE = {
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
}


class DamagedError(Exception):
    """A file is torn, or not what was written."""


class Archive(NamedTuple):
    """What a file holds: arrays by path, what they were, and a dict of plain data."""

    arrays: dict[str, Any]
    kinds: dict[str, str]
    meta: dict[str, Any]


def packed(tree: Any, meta: dict[str, Any], held: Callable[[Any], Any] = fetched) -> Archive:
    """A pytree as it is written, by default on the host, in copies the next step leaves alone."""
    arrays, kinds = {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = name_of(path)
        kinds[name] = kind_of(leaf)
        if kinds[name].startswith("key "):
            leaf = jax.random.key_data(leaf)
        array = held(leaf)
        if array.dtype.name not in NATIVE:
            array = array.view(f"uint{8 * array.dtype.itemsize}")
        arrays[name] = array
    return Archive(arrays, kinds, meta)


def unpacked(archive: Archive, template: Any, *, where: str) -> Any:
    """The arrays in the structure of a template.

    Raises:
      ValueError: they are others than the template's; the first is named.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    expected = {name_of(path): leaf for path, leaf in paths}
    for name, leaf in expected.items():
        held = _described(archive, name)
        needed = f"{kind_of(leaf)}{list(leaf.shape)}"
        if held != needed:
            _mismatch(where, name, held, needed)
    held = [name for name in archive.kinds if name in archive.arrays]  # in the order of the pytree
    extra = next((name for name in held if name not in expected), None)
    if extra is not None:
        _mismatch(where, extra, _described(archive, extra), "nothing")
    return jax.tree.unflatten(structure, [_restored(archive, name) for name in expected])


def _mismatch(where: str, name: str, held: str, needed: str) -> None:
    msg = (
        f"{where} was written by another fit: {name} is {held} there, and {needed} in this one. "
        "Go on with the params and the method it was written with, or give another folder."
    )
    raise ValueError(msg)


def write(archive: Archive, path: pathlib.Path) -> None:
    """The file, by a temporary one beside it, fsync and rename."""
    meta = {"meta": archive.meta, "kinds": archive.kinds, "checksum": _checksum(archive.arrays)}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(archive.arrays, name, metadata={"optikit": json.dumps(meta)})
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        pathlib.Path(name).replace(path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot, and need not
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: pathlib.Path) -> Archive:
    """What a file holds.

    Raises:
      DamagedError: it is torn, changed, or none of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["optikit"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DamagedError(str(error)) from error
    if _checksum(arrays) != header["checksum"]:
        msg = "the checksum does not fit"
        raise DamagedError(msg)
    return Archive(arrays, header["kinds"], header["meta"])


def name_of(path: tuple) -> str:
    """A path as text, e.g. params['w'][0]."""
    return jax.tree_util.keystr(path).lstrip(".")


def kind_of(leaf: Any) -> str:
    """The dtype, or what makes a typed key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(leaf)}"
    return np.dtype(leaf.dtype).name


def _described(archive: Archive, name: str) -> str:
    if name not in archive.arrays:
        return "nothing"
    kind, shape = archive.kinds[name], list(archive.arrays[name].shape)
    return f"{kind}{shape[:-1] if kind.startswith('key ') else shape}"


def _restored(archive: Archive, name: str) -> Any:
    kind, array = archive.kinds[name], archive.arrays[name]
    if kind.startswith("key "):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind.removeprefix("key "))
    return jnp.array(array.view(jnp.dtype(kind)))


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        flat = np.ascontiguousarray(arrays[name]).reshape(-1)
        total = zlib.crc32(flat.view(np.uint8).data, total)
    return total
