"""Digits right on NIST's 54 certified nonlinear-regression cases, against installed peers.

    python benchmarks/nist.py [MODEL ...]

27 models, two starts each, float64, every solver's default settings and the same exact Jacobian;
scipy's also with tight tolerances, and ours with its other ways to choose a step. A claim is false
if the solver reports success with fewer than 6 digits right in some parameter. scipy's steps are
Jacobians evaluated, optimistix's are its own.
"""

import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
from common import save  # noqa: E402
from nist_problems import MODELS, Regression, digits, load  # noqa: E402
from scipy import optimize  # noqa: E402

import optikit as ok  # noqa: E402

MAX_STEPS = 1000


class Outcome(NamedTuple):
    """What a solver came to: parameters, its own word, steps and evaluated residuals."""

    params: np.ndarray
    success: bool
    steps: int
    values: int
    status: str


def by_optikit(**settings: Any) -> Callable[[Regression, np.ndarray], Outcome]:
    method = ok.optimizers.levenberg_marquardt(**settings)

    def run(problem: Regression, start: np.ndarray) -> Outcome:
        args = (jnp.asarray(problem.x), jnp.asarray(problem.y))
        sol = ok.least_squares(
            problem.residual, jnp.asarray(start), args=args, method=method, max_steps=MAX_STEPS
        )
        values = int(sol.counts.value + sol.counts.jacobian)
        status = ok.Status(int(sol.status)).name.lower()
        return Outcome(np.asarray(sol.params), bool(sol.success), int(sol.steps), values, status)

    return run


def by_optimistix(problem: Regression, start: np.ndarray) -> Outcome:
    solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
    args = (jnp.asarray(problem.x), jnp.asarray(problem.y))
    sol = optx.least_squares(
        lambda b, a: problem.residual(b, *a), solver, jnp.asarray(start), args,
        max_steps=MAX_STEPS, throw=False,
    )  # fmt: skip
    steps, success = int(sol.stats["num_steps"]), bool(sol.result == optx.RESULTS.successful)
    return Outcome(np.asarray(sol.value), success, steps, steps, "")


def by_scipy(method: str, tol: float | None = None) -> Callable[[Regression, np.ndarray], Outcome]:
    def run(problem: Regression, start: np.ndarray) -> Outcome:
        x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        residual = jax.jit(lambda b: problem.residual(b, x, y))
        jacobian = jax.jit(jax.jacfwd(lambda b: problem.residual(b, x, y)))
        tight = {} if tol is None else {"xtol": tol, "ftol": tol, "gtol": tol}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sol = optimize.least_squares(
                    lambda b: np.asarray(residual(b)), start, method=method,
                    jac=lambda b: np.asarray(jacobian(b)), max_nfev=MAX_STEPS, **tight,
                )  # fmt: skip
        except (ValueError, np.linalg.LinAlgError) as error:  # a trial that is not finite
            return Outcome(np.full(start.shape, np.nan), False, MAX_STEPS, MAX_STEPS, str(error))
        steps = int(sol.njev or sol.nfev)
        return Outcome(sol.x, bool(sol.success), steps, int(sol.nfev), str(sol.status))

    return run


SOLVERS: dict[str, Callable[[Regression, np.ndarray], Outcome]] = {
    "optikit": by_optikit(),
    "optikit-accelerated": by_optikit(acceleration=True),
    "optikit-nielsen": by_optikit(damping="nielsen"),
    "optimistix": by_optimistix,
    "scipy-lm": by_scipy("lm"),
    "scipy-lm-tight": by_scipy("lm", 1e-15),
    "scipy-trf": by_scipy("trf"),
    "scipy-trf-tight": by_scipy("trf", 1e-15),
}


def cases(names: list[str]) -> list[dict[str, Any]]:
    """One row a case and solver."""
    rows = []
    for name in names:
        problem = load(name)
        for solver, run in SOLVERS.items():
            for number, start in enumerate(problem.starts, 1):
                out = run(problem, start)
                right = digits(out.params, problem.certified)
                rows.append({
                    "name": f"{name}/{number}/{solver}", "model": name, "start": number,
                    "solver": solver, "digits": round(right, 2), "steps": out.steps,
                    "values": out.values, "success": out.success, "status": out.status,
                    "false_claim": out.success and right < 6,
                })  # fmt: skip
    return rows


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a solver, its cases within."""
    summary = []
    base = {(r["model"], r["start"]): r for r in rows if r["solver"] == "scipy-lm"}
    for solver in dict.fromkeys(r["solver"] for r in rows):
        own = [r for r in rows if r["solver"] == solver]
        pairs = [(r, base[r["model"], r["start"]]) for r in own]
        both = [(r, b) for r, b in pairs if min(r["digits"], b["digits"]) >= 6]
        ratios = [r["steps"] / b["steps"] for r, b in both]
        summary.append({
            "name": solver,
            "cases": len(own),
            "digits_6": sum(r["digits"] >= 6 for r in own),
            "digits_8": sum(r["digits"] >= 8 for r in own),
            "false_claims": sum(r["false_claim"] for r in own),
            "median_steps": statistics.median(r["steps"] for r in own),
            "median_values": statistics.median(r["values"] for r in own),
            "steps_over_scipy_lm": round(statistics.median(ratios), 2) if ratios else None,
            "each": [{k: v for k, v in r.items() if k not in ("name", "solver")} for r in own],
        })  # fmt: skip
    return summary


def main() -> None:
    """All models into the results, or some on the screen."""
    rows = cases(sys.argv[1:] or sorted(MODELS))
    if sys.argv[1:]:
        for row in rows:
            print(row)
        return
    save("nist", "How many digits are right on NIST's 54 certified cases?", totals(rows))


if __name__ == "__main__":
    main()
