"""From names and import paths to problems and optimizers; the place where JAX gets imported."""

import hashlib
import os
import reprlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from optikit.bench.plan import Job

_OBJECTS: dict[str, Any] = {}
"""Python objects of experiments in this process, by the name their jobs carry."""


def enter(label: str, given: Any) -> str:
    """A name for a Python object, the same for the same content."""
    name = f"object {label} {fingerprint(given)}"
    _OBJECTS[name] = given
    return name


def is_object(use: str) -> bool:
    """Whether a `use` names an object that was entered, rather than a factory."""
    return use.startswith("object ")


def fingerprint(given: Any) -> str:
    """A hash of what an object holds: arrays by content, functions by their compiled code."""
    digest = hashlib.sha256()
    _feed(digest, given, set())
    return digest.hexdigest()[:16]


def _feed(digest: Any, given: Any, seen: set[int]) -> None:
    if id(given) in seen:
        return
    if isinstance(given, (str, bytes, int, float, bool, type(None))):
        digest.update(repr(given).encode())
        return
    seen.add(id(given))
    digest.update(type(given).__qualname__.encode())
    if hasattr(given, "__array__"):
        array = np.asarray(given)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(given, types.CodeType):
        digest.update(given.co_code + repr(given.co_names).encode())
        for constant in given.co_consts:
            _feed(digest, constant, seen)
    elif isinstance(given, types.FunctionType):
        digest.update(given.__qualname__.encode())
        _feed(digest, given.__code__, seen)
        for cell in given.__closure__ or ():
            _feed(digest, cell.cell_contents, seen)
    elif isinstance(given, dict):
        for key, value in given.items():
            digest.update(repr(key).encode())
            _feed(digest, value, seen)
    elif isinstance(given, (tuple, list)):
        for value in given:
            _feed(digest, value, seen)
    elif hasattr(given, "__dict__"):
        _feed(digest, vars(given), seen)


def problem_of(job: Job) -> Any:
    """The problem of a job, as its factory makes it.

    Raises:
      TypeError: a factory that does not return a Problem, or does not take the arguments.
    """
    from optikit.problems import PROBLEMS, Problem

    if is_object(job.problem_use):
        made = _OBJECTS[job.problem_use]
    elif ":" in job.problem_use:
        made = _imported(job.problem_use)(**job.problem_arguments)
    else:
        made = PROBLEMS[job.problem_use.lower().replace("_", "-")](**job.problem_arguments)
    if not isinstance(made, Problem):
        msg = (
            f"{job.problem_use} returned {type(made).__name__}: a problem factory returns "
            "ok.Problem(objective, params, args)."
        )
        raise TypeError(msg)
    return made


def optimizer_of(job: Job) -> Any:
    """The optimizer of a job: ours, optax's, or a user's (an Optimizer or an optax transformation).

    Those of other libraries are no Optimizers: see `optikit.bench.peers`.

    Raises:
      TypeError: a factory that returns neither.
    """
    from optikit.optimizers import named
    from optikit.solve.minimize import Method, as_optimizer

    if is_object(job.optimizer_use):
        made = _OBJECTS[job.optimizer_use]
    elif ":" in job.optimizer_use:
        made = _imported(job.optimizer_use)(**job.optimizer_arguments)
        if not isinstance(made, Method):
            msg = (
                f"{job.optimizer_use} returned {type(made).__name__} {reprlib.repr(made)}: an "
                "optimizer factory returns an Optimizer or an optax transformation."
            )
            raise TypeError(msg)
    else:
        return named(job.optimizer_use, **job.optimizer_arguments)
    return as_optimizer(made, None, None, ())[0]  # type: ignore[arg-type]


def _imported(use: str) -> Callable[..., Any]:
    from optikit.problems.imported import imported

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return imported(use)
