"""Per-example losses with their output-space curvature, and penalties. `LOSSES` names them all."""

from optikit.losses import robust
from optikit.losses.base import Loss, from_value, sample_labels
from optikit.losses.classification import (
    focal,
    logistic,
    smoothed_hinge,
    softmax_cross_entropy,
    squared_hinge,
)
from optikit.losses.penalties import Penalty, l2, smooth_l1
from optikit.losses.reduction import expand_weights, summed, weighted_mean
from optikit.losses.regression import (
    gamma,
    huber,
    log_cosh,
    poisson,
    quantile,
    smooth_quantile,
    squared_error,
)
from optikit.losses.robust import Robust

LOSSES: dict[str, Loss] = {
    "focal": focal,
    "gamma": gamma,
    "huber": huber,
    "log_cosh": log_cosh,
    "logistic": logistic,
    "poisson": poisson,
    "quantile": quantile,
    "smooth_quantile": smooth_quantile,
    "smoothed_hinge": smoothed_hinge,
    "softmax_cross_entropy": softmax_cross_entropy,
    "squared_error": squared_error,
    "squared_hinge": squared_hinge,
}

__all__ = [
    "LOSSES",
    "Loss",
    "Penalty",
    "Robust",
    "expand_weights",
    "focal",
    "from_value",
    "gamma",
    "huber",
    "l2",
    "log_cosh",
    "logistic",
    "poisson",
    "quantile",
    "robust",
    "sample_labels",
    "smooth_l1",
    "smooth_quantile",
    "smoothed_hinge",
    "softmax_cross_entropy",
    "squared_error",
    "squared_hinge",
    "summed",
    "weighted_mean",
]
