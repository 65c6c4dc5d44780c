"""Linear models on data: regression, counts, positive targets, two and more classes.

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


def linear_problem(
    inputs: np.ndarray, targets: Any, classes: int, loss: losses.Loss, l2: float, description: str
) -> Problem:
    """A linear model on inputs as they are; classes above 2 for one weight vector each."""
    outputs = (classes,) if classes else ()
    params = {
        "weights": np.zeros((inputs.shape[1], *outputs)),
        "bias": np.zeros(outputs),
    }
    penalty = losses.l2({"weights": l2, "bias": 0.0}) if l2 else None
    objective = composite(linear_model, loss, penalty=penalty)
    return Problem(objective, params, (inputs, targets), description=description)


def linear_regression(
    data: str = "diabetes", l2: float = 0.0, loss: str = "squared_error"
) -> Problem:
    """Least-squares (or robust) regression on standardised features and targets.

    Args:
      data: a data set's name or address; integer targets are taken as numbers.
      l2: coefficient of |weights|^2 / 2.
      loss: a regression loss: squared_error, huber, log_cosh, smooth_quantile, ...
    """
    return _real(data, losses.LOSSES[loss], l2)


def ridge_regression(data: str = "diabetes", l2: float = 1e-2) -> Problem:
    """Mean squared error + l2 |weights|^2 / 2, on standardised features and targets.

    Args:
      data: a data set's name or address; integer targets are taken as numbers.
      l2: the coefficient; scikit-learn's Ridge(alpha) is l2 = 2 alpha / examples.
    """
    return _real(data, losses.squared_error, l2)


def huber_regression(data: str = "diabetes", delta: float = 1.0, l2: float = 0.0) -> Problem:
    """Huber's loss: quadratic within delta of the target, linear beyond; standardised targets.

    Args:
      data: a data set's name or address.
      delta: in standard deviations of the target.
      l2: coefficient of |weights|^2 / 2.
    """
    return _real(data, losses.huber(delta=delta), l2)


def quantile_regression(data: str = "diabetes", q: float = 0.5, l2: float = 0.0) -> Problem:
    """The pinball loss of the q-quantile, exactly: NOT smooth, with kinks at every minimiser.

    Its Hessian is zero wherever it exists; methods that need a gradient at the minimum, or any
    curvature, cannot converge on it. `smooth_quantile_regression` is its smooth neighbour.

    Args:
      data: a data set's name or address.
      q: the quantile, in (0, 1).
      l2: coefficient of |weights|^2 / 2.

    Reference: Koenker & Bassett (1978), "Regression quantiles".
    """
    return _real(data, losses.quantile(q=_quantile(q)), l2)


def smooth_quantile_regression(
    data: str = "diabetes", q: float = 0.5, width: float = 0.1, l2: float = 0.0
) -> Problem:
    """The pinball loss of the q-quantile, smoothed: everywhere within width log 2 of it.

    Args:
      data: a data set's name or address.
      q: the quantile, in (0, 1).
      width: of the rounded kink, in standard deviations of the target; curvature is up to
        1 / (4 width).
      l2: coefficient of |weights|^2 / 2.
    """
    return _real(data, losses.smooth_quantile(q=_quantile(q), width=width), l2)


def poisson_regression(data: str = "diabetes", l2: float = 1e-4) -> Problem:
    """Poisson regression with log link: mean of exp(o) - t o, + l2 |weights|^2 / 2.

    Args:
      data: a data set's name or address, with targets that are not negative; not standardised.
      l2: coefficient of |weights|^2 / 2.

    Raises:
      ValueError: a negative target.
    """
    return _positive(data, losses.poisson, l2, least=0.0)


def gamma_regression(data: str = "diabetes", l2: float = 1e-4) -> Problem:
    """Gamma regression with log link: mean of o + t exp(-o), + l2 |weights|^2 / 2.

    Args:
      data: a data set's name or address, with positive targets; they are divided by their mean.
      l2: coefficient of |weights|^2 / 2.

    Raises:
      ValueError: a target that is not positive.
    """
    return _positive(data, losses.gamma, l2, least=float(np.finfo(np.float64).tiny))


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
    return linear_problem(
        standardised(rows.inputs), targets, 0, losses.logistic, l2, f"logistic on {data}"
    )


def softmax_regression(data: str = "digits", l2: float = 1e-4) -> Problem:
    """Multiclass logistic regression with one weight vector per class.

    Raises:
      ValueError: the data has real targets.
    """
    rows = load(data)
    if rows.classes < 2:
        msg = f"softmax regression needs classes; {data!r} has real targets."
        raise ValueError(msg)
    return linear_problem(
        standardised(rows.inputs),
        rows.targets,
        rows.classes,
        losses.softmax_cross_entropy,
        l2,
        f"softmax on {data}",
    )


def _quantile(q: float) -> float:
    if not 0 < q < 1:
        msg = f"a quantile is between 0 and 1; got {q}."
        raise ValueError(msg)
    return q


def _real(data: str, loss: losses.Loss, l2: float) -> Problem:
    rows = load(data)
    targets = standardised(rows.numbers()[:, None])[:, 0]
    return linear_problem(standardised(rows.inputs), targets, 0, loss, l2, f"{loss.name} on {data}")


def _positive(data: str, loss: losses.Loss, l2: float, *, least: float) -> Problem:
    rows = load(data)
    targets = rows.numbers()
    if targets.min() < least:
        kind = "positive targets" if least else "targets that are not negative"
        msg = f"{loss.name} regression needs {kind}; {data!r} goes down to {targets.min():g}."
        raise ValueError(msg)
    if least:
        targets = targets / targets.mean()  # a change of units: the bias takes it up
    return linear_problem(standardised(rows.inputs), targets, 0, loss, l2, f"{loss.name} on {data}")
