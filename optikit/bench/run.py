"""Carrying out a study: plan, skip what is recorded, run the rest, say how it goes."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from optikit.bench import store
from optikit.bench.executors import EXECUTORS
from optikit.bench.plan import Job, plan
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
    jobs = plan(study)
    missing = [job for job in jobs if not _is_done(folder, job)]
    watcher.planned(len(jobs), len(jobs) - len(missing))
    failures = {}
    run: Callable = EXECUTORS[executor]
    for job, failure in run(missing, folder, workers, watcher.begun):
        watcher.ended(job, failure)
        if failure:
            failures[job.id] = failure
    return Outcome(folder, jobs, failures)


def _is_done(folder: pathlib.Path, job: Job) -> bool:
    """Whether a record is there that did not fail; a failed job is tried again."""
    record = store.read(folder, job.id)
    return record is not None and not record.facts.get("error")
