"""Jobs one after another in this process: for debugging, and for Python objects."""

import pathlib
from collections.abc import Callable, Iterator

from optikit.bench import store
from optikit.bench.plan import Job


def run_inline(
    jobs: list[Job], folder: pathlib.Path, workers: int, begun: Callable[[Job], None]
) -> Iterator[tuple[Job, str]]:
    """Run jobs in order; yields (job, why it left no record)."""
    del workers
    from optikit.bench.trial import run_job

    for job in jobs:
        begun(job)
        record = run_job(job, folder)
        store.write(folder, job.id, record)
        yield job, record.facts["error"] or ""
