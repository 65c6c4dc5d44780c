"""Problems by name: an objective with its data, start and known optimum."""

from collections.abc import Callable

from optikit.problems.autoencoder import deep_autoencoder
from optikit.problems.batches import epochs, windows
from optikit.problems.convolutional import conv_classifier
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
from optikit.problems.networks import (
    mlp_classification,
    mlp_regression,
    overparameterized_regression,
)
from optikit.problems.pinn import pinn_heat, pinn_poisson
from optikit.problems.problem import Metric, Problem, cast_floats
from optikit.problems.quadratics import hilbert, nesterov, quadratic
from optikit.problems.quantum import neural_quantum_state
from optikit.problems.synthetic import synthetic_glm
from optikit.problems.text import TEXTS, load_text
from optikit.problems.transformer import char_transformer

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "char-transformer": char_transformer,
    "conv-classifier": conv_classifier,
    "cutest": cutest,
    "damped-oscillation": damped_oscillation,
    "deep-autoencoder": deep_autoencoder,
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
    "neural-quantum-state": neural_quantum_state,
    "overparameterized-regression": overparameterized_regression,
    "phase-retrieval": phase_retrieval,
    "pinn-heat": pinn_heat,
    "pinn-poisson": pinn_poisson,
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
    "TEXTS",
    "Data",
    "Metric",
    "Problem",
    "cast_floats",
    "char_transformer",
    "conv_classifier",
    "cutest",
    "damped_oscillation",
    "deep_autoencoder",
    "double_well",
    "epochs",
    "exponential_decay",
    "exponential_sum",
    "gamma_regression",
    "gaussian_peaks",
    "hilbert",
    "huber_regression",
    "linear_regression",
    "load",
    "load_text",
    "logistic_growth",
    "logistic_regression",
    "matrix_factorization",
    "mgh",
    "michaelis_menten",
    "mlp_classification",
    "mlp_regression",
    "monkey_saddle",
    "nesterov",
    "neural_quantum_state",
    "overparameterized_regression",
    "phase_retrieval",
    "pinn_heat",
    "pinn_poisson",
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
    "windows",
]
