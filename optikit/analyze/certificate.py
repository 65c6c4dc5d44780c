"""What is said of a point: its kind, with the evidence."""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from optikit.core import Counts, Params, Scalar


class Kind(enum.StrEnum):
    """The kinds of points that derivatives and their neighbourhood tell apart."""

    MINIMUM = "minimum"
    SADDLE = "saddle"
    MAXIMUM = "maximum"
    DEGENERATE = "degenerate"
    NOT_STATIONARY = "not-stationary"
    CANNOT_TELL = "cannot-tell"
    NON_SMOOTH = "non-smooth"


KINDS = tuple(Kind)

WHY = {
    "": "",
    "not-finite": "the function or a derivative is not finite",
    "not-finite-nearby": "the function or its gradient is not finite near by",
    "unresolved": "the smallest eigenvalue is not resolved; raise num_products",
    "noise": "rounding noise of the gradient hides where the stationary point is",
    "bracket": "the gradient along the Newton step does not change as the Hessian here says",
    "jump": "the Hessian jumps at this point, and is known on one side alone",
    "weak": "a bound is touched without being pushed, and the curvature alone does not decide",
}
"""Why a point cannot be told, by a short name and in words."""

REASONS = tuple(WHY)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Certificate:
    """The kind of a point and what it rests on.

    Of one point outside of `jit` and `vmap`, scalars are Python floats; otherwise they are arrays,
    and the properties are for afterwards: `kind` is then an array of kinds.

    With bounds, everything is about the parameters that no bound holds.

    Attributes:
      code: the number of the kind in `list(Kind)`.
      value: f at the point.
      grad_norm: max|g|; with bounds that of x - P(x - g).
      smallest, largest: the extreme eigenvalues of the Hessian.
      smallest_error, largest_error: an eigenvalue lies within this distance of each (rounding for
        a dense Hessian, the Lanczos residual otherwise).
      flat: the size up to which an eigenvalue counts as zero.
      step_norm: |H^-1 g| over the directions that are not flat: how far the stationary point is.
      decrement: g^T H^-1 g / 2 over directions of positive curvature: an estimate of f - f*.
      gain: f(params) - f(better), evaluated, not predicted; 0 without a better point.
      because: see `reason`.
      value_noise, grad_noise: standard deviations of the rounding error of the value, and of the
        gradient in the Euclidean norm, measured near the point.
      at_noise: whether |g| is at most 3 grad_noise: stationary to the precision at hand.
      lower: the smallest eigenvalue is not below, with probability `confidence` over the random
        start of Lanczos; for a dense Hessian but for rounding, and confidence is 1.
      gap: (|g| + 3 grad_noise)^2 / (2 lower), a bound of f - f* for the minimum f* near by, and
        radius: (|g| + 3 grad_noise) / lower, one of the distance to it. Both assume that no
        curvature within that radius is below `lower`, which is known at the point itself alone;
        infinite unless it is a minimum.
      num_negative, num_flat: eigenvalues below -flat, and within flat of zero: exactly, or at
        least so many without the dense Hessian. The first is the index of a saddle.
      num_held: parameters held by a bound, with a multiplier of the right sign, or by two.
      way: see `direction`; zero where there is none.
      point: see `better`; params themselves where there is none.
      flat_rows: unit vectors of flat directions, stacked along a new first axis, and zeros: all of
        a dense Hessian if it is one point outside of `jit` and `vmap`, else up to 10; by Lanczos
        up to 4.
      counts: what it cost.
      dense: whether the whole Hessian was used.
      products: Hessian products of Lanczos for the ends.
    """

    code: Int[Array, ""]
    value: Scalar
    grad_norm: Scalar
    smallest: Scalar
    largest: Scalar
    smallest_error: Scalar
    largest_error: Scalar
    flat: Scalar
    step_norm: Scalar
    decrement: Scalar
    gain: Scalar
    because: Int[Array, ""]
    value_noise: Scalar
    grad_noise: Scalar
    at_noise: Bool[Array, ""]
    lower: Scalar
    confidence: Scalar
    gap: Scalar
    radius: Scalar
    num_negative: Int[Array, ""]
    num_flat: Int[Array, ""]
    num_held: Int[Array, ""]
    way: Params = dataclasses.field(repr=False)
    point: Params = dataclasses.field(repr=False)
    flat_rows: Params = dataclasses.field(repr=False)
    counts: Counts
    dense: bool = dataclasses.field(metadata={"static": True})
    products: int = dataclasses.field(metadata={"static": True})

    @property
    def kind(self) -> Any:
        """A `Kind`, which compares equal to its string."""
        codes = np.asarray(self.code)
        return KINDS[int(codes)] if codes.ndim == 0 else np.array(KINDS)[codes]

    @property
    def direction(self) -> Params | None:
        """For anything but a minimum, a unit direction in which f decreases; else None.

        Of many points `way`, as it is.
        """
        none = np.ndim(self.code) == 0 and not any(np.any(x) for x in jax.tree.leaves(self.way))
        return None if none else self.way

    @property
    def better(self) -> Params | None:
        """A better point along `direction`; None if there is none. Of many points `point`."""
        return None if np.ndim(self.code) == 0 and self.gain <= 0 else self.point

    @property
    def flat_basis(self) -> Params:
        """Orthonormal flat directions along a first axis, as many as are held; of one point."""
        leaves = jax.tree.leaves(self.flat_rows)
        rows = sum(np.sum(np.abs(np.asarray(x)), axis=tuple(range(1, x.ndim))) for x in leaves)
        return jax.tree.map(lambda x: x[np.asarray(rows) > 0], self.flat_rows)

    @property
    def reason(self) -> str:
        """Why the point cannot be told, in words; empty if it can. Of one point."""
        return WHY[REASONS[int(self.because)]]

    @property
    def message(self) -> str:
        """The statement in words; of one point."""
        least = "" if self.dense else "at least "
        sentence = {
            Kind.MINIMUM: f"a strict local minimum: f - f* is about {self.decrement:.2g}, at most "
            f"{self.gap:.2g} where no curvature within {self.radius:.2g} is below {self.lower:.2g}",
            Kind.SADDLE: "a saddle: the curvature has both signs, "
            f"{least}{self.num_negative} negative",
            Kind.MAXIMUM: "a strict local maximum",
            Kind.DEGENERATE: f"degenerate: {least}{self.num_flat} eigenvalues are zero to within "
            f"{self.flat:.2g}",
            Kind.NOT_STATIONARY: "not stationary: "
            + (
                f"the Newton step is {self.step_norm:.3g} long, f - f* about {self.decrement:.2g}"
                if self.step_norm > 0
                else "there is a slope along directions without curvature"
            ),
            Kind.NON_SMOOTH: "non-smooth: the gradient, or the value itself, jumps at this point",
            Kind.CANNOT_TELL: f"undecided: {self.reason}",
        }[self.kind]
        return f"{sentence}. {self._evidence()}."

    def _evidence(self) -> str:
        noise = f"{'at' if self.at_noise else 'above'} its rounding noise {self.grad_noise:.1g}"
        source = "dense Hessian"
        if not self.dense:
            source = f"Lanczos, {self.products} products; none below {self.lower:.4g} with "
            source += f"{100 * self.confidence:.6g} % confidence"
        ends = f"eigenvalues from {self.smallest:.4g} to {self.largest:.4g} ({source})"
        held = f", {self.num_held} parameters held by bounds" if self.num_held else ""
        out = f"; a better point, lower by {self.gain:.3g}, is in .better" if self.gain > 0 else ""
        return f"max|g| {self.grad_norm:.2g} ({noise}), {ends}{held}{out}"

    def __str__(self) -> str:
        return self.message if np.ndim(self.code) == 0 else repr(self)
