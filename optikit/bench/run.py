"""Carrying out a study: plan, skip what is recorded, run the rest, say how it goes."""

import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from optikit.bench import store
from optikit.bench.batches import batched
from optikit.bench.executors import executor_named
from optikit.bench.plan import Job, outlook, plan
from optikit.bench.spec import Study
from optikit.bench.store import StoreError
from optikit.bench.track import Tracker, tracked


class Watcher(Protocol):
    """Someone who is told how a study goes."""

    def planned(self, total: int, done: int) -> None:
        """How many jobs there are, and how many are recorded already."""

    def begun(self, job: Job) -> None:
        """A job has started."""

    def ended(self, job: Job, failure: str) -> None:
        """A job has ended; `failure` is empty if it went well."""


class Silent:
    """A watcher who says nothing."""

    def planned(self, total: int, done: int) -> None:
        """Nothing."""

    def begun(self, job: Job) -> None:
        """Nothing."""

    def ended(self, job: Job, failure: str) -> None:
        """Nothing."""


class Outcome(NamedTuple):
    """What became of a study: its folder, its jobs, and why some of them failed."""

    folder: pathlib.Path
    jobs: list[Job]
    failures: dict[str, str]  # job id -> reason


class Manner(BaseModel):
    """How a study is run; kept beside its records, so that `resume` needs no more than the folder.

    Attributes:
      executor: a name of `EXECUTORS`.
      workers: trials at a time; None for the executor's own default.
      options: further arguments of the executor.
      path: folders in which the study's own modules are found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    executor: str = "process"
    workers: int | None = None
    options: dict[str, Any] = {}
    path: list[str] = []


def run_study(
    study: Study,
    folder: pathlib.Path,
    manner: Manner | None = None,
    *,
    watcher: Watcher | None = None,
    tracker: Tracker | None = None,
) -> Outcome:
    """Run what is not recorded yet; the study's own configuration is stored beside the records.

    Raises:
      StoreError: the folder cannot be written, is damaged, or is in use by another run.
      ExecutorError: there is no such executor, or it cannot be used as asked.
      TrackerError: the tracker cannot start.
    """
    watcher = Silent() if watcher is None else watcher
    manner = Manner() if manner is None else manner
    run = executor_named(manner.executor, manner.options)
    store.prepare(folder)
    with store.sole_use(folder), tracked(tracker, study) as log:
        _leave(folder, study, manner)
        failures: dict[str, str] = {}
        jobs: list[Job] = []
        for jobs in _stages(study, folder):
            missing = [job for job in jobs if job.id not in failures and not _done(folder, job)]
            expected = max(len(jobs), sum(outlook(study)))
            watcher.planned(expected, len(jobs) - len(missing))
            left = {job.id for job in missing}
            work = batched(jobs, left)
            ended = run(work, folder, manner.workers, watcher.begun, **manner.options)
            for done, failed in ended:
                for job in done.members or [done]:
                    if job.id not in left:
                        continue
                    record = store.read(folder, job.id)
                    failure = failed
                    if done.members and record is not None:  # each lane has its own fate
                        failure = record.facts.get("error") or ""
                    watcher.ended(job, failure)
                    if failure:
                        failures[job.id] = failure
                    log(job, record)
    return Outcome(folder, jobs, failures)


def planned(study: Study, folder: pathlib.Path) -> list[Job]:
    """All jobs of a study that can be named from what its folder holds."""
    jobs = plan(study)
    if not outlook(study)[1]:
        return jobs
    return plan(study, store.read_all(folder, [job.id for job in jobs]), settle=True)


def _stages(study: Study, folder: pathlib.Path) -> Iterator[list[Job]]:
    """The jobs, and then again with those that follow from the records of the first ones."""
    yield plan(study)
    if outlook(study)[1]:
        yield planned(study, folder)


def _done(folder: pathlib.Path, job: Job) -> bool:
    return store.is_done(store.read(folder, job.id))


def study_of(folder: pathlib.Path) -> Study:
    """The study whose results a folder holds.

    Raises:
      StoreError: it is not a results folder, or is damaged.
    """
    path = folder / "study.json"
    try:
        return Study.model_validate_json(path.read_bytes())
    except OSError as error:
        msg = f"{folder} is not a results folder: no study.json in it ({error.strerror})."
        raise StoreError(msg) from error
    except ValueError as error:
        msg = f"{path} is damaged: run the study again to restore it."
        raise StoreError(msg) from error


def manner_of(folder: pathlib.Path) -> Manner:
    """How the study in a folder was run last; the default where nothing says it."""
    try:
        return Manner.model_validate_json((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return Manner()


def importable(path: list[str]) -> None:
    """Let a study's import paths find modules in some folders, and in the current one."""
    for folder in [*reversed(path), os.getcwd()]:
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _leave(folder: pathlib.Path, study: Study, manner: Manner) -> None:
    store.write_atomically(folder / "study.json", study.model_dump_json(indent=2).encode())
    store.write_atomically(folder / "run.json", manner.model_dump_json(indent=2).encode())
