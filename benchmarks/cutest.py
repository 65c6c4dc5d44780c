"""CUTEst's unconstrained problems with at most 100 variables, from their own starts.

    python benchmarks/cutest.py [--methods "optikit newton,optax lbfgs"] [--workers 2] [--keep DIR]

The problems come from sif2jax (extra `peers`); two of them take minutes a solve, and can be left
out by --skip DMN15102LS,DMN15103LS. Every method has 1000 steps in float64 and the same tolerance,
1e-8, in its own terms; each runs in a process of its own. The judge is this script: a
point is solved if max|g| <= 1e-6 max(1, |f|, max|g0|), it is the lowest if f is within 1e-6
max(1, |f|) of the lowest of all methods, and a success is false if the point is not solved. Cold
seconds are of the first call, compilation included, warm ones of a later call. With --workers 2
methods run side by side, which the seconds feel and the counts do not; the result says so.
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

import numpy as np

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
    return [problem for problem in found if problem.name not in skipped.split(",")][:limit]


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


def table(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line per method."""
    names = [row["problem"] for row in next(iter(rows.values()))]
    lowest, fastest = {}, {}
    for k, name in enumerate(names):
        good = [r[k] for r in rows.values() if solved(r[k])]
        lowest[name] = min((r["value"] for r in good), default=math.inf)
        fastest[name] = min((r["warm"] for r in good), default=math.inf)
    results = []
    for method, course_ in rows.items():
        good = [r for r in course_ if solved(r)]
        deep = [
            r for r in good
            if r["value"] <= lowest[r["problem"]] + LOWEST * max(1, abs(lowest[r["problem"]]))
        ]  # fmt: skip
        false = [r["problem"] for r in course_ if r.get("claimed") and not solved(r)]
        slower = [r["warm"] / fastest[r["problem"]] for r in good]
        results.append({
            "name": method,
            "problems": len(names),
            "solved": len(good),
            "lowest": len(deep),
            "false_claims": false,
            "unsolved": [r["problem"] for r in course_ if not solved(r)],
            "fastest_share": np.mean([s <= 1.0 for s in slower]) * len(good) / len(names),
            "within_2x": sum(s <= 2 for s in slower) / len(names),
            "within_10x": sum(s <= 10 for s in slower) / len(names),
            "seconds": {
                "cold": statistics.median(r["cold"] for r in course_ if "cold" in r),
                "warm": statistics.median(r["warm"] for r in course_ if "warm" in r),
            },
        })  # fmt: skip
    return results


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

    def run(name: str) -> list[dict[str, Any]]:
        path = folder / f"{name.replace(' ', '_')}.jsonl"
        if not options.table:
            command = [sys.executable, __file__, "--one", name, "--skip", options.skip]
            command += ["--limit", str(options.limit)] if options.limit else []
            with path.open("w") as out:
                subprocess.run(command, stdout=out, check=True)
        found = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"{name}: {sum(map(solved, found))} of {len(found)}", file=sys.stderr, flush=True)
        return found

    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        rows = dict(zip(chosen, pool.map(run, chosen), strict=True))
    how = {"workers": options.workers, "skipped": options.skip}
    timed = {"seconds", "fastest_share", "within_2x", "within_10x"} if options.counts else set()
    results = [{k: v for k, v in (entry | how).items() if k not in timed} for entry in table(rows)]
    save("cutest", "Who solves CUTEst's unconstrained problems with n <= 100?", results)


if __name__ == "__main__":
    main()
