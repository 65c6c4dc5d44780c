"""Jobs one after another in this process: for debugging, and for Python objects."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator

from optikit.bench.attempt import attempt
from optikit.bench.plan import Job


def run_inline(
    jobs: list[Job], folder: pathlib.Path, workers: int | None, begun: Callable[[Job], None]
) -> Iterator[tuple[Job, str]]:
    """Run jobs in order; yields (job, why it failed).

    What they print goes to stderr: stdout is the study's.
    """
    del workers
    for job in jobs:
        begun(job)
        with contextlib.redirect_stdout(sys.stderr):
            failure = attempt(job, folder)
        yield job, failure
