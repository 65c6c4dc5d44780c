"""The quickstart study in float64 and float32, matmul precision pinned, as one results file.

    python benchmarks/quickstart.py

It runs the command of the README, `optikit run configs/quickstart.yaml`, once per dtype.
"""

import time
from typing import Any

from studies import study


def quickstart(dtype: str, deadline: float, *overrides: str) -> list[dict[str, Any]]:
    """The study's table and verdicts, as far as it came before the deadline.

    Args:
      deadline: of time.monotonic(). Trials are recorded one by one, so a cut costs the rest only.
    """
    return study(
        "quickstart", f"quickstart, {dtype}", deadline,
        f"dtype={dtype}", "matmul_precision=highest", *overrides,
    )  # fmt: skip


def main() -> None:
    """Run the study."""
    from common import save

    later = time.monotonic() + 3600.0
    results = quickstart("float64", later) + quickstart("float32", later)
    save("quickstart", "Does second order pay, on three real data sets?", results)


if __name__ == "__main__":
    main()
