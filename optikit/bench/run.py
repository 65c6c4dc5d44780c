"""Carrying out a study: plan, skip what is recorded, run the rest, say how it goes."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from optikit.bench import store
from optikit.bench.executors import EXECUTORS
from optikit.bench.plan import Job, outlook, plan
from optikit.bench.spec import Study


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


def run_study(
    study: Study,
    folder: pathlib.Path,
    *,
    executor: str = "process",
    workers: int = 1,
    watcher: Watcher | None = None,
) -> Outcome:
    """Run what is not recorded yet; the study's own configuration is stored beside the records.

    Raises:
      StoreError: the folder cannot be written.
    """
    watcher = Silent() if watcher is None else watcher
    store.prepare(folder)
    store.write_atomically(folder / "study.json", study.model_dump_json(indent=2).encode())
    failures: dict[str, str] = {}
    run: Callable = EXECUTORS[executor]
    jobs = plan(study)
    tuned = outlook(study)[1] > 0
    if tuned:  # what is reported follows from the tuning trials' records
        _run_missing(jobs, folder, workers, run, watcher, failures)
        jobs = plan(study, store.read_all(folder, [job.id for job in jobs]), settle=True)
    _run_missing(jobs, folder, workers, run, watcher, failures)
    return Outcome(folder, jobs, failures)


def _run_missing(
    jobs: list[Job],
    folder: pathlib.Path,
    workers: int,
    run: Callable,
    watcher: Watcher,
    failures: dict[str, str],
) -> None:
    """Run the jobs that have no record and have not failed just now."""
    missing = [job for job in jobs if job.id not in failures and not _is_done(folder, job)]
    watcher.planned(len(jobs), len(jobs) - len(missing))
    for job, failure in run(missing, folder, workers, watcher.begun):
        watcher.ended(job, failure)
        if failure:
            failures[job.id] = failure


def _is_done(folder: pathlib.Path, job: Job) -> bool:
    """Whether a record is there that did not fail; a failed job is tried again."""
    record = store.read(folder, job.id)
    return record is not None and not record.facts.get("error")
