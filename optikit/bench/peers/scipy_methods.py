"""scipy's minimisers with derivatives and its least squares, watched at every step.

Objective and derivatives are ours, compiled. Tolerances are zero, or the smallest a method accepts.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize

from optikit.bench.peers.host import Door, Ending, Watch

UNBOUNDED = 2**30
"""Iterations and evaluations a method may take; the watch ends it."""

TINY = float(np.finfo(np.float64).tiny)

_NO_TOLERANCE: dict[str, dict[str, Any]] = {
    "CG": {"gtol": 0.0},
    "BFGS": {"gtol": 0.0},
    "Newton-CG": {"xtol": 0.0},
    "L-BFGS-B": {"ftol": 0.0, "gtol": 0.0, "maxfun": UNBOUNDED},
    "TNC": {"ftol": 0.0, "gtol": 0.0, "xtol": 0.0, "maxfun": UNBOUNDED},
    "SLSQP": {"ftol": TINY},
    "dogleg": {"gtol": 0.0},
    "trust-ncg": {"gtol": 0.0},
    "trust-krylov": {"gtol": 0.0},
    "trust-exact": {"gtol": 0.0},
    "trust-constr": {"gtol": 0.0, "xtol": TINY},
}
_PRODUCTS = ("Newton-CG", "trust-ncg", "trust-krylov", "trust-constr")
_HESSIANS = ("dogleg", "trust-exact")


@dataclasses.dataclass(frozen=True)
class ScipyMinimizer:
    """A method of scipy.optimize.minimize; a step is a call of its callback."""

    method: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """As in a study."""
        return f"scipy:{self.method}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Functions of the door besides value_and_grad."""
        if self.method in _PRODUCTS:
            return ("product",)
        return ("hessian",) if self.method in _HESSIANS else ()

    def run(self, door: Door, start: np.ndarray, watch: Watch) -> Ending:
        """One run."""
        options = {"maxiter": UNBOUNDED, **_NO_TOLERANCE[self.method], **self.arguments}
        if self.method == "TNC":
            del options["maxiter"]  # its old name of maxfun
        second: dict[str, Any] = {}
        if self.method in _PRODUCTS:
            second["hessp"] = door.product
        if self.method in _HESSIANS:
            second["hess"] = door.hessian
        found: Any = optimize.minimize(
            door.value_and_grad, start, jac=True, method=self.method, options=options,
            callback=lambda xk, *_: watch(xk), **second,
        )  # fmt: skip
        return Ending(found.x, bool(found.success), str(found.message))


@dataclasses.dataclass(frozen=True)
class ScipyLeastSquares:
    """A method of scipy.optimize.least_squares; a step ends where the Jacobian is evaluated."""

    method: str
    arguments: dict[str, Any]
    needs: tuple[str, ...] = ("residuals", "jacobian")

    @property
    def name(self) -> str:
        """As in a study."""
        return f"scipy:{self.method}"

    def run(self, door: Door, start: np.ndarray, watch: Watch) -> Ending:
        """One run."""
        at = start  # lm evaluates its first Jacobian twice

        def jacobian(x: np.ndarray) -> np.ndarray:
            nonlocal at
            if not np.array_equal(x, at):
                watch(x)
                at = np.copy(x)
            return door.jacobian(x)

        # it refuses tolerances below eps, where none would change what it does
        eps = float(np.finfo(np.float64).eps)
        found = optimize.least_squares(
            door.residuals, start, jac=jacobian, method=self.method, max_nfev=UNBOUNDED,
            ftol=eps, xtol=eps, gtol=eps, **self.arguments,
        )  # fmt: skip
        return Ending(found.x, bool(found.success), str(found.message))


def scipy_method(method: str, arguments: dict[str, Any]) -> ScipyMinimizer | ScipyLeastSquares:
    """A method by scipy's name."""
    kind = ScipyMinimizer if method in _NO_TOLERANCE else ScipyLeastSquares
    return kind(method, arguments)
