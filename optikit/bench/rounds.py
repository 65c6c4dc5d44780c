"""A trial repeated in several processes is one trial with better known seconds."""

import statistics
from collections.abc import Sequence
from typing import Any

from optikit.bench.plan import Job
from optikit.bench.repeats import median_ranks
from optikit.bench.store import Record

_CLOCKED = ("warm_seconds", "warm_low", "warm_high", "first_seconds", "joules")


def merged(jobs: Sequence[Job], records: dict[str, Record]) -> tuple[list[Job], dict[str, Record]]:
    """The same jobs and records with the rounds of a trial as one record, under its first job.

    Counted columns are those of the first round. Seconds and joules are medians over the rounds of
    that round's machine, without those whose clock is invalid, if any is valid. The interval is
    that of order statistics from six rounds on; below, the range of the rounds' own intervals.
    A trial that was run once is left as it is.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        first = job if job.round == 0 else job.model_copy(update={"round": 0})
        groups.setdefault(first.id, []).append(job)
    kept, found = [], {}
    for members in groups.values():
        good = [job for job in members if job.id in records]
        whole = [job for job in good if not records[job.id].facts.get("error")]
        job = next(iter(whole or good or members))
        kept.append(job)
        if len(whole) > 1:
            found[job.id] = _merged([records[one.id] for one in whole])
        elif good:
            found[job.id] = records[job.id]
    return kept, found


def _merged(rounds: list[Record]) -> Record:
    first = rounds[0]
    machine = _machine(first)
    here = [record for record in rounds if _machine(record) == machine]
    clocked = [record for record in here if not record.facts.get("invalid")] or here
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in clocked:
        for row in record.rows:
            by_step.setdefault(row["step"], []).append(row)
    rows = []
    floor: dict[str, float] = dict.fromkeys(_CLOCKED, 0.0)
    for row in first.rows:
        clocks = _clocks(by_step.get(row["step"], [row]))
        # a round that ended sooner drops out of later medians: costs still never fall
        floor |= {k: max(floor[k], x) for k, x in clocks.items() if x is not None}
        rows.append(row | {k: None if x is None else floor[k] for k, x in clocks.items()})
    stages = [record.facts["seconds"] for record in clocked]
    facts = first.facts | {
        "rounds": len(clocked),
        "seconds": {k: statistics.median(stage[k] for stage in stages) for k in stages[0]},
        "invalid": clocked[0].facts.get("invalid", []),
    }
    return first._replace(rows=rows, facts=facts)


def _clocks(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The clocked columns of one step over some rounds."""
    medians = sorted(row["warm_seconds"] for row in rows)
    below, coverage = median_ranks(len(rows))
    if len(rows) >= 6 and coverage > 0:
        low, high = medians[below], medians[-1 - below]
    else:
        low = min(row["warm_low"] for row in rows)
        high = max(row["warm_high"] for row in rows)
    joules = [row["joules"] for row in rows if row.get("joules") is not None]
    return {
        "warm_seconds": statistics.median(medians),
        "warm_low": low,
        "warm_high": high,
        "first_seconds": statistics.median(row["first_seconds"] for row in rows),
        "joules": statistics.median(joules) if joules else None,
    }


def _machine(record: Record) -> str:
    return record.facts.get("environment", {}).get("machine", "")
