"""The axes of cost: each defined once, with its unit and how it was obtained."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

MIB = 2**20

KINDS = ("value", "grad", "jvp", "vjp", "hvp", "ggnvp", "hessian", "jacobian")


class Axis(NamedTuple):
    """One way to say what progress cost.

    Attributes:
      key: identifier.
      label: for people, with the unit.
      meaning: how it is obtained, in a sentence.
      of: (row, trial facts, prices) -> the cumulative cost at a snapshot, NaN if unknown.
      whole: whether it is one number for a whole trial, the same at every snapshot: no curve.
    """

    key: str
    label: str
    meaning: str
    of: Callable[[dict[str, Any], dict[str, Any], dict[str, float]], float]
    whole: bool = False


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


def _of(column: str) -> Callable[[dict, dict, dict], float]:
    """A column of the rows; NaN where a trial does not have it."""

    def cost(row: dict, facts: dict, prices: dict[str, float]) -> float:
        del facts, prices
        found = row.get(column)
        return float("nan") if found is None else found

    return cost


def _memory(row: dict, facts: dict, prices: dict[str, float]) -> float:
    """MiB of a trial's own program; NaN where there is none, or where lanes share one."""
    del row, prices
    found = None if facts.get("lanes") else facts.get("memory_bytes")
    return float("nan") if found is None else found / MIB


def _accepted(row: dict, facts: dict, prices: dict[str, float]) -> float:
    del facts, prices
    rejected = row.get("rejected")
    return float("nan") if rejected is None else row["step"] - rejected


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("steps", "steps", "Optimizer steps, accepted or not.", _of("step")),
        Axis(
            "epochs",
            "epochs",
            "Steps times the share of the data in a batch; of problems that come in batches.",
            _of("epochs"),
        ),
        Axis("accepted", "accepted steps", "Steps that moved the parameters.", _accepted),
        Axis(
            "calls",
            "oracle calls",
            "Values, gradients, Hessian products, dense matrices: each call counts one.",
            lambda r, f, p: sum(calls(r).values()),
        ),
        Axis(
            "gradients",
            "gradient equivalents",
            "Oracle calls, each weighted by its measured time over that of a gradient on the same "
            "device.",
            _gradient_equivalents,
        ),
        Axis(
            "flops",
            "model FLOPs",
            "Floating-point operations of the algorithm, loops and branches as they ran.",
            _of("flops"),
        ),
        Axis(
            "bytes",
            "model bytes",
            "Operands read and results written, each operation by itself, loops and branches as "
            "they ran: an upper bound of what a compiler that fuses operations moves.",
            _of("bytes"),
        ),
        Axis(
            "warm",
            "seconds, warm",
            "Running time of a compiled program: median over warm runs (and processes, if there "
            "are several), device synchronised, between order statistics that hold the median "
            "with 95 % (the range, below six runs).",
            _of("warm_seconds"),
        ),
        Axis(
            "cold",
            "seconds, with compilation",
            "Tracing, lowering, compiling (nothing cached on disk) and the first run; between its "
            "stamps by interpolation.",
            lambda r, f, p: compile_seconds(f) + r["first_seconds"],
        ),
        Axis(
            "joules",
            "joules",
            "The device's energy counter over repeated runs, less idling, shared out over a run in "
            "proportion to its warm seconds.",
            _of("joules"),
        ),
        Axis(
            "memory",
            "program memory, MiB",
            "Peak memory of the compiled program as its compiler planned it: arguments, results "
            "and temporaries, less what they share. Not known of libraries that run on the host. "
            "One number a trial, so it has no curve: a trial is a point, at the best it came to.",
            _memory,
            whole=True,
        ),
        *(
            Axis(
                f"count_{kind}",
                label,
                f"Calls of the {kind!r} oracle alone.",
                lambda r, f, p, column=f"count_{kind}": r[column],
            )
            for kind, label in (
                ("value", "values"),
                ("grad", "gradients"),
                ("jvp", "Jacobian products"),
                ("vjp", "transposed Jacobian products"),
                ("hvp", "Hessian products"),
                ("ggnvp", "Gauss-Newton products"),
                ("hessian", "dense Hessians"),
                ("jacobian", "dense Jacobians"),
            )
        ),
    )
}


def known_axes(curves: Iterable[dict[str, list[float]]]) -> list[Axis]:
    """The axes on which some trial had a cost, of each trial's costs by axis."""
    seen = {key for costs in curves for key, column in costs.items() if any(map(_spent, column))}
    return [axis for key, axis in AXES.items() if key in seen]


def _spent(cost: float) -> bool:
    return math.isfinite(cost) and cost > 0
