"""Jobs one after another in this process: for debugging, and for Python objects."""

import pathlib
from collections.abc import Callable, Iterator

from optikit.bench.attempt import attempt
from optikit.bench.plan import Job


def run_inline(
    jobs: list[Job], folder: pathlib.Path, workers: int | None, begun: Callable[[Job], None]
) -> Iterator[tuple[Job, str]]:
    """Run jobs in order; yields (job, why it failed)."""
    del workers
    for job in jobs:
        begun(job)
        yield job, attempt(job, folder)
