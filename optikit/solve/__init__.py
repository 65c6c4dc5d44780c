"""Drivers: compiled loops that take an objective, a start and a method to a Solution."""

from optikit.solve.budget import Budget
from optikit.solve.checkpoint import Checkpoint
from optikit.solve.fit import fit
from optikit.solve.least_squares import least_squares
from optikit.solve.many import least_squares_many, minimize_many
from optikit.solve.minimize import minimize
from optikit.solve.response import Response, implicit_response
from optikit.solve.solution import Solution, Trace

__all__ = [
    "Budget",
    "Checkpoint",
    "Response",
    "Solution",
    "Trace",
    "fit",
    "implicit_response",
    "least_squares",
    "least_squares_many",
    "minimize",
    "minimize_many",
]
