"""`advise`: what each method will cost on this problem and this device, and which to take."""

import dataclasses
import math
import reprlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import core

from optikit.analyze.instruments import as_subject
from optikit.analyze.operator import check_wide
from optikit.analyze.predict import APPROACH, LAWS, Prediction, predicted
from optikit.analyze.prices import Price, oracle_prices, products, refusal
from optikit.analyze.probe import Probe, probe
from optikit.calculus import Objective, bind
from optikit.calculus.derivatives import Fun
from optikit.calculus.objective import residual_vector
from optikit.calculus.validate import as_key
from optikit.core import Key, LinearOperator, Params, tree
from optikit.core.compiled import under_transformation
from optikit.solve import Solution, minimize
from optikit.solve.choose import choose
from optikit.solve.solution import default_tolerance

FIRST, GROWTH = 16, 4
"""Steps of a method's first rehearsal, and how many times more each further one takes."""

LONG = 0.5
"""Seconds of a run that is not repeated: a shorter one may have met another tenant of the cores."""

REHEARSED, EXTRAPOLATED = 1.5, 3.0
"""Factors within which predictions from rehearsals lie; see `benchmarks/advise.py`."""

DENSE_UPDATE = 5000
"""Parameters up to which a matrix of BFGS is thought of."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """What was measured, what follows for each method, and which one to take.

    Attributes:
      method: the one recommended. reason: why, in a sentence.
      predictions: of each method, the quickest first.
      prices: of each oracle and factorisation, by name.
      start, near: the curvature at the start, and after a few cheap steps.
      accuracy: as `tol` of `minimize`.
    """

    method: str
    reason: str
    predictions: tuple[Prediction, ...]
    prices: Mapping[str, Price]
    start: Probe
    near: Probe
    accuracy: float

    def __str__(self) -> str:
        lines = [f"take {self.method!r}: {self.reason}", f"to {self.accuracy:.1g} of the gradient:"]
        lines.append("  method               steps    seconds   within    memory  known from")
        for p in self.predictions:
            lines.append(
                f"  {p.method:<19}{p.steps:>7.3g}{p.seconds:>11.2e}{p.factor:>7.1f}x"
                f"{_bytes(p.bytes):>10}  {p.source}"
            )
        lines.append("  oracle        seconds      FLOPs      bytes    compile")
        for kind, price in self.prices.items():
            compiling = "" if price.compile_seconds is None else f"{price.compile_seconds:.2g} s"
            lines.append(
                f"  {kind:<12}{price.seconds:>9.2e}{price.flops:>11.3g}{price.bytes:>11.3g}"
                f"{compiling:>11}"
            )
        return "\n".join([*lines, f"  start: {self.start}", f"  near:  {self.near}"])


def advise(
    fun: Fun,
    params: Params,
    args: tuple = (),
    *,
    accuracy: float | None = None,
    methods: Sequence[str] | None = None,
    seconds: float = 5.0,
    rehearsals: int = 3,
    has_aux: bool = False,
    key: Key | None = None,
) -> Advice:
    """Does second order pay here? Measures this device and this problem, and predicts each method.

    Oracles and factorisations are timed; L-BFGS takes a few steps, and the Hessian's spectrum is
    looked at before and after them. From these each method's law (`optikit.analyze.predict`) gives
    steps and seconds, and the most promising methods are rehearsed: run for 16 steps, for 64 and so
    on, until they converge or their share of the time is over. Print the result for a table.

    It predicts warm solves of the function with data of this kind: for a single solve it never
    pays, as each rehearsal compiles. Where a rehearsal did not end, and for methods not
    rehearsed, the course is extrapolated from the quadratic model near the point reached; a long
    way through a curved valley ahead is then not foreseen. Times are those of a machine as busy as
    it is now.

    How far to trust it (`benchmarks/advise.py`, 22 small problems, their families held out, two CPU
    cores): the method recommended took at most 1.5 times as long as the best on 91 % of them, 1.9
    times at worst, and 90 % of all methods' times were foretold within a factor of 3 (85 % of
    those above a millisecond). By the laws alone the first figure is 82 %, the worst 5 times: they
    know the spectrum, not the valleys. On a machine that others use too these were 86 % and once 77
    times, where a dense factorisation had been timed while another tenant slowed it. A worse local
    minimum, reached sooner, is not held against a method.

    Args:
      accuracy: as `tol` of `minimize`, and its default.
      methods: names to choose from; by default all that have a law and suit the problem.
      seconds: for measurements, compilation not counted; a third for prices, the rest for
        rehearsals.
      rehearsals: how many methods to rehearse. Then, as long as the quickest foretold is one that
        was not, that one too, beyond `seconds`: what is recommended has been seen to run, unless
        none of them did. 0 to go by the laws alone.
      key: for methods that draw random numbers.

    Raises:
      ValueError: a method without a law; a start where the objective or its gradient is not finite;
        a negative accuracy, time or number; a call under `jit` or `vmap`, which cannot measure.
      TypeError: as `minimize` does; an objective without Hessian products, as through a callback;
        an operator; parameters narrower than float32.

    Example:
      >>> def valley(x):
      ...     return jnp.sum(jnp.arange(1.0, 9.0) * x**2)
      >>> advice = advise(valley, jnp.ones(8), methods=["lbfgs"], seconds=0.1, rehearsals=1)
      >>> advice.method, advice.predictions[0].source
      ('lbfgs', 'rehearsed')
    """
    leaves = jax.tree.leaves((params, args))
    if under_transformation() or any(isinstance(x, core.Tracer) for x in leaves):
        msg = "advise measures: call it outside jit and vmap, with arrays."
        raise ValueError(msg)
    for name, number in {
        "accuracy": accuracy,
        "seconds": seconds,
        "rehearsals": rehearsals,
    }.items():
        if number is not None and not number >= 0:
            msg = f"{name} must not be negative; got {number}."
            raise ValueError(msg)
    subject, params, args = as_subject(fun, params, args, has_aux)
    _check_curvature(subject, params, args)
    assert isinstance(subject, Objective)
    key = None if key is None else as_key(key)
    names = _candidates(subject, params, args, methods)
    dtype = tree.inner_dtype(params)
    accuracy = default_tolerance(dtype) if accuracy is None else float(accuracy)
    stage = _Stage(subject, params, args, accuracy, key)

    start = probe(subject, params, args)
    if not math.isfinite(start.value + start.grad_norm):
        msg = (
            f"the objective is {start.value} at the start, its largest gradient entry "
            f"{start.grad_norm}: give params where both are finite."
        )
        raise ValueError(msg)
    prices = oracle_prices(subject, params, args, seconds=seconds / 3)
    _, call = stage.timed("lbfgs", 0)
    approach, took = stage.timed("lbfgs", APPROACH)
    near = probe(subject, approach.params, args) if tree.all_finite(approach.grad) else start
    steps = max(int(approach.steps), 1)
    grads = max(prices["grad"].seconds - prices["dispatch"].seconds, 0.0)
    overhead = max((took - call) / steps - 1.2 * grads, 0.0)

    # below rounding no gradient falls, whatever is asked
    target = max(accuracy, float(tree.eps(dtype))) * max(1.0, start.grad_norm)
    reduction = min(target / start.grad_norm, 0.5) if start.grad_norm > 0 else 0.5
    common: dict[str, Any] = {
        "residuals": stage.residuals(), "itemsize": dtype.itemsize, "overhead": overhead,
        "call": call,
    }  # fmt: skip
    found = {name: predicted(name, start, near, reduction, prices, **common) for name in names}
    if "lbfgs" in found:  # the approach was its rehearsal
        found["lbfgs"] = stage.seen(found["lbfgs"], approach, took, APPROACH, start, target)
    order = sorted(names, key=lambda name: found[name].seconds)
    # the structure of a model may make a method cheaper than its parts: choose() knows it
    usual = choose(subject, params, args)[0]
    if usual in order:
        order.remove(usual)
        order.insert(0, usual)
    share = 2 * seconds / 3 / max(rehearsals, 1)
    for name in order[:rehearsals]:
        found[name] = stage.rehearsed(found[name], start, target, share)
    while rehearsals and _untried(best := _ranked(found)[0]):
        found[best.method] = stage.rehearsed(best, start, target, share)
    ranked = _ranked(found)
    return Advice(
        ranked[0].method, _reason(ranked, near, prices), ranked, prices, start, near, accuracy
    )


def _ranked(found: Mapping[str, Prediction]) -> tuple[Prediction, ...]:
    return tuple(sorted(found.values(), key=lambda p: p.seconds))


def _untried(prediction: Prediction) -> bool:
    return prediction.source == "spectrum" and math.isfinite(prediction.seconds)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """Where methods are rehearsed."""

    objective: Objective
    params: Params
    args: tuple
    accuracy: float
    key: Key | None

    def timed(self, method: str, max_steps: int) -> tuple[Solution, float]:
        """A warm solve, and its seconds: the least of up to three."""
        found, best = self._run(method, max_steps), math.inf
        for _ in range(3):
            begun = time.perf_counter()
            found = self._run(method, max_steps)
            best = min(best, time.perf_counter() - begun)
            if best > LONG:
                break
        return found, best

    def _run(self, method: str, max_steps: int) -> Solution:
        return jax.block_until_ready(
            minimize(
                self.objective, self.params, args=self.args, method=method, tol=self.accuracy,
                max_steps=max_steps, key=self.key,
            )
        )  # fmt: skip

    def residuals(self) -> int:
        """How many residuals the objective has, 0 if none."""
        vector = residual_vector(self.objective)
        if vector is None:
            return 0
        return jax.eval_shape(lambda p, a: vector(p, *a), self.params, self.args).size

    def rehearsed(
        self, by_law: Prediction, start: Probe, target: float, share: float
    ) -> Prediction:
        """The prediction after running the method, for about `share` seconds."""
        begun = time.perf_counter()
        self._run(by_law.method, FIRST)
        compiling = time.perf_counter() - begun
        begun, steps = time.perf_counter(), FIRST
        while True:
            found, took = self.timed(by_law.method, steps)
            spent = time.perf_counter() - begun
            # timed runs it up to four times
            if _ended(found, steps) or spent + 4 * GROWTH * took > share:
                break
            steps *= GROWTH
        seen = self.seen(by_law, found, took, steps, start, target)
        return dataclasses.replace(seen, compile_seconds=compiling)

    def seen(
        self, by_law: Prediction, found: Solution, took: float, limit: int, start: Probe,
        target: float,
    ) -> Prediction:  # fmt: skip
        """The prediction after a run of at most `limit` steps that took so many seconds."""
        news: dict[str, Any] = {
            "steps": float(found.steps), "seconds": took, "factor": REHEARSED,
            "source": "rehearsed",
        }  # fmt: skip
        if not _ended(found, limit):
            each = took / max(int(found.steps), 1)
            more = _steps_left(by_law, int(found.steps), float(found.grad_norm), start, target)
            news |= {"steps": int(found.steps) + more, "seconds": took + more * each}
            news |= {"factor": EXTRAPOLATED, "source": "extrapolated"}
        elif not bool(found.success):
            news |= {"seconds": math.inf, "factor": math.inf, "source": "failed"}
        return dataclasses.replace(by_law, **news)


def _ended(found: Solution, limit: int) -> bool:
    return bool(found.success) or int(found.steps) < limit


def _steps_left(by_law: Prediction, done: int, now: float, start: Probe, target: float) -> float:
    """Steps to come: at the pace so far and by the law, whichever says more."""
    whole = math.log(max(start.grad_norm / target, 2.0))
    gone = 0.99 if now == 0 else 0.0
    if now > 0 and start.grad_norm > 0:  # on a saddle there is no gradient to begin with
        gone = min(max(math.log(start.grad_norm / now) / whole, 0.0), 0.99)
    at_pace = done / gone - done if gone > 0.05 else 0.0
    return max(at_pace, (1 - gone) * by_law.steps, 1.0)


def _check_curvature(subject: Objective | LinearOperator, params: Params, args: tuple) -> None:
    """Refuse what has no curvature to be looked at.

    Raises:
      TypeError: an operator, narrow parameters, an objective that JAX differentiates only once.
    """
    if isinstance(subject, LinearOperator):
        msg = "advise needs an objective to run methods on; got a LinearOperator: give fun itself."
        raise TypeError(msg)
    check_wide(params)
    jax.eval_shape(lambda p, a: bind(subject, a).value_and_grad(p).grad, params, args)
    missing = refusal(products(subject)["hvp"], params, args, 1)
    if missing is not None:
        msg = (
            "advise looks at Hessian products, and the objective has none: its gradient cannot be "
            f"differentiated ({missing}). Use minimize with a method that takes gradients alone, "
            "as 'lbfgs'."
        )
        raise TypeError(msg) from missing


def _candidates(
    objective: Objective, params: Params, args: tuple, methods: Sequence[str] | None
) -> list[str]:
    n = tree.size(params)
    if methods is not None:
        if isinstance(methods, str):
            msg = f"methods must be several names; got {methods!r}: write methods=[{methods!r}]."
            raise TypeError(msg)
        missing = [reprlib.repr(name) for name in methods if name not in LAWS]
        if missing or not methods:
            what = f"no law for {', '.join(missing)}" if missing else "methods is empty"
            msg = f"{what}: choose from {sorted(LAWS)}."
            raise ValueError(msg)
        return list(dict.fromkeys(methods))
    fits = residual_vector(objective) is not None and not refusal(
        lambda p, a: bind(objective, a).residuals_and_jacobian(p), params, args
    )
    least_squares = {"gauss-newton", "levenberg-marquardt"}
    return [
        name
        for name in LAWS
        if (fits or name not in least_squares) and (n <= DENSE_UPDATE or name != "bfgs")
    ]


def _reason(ranked: tuple[Prediction, ...], near: Probe, prices: Mapping[str, Price]) -> str:
    best = ranked[0]
    if not math.isfinite(best.seconds):
        return "every method that was tried ended without convergence; look at `certify`."
    low, high = near.condition
    shape = (
        f"condition number {low:.2g}" + ("" if high <= 1.1 * low else " or more")
        if math.isfinite(low)
        else "a Hessian that is not positive definite"
    )
    parts = [f"{best.steps:.3g} steps and {best.seconds:.2g} s, {best.source}, at {shape}"]
    if "hessian" in prices:
        cost = prices["hessian"].seconds / max(prices["grad"].seconds, 1e-12)
        parts.append(f"a Hessian takes {cost:.2g} gradients")
    others = [p for p in ranked[1:] if math.isfinite(p.seconds)]
    if others:
        ahead = others[0].seconds / best.seconds
        close = " (too close to call)" if ahead < max(best.factor, 1.1) else ""
        parts.append(f"next is {others[0].method!r} at {ahead:.2g} times that{close}")
    failed = [repr(p.method) for p in ranked if p.source == "failed"]
    if failed:
        parts.append(f"without convergence ended {', '.join(failed)}")
    return "; ".join(parts) + "."


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
