"""CUTEst's unconstrained problems with at most 100 variables, from their own starts.

    python benchmarks/cutest.py [--methods "optikit auto,optax lbfgs"] [--workers 2] [--keep DIR]

The problems come from sif2jax (extra `peers`); two of them take minutes a solve, and can be left
out by --skip DMN15102LS,DMN15103LS. Every method has 1000 steps in float64 and the same tolerance,
1e-8, in its own terms; each runs in a process of its own. The judge is this script: a
point is solved if max|g| <= 1e-6 max(1, |f|, max|g0|), it is the lowest if f is within 1e-6
max(1, |f|) of the lowest of all methods, and a success is false if the point is not solved. Cold
seconds are of the first call, compilation included, warm ones of a later call. With --workers 2
methods run side by side, which the seconds feel and the counts do not; the result says so. A study
that was cut off goes on where it was: rows in the folder --keep are not run again.

The performance profiles (Dolan & More, 2002) show on what share of all problems a method solves
within a factor of the best: of warm seconds, cold seconds, and gradient equivalents where a method
tells them. `within` holds the same at 1 (the share on which it is the fastest), 2 and 10.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

TOLERANCE, SOLVED, LOWEST = 1e-8, 1e-6, 1e-6
LARGEST, MAX_STEPS = 100, 1000


def problems(limit: int | None, skipped: str) -> list[Any]:
    """Those of the collection with one vector of at most 100 unknowns, less those named."""
    import jax
    import sif2jax

    found = []
    for problem in sif2jax.unconstrained_minimisation_problems:
        start = problem.y0
        if isinstance(start, jax.Array) and start.ndim == 1 and start.size <= LARGEST:
            found.append(problem)
    return [problem for problem in found[:limit] if problem.name not in skipped.split(",")]


def course(name: str, limit: int | None, skipped: str) -> None:
    """One method on all problems: a line of JSON each, on stdout."""
    import warnings

    import jax
    import jax.numpy as jnp
    from peers import METHODS

    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    solve = METHODS[name](MAX_STEPS)
    jax.block_until_ready(jnp.ones(3) + 1)
    for problem in problems(limit, skipped):
        fun = _objective(problem)
        start = jnp.asarray(problem.y0, jnp.float64)
        args = (problem.args,) if problem.args is not None else ()
        row: dict[str, Any] = {"problem": problem.name, "n": start.size}
        try:
            before = time.perf_counter()
            found = jax.block_until_ready(solve(fun, start, args, TOLERANCE))
            row["cold"] = time.perf_counter() - before
            row |= _warm(functools.partial(solve, fun, start, args, TOLERANCE))
            judge = jax.jit(jax.value_and_grad(fun))
            value, grad = judge(jnp.asarray(found.x), *args)
            first = judge(start, *args)[1]
            row |= {
                "value": float(value),
                "max_grad": float(jnp.max(jnp.abs(grad))),
                "max_grad_start": float(jnp.max(jnp.abs(first))),
                "claimed": bool(found.success),
                "steps": int(found.steps),
                "gradients": None if found.gradients is None else float(found.gradients),
            }
        except Exception as error:  # a rival that raises has not solved it
            row["error"] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(row), flush=True)


def _objective(problem: Any):
    if problem.args is None:
        return lambda x: problem.objective(x, None)
    return lambda x, args: problem.objective(x, args)


def _warm(call) -> dict[str, float]:
    """The median of a few later calls, within a second."""
    import jax

    seconds: list[float] = []
    while not seconds or (len(seconds) < 5 and sum(seconds) < 1):
        before = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - before)
    return {"warm": statistics.median(seconds)}


def solved(row: dict[str, Any]) -> bool:
    """Whether the judge accepts the point."""
    if not math.isfinite(row.get("value", math.nan)):
        return False
    scale = max(1.0, abs(row["value"]), row["max_grad_start"])
    return row["max_grad"] <= SOLVED * scale


Rows = dict[str, dict[str, dict[str, Any]]]
"""Of a method, of a problem."""

COSTS = {"warm": "warm seconds", "cold": "cold seconds", "gradients": "gradient equivalents"}


def table(rows: Rows) -> list[dict[str, Any]]:
    """One line per method."""
    names = sorted(set().union(*rows.values()))
    lowest = {
        name: min((r[name]["value"] for r in rows.values() if _solved(r, name)), default=math.inf)
        for name in names
    }
    shares = {cost: ratios(rows, cost) for cost in COSTS}
    results = []
    for method, found in rows.items():
        good = [name for name in names if _solved(found, name)]
        deep = [
            name for name in good
            if found[name]["value"] <= lowest[name] + LOWEST * max(1, abs(lowest[name]))
        ]  # fmt: skip
        results.append({
            "name": method,
            "problems": len(names),
            "solved": len(good),
            "lowest": len(deep),
            "false_claims": [n for n, r in found.items() if r.get("claimed") and not solved(r)],
            "unsolved": [name for name in names if name not in good],
            "within": {
                cost: {str(factor): _share(of[method], factor, len(names)) for factor in (1, 2, 10)}
                for cost, of in shares.items() if of.get(method)
            },
            "seconds": {
                cost: statistics.median(r[cost] for r in found.values() if cost in r)
                for cost in ("cold", "warm")
            },
        })  # fmt: skip
    return results


def _solved(found: dict[str, dict[str, Any]], name: str) -> bool:
    return name in found and solved(found[name])


def _share(of: list[float], factor: float, problems: int) -> float:
    return sum(ratio <= factor for ratio in of) / problems


def ratios(rows: Rows, cost: str) -> dict[str, list[float]]:
    """A method's cost over the least of all methods, on each problem that it solved."""
    paid = {
        method: {n: r[cost] for n, r in found.items() if r.get(cost) and solved(r)}
        for method, found in rows.items()
    }
    least: dict[str, float] = {}
    for of in paid.values():
        for name, value in of.items():
            least[name] = min(value, least.get(name, math.inf))
    return {m: sorted(v / least[n] for n, v in of.items()) for m, of in paid.items()}


def profiles(rows: Rows, folder: pathlib.Path, costs: list[str]) -> None:
    """A picture of the performance profiles for each cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    problems = len(set().union(*rows.values()))
    for cost in costs:
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        ends = 100.0
        for method, of in ratios(rows, cost).items():
            if of:
                heights = [k / problems for k in range(len(of) + 1)]
                axes.step(
                    [1, *of, ends], [*heights, heights[-1]], where="post", label=method,
                    linewidth=2 if method.startswith("optikit") else 1,
                    linestyle="-" if method.startswith("optikit") else "--",
                )  # fmt: skip
        axes.set(
            xscale="log", xlim=(1, ends), ylim=(0, 1), xlabel=f"{COSTS[cost]} over the least",
            ylabel=f"share of {problems} problems solved",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right", ncols=2)
        figure.savefig(folder / f"cutest-{cost}.png", dpi=110)
        pyplot.close(figure)


def kept_rows(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by problem; a line that was cut off is dropped from the file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return {row["problem"]: row for row in map(json.loads, whole)}


def main() -> None:
    """Run all methods, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="comma-separated; all by default")
    parser.add_argument("--limit", type=int, help="only the first so many problems")
    parser.add_argument("--keep", type=pathlib.Path, help="keep every row in this folder")
    parser.add_argument("--skip", default="", help="problems to leave out, comma-separated")
    parser.add_argument("--workers", type=int, default=1, help="methods at a time")
    parser.add_argument("--table", action="store_true", help="run nothing: read the rows of --keep")
    parser.add_argument("--counts", action="store_true", help="leave out seconds taken under load")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        course(options.one, options.limit, options.skip)
        return
    from common import save
    from peers import METHODS

    chosen = options.methods.split(",") if options.methods else list(METHODS)
    folder = options.keep or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> dict[str, dict[str, Any]]:
        path = folder / f"{name.replace(' ', '_')}.jsonl"
        found = kept_rows(path)
        if not options.table:
            skip = ",".join([options.skip, *found])
            command = [sys.executable, __file__, "--one", name, "--skip", skip]
            command += ["--limit", str(options.limit)] if options.limit else []
            with path.open("a") as out:
                subprocess.run(command, stdout=out, check=True)
            found = kept_rows(path)
        count = sum(map(solved, found.values()))
        print(f"{name}: {count} of {len(found)}", file=sys.stderr, flush=True)
        return found

    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        rows = dict(zip(chosen, pool.map(run, chosen), strict=True))
    how = {"workers": options.workers, "skipped": options.skip}
    results = [entry | how for entry in table(rows)]
    if options.counts:
        for entry in results:
            del entry["seconds"]
            entry["within"] = {k: v for k, v in entry["within"].items() if k == "gradients"}
    path = save("cutest", "Who solves CUTEst's unconstrained problems with n <= 100?", results)
    profiles(rows, path.parent, ["gradients"] if options.counts else list(COSTS))


if __name__ == "__main__":
    main()
