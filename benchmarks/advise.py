"""How good is `ok.advise`? Its laws are fitted to solves, and judged on problems held out.

    python benchmarks/advise.py

Every method solves every problem to the default tolerance in float64; the clock is that of a warm
`minimize`, the least of up to three. A law is fitted to the logarithms of the steps, those of
solves that were cut off as if they had ended there. Then, for each family of problems in turn, the
laws fitted to the other families advise on this one: by the laws alone, beside the first 32 steps
of L-BFGS; after rehearsals of at most 16 steps; and as by default.
Judged are the recommended method's time over that of the best of all methods
that converged, and predicted over true seconds. A method counts as converged by its own status,
also in a worse local minimum. The last line is the laws fitted to all, as they stand in
`optikit/analyze/predict.py`.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import save

import optikit as ok
from optikit.analyze.predict import APPROACH, LAWS, Hardness, Law, hardness_of
from optikit.analyze.probe import probe
from optikit.calculus.objective import residual_vector
from optikit.calculus.validate import as_objective
from optikit.core import tree
from optikit.problems import PROBLEMS

MOST_STEPS, SLOW = 20_000, 3.0
"""A solve is cut off after that many steps, or about that many seconds."""

SECONDS = 2.0
"""For an advice."""

HARDNESSES: tuple[Hardness, ...] = ("cg", "descent", "newton")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("quadratic", {"n": 50, "condition": 1e3}),
    ("quadratic", {"n": 400, "condition": 1e4, "rotated": True}),
    ("quadratic", {"n": 150, "condition": 1e6, "spectrum": "clusters", "rotated": True}),
    ("nesterov", {"n": 60}),
    ("nesterov", {"n": 300}),
    ("rosenbrock", {}),
    ("rosenbrock", {"n": 30}),
    ("mgh", {"function": "helical-valley"}),
    ("mgh", {"function": "wood"}),
    ("mgh", {"function": "biggs"}),
    ("mgh", {"function": "trigonometric"}),
    ("mgh", {"function": "watson"}),
    ("synthetic-glm", {"family": "logistic", "examples": 1000, "features": 20}),
    ("synthetic-glm", {"family": "logistic", "examples": 3000, "features": 150, "condition": 1e4}),
    ("synthetic-glm", {"family": "poisson", "examples": 1000, "features": 40}),
    ("synthetic-glm", {"family": "softmax", "examples": 1000, "features": 15}),
    ("synthetic-glm", {"family": "linear", "examples": 2000, "features": 80}),
    ("synthetic-glm", {"family": "huber", "examples": 1000, "features": 30, "correlation": 0.8}),
    ("exponential-decay", {}),
    ("gaussian-peaks", {}),
    ("matrix-factorization", {}),
    ("phase-retrieval", {}),
]


def methods_for(objective: ok.Objective) -> list[str]:
    fits = residual_vector(objective) is not None
    return [m for m in LAWS if fits or m not in ("gauss-newton", "levenberg-marquardt")]


def solved(objective: ok.Objective, start: Any, args: tuple, method: str) -> dict[str, Any]:
    """Steps, seconds and outcome of a method: a warm solve."""

    def run(max_steps: int) -> tuple[Any, float]:
        begun = time.perf_counter()
        sol = ok.minimize(objective, start, args=args, method=method, max_steps=max_steps)
        return jax.block_until_ready(sol), time.perf_counter() - begun

    run(0)
    sol, seconds = run(100)
    limit = 100
    if int(sol.steps) >= 100 and not bool(sol.success):
        affordable = int(min(MOST_STEPS, 100 * SLOW / seconds))
        limit = max(affordable, 100)
        sol, seconds = run(limit)
    for _ in range(2):
        if seconds < 1.0:
            seconds = min(seconds, run(limit)[1])
    converged = bool(sol.success)
    cut_off = int(sol.steps) >= limit and not converged
    return {
        "steps": int(sol.steps), "seconds": seconds, "converged": converged, "cut_off": cut_off,
    }  # fmt: skip


def measured(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A problem, solved by every method, and the hardnesses that a probe near its end gives."""
    problem = PROBLEMS[name](**arguments).cast(np.float64)
    objective = as_objective(problem.objective)
    start = problem.start(jax.random.key(0))
    args = jax.tree.map(jnp.asarray, tuple(problem.args))
    solves = {m: solved(objective, start, args, m) for m in methods_for(objective)}
    approach = ok.minimize(objective, start, args=args, method="lbfgs", max_steps=APPROACH)
    near, first = probe(objective, approach.params, args), probe(objective, start, args)
    target = 1e-8 * max(1.0, first.grad_norm)
    reduction = min(target / first.grad_norm, 0.5)
    return {
        "name": problem.description, "family": name, "solves": solves,
        "hardness": {k: hardness_of(k, first, near, reduction) for k in HARDNESSES},
        "n": tree.size(start), "problem": (objective, start, args),
    }  # fmt: skip


def fitted(problems: list[dict[str, Any]]) -> dict[str, Law]:
    """Least squares in logarithms, the power held in [0, 1.2]: a median factor, then the power."""
    laws = {}
    for method, old in LAWS.items():
        pairs = [
            (math.log(p["hardness"][old.hardness]), math.log(max(p["solves"][method]["steps"], 1)))
            for p in problems
            if method in p["solves"]
            and (p["solves"][method]["converged"] or p["solves"][method]["cut_off"])
        ]
        x, y = np.array(pairs).reshape(-1, 2).T
        spread = float(np.var(x)) if len(x) else 0.0
        power = float(np.cov(x, y, bias=True)[0, 1] / spread) if spread > 1e-3 else 0.0
        power = min(max(power, 0.0), 1.2)
        factor = math.exp(float(np.median(y - power * x))) if len(x) else old.factor
        laws[method] = old._replace(factor=round(factor, 3), power=round(power, 3))
    return laws


@contextlib.contextmanager
def standing(laws: dict[str, Law]) -> Iterator[None]:
    """These laws in place of the library's."""
    kept = dict(LAWS)
    LAWS.update(laws)
    try:
        yield
    finally:
        LAWS.update(kept)


def judged(problem: dict[str, Any], advice: ok.Advice) -> dict[str, Any]:
    """The advice against the truth."""
    solves = problem["solves"]
    times = {m: s["seconds"] for m, s in solves.items() if s["converged"]}
    best = min(times, key=times.__getitem__)
    lost = times[advice.method] / times[best] if advice.method in times else None
    ratios = {
        p.method: p.seconds / times[p.method]
        for p in advice.predictions
        if p.method in times and math.isfinite(p.seconds)
    }
    steps = {
        p.method: p.steps / solves[p.method]["steps"]
        for p in advice.predictions
        if p.method in times and solves[p.method]["steps"]
    }
    sources = {p.method: p.source for p in advice.predictions}
    return {"chosen": advice.method, "best": best, "lost": lost, "seconds": times, "ratios": ratios,
            "steps": steps, "sources": sources}  # fmt: skip


def share(values: list[float], within: float) -> float:
    """The share of ratios within a factor of one, either way."""
    return float(np.mean([1 / within <= v <= within for v in values])) if values else math.nan


def summed_up(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the study."""
    lost = [f["lost"] for f in found if f["lost"] is not None]
    everything = [r for f in found for r in f["ratios"].values()]
    chosen = [f["ratios"][f["chosen"]] for f in found if f["chosen"] in f["ratios"]]
    steps = [r for f in found for r in f["steps"].values()]
    slow = [
        f["ratios"][m] for f in found for m in f["ratios"] if f["seconds"][m] >= 1e-3
    ]  # a quicker solve is mostly the call
    by_source = {
        s: [r for f in found for m, r in f["ratios"].items() if f["sources"][m] == s]
        for s in ("spectrum", "extrapolated", "rehearsed")
    }
    return {
        "name": name,
        "problems": len(found),
        "chosen_within_1.5x": sum(x <= 1.5 for x in lost) / len(found),
        "chosen_worst": max(lost),
        "chosen_failed": len(found) - len(lost),
        "best_chosen": float(np.mean([f["chosen"] == f["best"] for f in found])),
        "chosen_predicted_within_3x": share(chosen, 3),
        "all_predicted_within_3x": share(everything, 3),
        "predicted_above_1_ms_within_3x": share(slow, 3),
        "steps_within_3x": share(steps, 3),
        "predicted_within_3x_by_source": {s: share(v, 3) for s, v in by_source.items() if v},
        "predictions_by_source": {s: len(v) for s, v in by_source.items()},
    }


def main() -> None:
    """Run the study."""
    jax.config.update("jax_enable_x64", True)
    problems = []
    for name, arguments in CASES:
        begun = time.perf_counter()
        problems.append(measured(name, arguments))
        print(problems[-1]["name"], f"{time.perf_counter() - begun:.1f} s", file=sys.stderr)
    kinds: dict[str, dict[str, Any]] = {
        "by the laws": {"rehearsals": 0, "seconds": SECONDS},
        "after 16 steps of three methods": {"rehearsals": 3, "seconds": 1e-9},
        "as by default": {"rehearsals": 3, "seconds": SECONDS},
    }
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for problem in problems:
        others = [p for p in problems if p["family"] != problem["family"]]
        with standing(fitted(others)):
            for kind, options in kinds.items():
                objective, start, args = problem["problem"]
                advice = ok.advise(objective, start, args, **options)
                found[kind].append(judged(problem, advice))
        print(problem["name"], [f[-1]["chosen"] for f in found.values()], file=sys.stderr)
    results = [summed_up(f"advice {kind}, families held out", f) for kind, f in found.items()]
    laws = fitted(problems)
    for method, law in laws.items():
        errors = [abs(math.log(f["ratios"][method])) for f in found["by the laws"]
                  if method in f["ratios"]]  # fmt: skip
        error = math.exp(float(np.quantile(errors, 0.8))) if errors else law.error
        laws[method] = law._replace(error=round(error, 1))
    results += [
        {"name": p["name"], "n": p["n"], "hardness": p["hardness"], "solves": p["solves"],
         "advice": {kind: f[i] for kind, f in found.items()}}
        for i, p in enumerate(problems)
    ]  # fmt: skip
    results.append({"name": "laws", "laws": {m: law._asdict() for m, law in laws.items()}})
    save("advise", "Does the advice hold, on families of problems held out?", results)


if __name__ == "__main__":
    main()
