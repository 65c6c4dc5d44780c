"""Generalised linear models on drawn data, of any size, conditioning and correlation."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from optikit import losses
from optikit.problems.glm import linear_problem
from optikit.problems.problem import Problem

Draw = Callable[[np.random.Generator, np.ndarray, float], np.ndarray]


def _normal(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    return outputs + noise * rng.standard_normal(outputs.shape)


def _heavy(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    return outputs + noise * rng.standard_t(2, outputs.shape)


def _labels(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    del noise
    return (rng.random(outputs.shape) < 1 / (1 + np.exp(-outputs))).astype(np.float64)


def _classes(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    del noise
    return np.argmax(outputs + rng.gumbel(size=outputs.shape), axis=1).astype(np.int32)


def _counts(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    del noise
    return rng.poisson(np.exp(outputs)).astype(np.float64)


def _sizes(rng: np.random.Generator, outputs: np.ndarray, noise: float) -> np.ndarray:
    shape = 1 / noise**2  # the coefficient of variation is 1 / sqrt(shape)
    return np.exp(outputs) * rng.gamma(shape, 1 / shape, outputs.shape)


_FAMILIES: dict[str, tuple[losses.Loss, Draw]] = {
    "linear": (losses.squared_error, _normal),
    "huber": (losses.huber, _heavy),
    "quantile": (losses.quantile, _heavy),
    "smooth-quantile": (losses.smooth_quantile, _heavy),
    "logistic": (losses.logistic, _labels),
    "softmax": (losses.softmax_cross_entropy, _classes),
    "poisson": (losses.poisson, _counts),
    "gamma": (losses.gamma, _sizes),
}


def design(
    rng: np.random.Generator, examples: int, features: int, condition: float, correlation: float
) -> np.ndarray:
    """Gaussian rows: neighbouring columns correlated, column variances from 1 to 1/condition.

    An autoregression along the columns, so that the correlation of columns i and j is
    correlation^|i - j|; O(examples x features).
    """
    rows = rng.standard_normal((examples, features))
    fresh = (1 - correlation**2) ** 0.5
    for j in range(1, features):
        rows[:, j] = correlation * rows[:, j - 1] + fresh * rows[:, j]
    return rows * np.geomspace(1, 1 / condition, features) ** 0.5


def synthetic_glm(
    family: Literal[
        "linear", "huber", "quantile", "smooth-quantile", "logistic", "softmax", "poisson", "gamma"
    ] = "logistic",
    examples: int = 1000,
    features: int = 50,
    condition: float = 100.0,
    correlation: float = 0.0,
    signal: float = 1.0,
    noise: float = 0.5,
    classes: int = 5,
    l2: float = 1e-4,
    seed: int = 0,
) -> Problem:
    """A linear model on drawn data: mean loss + l2 |weights|^2 / 2 from zero, features as drawn.

    Args:
      family: the loss, and the law the targets are drawn from: linear (normal noise), huber and the
        quantiles (Student's t with 2 degrees of freedom), logistic, softmax, poisson and gamma with
        log link. "quantile" is not smooth; "smooth-quantile" is.
      examples, features: the size; memory is 8 examples x features bytes.
      condition: ratio of the largest to the least column variance; diagonal scaling removes it.
      correlation: of neighbouring columns, in (-1, 1), which no scaling removes: the covariance's
        condition number is up to condition ((1 + |correlation|) / (1 - |correlation|))^2.
      signal: standard deviation of the true linear predictor.
      noise: of the targets, beside the signal, in (0, oo) for gamma; labels and counts have none.
      classes: of softmax.
      l2: coefficient of the penalty.
      seed: of everything drawn; the same data for every trial seed.

    Raises:
      ValueError: a size, condition, correlation or noise out of range.

    Example:
      >>> problem = synthetic_glm("poisson", examples=200, features=3)
      >>> problem.args[0].shape, problem.description
      ((200, 3), 'synthetic poisson, 200 x 3, condition 100')
    """
    if family not in _FAMILIES:
        msg = f"unknown family {family!r}: choose from {', '.join(_FAMILIES)}."
        raise ValueError(msg)
    for name, value, right in (
        ("examples", examples, examples >= 1),
        ("features", features, features >= 1),
        ("condition", condition, condition >= 1),
        ("correlation", correlation, -1 < correlation < 1),
        ("noise", noise, noise > 0 or (noise == 0 and family != "gamma")),
        ("classes", classes, classes >= 2),
    ):
        if not right:
            msg = f"{name} = {value} is out of range for a synthetic {family} model."
            raise ValueError(msg)
    loss, draw = _FAMILIES[family]
    rng = np.random.default_rng(seed)
    inputs = design(rng, examples, features, condition, correlation)
    several = classes if family == "softmax" else 0
    truth: Any = rng.standard_normal((features, several or 1))
    truth /= np.geomspace(1, 1 / condition, features)[:, None] ** 0.5  # every column matters
    outputs = inputs @ truth
    outputs *= signal / max(float(outputs.std()), float(np.finfo(float).tiny))
    targets = draw(rng, outputs if several else outputs[:, 0], noise)
    text = f"synthetic {family}, {examples} x {features}, condition {condition:g}"
    if correlation:
        text += f", correlation {correlation:g}"
    return linear_problem(inputs, targets, several, loss, l2, text)
