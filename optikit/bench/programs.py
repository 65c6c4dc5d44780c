"""The two programs of a run, as the clock meets them: ahead of time, and stage by stage."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from optikit.bench import batched
from optikit.calculus import bind
from optikit.core.compiled import compiler_options
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import folded
from optikit.problems import Problem
from optikit.solve.loop import Progress, advance, begin, gradient_criterion


class Watched(NamedTuple):
    """An optimizer's state, and the steps that were rejected so far."""

    inner: Any
    rejected: jax.Array


class Programs(NamedTuple):
    """The two compiled programs of a run: start(params, args, key), go(progress, args, limit)."""

    start: Callable[..., Progress]
    go: Callable[..., Progress]
    seconds: dict[str, float]
    memory_bytes: int | None


def programs(
    problem: Problem, optimizer: Optimizer, params: Any, key: jax.Array, *, trace_rows: int = 0
) -> Programs:
    """Compile, with a stamp after each stage."""
    start, go = functions(problem, optimizer, trace_rows=trace_rows)
    return compiled(start, go, problem, params, key, jnp.asarray(0, jnp.int32))


def compiled(
    start_function: Callable[..., Any],
    go_function: Callable[..., Any],
    problem: Problem,
    params: Any,
    key: jax.Array,
    limit: jax.Array,
) -> Programs:
    """Compile a start and a chunk, with a stamp after each stage."""
    spent = {"trace": 0.0, "lower": 0.0, "compile": 0.0}
    options = dict(compiler_options((params, problem.args), params)) or None

    def build(function, *args):
        marks = [time.perf_counter()]
        traced = jax.jit(function).trace(*args)
        marks.append(time.perf_counter())
        lowered = traced.lower()
        marks.append(time.perf_counter())
        compiled = lowered.compile(options)
        marks.append(time.perf_counter())
        for stage, a, b in zip(spent, marks[:-1], marks[1:], strict=True):
            spent[stage] += b - a
        return compiled

    with _no_cache_on_disk():
        start = build(start_function, params, problem.args, key)
        shapes = jax.eval_shape(start_function, params, problem.args, key)
        go = build(go_function, shapes, problem.args, limit)
    return Programs(start, go, spent, _memory(go))


@contextlib.contextmanager
def _no_cache_on_disk() -> Iterator[None]:
    """Compile in earnest: a program found in a persistent cache would cost nobody anything."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is decided once, until this
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def functions(
    problem: Problem,
    optimizer: Optimizer,
    *,
    trace_rows: int = 0,
    tap: Callable[[str], None] = lambda name: None,
):
    """The start and the chunk of a run, uncompiled.

    Args:
      trace_rows: steps of which the value, the gradient and the ledger are kept on the device.
      tap: called by name at every use of the oracle, while tracing.
    """
    if problem.batches is not None:
        return batched.functions(problem, optimizer, trace_rows=trace_rows, tap=tap)
    objective: Any = problem.objective
    watched = _watched(optimizer)

    def start(params, args, key) -> Progress:
        return begin(watched, bind(objective, args, tap=tap), params, key, trace_rows=trace_rows)

    def go(progress: Progress, args, limit) -> Progress:
        never = jnp.zeros((), progress.at.value.dtype)
        oracle = bind(objective, args, tap=tap)
        return advance(watched, oracle, progress, limit, never, gradient_criterion)

    return start, go


def _watched(optimizer: Optimizer) -> Optimizer:
    """The same method, with its rejected steps counted beside its state."""
    optimizer = folded(optimizer)

    def init(at):
        return Watched(optimizer.init(at), jnp.zeros((), jnp.int32))

    def step(oracle, at, state, key):
        params, known, inner, info = optimizer.step(oracle, at, state.inner, key)
        rejected = state.rejected + jnp.where(info.accepted, 0, 1).astype(jnp.int32)
        return params, known, Watched(inner, rejected), info

    return optimizer._replace(init=init, step=step)


def _memory(compiled: Any) -> int | None:
    try:
        stats = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    if stats is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    total = sum(getattr(stats, part, 0) for part in parts)
    return int(total - getattr(stats, "alias_size_in_bytes", 0))
