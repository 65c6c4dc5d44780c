"""scikit-learn's linear models: the same objective, translated, checked and fitted by their code.

They do not come to our door: objective, gradient and Hessian are theirs. A problem is translated
into an estimator's parameters and compared with that estimator's documented objective at random
points; where they differ by more than a constant, the peer is refused. They cannot be watched
either, so each snapshot is a run of its own, `fit` with that many iterations, input checks
included. The calls of `lbfgs`, `newton-cg` and `newton-cholesky` are counted in such runs off the
clock, at their own loss. The other solvers evaluate no loss: theirs are derived from their
iterations, and their records say so.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from optikit.bench.execute import UNINTERRUPTED_SECONDS, Judge, Run
from optikit.bench.peers.catalogue import about
from optikit.bench.peers.host import Stop, measure_session
from optikit.bench.refine import Goal
from optikit.bench.spec import Budget, Measure
from optikit.calculus.objective import value_and_aux
from optikit.core import Counts, Status
from optikit.problems import Problem

SPARSER_GROWTH = 1.5
"""Least ratio of the snapshots, once each is a run of more than UNINTERRUPTED_SECONDS."""

TINY = float(np.finfo(np.float64).tiny)
"""The least tolerance that all of them accept."""

_PER_EXAMPLE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "squared_error": lambda o, y: (o - y) ** 2,
    "logistic": lambda o, y: np.logaddexp(0, o) - y * o,
    "softmax_cross_entropy": lambda o, y: (
        np.logaddexp.reduce(o, axis=1) - o[np.arange(len(y)), y.astype(int)]
    ),
    "poisson": lambda o, y: np.exp(o) - y * o,
    "gamma": lambda o, y: o + y * np.exp(-o),
}
"""The documented losses, per example."""

_CLASSIFIERS = ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga")
_SOLVERS = {
    "squared_error": ("svd", "cholesky", "lsqr", "sag", "saga"),
    "logistic": _CLASSIFIERS,
    "softmax_cross_entropy": _CLASSIFIERS,
    "poisson": ("lbfgs", "newton-cholesky"),
    "gamma": ("lbfgs", "newton-cholesky"),
}
_DIRECT = ("svd", "cholesky")

_ONE_SOLVE = Counts(grad=1, hessian=1)  # the right-hand side and the Gram matrix
_DERIVED: dict[str, tuple[Callable[[int], Counts], str]] = {
    "svd": (lambda k: _ONE_SOLVE, "a gradient and a Hessian"),
    "cholesky": (lambda k: _ONE_SOLVE, "a gradient and a Hessian"),
    "sag": (lambda k: Counts(grad=k), "a gradient for each pass over the examples"),
    "saga": (lambda k: Counts(grad=k), "a gradient for each pass over the examples"),
    "lsqr": (lambda k: Counts(jvp=k, vjp=k + 1), "Golub-Kahan bidiagonalisation"),
}
"""Solvers whose calls nobody can count: what so many iterations amount to, and why."""


class LinearProblem(NamedTuple):
    """A problem as a linear model under a loss: mean loss + l2 |weights|^2 / 2."""

    loss: str
    inputs: np.ndarray  # (m, d)
    targets: np.ndarray  # (m,)
    weights: np.ndarray  # the start: (d,) or (d, K)
    bias: np.ndarray | None  # the start: () or (K,); None where there is none
    l2: float
    pack: Callable[[np.ndarray, np.ndarray], Any]  # to the problem's parameters


def linear_problem(problem: Problem, start: Any) -> LinearProblem:
    """The linear model behind a problem.

    Raises:
      TypeError: the objective is none that scikit-learn minimises, with what differs.
    """
    objective: Any = problem.objective
    if objective.kind != "composite" or objective.loss.name not in _PER_EXAMPLE:
        what = objective.loss.name if objective.loss else objective.kind
        _refuse(f"the objective is {what}, not one of {', '.join(_PER_EXAMPLE)}")
    if len(problem.args) != 2 or getattr(problem.args[0], "ndim", 0) != 2:
        _refuse("it takes a matrix of inputs and their targets, without weights")
    inputs, targets = map(np.asarray, problem.args)
    leaves, structure = jax.tree.flatten(start)
    ranks = [np.ndim(leaf) for leaf in leaves]
    places = [i for i, leaf in enumerate(leaves) if np.shape(leaf)[:1] == inputs.shape[1:]]
    place = max(places, key=lambda i: ranks[i], default=None)
    if place is None or len(leaves) > 2 or targets.ndim != 1:
        _refuse("the parameters are not weights for each input and at most a bias")
    rest = [i for i in range(len(leaves)) if i != place]

    def pack(weights: np.ndarray, bias: np.ndarray) -> Any:
        parts: list[Any] = [weights] * len(leaves)
        for i in rest:
            parts[i] = np.reshape(bias, np.shape(leaves[i]))
        return jax.tree.unflatten(structure, parts)

    found = LinearProblem(
        objective.loss.name, inputs, targets, np.asarray(leaves[place]),
        np.asarray(leaves[rest[0]]) if rest else None, 0.0, pack,
    )  # fmt: skip
    found = found._replace(l2=_l2(objective, found))
    _check(problem, found)
    return found


def _refuse(reason: str) -> NoReturn:
    msg = f"scikit-learn does not minimise this problem: {reason}."
    raise TypeError(msg)


def _l2(objective: Any, model: LinearProblem) -> float:
    if objective.penalty is None:
        return 0.0
    bias = np.zeros(model.weights.shape[1:])
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, model.pack(np.ones(model.weights.shape), bias))
        return 2 * float(objective.penalty.value(params)) / model.weights.size


def _check(problem: Problem, model: LinearProblem) -> None:
    """Compare the two objectives at random points, up to a constant."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        exact = problem.cast("float64")
        args = jax.tree.map(jnp.asarray, exact.args)
    inputs, targets = np.asarray(model.inputs, float), np.asarray(model.targets, float)
    differences = []
    for scale in (0.0, 0.3, 1.0):
        weights = scale * rng.normal(size=model.weights.shape) / np.sqrt(inputs.shape[1])
        bias = scale * rng.normal(size=model.weights.shape[1:])
        outputs = inputs @ weights + (0 if model.bias is None else bias)
        theirs = np.mean(_PER_EXAMPLE[model.loss](outputs, targets))
        theirs += model.l2 / 2 * np.sum(weights**2)
        with jax.enable_x64(True):
            params = jax.tree.map(jnp.asarray, model.pack(weights, bias))
            ours = value_and_aux(exact.objective, params, args)[0]  # type: ignore[arg-type]
        differences.append(float(ours) - theirs)
    if not np.allclose(differences, differences[0], rtol=0, atol=1e-7 * (1 + abs(theirs))):
        _refuse(
            f"it is not the mean of {model.loss} over linear outputs with an L2 penalty on the "
            "weights alone"
        )


def estimator(model: LinearProblem, solver: str, *, seed: int) -> Callable[[int], Any]:
    """max_iter -> an estimator of this objective, unfitted, that starts where the problem does.

    Raises:
      TypeError: the solver is not for this loss, its data or its start.
    """
    from sklearn import linear_model

    if solver not in _SOLVERS[model.loss]:
        _refuse(f"{solver} is not for {model.loss}; it has {', '.join(_SOLVERS[model.loss])}")
    m = len(model.inputs)
    common = {"solver": solver, "fit_intercept": model.bias is not None, "tol": TINY}
    if model.loss == "squared_error":
        if np.any(model.weights) or np.any(model.bias):
            _refuse("its least squares start at zero")
        alpha = model.l2 * m / 2
        return lambda k: linear_model.Ridge(alpha, max_iter=k, random_state=seed, **common)
    if model.loss in ("poisson", "gamma"):
        kind = {"poisson": linear_model.PoissonRegressor, "gamma": linear_model.GammaRegressor}
        glm = kind[model.loss]
        return lambda k: _begun(model, glm(alpha=model.l2, max_iter=k, warm_start=True, **common))
    classes = 2 if model.loss == "logistic" else model.weights.shape[1]
    found = np.unique(model.targets)
    if not np.array_equal(found, np.arange(classes)) or (classes == 2) != (
        model.loss == "logistic"
    ):
        _refuse("the labels are not 0, 1, ..., each present, or softmax has two classes")
    strength = 1 / (model.l2 * m) if model.l2 else np.inf
    return lambda k: _begun(
        model,
        linear_model.LogisticRegression(
            C=strength, max_iter=k, warm_start=True, random_state=seed, **common
        ),
    )


def _begun(model: LinearProblem, made: Any) -> Any:
    """An estimator told its start by what its last fit would have left."""
    classifier = hasattr(made, "C")
    made.coef_ = np.atleast_2d(model.weights.T) if classifier else np.array(model.weights)
    bias = np.zeros(model.weights.shape[1:]) if model.bias is None else model.bias
    made.intercept_ = np.atleast_1d(bias).astype(made.coef_.dtype) if classifier else bias
    return made


@dataclasses.dataclass(frozen=True)
class SklearnPeer:
    """A solver of scikit-learn's linear models."""

    solver: str

    @property
    def name(self) -> str:
        """As in a study."""
        return f"sklearn:{self.solver}"

    def measure(
        self, problem: Problem, key: jax.Array, *,
        budget: Budget, how: Measure, judge: Judge, goal: Goal | None = None,
    ) -> Run:  # fmt: skip
        """As `execute.measure`."""
        start_key, run_key = jax.random.split(key)
        start = problem.start(start_key)
        model = linear_problem(problem, start)
        seed = int(jax.random.randint(run_key, (), 0, 2**31 - 1))
        make = estimator(model, self.solver, seed=seed)
        session = SklearnSession(problem, start, model, make, self.solver)
        return measure_session(session, budget=budget, how=how, judge=judge, goal=goal)

    def costs(self, problem: Problem, key: jax.Array, steps: list[int]) -> None:
        """None: a library's arithmetic on the host cannot be seen."""

    def facts(self) -> dict[str, Any]:
        """The library, and whether its calls were counted or derived."""
        if self.solver not in _DERIVED:
            return {"peer": about(self.name)}
        return {"peer": about(self.name, f"derived from iterations: {_DERIVED[self.solver][1]}")}


@dataclasses.dataclass
class SklearnSession:
    """See `optikit.bench.peers.host.Session`."""

    problem: Problem
    start: Any
    model: LinearProblem
    make: Callable[[int], Any]
    solver: str

    def __post_init__(self) -> None:
        """Data as scikit-learn wants it, and nothing to compile."""
        model = self.model
        targets = model.targets.astype(int) if model.loss in _CLASSES else model.targets
        self.data = model.inputs, targets
        self.seconds: dict[str, float] = dict.fromkeys(("trace", "lower", "compile"), 0.0)
        self.counted: dict[int, Counts] = {}
        self.evaluate = jax.jit(
            lambda p: value_and_aux(self.problem.objective, p, self.problem.args)[0]  # type: ignore[arg-type]
        )

    def explore(self, budget: Budget, growth: float) -> tuple[list[Stop], Status]:
        """Fits of growing length until the budget is used."""
        stops = [Stop(0, self.start, Counts(), 0.0)]
        limit = 0
        while limit < budget.steps:
            slow = stops[-1].seconds > UNINTERRUPTED_SECONDS
            rate = max(growth, SPARSER_GROWTH) if slow else growth
            limit = min(budget.steps, max(limit + 1, int(rate * limit)))
            stop = self._fitted(limit)
            if stop.step <= stops[-1].step:
                return stops, Status.STALLED
            stops.append(stop._replace(seconds=max(stop.seconds, stops[-1].seconds)))
            if self.solver in _DIRECT:
                return stops, Status.CONVERGED
            if stop.step < limit:
                return stops, Status.STALLED
            if stop.seconds >= budget.seconds:
                return stops, Status.OUT_OF_BUDGET
        return stops, Status.MAX_STEPS

    def again(self, steps: Sequence[int]) -> list[Stop]:
        """A fit for each number of steps."""
        return [self._fitted(step) for step in steps if step > 0]

    def value(self, params: Any) -> float:
        """The problem's own objective."""
        return float(self.evaluate(params))

    def _fitted(self, limit: int) -> Stop:
        made = self.make(limit)
        before = time.perf_counter()
        made.fit(*self.data)
        seconds = time.perf_counter() - before
        iterations = 1 if self.solver in _DIRECT else int(np.max(made.n_iter_))
        if limit not in self.counted:
            self.counted[limit] = self._counts(limit, iterations)
        taken = min(iterations, limit)
        return Stop(taken, self._params(made), self.counted[limit], seconds)

    def _params(self, fitted: Any) -> Any:
        weights, dtype = self.model.weights, self.model.weights.dtype
        coefficients = np.reshape(np.asarray(fitted.coef_).T, weights.shape)
        params = self.model.pack(coefficients, np.asarray(fitted.intercept_))
        return jax.tree.map(lambda x: np.asarray(x, dtype), params)

    def _counts(self, limit: int, iterations: int) -> Counts:
        """Oracle calls of such a fit, counted in another one where they can be."""
        if self.solver in _DERIVED:
            return _DERIVED[self.solver][0](iterations)
        with _loss_tapped() as calls:
            self.make(limit).fit(*self.data)
        return Counts(**calls)


_CLASSES = ("logistic", "softmax_cross_entropy")


@contextlib.contextmanager
def _loss_tapped() -> Iterator[dict[str, int]]:
    """Count what is asked of scikit-learn's linear loss.

    Raises:
      RuntimeError: this version of scikit-learn keeps its loss elsewhere.
    """
    try:
        from sklearn.linear_model._linear_loss import LinearModelLoss
    except ImportError as error:
        msg = "the calls of this scikit-learn cannot be counted: its LinearModelLoss has moved."
        raise RuntimeError(msg) from error
    calls: dict[str, int] = dict.fromkeys(("value", "grad", "hvp", "hessian"), 0)
    kinds = {
        "loss": ("value",), "gradient": ("grad",), "loss_gradient": ("grad",),
        "gradient_hessian": ("grad", "hessian"), "gradient_hessian_product": ("grad",),
    }  # fmt: skip
    originals = {name: getattr(LinearModelLoss, name) for name in kinds}

    def tapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for kind in kinds[name]:
                calls[kind] += 1
            result = originals[name](*args, **kwargs)
            if name != "gradient_hessian_product":
                return result
            gradient, product = result

            def counted(vector: np.ndarray) -> np.ndarray:
                calls["hvp"] += 1
                return product(vector)

            return gradient, counted

        return call

    try:
        for name in kinds:
            setattr(LinearModelLoss, name, tapped(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(LinearModelLoss, name, original)
