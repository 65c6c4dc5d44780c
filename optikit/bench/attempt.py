"""One attempt at a job: claim it, run it, record it once. What every executor does with every job.

`python -m optikit.bench.trial SPEC` is this for the file SPEC, which a run leaves under `jobs/` in
its results folder. It may be called any number of times, at once and on several machines: a job
that is recorded is not run again, and a job that somebody is at is waited for. An attempt that
was killed leaves no record; one that was stopped and continued is thrown away and made again, so
that no interrupted attempt enters a timing statistic.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from optikit.bench import store
from optikit.bench.batches import is_recorded
from optikit.bench.lock import locked
from optikit.bench.plain import on_one_line
from optikit.bench.plan import Job, problem_job
from optikit.bench.store import Record, StoreError

MAX_INTERRUPTED = 2
"""Attempts thrown away because they were stopped, before one is recorded with that mark."""

UNRECORDED = 3
"""Exit code of a trial that could not leave its record."""

GRACE_SECONDS = 600.0
"""What compilation, referee and replay may take beyond the budgeted runs."""


class Ending(NamedTuple):
    """How an attempt ended.

    Attributes:
      failure: why the job failed, or "".
      fatal: why nothing can be recorded in this folder, or "": no other job would fare better.
    """

    failure: str = ""
    fatal: str = ""


def attempt(job: Job, folder: pathlib.Path) -> str:
    """Run a job unless its record is there, and record it. Returns why it failed, or "".

    Of a batch every member is recorded by itself; it is run again, whole, until all of them are.

    Raises:
      StoreError: the record cannot be written, or one that is there is damaged.
    """
    with _claimed(folder, job.id) as claim:
        if is_recorded(folder, job):
            return ""
        number = _begin(claim, folder, job)
        found = _uninterrupted(_informed(job, folder))
        more = {"attempt": number, "host": socket.gethostname()}
        for one, record in zip(job.members or [job], found, strict=True):
            store.write(folder, one.id, record._replace(facts=record.facts | more))
    failures = [error for record in found if (error := record.facts.get("error"))]
    if len(failures) > 1:
        return f"{len(failures)} of {len(found)} lanes failed, the first: {failures[0]}"
    return "".join(failures)


def write_spec(job: Job, folder: pathlib.Path) -> pathlib.Path:
    """The file that `run_spec` and `python -m optikit.bench.trial` take.

    Raises:
      StoreError: it cannot be written.
    """
    path = folder.resolve() / "jobs" / f"{job.id}.json"
    spec = {"job": job.model_dump(mode="json"), "path": list(sys.path)}
    try:
        path.write_text(json.dumps(spec))
    except OSError as error:
        raise store.unwritable(path, error) from error
    return path


def run_spec(path: str) -> Ending:
    """Attempt the job of a spec in this process, with its output in a log file."""
    folder, job = _read_spec(pathlib.Path(path))
    try:
        _log_to(folder / "logs" / f"{job.id}.log")
        warnings.simplefilter("default")
        return Ending(failure=attempt(job, folder))
    except StoreError as error:
        return Ending(fatal=str(error))


def main(arguments: list[str]) -> int:
    """The command: 0 the job is recorded, 1 it is recorded as failed, 2 wrong call, 3 no record."""
    if len(arguments) != 1:
        print("usage: python -m optikit.bench.trial SPEC", file=sys.stderr)
        return 2
    try:
        folder, job = _read_spec(pathlib.Path(arguments[0]))
        failure = attempt(job, folder)
    except (OSError, ValueError) as error:
        print(f"{arguments[0]} is not the spec of a trial: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(error, file=sys.stderr)
        return UNRECORDED
    print(on_one_line(failure) or f"{job.title}: recorded", file=sys.stderr)
    return bool(failure)


def allowance(job: Job) -> float:
    """Seconds after which a job is taken to hang."""
    lanes = max(len(job.members), 1)
    return GRACE_SECONDS + lanes * job.budget.seconds * (2 * job.measure.repeats + 8)


def _read_spec(path: pathlib.Path) -> tuple[pathlib.Path, Job]:
    spec = json.loads(path.read_text())
    if not isinstance(spec, dict) or set(spec) != {"job", "path"}:
        msg = "it holds no job"
        raise ValueError(msg)
    sys.path += [entry for entry in spec["path"] if entry not in sys.path]
    return path.parent.parent, Job.model_validate(spec["job"])


@contextlib.contextmanager
def _claimed(folder: pathlib.Path, job_id: str) -> Iterator[int]:
    """Hold a job; waits while somebody else does. Gives the file of its attempts."""
    path = folder / "attempts" / job_id
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(locked(path, wait=True))
        except OSError as error:
            raise store.unwritable(path, error) from error
        yield handle


def _begin(claim: int, folder: pathlib.Path, job: Job) -> int:
    """Note an attempt; gives its number, from 1."""
    try:
        before = os.pread(claim, 1 << 20, 0).count(b"\n")
        note = {"host": socket.gethostname(), "process": os.getpid(), "started": time.time()}
        os.write(claim, json.dumps(note).encode() + b"\n")
    except OSError as error:
        raise store.unwritable(folder / "attempts" / job.id, error) from error
    return before + 1


def _informed(job: Job, folder: pathlib.Path) -> Job:
    """The job with its problem's best value, as far as it is recorded yet."""
    if job.kind == "problem":
        return job
    if job.members:
        members = [_informed(member, folder) for member in job.members]
        return job.model_copy(update={"members": members})
    with contextlib.suppress(StoreError):  # a damaged record is for the report to tell
        record = store.read(folder, problem_job(job).id)
        if record is not None and "reference" in record.facts:
            return job.model_copy(update={"known": record.facts["reference"]["value"]})
    return job


def _uninterrupted(job: Job) -> list[Record]:
    """The record of an attempt that ran through, or those of a batch's members.

    After `MAX_INTERRUPTED` others, of any: if it was interrupted too, its clock is marked invalid.
    """

    def run() -> list[Record]:
        if job.members:
            from optikit.bench.trial import run_lanes

            return run_lanes(job)
        from optikit.bench.trial import run_job

        return [run_job(job)]

    for _ in range(MAX_INTERRUPTED):
        with _Interruption() as interruption:
            found = run()
        if not interruption.seen:
            return found
        if "jax" in sys.modules:  # what the first one compiled must not shorten the second
            sys.modules["jax"].clear_caches()
    with _Interruption() as interruption:
        found = run()
    return [_marked(record) for record in found] if interruption.seen else found


def _marked(record: Record) -> Record:
    """A record whose clock was interrupted."""
    facts = record.facts
    marks = {key: [*(facts.get(key) or []), "interrupted"] for key in ("marks", "invalid")}
    return record._replace(facts={**facts, **marks})


class _Interruption:
    """Sees whether this process, or the whole machine, was stopped and continued meanwhile."""

    def __enter__(self) -> "_Interruption":
        self.seen = False
        self.slept = _seconds_asleep()
        self.main = threading.current_thread() is threading.main_thread()
        if self.main and hasattr(signal, "SIGCONT"):
            self.previous = signal.signal(signal.SIGCONT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.main and hasattr(signal, "SIGCONT"):
            signal.signal(signal.SIGCONT, self.previous)
        self.seen = self.seen or _seconds_asleep() - self.slept > 0.1

    def _note(self, *_: object) -> None:
        self.seen = True


def _seconds_asleep() -> float:
    """How long the machine has been suspended since it started, where that can be told."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _log_to(path: pathlib.Path) -> None:
    """Send this process' output to a file, also that of compiled code."""
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise store.unwritable(path, error) from error
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
