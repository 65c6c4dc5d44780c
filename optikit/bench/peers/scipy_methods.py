"""scipy's minimisers with derivatives and its least squares, watched at every step.

Objective and derivatives are ours, compiled. Every run starts anew, and the clock is read where it
passes a step that is to be kept, in scipy's own callback. Tolerances are zero, or the smallest a
method accepts.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

from optikit.bench.execute import Judge, Run
from optikit.bench.peers.catalogue import about
from optikit.bench.peers.door import Door
from optikit.bench.peers.flat import flat
from optikit.bench.peers.host import Stop, measure_session
from optikit.bench.refine import Goal
from optikit.bench.spec import Budget, Measure
from optikit.core import Status
from optikit.problems import Problem

UNBOUNDED = 2**30
"""Iterations and evaluations a method may take; the watch ends it."""

TINY = float(np.finfo(np.float64).tiny)

_NO_TOLERANCE: dict[str, dict[str, Any]] = {
    "CG": {"gtol": 0.0},
    "BFGS": {"gtol": 0.0},
    "Newton-CG": {"xtol": 0.0},
    "L-BFGS-B": {"ftol": 0.0, "gtol": 0.0, "maxfun": UNBOUNDED},
    "TNC": {"ftol": 0.0, "gtol": 0.0, "xtol": 0.0, "maxfun": UNBOUNDED},
    "SLSQP": {"ftol": TINY},
    "dogleg": {"gtol": 0.0},
    "trust-ncg": {"gtol": 0.0},
    "trust-krylov": {"gtol": 0.0},
    "trust-exact": {"gtol": 0.0},
    "trust-constr": {"gtol": 0.0, "xtol": TINY},
}
_PRODUCTS = ("Newton-CG", "trust-ncg", "trust-krylov", "trust-constr")
_HESSIANS = ("dogleg", "trust-exact")


class EnoughError(Exception):
    """Raised inside a library's callback to end its run."""


class Ending(NamedTuple):
    """A run that ended by itself: where, whether the library calls it a success, its words."""

    x: np.ndarray
    success: bool
    message: str


class Watch:
    """Told of every step of a run: keeps those of a grid, and ends it after the last.

    Args:
      grid: steps to keep, ascending.
      seconds: running time after which no further step is waited for.
    """

    def __init__(self, door: Door, grid: Iterator[int], seconds: float = float("inf")):
        self.door, self.grid, self.seconds = door, grid, seconds
        self.step, self.next, self.status = 0, next(grid, 0), Status.RUNNING
        self.kept: list[tuple[int, np.ndarray, Any, float]] = []
        door.reset()
        self.begun = time.perf_counter()

    def __call__(self, x: np.ndarray) -> None:
        """A step has been taken, to x."""
        self.step += 1
        if self.step < self.next:
            return
        self.keep(x)
        following = next(self.grid, None)
        if following is None or self.kept[-1][3] >= self.seconds:
            self.status = Status.MAX_STEPS if following is None else Status.OUT_OF_BUDGET
            raise EnoughError
        self.next = following

    def keep(self, x: np.ndarray) -> None:
        """Keep the step that ended at x."""
        now = time.perf_counter() - self.begun
        self.kept.append((self.step, np.array(x, float), self.door.counts, now))

    def ended(self, ending: Ending) -> None:
        """The library gave up, perhaps at a point of which it had not told."""
        last_step, last = self.kept[-1][:2] if self.kept else (0, None)
        if self.step > last_step or last is None or not np.array_equal(ending.x, last):
            self.step = max(self.step, last_step + 1)
            self.keep(ending.x)
        self.status = Status.CONVERGED if ending.success else Status.STALLED


@dataclasses.dataclass
class ScipyPeer:
    """A method of scipy, with its options.

    Attributes:
      message: scipy's own words at the end of the measured run.
    """

    method: str
    arguments: dict[str, Any]
    message: str = ""

    @property
    def name(self) -> str:
        """As in a study."""
        return f"scipy:{self.method}"

    def measure(
        self, problem: Problem, key: jax.Array, *,
        budget: Budget, how: Measure, judge: Judge, goal: Goal | None = None,
    ) -> Run:  # fmt: skip
        """As `execute.measure`."""
        session = self.session(problem, key)
        run = measure_session(session, budget=budget, how=how, judge=judge, goal=goal)
        self.message = session.message
        return run

    def costs(self, problem: Problem, key: jax.Array, steps: list[int]) -> None:
        """None: a library's arithmetic on the host cannot be seen."""

    def facts(self) -> dict[str, Any]:
        """The library, and its last words."""
        return {"peer": about(self.name), **({"sentence": self.message} if self.message else {})}

    def session(
        self, problem: Problem, key: jax.Array, tap: Callable[[str], None] = lambda kind: None
    ) -> "ScipySession":
        """The method on a problem; `tap` is called by kind where its functions are traced.

        Raises:
          TypeError: the problem is no sum of squares, and the method needs one.
        """
        door = Door(flat(problem, jax.random.split(key)[0]), tap)
        door.prepare("value_and_grad", method=self.name)
        spent = dict(door.seconds)
        squares = self.method not in _NO_TOLERANCE
        if squares:  # it needs no gradient: compiled off the clock, for values
            door.seconds = dict.fromkeys(spent, 0.0)
            door.prepare("residuals", "jacobian", method=self.name)
        elif self.method in _PRODUCTS:
            door.prepare("product", method=self.name)
        elif self.method in _HESSIANS:
            door.prepare("hessian", method=self.name)
        return ScipySession(door, _squares if squares else _minimum, self.method, self.arguments)


@dataclasses.dataclass
class ScipySession:
    """See `optikit.bench.peers.host.Session`."""

    door: Door
    run: Callable[[str, dict[str, Any], Door, np.ndarray, Watch], Ending]
    method: str
    arguments: dict[str, Any]
    message: str = ""

    @property
    def seconds(self) -> dict[str, float]:
        """Trace, lower, compile."""
        return self.door.seconds

    def explore(self, budget: Budget, growth: float) -> tuple[list[Stop], Status]:
        """A run on a geometric grid within a budget."""
        watch = self._watched(_geometric(budget.steps, growth), budget.seconds)
        start = Stop(0, self._params(self._start), type(self.door.counts)(), 0.0)
        return [start, *self._stops(watch)], watch.status

    def again(self, steps: Sequence[int]) -> list[Stop]:
        """A run that stops at given steps."""
        before = self.message
        stops = self._stops(self._watched(iter([s for s in steps if s > 0])))
        self.message = before
        return stops

    def value(self, params: Any) -> float:
        """The objective in the problem's precision."""
        flat_params = ravel_pytree(params)[0]
        return self.door.value_and_grad(np.asarray(flat_params))[0]

    @property
    def _start(self) -> np.ndarray:
        return np.asarray(self.door.entered.start, np.float64)

    def _watched(self, grid: Iterator[int], seconds: float = float("inf")) -> Watch:
        watch = Watch(self.door, grid, seconds)
        try:
            ending = self.run(self.method, self.arguments, self.door, self._start, watch)
        except EnoughError:
            self.message = ""
            return watch
        self.message = ending.message
        watch.ended(ending)
        return watch

    def _stops(self, watch: Watch) -> list[Stop]:
        return [Stop(step, self._params(x), counts, s) for step, x, counts, s in watch.kept]

    def _params(self, x: np.ndarray) -> Any:
        return self.door.entered.unravel(jnp.asarray(x, self.door.entered.start.dtype))


def _geometric(limit: int, growth: float) -> Iterator[int]:
    step = 0
    while step < limit:
        step = min(limit, max(step + 1, int(growth * step)))
        yield step


def _minimum(
    method: str, arguments: dict[str, Any], door: Door, start: np.ndarray, watch: Watch
) -> Ending:
    """scipy.optimize.minimize; a step is a call of its callback."""
    options = {"maxiter": UNBOUNDED, **_NO_TOLERANCE[method], **arguments}
    if method == "TNC":
        del options["maxiter"]  # its old name of maxfun
    second: dict[str, Any] = {}
    if method in _PRODUCTS:
        second["hessp"] = door.product
    if method in _HESSIANS:
        second["hess"] = door.hessian
    found: Any = optimize.minimize(
        door.value_and_grad, start, jac=True, method=method, options=options,
        callback=lambda xk, *_: watch(xk), **second,
    )  # fmt: skip
    return Ending(found.x, bool(found.success), str(found.message))


def _squares(
    method: str, arguments: dict[str, Any], door: Door, start: np.ndarray, watch: Watch
) -> Ending:
    """scipy.optimize.least_squares; a step ends where the Jacobian is evaluated."""
    at = start  # lm evaluates its first Jacobian twice

    def jacobian(x: np.ndarray) -> np.ndarray:
        nonlocal at
        if not np.array_equal(x, at):
            watch(x)
            at = np.copy(x)
        return door.jacobian(x)

    # it refuses tolerances below eps, where none would change what it does
    eps = float(np.finfo(np.float64).eps)
    found = optimize.least_squares(
        door.residuals, start, jac=jacobian,  # type: ignore[arg-type]
        method=method, max_nfev=UNBOUNDED,
        ftol=eps, xtol=eps, gtol=eps, **arguments,
    )  # fmt: skip
    return Ending(found.x, bool(found.success), str(found.message))
