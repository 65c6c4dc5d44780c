"""Problems by name: an objective with its data, start and known optimum."""

from collections.abc import Callable

from optikit.problems.data import DATA, Data, load
from optikit.problems.functions import (
    double_well,
    exponential_decay,
    powell_singular,
    quadratic,
    rosenbrock,
)
from optikit.problems.glm import linear_regression, logistic_regression, softmax_regression
from optikit.problems.networks import mlp_classification
from optikit.problems.problem import Problem, cast_floats

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "double-well": double_well,
    "exponential-decay": exponential_decay,
    "linear-regression": linear_regression,
    "logistic-regression": logistic_regression,
    "mlp-classification": mlp_classification,
    "powell-singular": powell_singular,
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "softmax-regression": softmax_regression,
}

__all__ = [
    "DATA",
    "PROBLEMS",
    "Data",
    "Problem",
    "cast_floats",
    "double_well",
    "exponential_decay",
    "linear_regression",
    "load",
    "logistic_regression",
    "mlp_classification",
    "powell_singular",
    "quadratic",
    "rosenbrock",
    "softmax_regression",
]
