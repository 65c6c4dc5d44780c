"""A trial repeated in several processes is one trial with better known seconds."""

import collections
import math
import statistics
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

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


def lost(
    jobs: Sequence[Job], records: dict[str, Record], failures: Container[str]
) -> dict[tuple[str, str], int]:
    """By (problem, variant), how many reported trials failed in every round."""
    reported = [job for job in jobs if job.kind == "trial" and job.role == "report"]
    return collections.Counter(
        (job.problem, job.variant) for job in merged(reported, records)[0] if job.id in failures
    )


class Moved(NamedTuple):
    """How far the rounds of a reported trial disagree at the last step that all have on record.

    Attributes:
      seconds: by what factor warm seconds of one round exceed another's, if their intervals are
        apart; else 1.
      value: the largest relative difference of the value; 0 within 1e-9.
    """

    job: Job
    seconds: float
    value: float


def moved(jobs: Sequence[Job], records: dict[str, Record]) -> list[Moved]:
    """The trials whose rounds disagree by more than each of them leaves open.

    Compared are rounds of the first one's machine with a valid clock; values on any clock.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        good = job.id in records and not records[job.id].facts.get("error")
        if job.kind == "trial" and job.role == "report" and good:
            first = job if job.round == 0 else job.model_copy(update={"round": 0})
            groups.setdefault(first.id, []).append(job)
    found = []
    for members in groups.values():
        here = [records[job.id] for job in members]
        here = [record for record in here if _machine(record) == _machine(here[0])]
        disagree = Moved(members[0], *_disagreement(here))
        if disagree.seconds > 1 or disagree.value > 0:
            found.append(disagree)
    return found


def _disagreement(rounds: list[Record]) -> tuple[float, float]:
    """The factor in seconds and the relative difference of values; (1, 0) where there is none."""
    shared = set.intersection(*({row["step"] for row in record.rows} for record in rounds))
    if len(rounds) < 2 or not shared:
        return 1.0, 0.0
    last = max(shared)
    rows = [next(row for row in record.rows if row["step"] == last) for record in rounds]
    values = [row["value"] for row in rows]
    low, high = min(values), max(values)
    same = math.isclose(low, high, rel_tol=1e-9) or not math.isfinite(high - low)
    clocked = [
        row for row, record in zip(rows, rounds, strict=True) if not record.facts.get("invalid")
    ]
    slowest = max(clocked, key=lambda row: row["warm_low"], default={"warm_low": 0.0})
    quickest = min(clocked, key=lambda row: row["warm_high"], default={"warm_high": 0.0})
    apart = slowest["warm_low"] > quickest["warm_high"] > 0
    factor = slowest["warm_seconds"] / quickest["warm_seconds"] if apart else 1.0
    return factor, 0.0 if same else (high - low) / max(abs(low), abs(high))


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
