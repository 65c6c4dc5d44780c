"""Which methods of which libraries can enter a study, and what they take; read without JAX.

A study names them `library:method`, as in `use: scipy:trust-exact`. Their arguments are declared
here, because a library's own signature also holds what the harness decides: tolerances, limits,
callbacks.
"""

import difflib
import functools
import importlib.metadata
import importlib.util
import pathlib
from typing import NamedTuple

from optikit.bench.signature import Parameter, Signature


class Library(NamedTuple):
    """A library of optimizers.

    Attributes:
      package: the module that has to be installed; distribution: what it is installed as.
      extra: optikit's extra that brings it.
      steps: what one step of a trial is.
      methods: by the library's own name, each with the arguments a study may give.
    """

    package: str
    distribution: str
    extra: str
    steps: str
    methods: dict[str, tuple[Parameter, ...]]


def _of(name: str, *types: type) -> Parameter:
    return Parameter(name, types, (), False)


def _among(name: str, *choices: str) -> Parameter:
    return Parameter(name, (), choices, False)


_WOLFE = (_of("c1", float), _of("c2", float))
_RADII = (_of("initial_trust_radius", float), _of("max_trust_radius", float), _of("eta", float))
_FIT = (_among("x_scale", "jac"),)
_JAXOPT_SEARCH = (
    _among("linesearch", "zoom", "backtracking", "hager-zhang"),
    _among("linesearch_init", "increase", "max", "current"),
    _of("maxls", int),
    _of("max_stepsize", float),
)
_BFGS = (_of("use_inverse", bool),)

LIBRARIES: dict[str, Library] = {
    "scipy": Library(
        "scipy",
        "scipy",
        "peers",
        "an iteration as the method counts its own; for lm, trf and dogbox an accepted step, at "
        "which the Jacobian is evaluated",
        {
            "CG": _WOLFE,
            "BFGS": _WOLFE,
            "Newton-CG": _WOLFE,
            "L-BFGS-B": (_of("maxcor", int), _of("maxls", int)),
            "TNC": (_of("maxCGit", int), _of("eta", float), _of("stepmx", float)),
            "SLSQP": (),
            "dogleg": _RADII,
            "trust-ncg": _RADII,
            "trust-krylov": _RADII,
            "trust-exact": _RADII,
            "trust-constr": (_of("initial_tr_radius", float),),
            "lm": _FIT,
            "trf": (*_FIT, _among("tr_solver", "exact", "lsmr")),
            "dogbox": (*_FIT, _among("tr_solver", "exact", "lsmr")),
        },
    ),
    "sklearn": Library(
        "sklearn",
        "scikit-learn",
        "bench",
        "an iteration of fit(max_iter=...), for sag and saga a pass over the data; a direct solver "
        "is one step",
        dict.fromkeys(
            ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga", "svd", "cholesky", "lsqr"), ()
        ),
    ),
    "jaxopt": Library(
        "jaxopt",
        "jaxopt",
        "peers",
        "a call of update",
        {
            "LBFGS": (*_JAXOPT_SEARCH, _of("history_size", int), _of("use_gamma", bool)),
            "BFGS": _JAXOPT_SEARCH,
            "NonlinearCG": (
                *_JAXOPT_SEARCH,
                _among("method", "polak-ribiere", "fletcher-reeves", "hestenes-stiefel"),
            ),
            "GradientDescent": (
                _of("stepsize", float), _of("acceleration", bool), _of("maxls", int),
            ),
            "GaussNewton": (),
            "LevenbergMarquardt": (
                _among("solver", "cholesky", "lu", "qr", "inv"), _of("materialize_jac", bool),
                _of("damping_parameter", float), _of("geodesic", bool),
            ),
        },
    ),
    "optimistix": Library(
        "optimistix",
        "optimistix",
        "peers",
        "a call of step: one trial point, accepted or not",
        {
            "BFGS": _BFGS,
            "DFP": _BFGS,
            "LBFGS": (*_BFGS, _of("history_length", int)),
            "NonlinearCG": (),
            "GradientDescent": (Parameter("learning_rate", (float,), (), True),),
            "GaussNewton": (),
            "LevenbergMarquardt": (),
            "IndirectLevenbergMarquardt": (),
            "Dogleg": (),
        },
    ),
}  # fmt: skip


REFUSED = {
    "sklearn:liblinear": "it penalises the intercept and keeps its oracle calls to itself",
    "sklearn:sparse_cg": "it does not say how many iterations it took; sklearn:lsqr does",
}
"""Methods that exist and cannot be measured, and why."""


def is_peer(use: str) -> bool:
    """Whether a `use` names another library's method."""
    return use.partition(":")[0] in LIBRARIES and ":" in use


def complaint(use: str) -> str:
    """What is wrong with a peer's name, or an empty string."""
    name, _, method = use.partition(":")
    library = LIBRARIES[name]
    if use in REFUSED:
        return f"{use} is refused: {REFUSED[use]}"
    if method not in library.methods:
        plain = {known.lower(): known for known in library.methods}
        close = difflib.get_close_matches(method.lower(), plain, 1, 0.5)
        known = ", ".join(library.methods)
        hint = f"did you mean '{name}:{plain[close[0]]}'?" if close else f"it has {known}"
        return f"{name} has no method {method!r} here: {hint}"
    if importlib.util.find_spec(library.package) is None:
        return f"{name} is not installed: pip install 'optikit[{library.extra}]'"
    return ""


@functools.cache
def declared(use: str) -> Signature:
    """The arguments a study may give a peer that exists."""
    name, _, method = use.partition(":")
    library = LIBRARIES[name]
    summary = f"{library.distribution}'s {method}"
    return Signature(library.methods[method], False, summary, pathlib.Path(__file__))


COUNTED = "counted"
"""What `about` says of oracle calls that were seen, not worked out."""


def about(use: str, calls: str = COUNTED) -> dict[str, str]:
    """For a record: the library with its version, what one of its steps is, whence its calls."""
    library = LIBRARIES[use.partition(":")[0]]
    told = f"{library.distribution} {version(use)}"
    return {"library": told, "step": library.steps, "calls": calls}


def version(use: str) -> str:
    """The version of a peer's library; empty if it is not installed."""
    try:
        return importlib.metadata.version(LIBRARIES[use.partition(":")[0]].distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
