"""One solve of logistic regression, 32,560 x 123, cold and warm, against the rivals.

    OPTIKIT_DATA=FOLDER python benchmarks/logistic.py [--dtype float64] [--rounds 3]

f(w) = mean log(1 + exp(-s x.w)) + 1e-4 |w|^2 / 2, from w = 0. The data are a9a (UCI Adult)
where FOLDER holds a9a.svm.gz, else random binary features of the same shape and density; the result
says which. Every method is judged by the same float64 gradient at the point it returns: it gets the
loosest of its own tolerances 1e-2 ... 1e-12 that brings max|g| under 1e-7 (1e-5 in float32), and
its time is that run's. Cold is the first call in a fresh process, imports and data excluded,
tracing and compilation included; warm is the median of later calls. Rounds take the methods in
turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import METHODS, Solver

L2, MAX_STEPS = 1e-4, 5000
TARGET = {"float64": 1e-7, "float32": 1e-5}
TOLERANCES = [10.0**-k for k in range(2, 13)]
WARM_CALLS, WARM_SECONDS = 7, 6.0


def data() -> tuple[np.ndarray, np.ndarray, str]:
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


def plain(w, x, y):
    """The objective as a user of JAX writes it."""
    import jax
    import jax.numpy as jnp

    z = x @ w
    return jnp.mean(jax.nn.softplus(z) - y * z) + L2 / 2 * w @ w


def sklearn_by(name: str) -> Solver:
    """Scikit-learn with its own compiled objective (numpy, BLAS), no intercept."""
    from peers import Outcome
    from sklearn.linear_model import LogisticRegression

    def solve(_fun, _x0, args, tol):
        x, y = map(np.asarray, args)
        model = LogisticRegression(
            C=1 / (L2 * len(x)), fit_intercept=False, solver=name, tol=tol, max_iter=MAX_STEPS
        ).fit(x, y)
        return Outcome(model.coef_[0], True, model.n_iter_[0])

    return solve


SKLEARN = tuple(f"sklearn {name}" for name in ("lbfgs", "newton-cholesky"))
NAMES = tuple(name for name in METHODS if "trust-ncg" not in name) + SKLEARN


def solver(name: str) -> tuple[Solver, Callable]:
    """A method, and the objective it is given: ours knows its structure."""
    import optikit as ok

    if name in SKLEARN:
        return sklearn_by(name.removeprefix("sklearn ")), plain
    if not name.startswith("optikit"):
        return METHODS[name](MAX_STEPS), plain
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(L2))
    return METHODS[name](MAX_STEPS), objective


def one(name: str, tol: float | None, dtype: str) -> dict[str, Any]:
    """Cold and warm seconds of one method in this process; or, without tol, the one it needs."""
    import warnings

    import jax
    import jax.numpy as jnp

    warnings.simplefilter("ignore")  # rivals warn that a tolerance cannot be met
    jax.config.update("jax_enable_x64", True)
    features, labels, _ = data()
    x, y = jnp.asarray(features, dtype), jnp.asarray(labels)
    jax.block_until_ready((x, y))

    def judge(w) -> dict[str, Any]:
        w = np.asarray(w, np.float64)
        z = features @ w
        grad = features.T @ (1 / (1 + np.exp(-z)) - labels) / len(z) + L2 * w
        value = np.mean(np.logaddexp(0, z) - labels * z) + L2 / 2 * w @ w
        return {"max_grad": float(np.max(np.abs(grad))), "value": float(value)}

    solve_, fun = solver(name)
    start = jnp.zeros(features.shape[1], x.dtype)

    def solve(tol: float) -> Any:
        return jax.block_until_ready(solve_(fun, start, (x, y), tol).x)

    if tol is None:
        tried = []
        for candidate in TOLERANCES:
            tried.append((judge(solve(candidate))["max_grad"], candidate))
            if tried[-1][0] <= TARGET[dtype]:
                break
        return {"tol": tried[-1][1] if tried[-1][0] <= TARGET[dtype] else min(tried)[1]}

    def timed() -> tuple[float, Any]:
        before = time.perf_counter()
        w = solve(tol)
        return time.perf_counter() - before, w

    cold, w = timed()
    warm: list[float] = []
    while len(warm) < WARM_CALLS and (len(warm) < 2 or sum(warm) < WARM_SECONDS):
        warm.append(timed()[0])
    return {"cold": cold, "warm": statistics.median(warm), **judge(w)}


def apart(name: str, tol: float | None, dtype: str) -> dict[str, Any]:
    """`one`, in a fresh process."""
    command = [sys.executable, __file__, "--one", name, "--dtype", dtype]
    command += [] if tol is None else ["--tol", repr(tol)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{name}: {done.stderr}"
        raise SystemExit(msg)
    return json.loads(done.stdout.splitlines()[-1])


def study(dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Rows by method, and two of ratios against the fastest rival that met the target."""
    from common import ratio, row

    tolerances = {name: apart(name, None, dtype)["tol"] for name in NAMES}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            runs[name].append(apart(name, tolerances[name], dtype))
    source = data()[2]
    best = min(r["value"] for rows in runs.values() for r in rows)
    results = []
    for name, rows in runs.items():
        reached = all(r["max_grad"] <= TARGET[dtype] for r in rows)
        results.append(row(
            name, data=source, dtype=dtype, tol=tolerances[name], reached=reached,
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
        results.append(row(f"{when}, {dtype}: {mine} over {theirs}, the fastest rival",
                           ratio=ratio(stamps, mine, theirs)))  # fmt: skip
    return results


def main() -> None:
    """Run the study, or one method of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--tol", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.tol, options.dtype)))
        return
    from common import save

    question = "How long is one solve of logistic regression 32,560 x 123, cold and warm?"
    save("logistic", question, study(options.dtype, options.rounds))


if __name__ == "__main__":
    main()
