"""CUTEst's unconstrained problems with at most 100 variables, from their own starts.

    python benchmarks/cutest.py --keep DIR [--methods ours|peers|"optikit auto,optax lbfgs"]

One call runs every method and writes counts, seconds, both with the rows they come from, and the
pictures. On two cores that takes some 35 minutes, of which ours are 22 and the peers 13, and more
where a solve runs into --patience; so it may be split: `--methods ours` and `--methods peers` with
the same --keep, then `--table` (or no option, which finds every row there). A row is never run
twice, and a study that was cut off goes on where it was.

The problems come from sif2jax (extra `peers`). Every method has 1000 steps in float64 and the same
tolerance, 1e-8, in its own terms; each runs in a process of its own. The judge is this script: a
point is solved if max|g| <= 1e-6 max(1, |f|, max|g0|), it is the lowest if f is within 1e-6
max(1, |f|) of the lowest of all methods, and a success is false if the point is not solved. Cold
seconds are of the first call, compilation included, warm ones of a later call. A problem that has
not been answered within --patience seconds, both calls together, is ended from outside, whoever
runs it, and counts as unsolved; the result names it. That is to be expected of DMN15102LS and
DMN15103LS alone, sums of some 5000 squares of dozens of Lorentz peaks each, where a gradient takes
a millisecond and a Hessian a tenth of a second. With --workers 2 methods run side by side, which
the seconds feel and the counts do not; the result says so.

The performance profiles (Dolan & More, 2002) show on what share of all problems a method solves
within a factor of the best: of warm seconds, cold seconds, steps, and gradient equivalents where a
method tells them. `within` holds the same at 1 (the share on which it is the fastest), 2 and 10.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

TOLERANCE, SOLVED, LOWEST = 1e-8, 1e-6, 1e-6
LARGEST, MAX_STEPS = 100, 1000


def listed() -> list[str]:
    """Those of the collection with one vector of at most 100 unknowns."""
    import jax
    import sif2jax

    found = []
    for problem in sif2jax.unconstrained_minimisation_problems:
        start = problem.y0
        if isinstance(start, jax.Array) and start.ndim == 1 and start.size <= LARGEST:
            found.append(problem.name)
    return found


def course(method: str, names: list[str]) -> None:
    """One method on these problems: two lines of JSON each, on stdout, when it begins and ends."""
    import warnings

    import jax
    import jax.numpy as jnp
    from peers import METHODS

    from optikit.problems import cutest

    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    solve = METHODS[method](MAX_STEPS)
    jax.block_until_ready(jnp.ones(3) + 1)
    for name in names:
        problem = cutest(name)
        fun, args = problem.objective.fun, problem.args
        start = jnp.asarray(problem.params, jnp.float64)
        row: dict[str, Any] = {"problem": name, "n": start.size}
        print(json.dumps(row), flush=True)
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
        print(json.dumps(row | {"over": True}), flush=True)


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

COSTS = {
    "warm": "warm seconds",
    "cold": "cold seconds",
    "gradients": "gradient equivalents",
    "steps": "steps",
}
COUNTED = ("gradients", "steps")
"""Costs that do not depend on what else the machine was doing."""


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
            "gave_no_answer": [n for n, r in found.items() if r.get("late")],
            "seconds": {
                cost: statistics.median(r.get(cost, math.inf) for r in found.values())
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
        method: {
            n: max(r[cost], 1) if cost in COUNTED else r[cost]
            for n, r in found.items()
            if r.get(cost) is not None and solved(r)
        }
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


def attend(method: str, names: list[str], path: pathlib.Path, patience: float) -> None:
    """Run a method in processes of its own, as many as it takes; append its rows to the file."""
    left = list(names)
    while left:
        command = [sys.executable, __file__, "--one", method, "--only", ",".join(left)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            clock = None
            assert process.stdout is not None
            for line in process.stdout:
                if clock is not None:
                    clock.cancel()
                row = json.loads(line)
                if row.pop("over", False):
                    _append(path, row)
                    left.remove(row["problem"])
                    continue
                begun = row
                clock = threading.Timer(patience, process.kill)
                clock.start()
        if left and process.returncode == -signal.SIGKILL and clock and clock.finished.is_set():
            _append(path, begun | {"late": True, "error": f"no answer within {patience:g} s"})
            left.remove(begun["problem"])
        elif process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def _append(path: pathlib.Path, row: dict[str, Any]) -> None:
    with path.open("a") as out:
        out.write(json.dumps(row) + "\n")


def names_in(folder: pathlib.Path) -> list[str]:
    """The problems of this study, found once: importing the whole collection takes a minute."""
    path = folder / "problems.txt"
    if not path.exists():
        command = [sys.executable, __file__, "--list"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        path.write_text(done.stdout)
    return path.read_text().split()


def methods_by(choice: str) -> list[str]:
    """All, ours, the peers, or those named."""
    from peers import METHODS

    kinds = {
        "all": list(METHODS),
        "ours": [m for m in METHODS if m.startswith("optikit")],
        "peers": [m for m in METHODS if not m.startswith("optikit")],
    }
    chosen = kinds.get(choice) or [name.strip() for name in choice.split(",")]
    for name in chosen:
        if name not in METHODS:
            msg = f"unknown method {name!r}: choose from {', '.join([*kinds, *METHODS])}."
            raise SystemExit(msg)
    return chosen


def main() -> None:
    """Run all methods, or some of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="all", help="all, ours, peers, or names with commas")
    parser.add_argument("--limit", type=int, help="only the first so many problems")
    parser.add_argument("--keep", type=pathlib.Path, help="keep every row in this folder")
    parser.add_argument("--skip", default="", help="problems to leave out, comma-separated")
    parser.add_argument("--only", default="", help="only these problems, comma-separated")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds per problem")
    parser.add_argument("--workers", type=int, default=1, help="methods at a time")
    parser.add_argument("--table", action="store_true", help="run nothing: read the rows of --keep")
    parser.add_argument("--counts", action="store_true", help="leave out seconds taken under load")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(listed()))
        return
    if options.one:
        course(options.one, options.only.split(","))
        return
    from common import save
    from peers import METHODS

    folder = options.keep or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    skipped = options.skip.split(",")
    only = options.only.split(",") if options.only else names_in(folder)
    names = [name for name in only[: options.limit] if name not in skipped]

    def run(method: str) -> dict[str, dict[str, Any]]:
        path = _file(folder, method)
        begun = time.perf_counter()
        if not options.table:
            known = kept_rows(path)
            attend(method, [n for n in names if n not in known], path, options.patience)
        found = _kept(folder, method, names)
        took = f"{(time.perf_counter() - begun) / 60:.1f} minutes"
        told = f"{method}: {sum(map(solved, found.values()))} of {len(found)}, {took}"
        print(told, file=sys.stderr, flush=True)
        return found

    chosen = methods_by(options.methods)
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        found = dict(zip(chosen, pool.map(run, chosen), strict=True))
    # whoever has rows there stands in the table, whichever methods this call was to run
    rows = {method: found.get(method) or _kept(folder, method, names) for method in METHODS}
    rows = {method: of for method, of in rows.items() if of}
    how = {"workers": options.workers, "skipped": options.skip, "patience": options.patience}
    results = [entry | how for entry in table(rows)]
    if options.counts:
        for entry in results:
            del entry["seconds"]
            entry["within"] = {k: v for k, v in entry["within"].items() if k in COUNTED}
    path = save("cutest", "Who solves CUTEst's unconstrained problems with n <= 100?", results)
    profiles(rows, path.parent, list(COUNTED) if options.counts else list(COSTS))


def _file(folder: pathlib.Path, method: str) -> pathlib.Path:
    return folder / f"{method.replace(' ', '_')}.jsonl"


def _kept(folder: pathlib.Path, method: str, names: list[str]) -> dict[str, dict[str, Any]]:
    return {n: row for n, row in kept_rows(_file(folder, method)).items() if n in names}


if __name__ == "__main__":
    main()
