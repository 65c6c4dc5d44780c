"""Peers written in JAX: stepped and timed by the very loop that steps our own optimizers.

Each library's documented stepping interface (jaxopt: init_state and update; optimistix: init, step
and terminate) becomes an `Optimizer` over the vector of parameters. Chunks, snapshots and warm runs
are then those of `execute.measure`: one executable, whose number of steps is an argument. A
snapshot is the library's own current point. The library differentiates the objective itself; its
calls are counted in a replay off the clock, see `taps`.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optikit.bench import execute
from optikit.bench.peers.catalogue import about
from optikit.bench.peers.flat import Flat, flat, residuals_of
from optikit.bench.peers.taps import Tally, tapped
from optikit.bench.programs import functions
from optikit.bench.replay import Along, costs_along
from optikit.bench.spec import Budget, Measure
from optikit.calculus import Eval, Oracle, black_box
from optikit.core import Counts, Status
from optikit.optimizers import Optimizer, StepInfo
from optikit.problems import Problem

PATIENCE = 100
"""Steps that leave a peer's point and value as they were, after which it is at its end."""

SUMS_OF_SQUARES = {
    "GaussNewton", "LevenbergMarquardt", "IndirectLevenbergMarquardt", "Dogleg",
}  # fmt: skip


class Stepper(NamedTuple):
    """A library's method on a function, in three parts.

    Attributes:
      begin: (vector, args) -> state.
      step: (vector, state, args) -> (vector, state, whether it has given up).
      value: state -> its own value of the objective, or any number that is finite while that is.
    """

    begin: Callable[..., Any]
    step: Callable[..., Any]
    value: Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class CompiledPeer:
    """A method of jaxopt or optimistix, with the arguments that a study gave."""

    library: str
    method: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """As in a study."""
        return f"{self.library}:{self.method}"

    def measure(
        self, problem: Problem, key: jax.Array, *,
        budget: Budget, how: Measure, judge: execute.Judge, goal: execute.Goal | None = None,
    ) -> execute.Run:  # fmt: skip
        """As `execute.measure`."""
        entered = flat(problem, jax.random.split(key)[0])
        run = execute.measure(
            _over(entered), self._optimizer(entered), key, budget=budget, goal=goal,
            how=how.model_copy(update={"trace": False}),
            judge=lambda vector: judge(entered.unravel(vector)),
        )  # fmt: skip
        evaluate = jax.jit(entered.value)
        counts = self._counted(entered, key, [s.step for s in run.snapshots])
        snapshots = [
            snapshot._replace(
                value=float(evaluate(snapshot.params, *problem.args)),
                counts=counted,
                params=jax.device_get(entered.unravel(snapshot.params)),
            )
            for snapshot, counted in zip(run.snapshots, counts, strict=True)
        ]
        return run._replace(snapshots=snapshots)

    def costs(self, problem: Problem, key: jax.Array, steps: list[int]) -> Along | None:
        """As `replay.costs_along`; None where part of the library's arithmetic cannot be seen."""
        entered = flat(problem, jax.random.split(key)[0])
        along = costs_along(_over(entered), self._optimizer(entered), key, steps)
        return None if along.unknown else along

    def facts(self) -> dict[str, Any]:
        """The library."""
        return {"peer": about(self.name)}

    def _optimizer(self, entered: Flat, tally: Tally | None = None) -> Optimizer:
        function = self._function(entered)
        function = function if tally is None else tapped(function, tally)
        build = {"jaxopt": _jaxopt, "optimistix": _optimistix}[self.library]
        stepper = build(self.method, function, self.method in SUMS_OF_SQUARES, self.arguments)
        return _as_optimizer(stepper, self.name)

    def _function(self, entered: Flat) -> Callable[..., Any]:
        if self.method in SUMS_OF_SQUARES:
            return residuals_of(entered, self.name)
        return entered.value

    def _counted(self, entered: Flat, key: jax.Array, steps: list[int]) -> list[Counts]:
        tally = Tally(scalar=self.method not in SUMS_OF_SQUARES)
        problem, optimizer = _over(entered), self._optimizer(entered, tally)
        start, go = map(jax.jit, functions(problem, optimizer))
        begun = start(entered.start, problem.args, jax.random.split(key)[1])
        progress = jax.block_until_ready(begun)
        counts = []
        for limit in steps:
            bound = jnp.asarray(limit, jnp.int32)
            progress = jax.block_until_ready(go(progress, problem.args, bound))
            jax.effects_barrier()
            counts.append(tally.counts())
        return counts


def _over(entered: Flat) -> Problem:
    """The problem over its vector of parameters."""
    return dataclasses.replace(
        entered.problem, objective=black_box(entered.value), params=entered.start
    )


def _as_optimizer(stepper: Stepper, name: str) -> Optimizer:
    """The state travels in the evaluation, since it is made from the data."""

    def evaluate(oracle: Oracle, vector: jax.Array) -> tuple[Eval, Counts]:
        with _lenient():
            state = jax.tree.map(jnp.asarray, stepper.begin(vector, oracle.args))
            return _evaluation(stepper, vector, state), Counts()

    def step(oracle: Oracle, at: Eval, state: Any, key: jax.Array):
        del key
        with _lenient():
            vector, inner, gave_up = stepper.step(at.params, at.local, oracle.args)
            inner = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner, at.local)
            vector = jnp.asarray(vector, at.params.dtype)
            size = jnp.linalg.norm(vector - at.params).astype(at.value.dtype)
            ended = jnp.where(gave_up, Status.STALLED.value, Status.RUNNING.value)
            info = StepInfo(size, size > 0, Counts(), None, ended.astype(jnp.int32), {})
            return vector, _evaluation(stepper, vector, inner), state, info

    return Optimizer(
        init=lambda at: (),
        step=step,
        evaluate=evaluate,
        measure=lambda at: (1 + jnp.max(jnp.abs(at.params))).astype(at.value.dtype),
        monotone=True,  # not a promise: the point to judge is the one the library stands at
        patience=PATIENCE,
        name=name,
    )


def _evaluation(stepper: Stepper, vector: jax.Array, state: Any) -> Eval:
    value = jnp.asarray(stepper.value(state), vector.dtype)
    return Eval(vector, value, jnp.zeros_like(vector), None, state)


@contextlib.contextmanager
def _lenient():
    """Let libraries promote dtypes and ranks as they must, where a user forbids it elsewhere."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _jaxopt(method: str, function: Callable, squares: bool, arguments: dict) -> Stepper:
    del squares
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is no longer maintained
        import jaxopt
    solver = getattr(jaxopt, method)(function, tol=0.0, **arguments)

    def step(vector, state, args):
        vector, state = solver.update(vector, state, *args)
        return vector, state, False

    def value(state):
        if hasattr(state, "value"):
            return state.value
        return jnp.where(jnp.isinf(state.error), 0, state.error)  # infinite before the first step

    return Stepper(lambda vector, args: solver.init_state(vector, *args), step, value)


def _optimistix(method: str, function: Callable, squares: bool, arguments: dict) -> Stepper:
    import equinox as eqx
    import optimistix as optx

    solver: Any = getattr(optx, method)(rtol=0.0, atol=0.0, **arguments)
    none = frozenset()

    def fn(vector, args):
        return function(vector, *args), None

    def whole(vector, args):
        shape = jax.eval_shape(fn, vector, args)[0]
        return solver.init(fn, vector, args, {}, shape, None, none)

    def begin(vector, args):
        return eqx.filter(whole(vector, args), eqx.is_array)

    def step(vector, dynamic, args):
        static = eqx.filter(whole(vector, args), eqx.is_array, inverse=True)
        state = eqx.combine(dynamic, static)
        vector, state, _ = solver.step(fn, vector, args, {}, state, none)
        ended, result = solver.terminate(fn, vector, args, {}, state, none)
        return vector, eqx.filter(state, eqx.is_array), ended | (result != optx.RESULTS.successful)

    def value(state):
        info = state.f_info
        return jnp.sum(info.residual**2) / 2 if squares else info.f

    return Stepper(begin, step, value)
