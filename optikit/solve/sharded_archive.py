"""An archive in a folder written by Orbax: each process writes the parts of arrays that it holds.

For states that are split over hosts, which one safetensors file would first gather on one of them.
Orbax (the extra `orbax`) marks a folder when it is whole, and refuses half a one. The arrays are
numbered, since their paths are no names of files; those without an element, which Orbax does not
write, are in the header alone.
"""

import pathlib
from types import ModuleType
from typing import Any

import jax
import numpy as np

from optikit.solve.archive import Archive, DamagedError


def write(archive: Archive, path: pathlib.Path) -> None:
    """The folder; every process must call, and all must see the same path.

    Raises:
      ImportError: Orbax is not installed.
    """
    ocp, arrays = library(), list(archive.arrays.values())
    header = {
        "meta": archive.meta,
        "kinds": archive.kinds,
        "arrays": [[name, list(a.shape), a.dtype.name] for name, a in archive.arrays.items()],
    }
    held = {str(i): array for i, array in enumerate(arrays) if array.size > 0}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        parts: dict[str, Any] = {"header": ocp.args.JsonSave(header)}
        if held:
            parts["arrays"] = ocp.args.PyTreeSave(held)
        checkpointer.save(path.absolute(), ocp.args.Composite(**parts), force=True)


def read(path: pathlib.Path) -> Archive:
    """What a folder holds, whole, in every process that asks.

    Raises:
      DamagedError: it is torn, or none of ours.
      ImportError: Orbax is not installed.
    """
    ocp, process = library(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"of{process}"
    )
    try:
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            asked = ocp.args.Composite(header=ocp.args.JsonRestore())
            header = checkpointer.restore(path.absolute(), asked)["header"]
            held = [i for i, (_, shape, _) in enumerate(header["arrays"]) if 0 not in shape]
            found: dict[str, np.ndarray] = {}
            if held:
                plain = {str(i): ocp.RestoreArgs(restore_type=np.ndarray) for i in held}
                asked = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=plain))
                found = checkpointer.restore(path.absolute(), asked)["arrays"]
        arrays = {
            name: np.asarray(found.get(str(i), np.zeros(shape, dtype))).reshape(shape)
            for i, (name, shape, dtype) in enumerate(header["arrays"])
        }
        return Archive(arrays, header["kinds"], header["meta"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from error


def part(leaf: Any) -> Any:
    """A leaf as this process writes it: what others hold a part of stays where it is."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    return np.array(leaf)


def library() -> ModuleType:
    """Orbax, which takes a second to import.

    Raises:
      ImportError: it is not installed; the message says how to.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        msg = "format='orbax' needs the extra `orbax`: pip install 'optikit[orbax]'."
        raise ImportError(msg) from error
    return ocp
