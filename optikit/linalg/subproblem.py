"""What an inner solver offers: steps from a quadratic model, as far as a radius allows.

A `Subproblem` prepares once per outer step (a factorisation, a linearisation) and then proposes
directions for any radius, so that a trust region which shrinks pays only for the proposal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Params, Scalar


class Direction(NamedTuple):
    """A step of the model m(s) = <g, s> + <s, H s> / 2 around the current point.

    Attributes:
      step: in the structure of the parameters.
      slope: <g, s>, negative for a descent direction.
      curvature: <s, H s>; negative where negative curvature is followed.
      at_boundary: the radius stopped it.
      convex: no negative curvature was met in the model; otherwise it has no minimum.
      scale: the size of the curvature met, |H p| / |p|; 0 if it was not looked at.
      counts: what proposing it cost.
      bottom: the decrease down to the minimum of a convex model, where it is known to be more than
        that of the step; else a static None.
      length: |s| in the norm in which the radius is meant; a static None for the Euclidean one.
      resolved: whether the model was positive definite beyond rounding, so that the step solves it
        in every direction; a static None where that is known from the step itself.
    """

    step: Params
    slope: Scalar
    curvature: Scalar
    at_boundary: Bool[Array, ""]
    convex: Bool[Array, ""]
    scale: Scalar
    counts: Counts
    bottom: Scalar | None = None
    length: Scalar | None = None
    resolved: Bool[Array, ""] | None = None

    @property
    def predicted(self) -> Scalar:
        """The decrease -m(s) that the model promises for the whole step."""
        return -(self.slope + self.curvature / 2)

    @property
    def promised(self) -> Scalar:
        """The decrease down to the model's minimum: infinite where it has none."""
        bottom = self.predicted if self.bottom is None else self.bottom
        return jnp.where(self.convex, bottom, jnp.inf)


class Inner(NamedTuple):
    """How an iterative solver is to work; ignored by direct ones.

    Attributes:
      forcing: relative residual at which it may stop.
      scale: the size of the curvature met in the last step, 0 at first: what is of rounding size
        against it is no curvature.
    """

    forcing: Scalar
    scale: Scalar


class Model(NamedTuple):
    """A prepared model.

    Attributes:
      propose: (radius, inner) -> a Direction with |s| <= radius.
      counts: of preparing it.
      is_convex_along: vector -> whether <v, H v> >= 0 to rounding, and what looking cost; None for
        a model that has seen all of its curvature.
      memory: for the next step's `prepare`, of a Subproblem that keeps one.
    """

    propose: Callable[[Scalar, Inner], Direction]
    counts: Counts
    is_convex_along: Callable[[Params], tuple[Bool[Array, ""], Counts]] | None = None
    memory: Any = ()


class Subproblem(NamedTuple):
    """A way to minimise models.

    Attributes:
      prepare: (oracle, at, curvature kind, key) -> Model; with a memory as the fifth argument if
        there is an `init`.
      evaluate: how the loop should evaluate a point for it, if not by value and gradient.
      init: the memory before the first step, of a Subproblem that keeps one from step to step.
      truncated: a static note that it sees a Krylov space only, which may miss flat directions.
    """

    prepare: Callable[..., Model]
    evaluate: Callable[[Oracle, Params], tuple[Eval, Counts]] | None = None
    init: Callable[[Eval], Any] | None = None
    truncated: bool = False


def unlimited(like: Scalar) -> Scalar:
    """The radius of a line search."""
    return jnp.full((), jnp.inf, like.dtype)
