"""What the studies share: interleaved timing, ratios pair by pair, and one JSON file per study."""

import json
import pathlib
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 20.0
) -> dict[str, list[float]]:
    """Seconds of each synchronised call, after one of each that is discarded.

    They take turns, so that a drift of the machine's speed meets all alike.
    """
    import jax

    for call in calls.values():
        jax.block_until_ready(call())
    stamps: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 5 and time.perf_counter() - begun > seconds:
            break
        for name, call in calls.items():
            before = time.perf_counter()
            jax.block_until_ready(call())
            stamps[name].append(time.perf_counter() - before)
    return stamps


def ratio(stamps: Mapping[str, list[float]], name: str, base: str) -> dict[str, float]:
    """Median and quartiles of the ratio name/base, pair by pair."""
    pairs = sorted(a / b for a, b in zip(stamps[name], stamps[base], strict=True))
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "pairs": len(pairs)}


def summary(stamps: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds by name."""
    return {name: statistics.median(values) for name, values in stamps.items()}


def save(study: str, question: str, results: list[dict[str, Any]]) -> pathlib.Path:
    """Write a study's results with the environment they were taken in; print them as well."""
    from optikit.bench.environment import capture

    environment = capture()
    folder = RESULTS / machine_name(environment)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study}.json"
    record = {
        "study": study,
        "question": question,
        "command": shlex.join(["python", pathlib.Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "results": results,
        "environment": environment,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    for row in results:
        print(json.dumps(row))
    print(f"-> {path}", file=sys.stderr)
    return path


def machine_name(environment: Mapping[str, Any]) -> str:
    """A folder name that says what kind of machine it is, and nothing of whose."""
    if environment["platform"] == "cpu":
        words = f"{environment['processor']} {environment['cores']} cores"
    else:
        words = f"{environment['device']} x{environment['devices']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def row(name: str, target: float | None = None, **facts: Any) -> dict[str, Any]:
    """One line of a study: what was measured, the ratio asked for, and whether it was met."""
    entry: dict[str, Any] = {"name": name, **facts}
    if target is not None:
        entry["target"] = target
        entry["met"] = entry["ratio"]["median"] <= target
    return entry
