"""One solve of a generalised linear model, cold and warm, against the rivals.

    OPTIKIT_DATA=FOLDER python benchmarks/logistic.py [--case logistic] [--rounds 3]
                                                      [--dtype float64] [--methods NAME ...]

Three cases, each from a start of zeros, f the mean loss plus l2 |w|^2 / 2:

logistic: 32,560 x 123, l2 = 1e-4. The data are a9a (UCI Adult) where FOLDER holds a9a.svm.gz, else
random binary features of the same shape and density; the result says which.
ill-conditioned: logistic regression on 20,000 x 300 normal features whose columns have scales from
1 to 1e-3, so that the Hessian has condition number 1e6; l2 = 1e-9.
softmax: the digits of scikit-learn (1,797 x 64 and a column of ones, 10 classes: 650 parameters),
l2 = 1e-3.

Every method is judged by the same float64 gradient at the point it returns: it gets the loosest of
its own tolerances 1e-2 ... 1e-12 that brings max|g| under the case's target (1e-5 in float32), and
its time is that run's. Cold is the first call in a fresh process, imports and data excluded,
tracing and compilation included; warm is the median of later calls. Rounds take the methods in
turn.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from peers import METHODS, Outcome, Solver

TOLERANCES = [10.0**-k for k in range(2, 13)]
WARM_CALLS, WARM_SECONDS = 7, 6.0
GOAL = 0.6
"""Our warm seconds over the fastest rival's, at most."""


class Case(NamedTuple):
    """A model on its data; parameters are one vector of features x classes (or features)."""

    data: Callable[[], tuple[np.ndarray, np.ndarray, str]]  # features, labels, where from
    l2: float
    target: float  # of max|g| in float64
    max_steps: int
    classes: int = 0  # 0 for two, with one logit


def adult() -> tuple[np.ndarray, np.ndarray, str]:
    """Features (32560, 123), labels 0/1, and where they are from."""
    if os.environ.get("OPTIKIT_DATA"):
        from optikit.problems.data import a9a

        rows = a9a()
        return rows.inputs, rows.targets, "a9a"
    rng = np.random.default_rng(0)
    x = (rng.random((32_560, 123)) < 0.113).astype(float)
    noise = rng.logistic(size=len(x))
    y = (x @ rng.normal(size=123) - 1.0 + noise > 0).astype(int)
    return x, y, "synthetic"


def scaled_columns() -> tuple[np.ndarray, np.ndarray, str]:
    """Features (20000, 300) with columns of scales 1 ... 1e-3, labels 0/1."""
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -3, 300)
    x = rng.normal(size=(20_000, 300))
    y = (2 * x @ rng.normal(size=300) / 300**0.5 + rng.logistic(size=len(x)) > 0).astype(int)
    return x * scales, y, "synthetic"


def digits() -> tuple[np.ndarray, np.ndarray, str]:
    """Features (1797, 65) in [0, 1], the last a one, and ten classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return np.hstack([x / 16, np.ones((len(x), 1))]), y, "digits"


CASES = {
    "logistic": Case(adult, 1e-4, 1e-7, 5000),
    "ill-conditioned": Case(scaled_columns, 1e-9, 1e-9, 1000),
    "softmax": Case(digits, 1e-3, 1e-7, 5000, classes=10),
}


def plain(case: Case) -> Callable:
    """The objective as a user of JAX writes it."""
    import jax
    import jax.numpy as jnp

    def binary(w, x, y):
        z = x @ w
        return jnp.mean(jax.nn.softplus(z) - y * z) + case.l2 / 2 * w @ w

    def softmax(w, x, y):
        logs = jax.nn.log_softmax(x @ w.reshape(-1, case.classes))
        picked = jnp.take_along_axis(logs, y[:, None], axis=1)
        return -jnp.mean(picked) + case.l2 / 2 * w @ w

    return softmax if case.classes else binary


def ours(case: Case) -> Any:
    """The same as an objective that knows its structure."""
    import optikit as ok

    if case.classes:
        loss, shape = ok.losses.softmax_cross_entropy, (-1, case.classes)
    else:
        loss, shape = ok.losses.logistic, (-1,)
    return ok.composite(lambda w, x: x @ w.reshape(shape), loss, penalty=ok.losses.l2(case.l2))


def judge(case: Case, w: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Value and largest gradient entry in float64, by numpy."""
    w = np.asarray(w, np.float64)
    z = x @ w.reshape(-1, case.classes) if case.classes else x @ w
    if case.classes:
        z = z - z.max(axis=1, keepdims=True)
        sums = np.log(np.sum(np.exp(z), axis=1))
        losses = sums - z[np.arange(len(y)), y]
        slopes = np.exp(z - sums[:, None]) - np.eye(case.classes)[y]
    else:
        losses = np.logaddexp(0, z) - y * z
        slopes = 1 / (1 + np.exp(-z)) - y
    grad = (x.T @ slopes).ravel() / len(x) + case.l2 * w
    value = np.mean(losses) + case.l2 / 2 * w @ w
    return {"max_grad": float(np.max(np.abs(grad))), "value": float(value)}


def sklearn_by(name: str, case: Case) -> Solver:
    """Scikit-learn with its own compiled objective (numpy, BLAS), no intercept."""
    from sklearn.linear_model import LogisticRegression

    def solve(_fun, _x0, args, tol):
        x, y = map(np.asarray, args)
        model = LogisticRegression(
            C=1 / (case.l2 * len(x)),
            fit_intercept=False,
            solver=name,
            tol=tol,
            max_iter=case.max_steps,
        ).fit(x, y)
        w = model.coef_.T if case.classes else model.coef_[0]
        return Outcome(w.ravel(), True, model.n_iter_[0])

    return solve


def preconditioned(kind: str, case: Case) -> Solver:
    """Newton-CG on Hessian products alone, preconditioned."""
    import optikit as ok

    def solve(fun, x0, args, tol):
        method = ok.optimizers.newton_cg(precondition=kind)
        sol = ok.minimize(fun, x0, args=args, method=method, tol=tol, max_steps=case.max_steps)
        return Outcome(sol.params, sol.success, sol.steps)

    return solve


def automatic(case: Case) -> Solver:
    """What a user gets who names no method."""
    import optikit as ok

    def solve(fun, x0, args, tol):
        sol = ok.minimize(fun, x0, args=args, tol=tol, max_steps=case.max_steps)
        return Outcome(sol.params, sol.success, sol.steps)

    return solve


SKLEARN = tuple(f"sklearn {name}" for name in ("lbfgs", "newton-cholesky", "newton-cg"))
EXTRA: dict[str, Callable[[Case], Solver]] = {
    "optikit auto": automatic,
    "optikit newton-cg, diagonal": functools.partial(preconditioned, "diagonal"),
    "optikit newton-cg, nystrom": functools.partial(preconditioned, "nystrom"),
    **{n: functools.partial(sklearn_by, n.removeprefix("sklearn ")) for n in SKLEARN},
}
NAMES = (*EXTRA, "optikit fisher-scoring", *(n for n in METHODS if "trust-ncg" not in n))


def solver(name: str, case: Case) -> tuple[Solver, Any]:
    """A method, and the objective it is given: ours knows its structure."""
    fun = ours(case) if name.startswith("optikit") else plain(case)
    if name in EXTRA:
        return EXTRA[name](case), fun
    if name not in METHODS:
        from peers import optikit_by

        return optikit_by(name.removeprefix("optikit "), case.max_steps), fun
    return METHODS[name](case.max_steps), fun


def one(which: str, name: str, tol: float | None, dtype: str) -> dict[str, Any]:
    """Cold and warm seconds of one method in this process; or, without tol, the one it needs."""
    import warnings

    import jax
    import jax.numpy as jnp

    warnings.simplefilter("ignore")  # rivals warn that a tolerance cannot be met
    jax.config.update("jax_enable_x64", True)
    case = CASES[which]
    features, labels, _ = case.data()
    x, y = jnp.asarray(features, dtype), jnp.asarray(labels)
    start = jnp.zeros(features.shape[1] * max(case.classes, 1), x.dtype)
    jax.block_until_ready((x, y, start))
    solve_, fun = solver(name, case)
    target = target_of(case, dtype)

    def solve(tol: float) -> Any:
        return jax.block_until_ready(solve_(fun, start, (x, y), tol).x)

    def judged(w: Any) -> dict[str, float]:
        return judge(case, w, features, labels)

    if tol is None:
        tried = []
        for candidate in TOLERANCES:
            tried.append((judged(solve(candidate))["max_grad"], candidate))
            if tried[-1][0] <= target:
                break
        return {"tol": tried[-1][1] if tried[-1][0] <= target else min(tried)[1]}

    def timed() -> tuple[float, Any]:
        before = time.perf_counter()
        w = solve(tol)
        return time.perf_counter() - before, w

    cold, w = timed()
    warm: list[float] = []
    while len(warm) < WARM_CALLS and (len(warm) < 2 or sum(warm) < WARM_SECONDS):
        warm.append(timed()[0])
    return {"cold": cold, "warm": statistics.median(warm), **judged(w)}


def target_of(case: Case, dtype: str) -> float:
    """What max|g| must come down to."""
    return case.target if dtype == "float64" else max(case.target, 1e-5)


def apart(case: str, name: str, tol: float | None, dtype: str) -> dict[str, Any]:
    """`one`, in a fresh process."""
    command = [sys.executable, __file__, "--case", case, "--one", name, "--dtype", dtype]
    command += [] if tol is None else ["--tol", repr(tol)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{name}: {done.stderr}"
        raise SystemExit(msg)
    return json.loads(done.stdout.splitlines()[-1])


def study(case: str, dtype: str, rounds: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows by method, and two of ratios against the fastest rival that met the target."""
    from common import ratio, row

    target = target_of(CASES[case], dtype)
    tolerances = {name: apart(case, name, None, dtype)["tol"] for name in names}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(apart(case, name, tolerances[name], dtype))
    source = CASES[case].data()[2]
    best = min(r["value"] for rows in runs.values() for r in rows)
    results = []
    for name, rows in runs.items():
        reached = all(r["max_grad"] <= target for r in rows)
        results.append(row(
            name, case=case, data=source, dtype=dtype, tol=tolerances[name], reached=reached,
            seconds={k: statistics.median(r[k] for r in rows) for k in ("cold", "warm")},
            max_grad=rows[0]["max_grad"], excess=rows[0]["value"] - best,
        ))  # fmt: skip
        print(json.dumps(results[-1]), file=sys.stderr)
    reached = {r["name"] for r in results if r["reached"]}
    for when in ("cold", "warm"):
        stamps = {name: [r[when] for r in runs[name]] for name in reached}
        middle = {name: statistics.median(values) for name, values in stamps.items()}
        mine = min((n for n in middle if n.startswith("optikit")), key=middle.__getitem__)
        theirs = min((n for n in middle if not n.startswith("optikit")), key=middle.__getitem__)
        results.append(row(f"{case}, {when}, {dtype}: {mine} over {theirs}, the fastest rival",
                           target=GOAL if when == "warm" else None, case=case,
                           ratio=ratio(stamps, mine, theirs)))  # fmt: skip
    return results


def main() -> None:
    """Run the study, or one method of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="by default all three")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--tol", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.case, options.one, options.tol, options.dtype)))
        return
    from common import save

    question = "How long is one solve of a generalised linear model, cold and warm?"
    for case in [options.case] if options.case else CASES:
        rows = study(case, options.dtype, options.rounds, options.methods)
        save("logistic" if case == "logistic" else f"logistic-{case}", question, rows)


if __name__ == "__main__":
    main()
