"""Objectives, the oracle that counts their derivatives, and derivatives as public functions."""

from optikit.calculus.accumulate import accumulate
from optikit.calculus.check import DerivativeReport, check_derivatives
from optikit.calculus.derivatives import (
    Jacobian,
    empirical_fisher,
    fisher,
    ggn,
    grad,
    hessian,
    hvp,
    jacobian,
    per_example_grads,
    value_and_grad,
)
from optikit.calculus.objective import Objective, black_box, composite, residuals, variational
from optikit.calculus.oracle import Eval, Oracle, bind

__all__ = [
    "DerivativeReport",
    "Eval",
    "Jacobian",
    "Objective",
    "Oracle",
    "accumulate",
    "bind",
    "black_box",
    "check_derivatives",
    "composite",
    "empirical_fisher",
    "fisher",
    "ggn",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "per_example_grads",
    "residuals",
    "value_and_grad",
    "variational",
]
