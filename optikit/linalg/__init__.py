"""Inner solvers: how a quadratic model is minimised, and what that costs."""

from optikit.linalg.bracket import lower_bound
from optikit.linalg.cg import conjugate_gradients
from optikit.linalg.dense import cholesky
from optikit.linalg.dogleg import dogleg
from optikit.linalg.exact import exact
from optikit.linalg.krylov import krylov
from optikit.linalg.lanczos import Ritz, lanczos
from optikit.linalg.least_squares import qr
from optikit.linalg.modified import modified_cholesky
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem

__all__ = [
    "Direction",
    "Inner",
    "Model",
    "Ritz",
    "Subproblem",
    "cholesky",
    "conjugate_gradients",
    "dogleg",
    "exact",
    "krylov",
    "lanczos",
    "lower_bound",
    "modified_cholesky",
    "qr",
]
