"""CUTEst's unconstrained problems, from the optional package sif2jax.

Importing sif2jax as a whole instantiates some 840 problems (tens of seconds) and switches JAX to
float64 for the entire process. Here only the module of the problem asked for is loaded, so that a
trial starts at once and its process keeps its precision. The package's own optima are not taken
over: several do not belong to their function; a long solve finds the reference instead.
"""

import importlib
import importlib.util
import pathlib
import re
import sys
import types
from typing import Any

import jax
import numpy as np

from optikit.calculus import black_box
from optikit.core import memoized
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least

_PACKAGE = "sif2jax"
_UNCONSTRAINED = f"{_PACKAGE}.cutest._unconstrained_minimisation"


def cutest(name: str, n: int | None = None, start: int | None = None) -> Problem:
    """An unconstrained CUTEst problem by its SIF name (ROSENBR, ARWHEAD, ...); needs sif2jax.

    Args:
      name: upper case, as in CUTEst.
      n: the number of variables, where the problem has that field; its default otherwise.
      start: which of the problem's starting points, where there are several.

    Raises:
      ImportError: sif2jax is not installed.
      ValueError: no unconstrained problem of that name, or not in that size.

    Reference: Gould, Orban & Toint (2015), "CUTEst: a constrained and unconstrained testing
    environment with safe threads".
    """
    at_least(1, n=n)
    problem, fun = _loaded(name, n, start)
    with jax.enable_x64(True):  # start and data exact, whatever the trial's dtype
        begin, data = jax.tree.map(np.asarray, (problem.y0, problem.args))
    return Problem(
        black_box(fun), begin, () if data is None else (data,), description=f"CUTEst {name}"
    )


@memoized
def _loaded(name: str, n: int | None, start: int | None) -> tuple[Any, Any]:
    """The problem and its objective; the same ones again for the same arguments."""
    kind = getattr(_module_of(name), name)
    fields = {"n": n, "y0_iD": start}
    given = {key: value for key, value in fields.items() if value is not None}
    known = getattr(kind, "__dataclass_fields__", {})
    for key in given:
        if key not in known:
            msg = f"{name} comes in one size: leave n out (got {n})."
            raise ValueError(msg)
    if start is not None and start not in kind.provided_y0s:
        msg = f"{name} has the starts {sorted(kind.provided_y0s)}; got {start}."
        raise ValueError(msg)
    problem = kind(**given)
    if problem.args is None:
        return problem, lambda x: problem.objective(x, None).astype(x.dtype)
    return problem, lambda x, args: problem.objective(x, args).astype(x.dtype)


def _module_of(name: str) -> types.ModuleType:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        msg = "CUTEst problems come with sif2jax: pip install 'optikit[peers]'."
        raise ImportError(msg)
    root = pathlib.Path(spec.submodule_search_locations[0])
    folder = root / "cutest" / "_unconstrained_minimisation"
    declared = re.compile(rf"^class {re.escape(name)}\(", re.MULTILINE)
    # its own file first: a base class of another may bear the same name
    for file in sorted(folder.glob("*.py"), key=lambda f: (f.stem != name.lower(), f.stem)):
        if declared.search(file.read_text(encoding="utf-8")):
            return _import_alone(root, f"{_UNCONSTRAINED}.{file.stem}")
    msg = (
        f"sif2jax has no unconstrained problem {name!r} (names are upper case, as in CUTEst; "
        "bounds and constraints are not offered)."
    )
    raise ValueError(msg)


def _import_alone(root: pathlib.Path, module: str) -> types.ModuleType:
    """A module of the package without its parents' import side effects.

    Its parents stand in as empty packages while it is loaded; none of it stays in sys.modules, so
    that a later `import sif2jax` finds the whole.
    """
    if _PACKAGE in sys.modules:
        return importlib.import_module(module)
    parents = [_PACKAGE, f"{_PACKAGE}.cutest", _UNCONSTRAINED]
    try:
        for parent in parents:
            package = types.ModuleType(parent)
            package.__path__ = [str(root.joinpath(*parent.split(".")[1:]))]
            sys.modules[parent] = package
        return importlib.import_module(module)
    finally:
        for loaded in [m for m in sys.modules if m.split(".")[0] == _PACKAGE]:
            del sys.modules[loaded]
