"""What an inner solver offers: steps from a quadratic model, as far as a radius allows.

A `Subproblem` prepares once per outer step (a factorisation, a linearisation) and then proposes
directions for any radius, so that a trust region which shrinks pays only for the proposal.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Params, Scalar


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
    """

    step: Params
    slope: Scalar
    curvature: Scalar
    at_boundary: Bool[Array, ""]
    convex: Bool[Array, ""]
    scale: Scalar
    counts: Counts

    @property
    def predicted(self) -> Scalar:
        """The decrease -m(s) that the model promises for the whole step."""
        return -(self.slope + self.curvature / 2)

    @property
    def promised(self) -> Scalar:
        """The decrease down to the model's minimum: infinite where it has none."""
        return jnp.where(self.convex, self.predicted, jnp.inf)


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
    """

    propose: Callable[[Scalar, Inner], Direction]
    counts: Counts
    is_convex_along: Callable[[Params], tuple[Bool[Array, ""], Counts]] | None = None


class Subproblem(NamedTuple):
    """A way to minimise models.

    Attributes:
      prepare: (oracle, at, curvature kind, key) -> Model.
      evaluate: how the loop should evaluate a point for it, if not by value and gradient.
    """

    prepare: Callable[[Oracle, Eval, CurvatureKind, Key], Model]
    evaluate: Callable[[Oracle, Params], tuple[Eval, Counts]] | None = None


def unlimited(like: Scalar) -> Scalar:
    """The radius of a line search."""
    return jnp.full((), jnp.inf, like.dtype)
