"""How many steps, seconds and bytes a method will take: from the spectrum, from what oracles cost.

Per method one line: steps = factor * hardness ** power. The hardness is what theory says of the
measured quadratic model, the Hessian near the solution and how the gradient lies in it:

- `cg`: iterations of conjugate gradients to the accuracy asked, by running them on the measured
  quadrature; for nonlinear conjugate gradients and quasi-Newton methods, which do the same on
  quadratics, and for the Hessian products that truncated Newton methods make in all.
- `descent`: steps of gradient descent with the step 1 / largest eigenvalue.
- `newton`: log2 log2 of the reduction asked, the quadratic end, times 1 + bend. The bend is how far
  from quadratic the function is: the logarithm of the decrease that a few steps found over the one
  that the model at the start promised.

The factors and powers are fitted by `benchmarks/advise.py` on problems of `optikit.problems`, and
`error` is how far off the seconds of a problem held out from the fit were, in four cases of five.

References: Nocedal & Wright (2006), sections 3.3 and 5.1; Strakos (1991) for the continuation of
conjugate gradients beyond what the quadrature knows.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from optikit.analyze.prices import Price
from optikit.analyze.probe import Probe

MOST = 10**7
"""Steps beyond which a prediction says no more than that there are many."""

APPROACH = 32
"""Steps of L-BFGS towards the solution, where the spectrum is looked at."""

Hardness = Literal["cg", "descent", "newton"]
Source = Literal["spectrum", "rehearsed", "extrapolated", "failed"]


class Law(NamedTuple):
    """How a method's steps follow from a hardness; see the module.

    Attributes:
      error: predicted seconds are within this factor in four cases of five.
    """

    hardness: Hardness
    factor: float
    power: float
    error: float


LAWS: dict[str, Law] = {
    "bfgs": Law("cg", 20.1, 0.211, 2.5),
    "gauss-newton": Law("newton", 5.54, 0.135, 2.6),
    "gradient-descent": Law("descent", 512, 0.252, 54),
    "lbfgs": Law("cg", 20.6, 0.36, 2.4),
    "levenberg-marquardt": Law("newton", 5.59, 0.23, 3.8),
    "newton": Law("newton", 0.289, 1.11, 2.3),
    "newton-bfgs": Law("newton", 0.28, 1.12, 1.8),
    "newton-cg": Law("newton", 5.67, 0.213, 2.6),
    "nonlinear-cg": Law("cg", 13.1, 0.469, 1.8),
    "trust-region": Law("newton", 5.9, 0.21, 2.6),
    "trust-region-exact": Law("newton", 1.09, 0.886, 2.4),
}
"""Fitted by `benchmarks/advise.py`: 22 problems of 2 to 400 parameters, float64, two CPU cores."""

TRIALS = 1.2
"""Evaluations a step, the line search's further trials included."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method will take from the start to the accuracy asked.

    Attributes:
      steps, seconds: of a warm solve; infinite seconds for one that failed in its rehearsal.
      factor: the truth lies between seconds / factor and seconds * factor, in four cases of five.
      bytes: of the method's state and work arrays, beside parameters and data.
      compile_seconds: of a first call; None where the method was not rehearsed.
      source: "spectrum": by its law; "rehearsed": it was run to the end and timed; "extrapolated":
        it was run for a while; "failed": it was run, and ended without convergence.
    """

    method: str
    steps: float
    seconds: float
    factor: float
    bytes: float
    compile_seconds: float | None = None
    source: Source = "spectrum"


def cg_iterations(nodes: np.ndarray, weights: np.ndarray, reduction: float) -> float:
    """Iterations after which conjugate gradients' residual has shrunk to `reduction`.

    On the positive part of the measure. Beyond as many iterations as there are nodes, where the
    quadrature has no more to say, with the rate of the Chebyshev bound at its condition number.

    Example:
      >>> cg_iterations(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 1e-8)
      2.0
    """
    nodes, weights = _positive(nodes, weights)
    r = np.sqrt(weights)
    first = last = float(np.linalg.norm(r))
    p, square = r.copy(), float(r @ r)
    for done in range(1, len(nodes) + 1):
        image = nodes * p
        step = square / float(p @ image)
        r = r - step * image
        after = float(r @ r)
        last, before = math.sqrt(after), last
        if last <= reduction * first:
            # between two iterations in proportion of the logarithm, so that accuracy counts
            gain = math.log(max(last, 1e-300) / before)
            share = math.log(reduction * first / before) / gain if gain < 0 else 1.0
            return float(done) if done == len(nodes) else done - 1 + min(max(share, 0.0), 1.0)
        p, square = r + after / square * p, after
    root = math.sqrt(nodes[-1] / nodes[0])
    rate = max((root - 1) / (root + 1), 1e-3)
    return min(len(nodes) + math.log(reduction * first / last) / math.log(rate), float(MOST))


def descent_steps(nodes: np.ndarray, weights: np.ndarray, reduction: float) -> float:
    """Steps of length 1 / largest node after which |g| has shrunk to `reduction`.

    Example:
      >>> round(descent_steps(np.array([0.5, 1.0]), np.array([1.0, 0.0]), 2.0**-10))
      10
    """
    nodes, weights = _positive(nodes, weights)
    kept = np.maximum(1 - nodes / nodes[-1], 0.0)

    def left(steps: float) -> float:
        return math.sqrt(float(np.sum(weights * kept ** (2 * steps))))

    target, low, high = reduction * left(0), 0.0, 1.0
    while left(high) > target and high < MOST:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > target else (low, middle)
    return min(max(high, 1.0), float(MOST))


def _positive(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a measure where the Hessian curves upwards, beyond rounding; else a unit."""
    keep = nodes > 1e-14 * np.max(np.abs(nodes), initial=0.0)
    if not weights[keep].sum() > 0:
        return np.ones(1), np.ones(1)
    return nodes[keep], weights[keep]


def hardness_of(kind: Hardness, start: Probe, near: Probe, reduction: float) -> float:
    """The number that a method's steps follow from; at least 1."""
    if kind == "cg":
        found = cg_iterations(near.nodes, near.weights, reduction)
    elif kind == "descent":
        found = descent_steps(near.nodes, near.weights, reduction)
    else:
        found = math.log2(2 + math.log2(1 / min(reduction, 0.5))) * (1 + bend(start, near))
    return max(found, 1.0)


def bend(start: Probe, near: Probe) -> float:
    """How far from its quadratic model at the start the function is, 0 to 5.

    5 too where the model has no minimum: the start is not convex.
    """
    gained = start.value - near.value
    if not (gained > 0 and 0 < start.decrease < math.inf):
        return 5.0 if gained > 0 else 0.0
    return min(abs(math.log(gained / start.decrease)), 5.0)


def step_seconds(
    method: str, prices: Mapping[str, Price], n: int, overhead: float, products: float
) -> float:
    """Seconds of a step: its oracle calls at their prices, its algebra at the speed of Cholesky's.

    Args:
      overhead: of the loop and the search, per step.
      products: Hessian products a step, for the truncated methods.

    Returns: infinity where the method needs a matrix that is too large to be priced.
    """

    def price(kind: str) -> float:
        return prices[kind].seconds if kind in prices else math.inf

    dispatch = price("dispatch")
    # a price outside a loop contains a dispatch, which a step of a compiled loop does not pay
    inside = {k: max(price(k) - dispatch, 0.0) for k in ("value", "grad", "hessian", "jacobian")}
    factor = {k: max(price(k) - dispatch, 0.0) for k in ("cholesky", "eigh")}
    evaluation = TRIALS * inside["grad"]
    per_number = inside["grad"] / max(prices["grad"].bytes, 1.0) * 8  # streamed at its speed
    own = {
        "gradient-descent": inside["grad"] + 2 * inside["value"],
        "nonlinear-cg": 2 * inside["grad"],
        "lbfgs": evaluation + 60 * n * per_number,
        "bfgs": evaluation + 4 * n * n * per_number,
        "newton": evaluation + inside["hessian"] + factor["cholesky"],
        "newton-bfgs": evaluation + inside["hessian"] + factor["cholesky"],
        "trust-region-exact": evaluation + inside["hessian"] + factor["eigh"],
        "newton-cg": evaluation + inside["grad"] + products * price("hvp"),
        "trust-region": evaluation + inside["grad"] + products * price("hvp"),
        "gauss-newton": inside["value"] + inside["jacobian"] + 4 * factor["cholesky"],
        "levenberg-marquardt": inside["value"] + inside["jacobian"] + 4 * factor["cholesky"],
    }
    return own[method] + overhead


def state_bytes(method: str, n: int, residuals: int, itemsize: int) -> float:
    """Bytes of a method's state and work arrays: vectors of n, matrices of n^2, Jacobians."""
    numbers = {
        "gradient-descent": 3 * n,
        "nonlinear-cg": 5 * n,
        "lbfgs": 24 * n,
        "newton-cg": 8 * n,
        "trust-region": 8 * n,
        "bfgs": 2 * n**2 + 6 * n,
        "newton": 3 * n**2 + 4 * n,
        "newton-bfgs": 4 * n**2 + 6 * n,
        "trust-region-exact": 4 * n**2 + 4 * n,
    }
    jacobians = 3.0 * residuals * n + 4 * n
    return float(numbers.get(method, jacobians) * itemsize)


def predicted(
    method: str,
    start: Probe,
    near: Probe,
    reduction: float,
    prices: Mapping[str, Price],
    *,
    residuals: int,
    itemsize: int,
    overhead: float,
    call: float,
) -> Prediction:
    """What the method's law says.

    Args:
      start, near: probes at the start and near the solution.
      reduction: of the gradient, that is asked for.
      residuals: their number, for the least-squares methods.
      overhead, call: seconds beside the oracles' of a step, and of a solve without steps.
    """
    law = LAWS[method]
    steps = min(
        law.factor * hardness_of(law.hardness, start, near, reduction) ** law.power, float(MOST)
    )
    inner = hardness_of("cg", start, near, max(reduction, 1e-16))
    products = min(max(inner / math.sqrt(steps), 1.0), 2.0 * near.size, 500.0)
    each = step_seconds(method, prices, near.size, overhead, products)
    return Prediction(
        method,
        max(steps, 1.0),
        call + max(steps, 1.0) * each,
        law.error,
        state_bytes(method, near.size, residuals, itemsize),
    )
