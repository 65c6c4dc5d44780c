"""A study's table as results of a benchmark: the command of the README, cut off at a deadline."""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def study(name: str, title: str, deadline: float, *overrides: str) -> list[dict[str, Any]]:
    """The table and verdicts of `optikit run configs/NAME.yaml`, as far as it came.

    With a reference in the study: also what it cost each method to get where that ended.

    Args:
      title: of this run, in every row's name.
      deadline: of time.monotonic(). Trials are recorded one by one, so a cut costs the rest only.
      overrides: `key=value`, as on the command line.
    """
    optikit = [sys.executable, "-m", "optikit.cli"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # the processes must not hold a GPU's whole memory while this one is alive
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = ["run", str(CONFIGS / f"{name}.yaml"), *overrides, "--out", folder]
        try:
            ran = subprocess.run(
                [*optikit, *command], env=environment, stdout=subprocess.DEVNULL,
                timeout=max(deadline - started, 1), check=False,
            )  # fmt: skip
            ended = f"exit code {ran.returncode}"
        except subprocess.TimeoutExpired:
            ended = "cut off at the deadline"
        wall = time.monotonic() - started
        told = subprocess.run(
            [*optikit, "report", folder, "--json"], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if told.returncode not in (0, 1):
            return [{"name": title, "ended": ended, "error": told.stderr}]
        matches = _matches(folder)
    summary = json.loads(told.stdout)
    head = {
        "name": title,
        "ended": ended,
        "wall_seconds": wall,
        "verdicts": summary["verdicts"],
        "failures": summary["failures"],
    }
    return [
        head,
        *(_row(row, title) for row in summary["rows"]),
        *(m | {"study": title} for m in matches),
    ]


def _row(row: dict[str, Any], title: str) -> dict[str, Any]:
    seed = f", seed {row['seed']}" if row["several_seeds"] else ""
    told = {"metrics": row["metrics"]} if row["metrics"] else {}
    return {
        "name": f"{row['problem']}, {row['optimizer']}{seed}, {title.rpartition(', ')[2]}",
        "status": row["status"],
        "gap": row["gap"],
        "steps": row["steps"],
        "gradients": row["gradients"],
        "flops": row["flops"],
        "seconds": {"warm": row["warm"], "cold": row["cold"]},
    } | told


def _matches(folder: str) -> list[dict[str, Any]]:
    """What it cost to get where the study's reference ended; nothing without one."""
    from optikit.bench.experiment import load
    from optikit.bench.score import matched, on_one_machine

    results = load(folder)
    if results.study.reference is None:
        return []
    try:
        found = matched(on_one_machine(results.problems)[0], "warm", results.study.reference)
    except ValueError:  # cut off before the reference was run
        return []
    return [
        {
            "name": f"{m.problem}, {m.variant}, to where {results.study.reference} ended",
            "seconds": m.cost if math.isfinite(m.cost) else None,
            "ratio": m.ratio if math.isfinite(m.ratio) else None,
            "reached": f"{m.reached} of {m.trials}",
            "gap": m.gap if math.isfinite(m.gap) else None,
        }
        for m in found
    ]
