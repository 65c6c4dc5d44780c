"""The axes of cost: each defined once, with its unit and how it was obtained."""

from collections.abc import Callable
from typing import Any, NamedTuple

KINDS = ("value", "grad", "jvp", "vjp", "hvp", "ggnvp", "hessian", "jacobian")


class Axis(NamedTuple):
    """One way to say what progress cost.

    Attributes:
      key: identifier.
      label: for people, with the unit.
      meaning: how it is obtained, in a sentence.
      of: (row, trial facts, prices) -> the cumulative cost at a snapshot, NaN if unknown.
    """

    key: str
    label: str
    meaning: str
    of: Callable[[dict[str, Any], dict[str, Any], dict[str, float]], float]


def calls(row: dict[str, Any]) -> dict[str, int]:
    """Oracle calls by kind at a snapshot."""
    return {kind: int(row[f"count_{kind}"]) for kind in KINDS}


def compile_seconds(facts: dict[str, Any]) -> float:
    """Tracing, lowering and compiling."""
    return sum(facts["seconds"][stage] for stage in ("trace", "lower", "compile"))


def _gradient_equivalents(row: dict, facts: dict, prices: dict[str, float]) -> float:
    del facts
    unit = prices.get("grad")
    used = {kind: n for kind, n in calls(row).items() if n}
    if not unit or any(kind not in prices for kind in used):
        return float("nan")
    return sum(n * prices[kind] / unit for kind, n in used.items())


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("steps", "steps", "Optimizer steps.", lambda r, f, p: r["step"]),
        Axis(
            "calls",
            "oracle calls",
            "Values, gradients, Hessian products, dense matrices: each call counts one.",
            lambda r, f, p: sum(calls(r).values()),
        ),
        Axis(
            "gradients",
            "gradient equivalents",
            "Oracle calls, each weighted by its measured time over that of a gradient.",
            _gradient_equivalents,
        ),
        Axis(
            "flops",
            "model FLOPs",
            "Floating-point operations of the algorithm, loops and branches as they ran.",
            lambda r, f, p: float("nan") if r["flops"] is None else r["flops"],
        ),
        Axis(
            "warm",
            "seconds, warm",
            "Running time of a compiled program: median over warm runs, device synchronised.",
            lambda r, f, p: r["warm_seconds"],
        ),
        Axis(
            "cold",
            "seconds, with compilation",
            "Tracing, lowering, compiling and the first run.",
            lambda r, f, p: compile_seconds(f) + r["first_seconds"],
        ),
    )
}
