"""Peers that run on the host and call compiled functions: the door, the clock and the snapshots.

Every run starts anew and is stamped where it passes a snapshot, in the library's own callback. What
the library does on the host, conversions included, is its own time, and so is the synchronisation
with the device that every call needs. Tolerances are off: a run ends by its budget, or when the
library gives up.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from optikit.bench.execute import Run
from optikit.bench.peers.catalogue import about
from optikit.bench.peers.flat import Flat, flat, residuals_of
from optikit.bench.spec import Budget
from optikit.calculus import bind
from optikit.calculus.oracle import value_and_jacobian
from optikit.core import Counts, Status
from optikit.core.compiled import compiler_options
from optikit.problems import Problem

class EnoughError(Exception):
    """Raised inside a library's callback to end its run."""


class Door:
    """An objective as compiled functions of a float64 numpy vector, counted by kind.

    Arithmetic is in the problem's dtype; a library's own is its own affair. Functions are compiled
    when `prepare` names them, in the stages that `seconds` holds.
    """

    def __init__(self, entered: Flat):
        self.entered = entered
        self.args = jax.block_until_ready(entered.problem.args)
        self.calls = dict.fromkeys(Counts._fields, 0)
        self.seconds = {"trace": 0.0, "lower": 0.0, "compile": 0.0, "begin": 0.0}
        self._compiled: dict[str, Any] = {}
        self._at: tuple[np.ndarray, Any] | None = None  # a point and its Hessian, linearised

    @property
    def counts(self) -> Counts:
        """Calls so far."""
        return Counts(**self.calls)

    def reset(self) -> None:
        """Forget all calls."""
        self.calls = dict.fromkeys(self.calls, 0)
        self._at = None

    def prepare(self, *names: str, method: str) -> None:
        """Compile functions and run each once, which is not counted.

        Args:
          names: of the functions below.
          method: for messages.
        """
        x, args = self.entered.start, self.args
        functions = {"value_and_grad": self._value_and_grad, "hessian": self._hessian}
        if "jacobian" in names:
            vector = residuals_of(self.entered, method)
            functions["residuals"] = vector
            functions["jacobian"] = lambda v, *a: value_and_jacobian(lambda u: vector(u, *a), v)[1]
        if "product" in names:
            self._compile("linearize", self._linearized, x, *args)
            held = self._compiled["linearize"](x, *args)
            self._compile("product", lambda product, v: product(v), held, x)
        for name in names:
            if name != "product":
                self._compile(name, functions[name], x, *args)
                jax.block_until_ready(self._compiled[name](x, *args))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """f and its gradient. Price: one grad."""
        self.calls["grad"] += 1
        value, grad = self._call("value_and_grad", x)
        return float(value), np.asarray(grad, np.float64)

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """The dense Hessian. Price: one hessian."""
        self.calls["hessian"] += 1
        return np.asarray(self._call("hessian", x), np.float64)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """H(x) v. Price: one hvp, and one grad where x is new (its linearisation is kept)."""
        if self._at is None or not np.array_equal(self._at[0], x):
            self.calls["grad"] += 1
            self._at = np.copy(x), self._call("linearize", x)
        self.calls["hvp"] += 1
        v = np.asarray(v, self.entered.start.dtype)
        return np.asarray(self._compiled["product"](self._at[1], v), np.float64)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """R with f = |r|^2 / 2. Price: one value."""
        self.calls["value"] += 1
        return np.asarray(self._call("residuals", x), np.float64)

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """The Jacobian of the residuals, (m, n). Price: one jacobian."""
        self.calls["jacobian"] += 1
        return np.asarray(self._call("jacobian", x), np.float64)

    def _call(self, name: str, x: np.ndarray) -> Any:
        return self._compiled[name](np.asarray(x, self.entered.start.dtype), *self.args)

    def _compile(self, name: str, function: Callable, *args: Any) -> None:
        marks = [time.perf_counter()]
        traced = jax.jit(function).trace(*args)
        marks.append(time.perf_counter())
        lowered = traced.lower()
        marks.append(time.perf_counter())
        self._compiled[name] = lowered.compile(dict(compiler_options(args)) or None)
        marks.append(time.perf_counter())
        for stage, a, b in zip(self.seconds, marks[:-1], marks[1:], strict=False):
            self.seconds[stage] += b - a

    def _value_and_grad(self, v, *args):
        return jax.value_and_grad(self.entered.value)(v, *args)

    def _linearized(self, v, *args):
        return jax.linearize(lambda u: jax.grad(self.entered.value)(u, *args), v)[1]

    def _hessian(self, v, *args):
        """Through our own door, which knows the structure of linear models."""
        objective: Any = self.entered.problem.objective
        return bind(objective, args).curvature("hessian", self.entered.unravel(v)).dense()


class Snapshot(NamedTuple):
    """Where a run was: steps, point, calls, seconds since it began."""

    step: int
    x: np.ndarray
    counts: Counts
    seconds: float


class Watch:
    """Told of every step of a run, keeps those of a geometric grid, and ends it in time."""

    def __init__(self, door: Door, *, steps: int, seconds: float, growth: float):
        self.door, self.limit, self.seconds, self.growth = door, steps, seconds, growth
        self.step, self.next = 0, 1
        self.door.reset()
        x = np.asarray(door.entered.start, np.float64)
        self.snapshots = [Snapshot(0, x, door.counts, 0.0)]
        self.begun = time.perf_counter()

    def __call__(self, x: np.ndarray) -> None:
        """A step has been taken, to x."""
        self.step += 1
        if self.step < self.next:
            return
        self.keep(x)
        if self.step >= self.limit or self.snapshots[-1].seconds >= self.seconds:
            raise EnoughError
        self.next = min(self.limit, max(self.step + 1, int(self.growth * self.step)))

    def keep(self, x: np.ndarray) -> None:
        """A snapshot at x."""
        now = time.perf_counter() - self.begun
        self.snapshots.append(Snapshot(self.step, np.array(x, float), self.door.counts, now))

    def ended(self, x: np.ndarray) -> None:
        """The library gave up at x of its own accord."""
        last = self.snapshots[-1]
        if self.step > last.step or not np.array_equal(x, last.x):
            self.step = max(self.step, last.step + 1)
            self.keep(x)


class Ending(NamedTuple):
    """A run that ended by itself: where, whether the library calls it a success, its words."""

    x: np.ndarray
    success: bool
    message: str


class Watched(Protocol):
    """A method that can be watched: runs until it is told to stop, or ends by itself."""

    name: str
    needs: tuple[str, ...]  # functions of the door

    def run(self, door: Door, start: np.ndarray, watch: Watch) -> Ending:
        """One run."""
        ...


@dataclasses.dataclass
class HostPeer:
    """A method on the host as a study measures it.

    Attributes:
      method: what runs.
      message: the library's own words at the end of the last measured run.
    """

    method: Watched
    message: str = ""

    @property
    def name(self) -> str:
        """As in a study."""
        return self.method.name

    def measure(
        self, problem: Problem, key: jax.Array, *, budget: Budget, repeats: int, growth: float
    ) -> Run:
        """As `execute.measure`."""
        entered = flat(problem, jax.random.split(key)[0])
        door = Door(entered)
        door.prepare("value_and_grad", *self.method.needs, method=self.name)
        self._run(door, Budget(steps=2, seconds=budget.seconds), growth)  # first touch, discarded
        first, status = self._run(door, budget, growth)
        message = self.message
        grid = [s.step for s in first]
        again = Budget(steps=max(grid[-1], 1), seconds=float("inf"))
        warm = [
            _at_steps(self._run(door, again, growth)[0], grid) for _ in range(repeats)
        ]
        self.message = message
        return Run(
            steps=grid,
            params=[jax.device_get(entered.unravel(_cast(door, s.x))) for s in first],
            values=[door.value_and_grad(s.x)[0] for s in first],
            counts=[s.counts for s in first],
            first_seconds=[s.seconds for s in first],
            warm_seconds=warm,
            status=status,
            seconds=door.seconds,
            memory_bytes=None,
        )

    def flops(self, problem: Problem, key: jax.Array, steps: list[int]) -> None:
        """None: a library's arithmetic on the host cannot be seen."""

    def facts(self) -> dict[str, Any]:
        """The library, and its last words."""
        return {"peer": about(self.name), "sentence": self.message}

    def _run(self, door: Door, budget: Budget, growth: float) -> tuple[list[Snapshot], Status]:
        start = np.asarray(door.entered.start, np.float64)
        watch = Watch(door, steps=budget.steps, seconds=budget.seconds, growth=growth)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of tolerances that cannot be met
            try:
                ending = self.method.run(door, start, watch)
            except EnoughError:
                done = watch.step >= budget.steps
                status = Status.MAX_STEPS if done else Status.OUT_OF_BUDGET
                self.message = status.sentence
                return watch.snapshots, status
        watch.ended(ending.x)
        self.message = ending.message
        return watch.snapshots, Status.CONVERGED if ending.success else Status.STALLED


def _cast(door: Door, x: np.ndarray) -> np.ndarray:
    return np.asarray(x, door.entered.start.dtype)


def _at_steps(run: list[Snapshot], grid: list[int]) -> list[float]:
    """Seconds at the steps of a grid; a run that ended sooner stands still."""
    return [max(s.seconds for s in run if s.step <= step) for step in grid]
