"""How far a results folder has got, read from outside while it is being run or long after."""

import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from optikit.bench import store
from optikit.bench.batches import batched
from optikit.bench.earlier import earlier
from optikit.bench.lock import is_held
from optikit.bench.plain import on_one_line
from optikit.bench.plan import Job, outlook
from optikit.bench.record import Record
from optikit.bench.run import manner_of, planned, study_of
from optikit.bench.signature import importable_from
from optikit.bench.spec import Study


class Progress(NamedTuple):
    """How far a study has got.

    Attributes:
      name: of the study.
      jobs, recorded: how many there are, and how many of them have a good record.
      earlier: how many others have one by another version of the code; a run would run them anew.
      failed: title and reason of those whose last attempt failed.
      running: title, host, process and attempt of those in work.
      active: whether a run holds the folder.
      seconds_left: an estimate from the recorded ones; None if nothing tells.
      best: by problem, the lowest value so far and who found it.
    """

    name: str
    jobs: int
    recorded: int
    earlier: int
    failed: list[dict[str, str]]
    running: list[dict[str, Any]]
    active: bool
    seconds_left: float | None
    best: list[dict[str, Any]]

    def as_json(self) -> str:
        """For programs."""
        return json.dumps(self._asdict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        state = (
            "running" if self.active else "done" if self.recorded == self.jobs else "not running"
        )
        left = ""
        if self.seconds_left:
            left = f", about {duration(self.seconds_left)} of work left"
        lines = [f"{self.name}: {self._recorded()}, {state}{left}"]
        lines += [
            f"  in work: {r['title']} (attempt {r['attempt']} on {r['host']})" for r in self.running
        ]
        lines += [
            f"  best on {b['problem']}: {b['value']:.9g} by {b['by']}, {b['trials']} trials"
            for b in self.best
        ]
        lines += [f"  failed: {f['title']}: {f['reason']}" for f in self.failed]
        return "\n".join(map(on_one_line, lines))

    def _recorded(self) -> str:
        other = "by another version of the code"
        if self.earlier and not self.recorded:
            return f"{self.earlier} of {self.jobs} recorded, {other}"
        more = f", {self.earlier} more {other}" if self.earlier else ""
        return f"{self.recorded} of {self.jobs} recorded{more}"


def progress(folder: pathlib.Path) -> Progress:
    """How far the study in a results folder has got. Writes nothing.

    Raises:
      StoreError: it is not a results folder, or a record is damaged.
    """
    with importable_from(manner_of(folder).path):
        return _progress(study_of(folder), folder)


def _progress(study: Study, folder: pathlib.Path) -> Progress:
    jobs = planned(study, folder)
    records = store.read_all(folder, [job.id for job in jobs])
    done = {job_id for job_id, record in records.items() if store.is_done(record)}
    missing = [job for job in jobs if job.id not in done]
    work = batched(jobs, {job.id for job in missing})
    others = set(store.recorded_ids(folder)) - {job.id for job in jobs}
    before = _of_another_version(study, folder, done) if missing and others else ([], {})
    return Progress(
        name=study.name,
        jobs=max(len(jobs), sum(outlook(study))),
        recorded=len(done),
        earlier=len(before[1]),
        failed=[
            {"title": job.title, "reason": records[job.id].facts["error"]}
            for job in missing
            if job.id in records
        ],
        running=[_in_work(folder, job) for job in work if is_held(_attempts(folder, job))],
        active=is_held(folder / "lock"),
        seconds_left=_seconds_left(missing, jobs, records, manner_of(folder).workers or 1),
        best=best_so_far(jobs, records) if done else best_so_far(*before),
    )


def _of_another_version(
    study: Study, folder: pathlib.Path, done: set[str]
) -> tuple[list[Job], dict[str, Record]]:
    """The jobs of a study, and the good records that other code left of those not done."""
    jobs, records = earlier(study, folder)
    good = {k: r for k, r in records.items() if k not in done and store.is_done(r)}
    return jobs, good


def best_so_far(jobs: list[Job], records: dict[str, Record]) -> list[dict[str, Any]]:
    """For each problem with a trial: its label, the lowest value, by whom, and how many trials."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        record = records.get(job.id)
        if job.kind != "trial" or record is None or not store.is_done(record):
            continue
        value = lowest(record)
        entry = found.setdefault(
            job.problem, {"problem": job.problem, "value": value, "by": job.variant, "trials": 0}
        )
        entry["trials"] += 1
        if value < entry["value"]:
            entry |= {"value": value, "by": job.variant}
    return [entry for entry in found.values() if math.isfinite(entry["value"])]


def lowest(record: Record) -> float:
    """The lowest value among a trial's snapshots that the referee found finite; else infinity."""
    values = [row.get("value") for row in record.rows]
    return min((v for v in values if v is not None and math.isfinite(v)), default=math.inf)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _attempts(folder: pathlib.Path, job: Job) -> pathlib.Path:
    return folder / "attempts" / job.id


def _in_work(folder: pathlib.Path, job: Job) -> dict[str, Any]:
    lines = _attempts(folder, job).read_text(errors="replace").splitlines()
    last = json.loads(lines[-1]) if lines else {"host": "?", "process": 0, "started": 0.0}
    return {"title": job.title, "attempt": len(lines), **last}


def _seconds_left(
    missing: list[Job], jobs: list[Job], records: dict[str, Record], workers: int
) -> float | None:
    """Missing jobs at the mean time of their problem's recorded ones, else of all, in parallel."""
    spent: dict[str, list[float]] = {}
    for job in jobs:
        record = records.get(job.id)
        if record is not None and "wall_seconds" in record.facts:
            spent.setdefault(job.problem, []).append(record.facts["wall_seconds"])
    if not missing:
        return 0.0
    if not spent:
        return None
    overall = statistics.fmean(x for times in spent.values() for x in times)
    work = sum(statistics.fmean(spent.get(job.problem, [overall])) for job in missing)
    return work / workers
