"""What a solve returns: data, on the device, the same under jit and vmap."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Counts, Params, Scalar, Status


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Validation:
    """What `fit(..., evaluate=...)` saw.

    Attributes:
      steps: after how many steps, (looks,).
      values: the mean value over the batches of validation, or what the function returned.
    """

    steps: Int[Array, " looks"]
    values: Float[Array, " looks"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """The course of a solve, one row per step, row 0 the start.

    Rows beyond the last step hold NaN (floats) or the last ledger (counts), so the shapes do not
    depend on how the solve went.

    Attributes:
      value: objective values, (max_steps + 1,).
      grad_norm: the largest absolute gradient entry, likewise.
      step_norm: the Euclidean length of the step that led there; 0 in row 0. None from `fit`, where
        measuring it would cost a pass over the parameters.
      counts: cumulative oracle calls.
      skipped: from `fit`: how many steps so far were not finite and therefore void.
      validation: from `fit(..., evaluate=...)`: the curve of validation.
    """

    value: Float[Array, " rows"]
    grad_norm: Float[Array, " rows"]
    step_norm: Float[Array, " rows"] | None
    counts: Counts
    skipped: Int[Array, " rows"] | None = None
    validation: Validation | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """The outcome of a solve.

    Attributes:
      params: the answer: the converged point, or the best one seen.
      value: the objective there (for least squares |r|^2 / 2).
      aux: auxiliary output there, None without `has_aux`.
      grad: the gradient there.
      grad_norm: its largest absolute entry; with bounds that of the projected gradient.
      status: a `Status` code, () int32; `message` says it in words.
      steps: steps taken.
      counts: oracle calls, by kind.
      trace: the course, or None unless asked for.
      method: the name of the method that ran.
      reason: why it was chosen, where `method="auto"` or `"advise"` chose it.
      remainder: what else the loop held at the end; see `state`.
      skipped: from `fit`: steps that met NaN or infinity and were void, beside those in `steps`;
        None from other drivers.
    """

    params: Params
    value: Scalar
    aux: Any
    grad: Params
    grad_norm: Scalar
    status: Int[Array, ""]
    steps: Int[Array, ""]
    counts: Counts
    trace: Trace | None
    method: str = dataclasses.field(metadata={"static": True}, default="")
    reason: str = dataclasses.field(metadata={"static": True}, default="")
    remainder: Any = dataclasses.field(default=None, repr=False)
    skipped: Int[Array, ""] | None = None

    @property
    def state(self) -> Any:
        """Where the solve stands, for `minimize(..., state=sol.state)`; None from `fit`.

        It holds the optimizer's memory (2 m n numbers for L-BFGS, n^2 for BFGS, a Jacobian for
        least squares): `dataclasses.replace(sol, remainder=None)` lets go of it.
        """
        return None if self.remainder is None else self.remainder.beside(self)

    @property
    def success(self) -> Bool[Array, ""]:
        """Whether it converged, to the tolerance or to the precision of the arithmetic."""
        return (self.status == Status.CONVERGED.value) | (
            self.status == Status.CONVERGED_TO_PRECISION.value
        )

    @property
    def message(self) -> str:
        """The status as a sentence; for one finished problem, not under jit or vmap."""
        return Status(int(self.status)).sentence

    def __str__(self) -> str:
        if isinstance(self.status, core.Tracer) or jnp.ndim(self.status) > 0:
            return repr(self)
        status = Status(int(self.status))
        calls = ", ".join(
            f"{int(n)} {kind}" for kind, n in self.counts._asdict().items() if int(n) > 0
        )
        chosen = f" ({self.reason})" if self.reason else ""
        skipped = "" if self.skipped is None else int(self.skipped)
        void = f", {skipped} skipped as not finite" if skipped else ""
        return (
            f"{status.name}: {status.sentence}\n"
            f"  value {float(self.value):.10g}, max|grad| {float(self.grad_norm):.3g}, "
            f"{int(self.steps)} steps of {self.method}{chosen}{void}\n"
            f"  oracle calls: {calls}"
        )


def default_tolerance(dtype: np.dtype) -> float:
    """1e-8 in float64, 1e-4 in float32 and below."""
    return 1e-8 if jnp.dtype(dtype).itemsize > 4 else 1e-4
