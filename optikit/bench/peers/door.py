"""The door for libraries that run on the host: compiled functions of a numpy vector, counted."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optikit.bench.peers.flat import Flat, residuals_of
from optikit.calculus import bind
from optikit.calculus.columns import value_and_jacobian
from optikit.core import Counts
from optikit.core.compiled import compiler_options


class Door:
    """An objective as compiled functions of a float64 numpy vector, counted by kind.

    Arithmetic is in the problem's dtype; a library's own is its own affair. Functions are compiled
    when `prepare` names them, in the stages that `seconds` holds.
    """

    def __init__(self, entered: Flat, tap: Callable[[str], None] = lambda kind: None):
        self.entered, self.tap = entered, tap
        self.args = jax.block_until_ready(entered.problem.args)
        self.calls = dict.fromkeys(Counts._fields, 0)
        self.seconds = {"trace": 0.0, "lower": 0.0, "compile": 0.0}
        everything = entered.start, self.args
        self._options = dict(compiler_options(everything, entered.start)) or None
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
        for name in names:
            if name == "product":
                self._compile("linearize", self._linearized, x, *args)
                held = self._compiled["linearize"](x, *args)
                self._compile(name, self._applied, held, x)
                jax.block_until_ready(self._compiled[name](held, x))
                continue
            function = self._residual(name, method) if name in _RESIDUAL else self._scalar(name)
            self._compile(name, function, x, *args)
            jax.block_until_ready(self._compiled[name](x, *args))

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The value and the gradient. Price: one grad."""
        self.calls["grad"] += 1
        value, grad = self._call("value_and_grad", x)
        return float(value), np.asarray(grad, np.float64)

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """The dense Hessian. Price: one hessian."""
        self.calls["hessian"] += 1
        return np.asarray(self._call("hessian", x), np.float64)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """H(x) times v. Price: one hvp, and one grad where x is new (what is linear is kept)."""
        if self._at is None or not np.array_equal(self._at[0], x):
            self.calls["grad"] += 1
            self._at = np.copy(x), self._call("linearize", x)
        self.calls["hvp"] += 1
        v = np.asarray(v, self.entered.start.dtype)
        return np.asarray(self._compiled["product"](self._at[1], v), np.float64)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """Residuals r with f = |r|^2 / 2. Price: one value."""
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
        self._compiled[name] = lowered.compile(self._options)
        marks.append(time.perf_counter())
        for stage, a, b in zip(self.seconds, marks[:-1], marks[1:], strict=True):
            self.seconds[stage] += b - a

    def _scalar(self, name: str) -> Callable:
        objective: Any = self.entered.problem.objective

        def value_and_grad(v, *args):
            self.tap("grad")
            return jax.value_and_grad(self.entered.value)(v, *args)

        def hessian(v, *args):  # through our own door, which knows the structure of linear models
            oracle = bind(objective, args, tap=self.tap)
            return oracle.curvature("hessian", self.entered.unravel(v)).dense()

        return {"value_and_grad": value_and_grad, "hessian": hessian}[name]

    def _residual(self, name: str, method: str) -> Callable:
        vector = residuals_of(self.entered, method)

        def residuals(v, *args):
            self.tap("value")
            return vector(v, *args)

        def jacobian(v, *args):
            self.tap("jacobian")
            return value_and_jacobian(lambda u: vector(u, *args), v)[1]

        return {"residuals": residuals, "jacobian": jacobian}[name]

    def _linearized(self, v, *args):
        self.tap("grad")
        return jax.linearize(lambda u: jax.grad(self.entered.value)(u, *args), v)[1]

    def _applied(self, product, v):
        self.tap("hvp")
        return product(v)


_RESIDUAL = ("residuals", "jacobian")
