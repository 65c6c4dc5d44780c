"""Problems by name: an objective with its data, start and known optimum."""

from collections.abc import Callable

from optikit.problems.curves import (
    damped_oscillation,
    exponential_decay,
    exponential_sum,
    gaussian_peaks,
    logistic_growth,
    michaelis_menten,
)
from optikit.problems.cutest import cutest
from optikit.problems.data import DATA, Data, load
from optikit.problems.factorization import matrix_factorization
from optikit.problems.functions import (
    double_well,
    monkey_saddle,
    phase_retrieval,
    powell_singular,
    product_saddle,
    rosenbrock,
)
from optikit.problems.glm import (
    gamma_regression,
    huber_regression,
    linear_regression,
    logistic_regression,
    poisson_regression,
    quantile_regression,
    ridge_regression,
    smooth_quantile_regression,
    softmax_regression,
)
from optikit.problems.mgh import mgh
from optikit.problems.networks import mlp_classification, mlp_regression
from optikit.problems.problem import Problem, cast_floats
from optikit.problems.quadratics import hilbert, nesterov, quadratic
from optikit.problems.synthetic import synthetic_glm

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "cutest": cutest,
    "damped-oscillation": damped_oscillation,
    "double-well": double_well,
    "exponential-decay": exponential_decay,
    "exponential-sum": exponential_sum,
    "gamma-regression": gamma_regression,
    "gaussian-peaks": gaussian_peaks,
    "hilbert": hilbert,
    "huber-regression": huber_regression,
    "linear-regression": linear_regression,
    "logistic-growth": logistic_growth,
    "logistic-regression": logistic_regression,
    "matrix-factorization": matrix_factorization,
    "mgh": mgh,
    "michaelis-menten": michaelis_menten,
    "mlp-classification": mlp_classification,
    "mlp-regression": mlp_regression,
    "monkey-saddle": monkey_saddle,
    "nesterov": nesterov,
    "phase-retrieval": phase_retrieval,
    "poisson-regression": poisson_regression,
    "powell-singular": powell_singular,
    "product-saddle": product_saddle,
    "quadratic": quadratic,
    "quantile-regression": quantile_regression,
    "ridge-regression": ridge_regression,
    "rosenbrock": rosenbrock,
    "smooth-quantile-regression": smooth_quantile_regression,
    "softmax-regression": softmax_regression,
    "synthetic-glm": synthetic_glm,
}

__all__ = [
    "DATA",
    "PROBLEMS",
    "Data",
    "Problem",
    "cast_floats",
    "cutest",
    "damped_oscillation",
    "double_well",
    "exponential_decay",
    "exponential_sum",
    "gamma_regression",
    "gaussian_peaks",
    "hilbert",
    "huber_regression",
    "linear_regression",
    "load",
    "logistic_growth",
    "logistic_regression",
    "matrix_factorization",
    "mgh",
    "michaelis_menten",
    "mlp_classification",
    "mlp_regression",
    "monkey_saddle",
    "nesterov",
    "phase_retrieval",
    "poisson_regression",
    "powell_singular",
    "product_saddle",
    "quadratic",
    "quantile_regression",
    "ridge_regression",
    "rosenbrock",
    "smooth_quantile_regression",
    "softmax_regression",
    "synthetic_glm",
]
