"""Armijo backtracking for a model that is affine in its parameters: the outputs are searched.

At p + t d the outputs are z + t (A d), with A d from the first trial's own outputs: only that trial
passes over the data, and no rounding builds up from step to step. The slope along d needs no
gradient either. The test of a trial is that of `optikit.globalize.backtracking`.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.predictor import LinearPredictor, Parts
from optikit.core import Counts, Params, Scalar, tally, times, tree
from optikit.globalize.search import Search, noise, search_status


class _Run(NamedTuple):
    t: Scalar
    params: Params
    outputs: Array
    parts: Parts
    accepted: Bool[Array, ""]
    seen_finite: Bool[Array, ""]
    trials: Int[Array, ""]


def search_outputs(
    oracle: Oracle,
    predictor: LinearPredictor,
    at: Eval,
    direction: Params,
    curvature: Scalar,
    *,
    c1: float = 1e-4,
    max_trials: int = 40,
) -> Search:
    """The first t in 1, t1, t2, ... with f(p + t d) <= f(p) - c1 (model decrease at t).

    Args:
      at: an evaluation whose `local` is a dataclass that holds its outputs.
      curvature: <d, H d> of the model.
      c1: sufficient decrease, in (0, 1/2).
      max_trials: trials before Status.LINE_SEARCH_FAILED.

    Returns: a Search costing one value for each trial but the last, and one grad for that.
    """
    dtype = at.value.dtype
    slope = tree.vdot(at.grad, direction).astype(dtype)
    curvature = curvature.astype(dtype)
    bend = jnp.minimum(curvature, 0) / 2
    slack = noise(at.value)
    here = at.local.outputs
    whole = predictor.outputs(tree.add(at.params, direction))
    change = whole - here

    def body(c: _Run) -> _Run:
        # what the last trial cost is known once it is rejected: no gradient was taken there
        lax.cond(c.trials > 0, lambda: oracle.tap("value"), lambda: None)
        t = jnp.where(c.trials == 0, c.t, shorter(c.t, c.parts.value))
        params = tree.add_scaled(at.params, t, direction)
        outputs = jnp.where(t == 1, whole, here + t.astype(here.dtype) * change)
        parts = predictor.parts(outputs, params)
        along = (tree.vdot(parts.slopes, change) + tree.vdot(parts.own, direction)).astype(dtype)
        finite = jnp.isfinite(parts.value) & jnp.isfinite(along)
        rise = parts.value - at.value
        enough = rise <= c1 * (t * slope + t**2 * bend)
        flatter = (along <= (2 * c1 - 1) * slope) & (along >= 0.9 * slope)
        enough |= (rise <= slack) & flatter & (slope < 0)
        seen = c.seen_finite | finite
        return _Run(t, params, outputs, parts, finite & enough, seen, c.trials + 1)

    def shorter(t: Scalar, value: Scalar) -> Scalar:
        best = -slope * t**2 / (2 * (value - at.value - slope * t))
        safe = jnp.isfinite(best) & jnp.isfinite(value)
        return jnp.clip(jnp.where(safe, best, 0.1 * t), 0.1 * t, 0.5 * t)

    no, none = jnp.asarray(False), jnp.asarray(0, jnp.int32)
    blank = Parts(at.value, jnp.zeros_like(here), tree.zeros_like(at.grad))
    run = lax.while_loop(
        lambda c: ~c.accepted & (c.trials < max_trials),
        body,
        _Run(jnp.ones((), dtype), at.params, here, blank, no, no, none),
    )
    oracle.tap("grad")
    grad = predictor.gradient(run.parts)
    local = dataclasses.replace(at.local, outputs=run.outputs)
    trial = Eval(run.params, run.parts.value, grad, at.aux, local)
    end = tree.where(run.accepted, trial, at)
    t = jnp.where(run.accepted, run.t, 0)
    full = tree.norm(direction).astype(dtype)
    return Search(
        params=end.params,
        next=end,
        step_size=t,
        step_norm=t * full,
        full_norm=full,
        promised=-(slope + curvature / 2),
        scale=jnp.zeros((), dtype),
        accepted=run.accepted,
        state=(),
        counts=tally(times(run.trials - 1, Counts(value=1)), Counts(grad=1)),
        status=search_status(run.accepted, run.seen_finite),
        left=jnp.full((), jnp.inf, dtype),
    )
