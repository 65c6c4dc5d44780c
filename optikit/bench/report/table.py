"""The study in a table and a sentence per problem."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optikit.bench.plain import on_lines, on_one_line
from optikit.bench.score import (
    BreakEven,
    Curve,
    Interval,
    Outcome,
    Par2,
    Portfolio,
    ProblemScore,
    break_even,
    hit,
    main_target,
    on_one_machine,
    outcomes,
    par2,
    portfolio,
    trade_offs,
    tunes,
    verdicts,
)
from optikit.bench.score.rating import reference_variant
from optikit.bench.score.verdicts import main_axis
from optikit.bench.spec import Budget

COLUMNS = ("steps", "calls", "gradients", "flops", "warm", "cold")
"""The axes of the tables, of trials and of places."""

PLACED = (*COLUMNS, "memory")
"""The axes on which methods are placed."""


class Summary(NamedTuple):
    """What is printed at the end of a run.

    Attributes:
      target: the relative suboptimality the table speaks of.
      rows: one dict per trial: problem, optimizer, seed, status, gap, the cost of reaching the
        target on every axis (None if it was not reached); its problem's metrics at the best point;
        its peaks of memory in bytes.
      outcomes: per problem and variant: success rate, median cost and expected running time on the
        problem's main axis, each with its interval.
      trade_offs: by problem, where the order of methods changes with the axis, in words.
      verdicts: per problem, sweep and study.
      failures: job title and reason.
      break_even: per problem, for how many solves each method takes no more time than the study's
        reference, compilation included.
      par2: penalised average cost of each method, in warm seconds and in steps.
      portfolios: per problem, the untuned methods taken together, where the study tunes.
    """

    target: float
    rows: list[dict[str, Any]]
    verdicts: list[str]
    failures: list[tuple[str, str]]
    outcomes: list[Outcome]
    trade_offs: dict[str, str]
    break_even: list[BreakEven]
    par2: list[Par2]
    portfolios: list[Portfolio]

    def as_json(self) -> str:
        """For programs: an interval is [estimate, low, high], what is not finite is null.

        A `break_even` that is null at `first` never comes; at `last` it stays.
        """
        told = self._asdict() | {"outcomes": [found.plain() for found in self.outcomes]}
        for name in ("break_even", "par2", "portfolios"):
            told[name] = [_told(found._asdict()) for found in getattr(self, name)]
        return json.dumps(told, indent=2, allow_nan=False)

    def print(self) -> None:
        """To stdout, for people."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        wide = console.width if console.is_terminal else 132
        # labels and messages are text: never markup, nor names of emoji
        console = Console(width=max(wide, 100), markup=False, emoji=False)
        table = Table(
            title=f"cost to reach {self.target:g} of the optimum", title_justify="left", box=None
        )
        table.add_column("problem")
        table.add_column("optimizer")
        for name in ("best gap", "steps", "calls", "grad equiv.", "FLOPs", "warm s", "cold s"):
            table.add_column(name, justify="right")
        more = any(row["metrics"] for row in self.rows)
        if more:
            table.add_column("also")
        table.add_column("ended")
        shown = ""
        for row in self.rows:
            label = "" if row["problem"] == shown else row["problem"]
            shown = row["problem"]
            seed = f" seed {row['seed']}" if row["several_seeds"] else ""
            table.add_row(
                on_one_line(label),
                on_one_line(row["optimizer"] + seed),
                f"{row['gap']:.0e}" if row["gap"] is not None else "-",
                *(_short(row[column]) for column in COLUMNS),
                *([_metrics(row["metrics"])] if more else []),
                row["status"].lower().replace("_", " "),
            )
        console.print(table)
        for sentence in self.verdicts:
            console.print()
            console.print(on_one_line(sentence), highlight=False, soft_wrap=False)
        for title, reason in self.failures:
            console.print()
            console.print(on_lines(f"failed: {title}: {reason}"), highlight=False)


def summarise(
    problems: list[ProblemScore],
    targets: list[float],
    failures: list[tuple[str, str]],
    *,
    reference: str | None = None,
    budget: Budget | None = None,
    failed: Mapping[tuple[str, str], int] | None = None,
) -> Summary:
    """The summary of a scored study.

    Args:
      reference: what methods are compared with; by default the study's first.
      budget: of one trial; without it no cost is penalised.
      failed: by (problem, variant), how many trials left no result.
    """
    target = main_target(targets)
    rows = [_row(curve, target, problem) for problem in problems for curve in problem.curves]
    told = verdicts(problems, target, reference=reference)
    ran = [problem for problem in on_one_machine(problems)[0] if problem.curves]
    return Summary(
        target=target,
        rows=rows,
        verdicts=told,
        failures=failures,
        outcomes=[o for p in ran for o in outcomes(p, target, main_axis([p]))],
        trade_offs={p.label: said for p in ran if (said := trade_offs(p, target, PLACED))},
        break_even=_break_even(ran, target, reference),
        par2=_par2(ran, target, budget, failed),
        portfolios=[
            found
            for p in (ran if tunes(ran) else ())
            if (found := portfolio(p, target, main_axis([p])))
        ],
    )


def _break_even(
    problems: Sequence[ProblemScore], target: float, reference: str | None
) -> list[BreakEven]:
    try:
        fixed = reference_variant(problems, reference)
    except ValueError:
        return []  # the reference was never run, or has several variants
    return break_even(problems, target, fixed)


def _par2(
    problems: Sequence[ProblemScore],
    target: float,
    budget: Budget | None,
    failed: Mapping[tuple[str, str], int] | None,
) -> list[Par2]:
    limits = {"warm": budget.seconds, "steps": float(budget.steps)} if budget else {}
    return [p for axis, x in limits.items() for p in par2(problems, target, axis, x, failed)]


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return {
        name: [_plain(x) for x in value[:3]]
        if isinstance(value, Interval)
        else _plain(value)
        if isinstance(value, float)
        else value
        for name, value in fields.items()
    }


def _row(curve: Curve, target: float, problem: ProblemScore) -> dict[str, Any]:
    found = hit(curve, target)
    best = min(range(len(curve.gaps)), key=lambda i: curve.gaps[i])
    gap = curve.gaps[best]
    costs = {column: _plain(found.cost[column]) if found else None for column in COLUMNS}
    return {
        "problem": curve.problem,
        "optimizer": curve.variant,
        "seed": curve.seed,
        "several_seeds": len({c.seed for c in problem.curves}) > 1,
        "status": curve.facts["status"],
        "gap": gap if math.isfinite(gap) else None,
        "metrics": {name: _plain(x[best]) for name, x in curve.metrics.items()},
        "memory_bytes": memory_of(curve.facts),
        **costs,
    }


def memory_of(facts: dict[str, Any]) -> dict[str, int | None]:
    """A trial's peaks of memory in bytes, None where unknown: program, process, device."""
    told = facts.get("memory") or {"program_bytes": facts.get("memory_bytes")}
    keys = {"program": "program_bytes", "process": "process_peak_bytes",
            "device": "device_peak_bytes"}  # fmt: skip
    return {name: told.get(key) for name, key in keys.items()}


def _metrics(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'-' if x is None else f'{x:.3g}'}" for name, x in found.items())


def _plain(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _short(x: float | None) -> str:
    if x is None:
        return "-"
    if isinstance(x, int) or (x == int(x) and x < 1e5):
        return f"{int(x)}"
    return f"{x:.3g}"
