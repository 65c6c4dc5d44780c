"""What is said of a point: its kind, with the evidence."""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from optikit.core import Counts, Params, Scalar


class Kind(enum.StrEnum):
    """The kinds of points that can be told apart by first and second derivatives."""

    MINIMUM = "minimum"
    SADDLE = "saddle"
    MAXIMUM = "maximum"
    DEGENERATE = "degenerate"
    NOT_STATIONARY = "not-stationary"
    CANNOT_TELL = "cannot-tell"


KINDS = tuple(Kind)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Certificate:
    """The kind of a point and what it rests on.

    Of one point outside of `jit` and `vmap`, scalars are Python floats; otherwise they are arrays,
    and the properties are for afterwards: `kind` is then an array of kinds.

    Attributes:
      code: the number of the kind in `list(Kind)`.
      value: f at the point.
      grad_norm: max|g|.
      smallest, largest: the extreme eigenvalues of the Hessian.
      smallest_error, largest_error: an eigenvalue lies within this distance of each (rounding for
        a dense Hessian, the Lanczos residual otherwise).
      flat: the size up to which an eigenvalue counts as zero.
      step_norm: |H^-1 g| over the directions that are not flat: how far the stationary point is.
      decrement: g^T H^-1 g / 2 over directions of positive curvature: an estimate of f - f*.
      gain: f(params) - f(better), evaluated, not predicted; 0 without a better point.
      way: see `direction`; zero where there is none.
      point: see `better`; params themselves where there is none.
      counts: what it cost.
      dense: whether the whole Hessian was used.
      products: Hessian products of Lanczos.
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
    way: Params = dataclasses.field(repr=False)
    point: Params = dataclasses.field(repr=False)
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
    def message(self) -> str:
        """The statement in words; of one point."""
        source = "dense Hessian" if self.dense else f"Lanczos, {self.products} products"
        ends = f"eigenvalues from {self.smallest:.4g} to {self.largest:.4g} ({source})"
        sentence = {
            Kind.MINIMUM: f"a strict local minimum: f - f* is about {self.decrement:.2g}",
            Kind.SADDLE: "a saddle: the curvature has both signs",
            Kind.MAXIMUM: "a strict local maximum",
            Kind.DEGENERATE: f"degenerate: an eigenvalue is zero to within {self.flat:.2g}",
            Kind.NOT_STATIONARY: "not stationary: "
            + (
                f"the Newton step is {self.step_norm:.3g} long"
                if self.step_norm > 0
                else "there is a slope along directions without curvature"
            ),
            Kind.CANNOT_TELL: "undecided: the smallest eigenvalue is not resolved; raise "
            "num_products",
        }[self.kind]
        if not np.isfinite(self.smallest + self.value):
            sentence = "undecided: the function or a derivative is not finite"
        gained = f"; a better point, lower by {self.gain:.3g}, is in .better"
        out = gained if self.gain > 0 else ""
        return f"{sentence}. max|g| {self.grad_norm:.2g}, {ends}{out}."

    def __str__(self) -> str:
        return self.message if np.ndim(self.code) == 0 else repr(self)
