"""Optimizers: the step protocol, every method by name, and optax in and out.

`OPTIMIZERS` maps a name to a factory. Any other name is looked up among optax's own.
"""

import difflib
import inspect
from collections.abc import Callable

import optax

from optikit.core import memoized
from optikit.optimizers.adahessian import adahessian
from optikit.optimizers.averaged import averaged
from optikit.optimizers.bfgs import bfgs
from optikit.optimizers.bounded import bounded_newton, bounded_newton_cg
from optikit.optimizers.bounded_lbfgs import bounded_lbfgs
from optikit.optimizers.bounded_least_squares import bounded_levenberg_marquardt
from optikit.optimizers.cubic import cubic
from optikit.optimizers.dogleg import dogleg
from optikit.optimizers.gradient_descent import gradient_descent
from optikit.optimizers.groups import groups
from optikit.optimizers.hessian_free import ggn_cg, hessian_free
from optikit.optimizers.lbfgs import lbfgs
from optikit.optimizers.levenberg_marquardt import levenberg_marquardt
from optikit.optimizers.muon import muon
from optikit.optimizers.natural_gradient import natural_gradient
from optikit.optimizers.newton import fisher_scoring, newton
from optikit.optimizers.nonlinear_cg import nonlinear_cg
from optikit.optimizers.optax_bridge import as_optax, from_optax
from optikit.optimizers.protocol import Bounded, Optimizer, StepInfo
from optikit.optimizers.psgd_kron import psgd_kron
from optikit.optimizers.second_order import (
    gauss_newton,
    newton_cg,
    second_order,
    trust_region_exact,
    trust_region_newton,
)
from optikit.optimizers.shampoo import shampoo
from optikit.optimizers.sketchy_sgd import sketchy_sgd
from optikit.optimizers.soap import soap
from optikit.optimizers.sophia import sophia
from optikit.optimizers.sr1 import sr1
from optikit.optimizers.subsampled_newton import subsampled_newton


@memoized
def adam(
    learning_rate: float = 1e-3, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Optimizer:
    """optax.adam, unmodified. Reference: Kingma & Ba (2015)."""
    return from_optax(optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), name="adam")


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adahessian": adahessian,
    "adam": adam,
    "bfgs": bfgs,
    "cubic": cubic,
    "dogleg": dogleg,
    "fisher-scoring": fisher_scoring,
    "gauss-newton": gauss_newton,
    "ggn-cg": ggn_cg,
    "gradient-descent": gradient_descent,
    "hessian-free": hessian_free,
    "lbfgs": lbfgs,
    "levenberg-marquardt": levenberg_marquardt,
    "muon": muon,
    "natural-gradient": natural_gradient,
    "newton": newton,
    "newton-cg": newton_cg,
    "nonlinear-cg": nonlinear_cg,
    "psgd-kron": psgd_kron,
    "shampoo": shampoo,
    "sketchy-sgd": sketchy_sgd,
    "soap": soap,
    "sophia": sophia,
    "sr1": sr1,
    "subsampled-newton": subsampled_newton,
    "trust-region": trust_region_newton,
    "trust-region-exact": trust_region_exact,
}

ALIASES = {"irls": "fisher-scoring"}
"""Other names that a field has for a method."""

BOUNDED: dict[str, Callable[..., Bounded]] = {
    "lbfgs": bounded_lbfgs,
    "levenberg-marquardt": bounded_levenberg_marquardt,
    "newton": bounded_newton,
    "newton-cg": bounded_newton_cg,
}
"""The methods that take bounds, by their names in `minimize` and `least_squares`."""

DEFAULT_LEARNING_RATE = 1e-3
"""For methods of optax that are named without hyperparameters and require a learning rate."""


def named(name: str, **hyperparameters) -> Optimizer:
    """The optimizer of a name, ours or optax's (`"adamw"`, `"lion"`, `"optax.lbfgs"`, ...).

    Raises:
      ValueError: there is none; the nearest names are suggested.
      TypeError: it does not take these hyperparameters.

    Example:
      >>> named("newton-cg", max_iters=20).name
      'newton-cg'
    """
    wanted = name.lower().replace("_", "-")
    wanted = ALIASES.get(wanted, wanted)
    if wanted in OPTIMIZERS:
        return OPTIMIZERS[wanted](**hyperparameters)
    factory = optax_factory(name)
    if factory is None:
        known = [*OPTIMIZERS, *optax_names()]
        close = difflib.get_close_matches(wanted, known, 3, 0.6)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
        msg = f"unknown method {name!r}: {hint or f'choose from {sorted(OPTIMIZERS)} or optax.'}"
        raise ValueError(msg)
    return _from_factory(factory, name, **hyperparameters)


@memoized
def _from_factory(factory: Callable, name: str, **hyperparameters) -> Optimizer:
    rate = inspect.signature(factory).parameters.get("learning_rate")
    if rate is not None and rate.default is rate.empty:
        hyperparameters.setdefault("learning_rate", DEFAULT_LEARNING_RATE)
    return from_optax(factory(**hyperparameters), name=name)


def optax_factory(name: str) -> Callable | None:
    """Optax's optimizer factory of that name (with or without "optax."), or None."""
    plain = name.removeprefix("optax.").lower().replace("-", "_")
    if plain not in optax_names():
        return None
    return getattr(optax, plain, None) or getattr(optax.contrib, plain)


def optax_names() -> list[str]:
    """The names of optax's optimizers, plain and contributed."""
    from optax import contrib

    found = []
    for module in (optax, contrib):
        for name, factory in vars(module).items():
            if inspect.isfunction(factory) and not name.startswith(("_", "scale_by")):
                parameters = inspect.signature(factory).parameters
                if "learning_rate" in parameters and name not in found:
                    found.append(name)
    return sorted(found)


__all__ = [
    "BOUNDED",
    "OPTIMIZERS",
    "Bounded",
    "Optimizer",
    "StepInfo",
    "adahessian",
    "adam",
    "as_optax",
    "averaged",
    "bfgs",
    "bounded_lbfgs",
    "bounded_levenberg_marquardt",
    "bounded_newton",
    "bounded_newton_cg",
    "cubic",
    "dogleg",
    "fisher_scoring",
    "from_optax",
    "gauss_newton",
    "ggn_cg",
    "gradient_descent",
    "groups",
    "hessian_free",
    "lbfgs",
    "levenberg_marquardt",
    "muon",
    "named",
    "natural_gradient",
    "newton",
    "newton_cg",
    "nonlinear_cg",
    "optax_names",
    "psgd_kron",
    "second_order",
    "shampoo",
    "sketchy_sgd",
    "soap",
    "sophia",
    "sr1",
    "subsampled_newton",
    "trust_region_exact",
    "trust_region_newton",
]
