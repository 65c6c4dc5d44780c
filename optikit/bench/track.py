"""Trackers: where else results go, beside their own store.

A tracker gets one run per trial, with its snapshots as steps. What it does with them is its own
matter: when it fails, the study goes on and says so once; the records are complete without it.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from optikit.bench.plan import Job
from optikit.bench.record import Record
from optikit.bench.spec import Study


class Tracker(Protocol):
    """Someone who keeps results elsewhere."""

    def start(self, study: Study) -> None:
        """A study begins."""
        ...

    def log(self, job: Job, record: Record) -> None:
        """A trial has left its record."""
        ...

    def finish(self) -> None:
        """The study has ended."""
        ...


class TrackerError(Exception):
    """A tracker that cannot start, in words."""


class RunTracker:
    """Trackers with wandb's interface: `init`, `log`, `finish`, one run per trial.

    Args:
      module: "wandb" or "trackio", imported when the study starts.
      extra: what to install for it.
    """

    def __init__(self, module: str, extra: str):
        self.module, self.extra = module, extra
        self.api: Any = None
        self.project = ""

    def start(self, study: Study) -> None:
        """Import it; the study is the project.

        Raises:
          TrackerError: it is not installed.
        """
        try:
            self.api = importlib.import_module(self.module)
        except ImportError as error:
            msg = f"{self.module} is not installed: pip install 'optikit[{self.extra}]'"
            raise TrackerError(msg) from error
        self.project = study.name

    def log(self, job: Job, record: Record) -> None:
        """A run with the job as its configuration and a step for every snapshot."""
        if job.kind != "trial":
            return
        self.api.init(
            project=self.project,
            name=f"{job.title} · {job.id}",
            group=job.problem,
            config={**job.model_dump(mode="json"), "id": job.id},
        )
        try:
            for row in record.rows:
                numbers = {
                    k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"
                }
                self.api.log(numbers, step=row["step"])
        finally:
            self.api.finish()

    def finish(self) -> None:
        """Every run is closed already."""


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "trackio": lambda: RunTracker("trackio", "track"),
    "wandb": lambda: RunTracker("wandb", "wandb"),
}
"""Trackers by name."""


def tracker_named(name: str) -> Tracker:
    """A tracker.

    Raises:
      TrackerError: there is none of that name.
    """
    if name not in TRACKERS:
        msg = f"{name!r} is not a tracker: {', '.join(TRACKERS)}"
        raise TrackerError(msg)
    return TRACKERS[name]()


@contextlib.contextmanager
def tracked(
    tracker: Tracker | None, study: Study
) -> Iterator[Callable[[Job, Record | None], None]]:
    """Give a function that tells a tracker of a record, and never fails.

    Raises:
      TrackerError: the tracker cannot start.
    """
    if tracker is None:
        yield lambda job, record: None
        return
    tracker.start(study)
    broken = False

    def guarded(call: Callable[[], None]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            with _quiet():
                call()
        except Exception as error:  # whatever it is, it is not the study's
            broken = True
            print(f"the tracker has failed, the study goes on: {error}", file=sys.stderr)

    def log(job: Job, record: Record | None) -> None:
        if record is not None and not record.facts.get("error"):
            guarded(lambda: tracker.log(job, record))

    try:
        yield log
    finally:
        guarded(tracker.finish)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trackers talk; stdout is for results."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
