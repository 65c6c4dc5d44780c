"""The quickstart study in float64 and float32, matmul precision pinned, as one results file.

    python benchmarks/quickstart.py

It runs the command of the README, `optikit run configs/quickstart.yaml`, once per dtype.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

STUDY = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def quickstart(dtype: str, deadline: float, *overrides: str) -> list[dict[str, Any]]:
    """The study's table and verdicts, as far as it came before the deadline.

    Args:
      deadline: of time.monotonic(). Trials are recorded one by one, so a cut costs the rest only.
    """
    optikit = [sys.executable, "-m", "optikit.cli"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # the processes must not hold a GPU's whole memory while this one is alive
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = ["run", str(STUDY), f"dtype={dtype}", "matmul_precision=highest", *overrides]
        try:
            ran = subprocess.run(
                [*optikit, *command, "--out", folder], env=environment, stdout=subprocess.DEVNULL,
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
        return [{"name": f"quickstart, {dtype}", "ended": ended, "error": told.stderr}]
    summary = json.loads(told.stdout)
    head = {
        "name": f"quickstart, {dtype}",
        "ended": ended,
        "wall_seconds": wall,
        "verdicts": summary["verdicts"],
        "failures": summary["failures"],
    }
    rows = [
        {
            "name": f"{row['problem']}, {row['optimizer']}, {dtype}",
            "status": row["status"],
            "gap": row["gap"],
            "steps": row["steps"],
            "gradients": row["gradients"],
            "flops": row["flops"],
            "seconds": {"warm": row["warm"], "cold": row["cold"]},
        }
        for row in summary["rows"]
    ]
    return [head, *rows]


def main() -> None:
    """Run the study."""
    from common import save

    later = time.monotonic() + 3600.0
    results = quickstart("float64", later) + quickstart("float32", later)
    save("quickstart", "Does second order pay, on three real data sets?", results)


if __name__ == "__main__":
    main()
