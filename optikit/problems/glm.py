"""Linear models on data: regression, binary and multiclass classification.

Features are standardised; a bias is fitted and not penalised. The start is zero.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit import losses
from optikit.calculus import composite
from optikit.core import Params
from optikit.problems.data import load, standardised
from optikit.problems.problem import Problem


def linear_model(params: Params, inputs: Float[Array, "m d"]) -> Float[Array, "m *k"]:
    """X w + b, for weights (d,) or (d, K)."""
    outputs = inputs @ params["weights"]
    return outputs + jnp.broadcast_to(params["bias"], outputs.shape)


def linear_regression(
    data: str = "diabetes", l2: float = 0.0, loss: str = "squared_error"
) -> Problem:
    """Least-squares (or robust) regression on standardised features and targets.

    Args:
      data: a data set's name or import path; integer targets are taken as numbers.
      l2: coefficient of |weights|^2 / 2.
      loss: a regression loss: squared_error, huber, log_cosh, smooth_quantile, ...
    """
    rows = load(data)
    targets = standardised(rows.targets.astype(np.float64)[:, None])[:, 0]
    return _linear(rows.inputs, targets, 0, losses.LOSSES[loss], l2, f"{loss} on {data}")


def logistic_regression(data: str = "breast_cancer", l2: float = 1e-4) -> Problem:
    """Binary logistic regression: mean cross-entropy + l2 |weights|^2 / 2.

    Raises:
      ValueError: the data does not have two classes.
    """
    rows = load(data)
    if rows.classes != 2:
        msg = (
            f"logistic regression needs two classes; {data!r} has {rows.classes or 'real targets'}."
        )
        raise ValueError(msg)
    targets = rows.targets.astype(np.float64)
    return _linear(rows.inputs, targets, 0, losses.logistic, l2, f"logistic on {data}")


def softmax_regression(data: str = "digits", l2: float = 1e-4) -> Problem:
    """Multiclass logistic regression with one weight vector per class.

    Raises:
      ValueError: the data has real targets.
    """
    rows = load(data)
    if rows.classes < 2:
        msg = f"softmax regression needs classes; {data!r} has real targets."
        raise ValueError(msg)
    return _linear(
        rows.inputs,
        rows.targets,
        rows.classes,
        losses.softmax_cross_entropy,
        l2,
        f"softmax on {data}",
    )


def _linear(
    inputs: np.ndarray, targets: Any, classes: int, loss: losses.Loss, l2: float, description: str
) -> Problem:
    inputs = standardised(inputs)
    outputs = (classes,) if classes else ()
    params = {
        "weights": np.zeros((inputs.shape[1], *outputs)),
        "bias": np.zeros(outputs),
    }
    penalty = losses.l2({"weights": l2, "bias": 0.0}) if l2 else None
    objective = composite(linear_model, loss, penalty=penalty)
    return Problem(objective, params, (inputs, targets), description=description)
