"""What a compiled peer asks of an objective, seen as it runs.

A library that differentiates the objective itself does not come to our door. So for the count, and
only there, the parameters pass through a marked identity on their way into the objective:
evaluating it marks an evaluation, its tangent a forward product, its cotangent a reverse one, and a
batch of either a dense Jacobian. Marks are callbacks, hence unfit for timing: a run is replayed
with them off the clock.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback
from jax.extend import core as jex
from jax.interpreters import ad, batching, mlir

from optikit.core import Counts

Note = Callable[[str], None]


def tapped(function: Callable[..., Any], note: Note) -> Callable[..., Any]:
    """The same function of (vector, *args); while it runs, each use of it is noted by its kind.

    Kinds: "value", "jvp", "vjp", and "jacobian" for products with several vectors at once.
    """
    return lambda vector, *args: function(
        mark_p.bind(vector, kind="value", batched=False, note=note), *args
    )


class Tally:
    """A note that counts; `counts` translates it into oracle calls.

    Args:
      scalar: whether the function tapped is an objective, whose reverse product is a gradient, or a
        vector of residuals.
    """

    def __init__(self, *, scalar: bool):
        self.seen = collections.Counter()
        self.scalar = scalar

    def __call__(self, kind: str) -> None:
        """A use of the function."""
        self.seen[kind] += 1

    def counts(self) -> Counts:
        """Oracle calls so far; a gradient and a Jacobian each come with an evaluation."""
        seen = self.seen
        inner = {"grad": seen["vjp"]} if self.scalar else {"vjp": seen["vjp"]}
        alone = max(seen["value"] - seen["vjp" if self.scalar else "jacobian"], 0)
        return Counts(value=alone, jvp=seen["jvp"], jacobian=seen["jacobian"], **inner)


mark_p = jex.Primitive("optikit_mark")
mark_p.def_impl(lambda x, **_: x)
mark_p.def_abstract_eval(lambda x, **_: x)


def _lowered(x: jax.Array, *, kind: str, batched: bool, note: Note) -> jax.Array:
    def host():
        note("jacobian" if batched else kind)
        return np.zeros((), np.int32)

    # a zero that is waited for: the count is complete when the result is there
    return x + io_callback(host, jax.ShapeDtypeStruct((), np.int32)).astype(x.dtype)


def _tangent(primals, tangents, *, kind: str, batched: bool, note: Note):
    (x,), (t,) = primals, tangents
    out = mark_p.bind(x, kind=kind, batched=batched, note=note)
    if isinstance(t, ad.Zero):
        return out, t
    return out, mark_p.bind(t, kind="jvp", batched=batched, note=note)


def _cotangent(ct, x, *, kind: str, batched: bool, note: Note):
    del x, kind
    if isinstance(ct, ad.Zero):
        return (ct,)
    return (mark_p.bind(ct, kind="vjp", batched=batched, note=note),)


def _batch(args, axes, *, kind: str, batched: bool, note: Note):
    del batched
    return mark_p.bind(*args, kind=kind, batched=True, note=note), axes[0]


mlir.register_lowering(mark_p, mlir.lower_fun(_lowered, multiple_results=False))
ad.primitive_jvps[mark_p] = _tangent
ad.primitive_transposes[mark_p] = _cotangent
batching.primitive_batchers[mark_p] = _batch
