"""Where jobs run. Every executor runs the same idempotent work and leaves the same records."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Protocol

from optikit.bench.executors.inline import run_inline
from optikit.bench.executors.process import run_processes
from optikit.bench.plan import Job


class Executor(Protocol):
    """Runs jobs in a results folder with some workers, telling `begun` of every start.

    Yields each job as it ends, with "" or the reason why it failed.
    """

    def __call__(
        self, jobs: list[Job], folder: pathlib.Path, workers: int, begun: Callable[[Job], None]
    ) -> Iterator[tuple[Job, str]]:
        """Run them."""
        ...


EXECUTORS: dict[str, Executor] = {"inline": run_inline, "process": run_processes}

__all__ = ["EXECUTORS", "Executor"]
