"""Jobs in a process each: memory peaks, precision flags and compilation caches stay apart.

Processes are forked from a server that has imported the libraries but started no JAX backend, so
a trial does not pay for the imports again; where there is no fork server, they are spawned.
"""

import multiprocessing
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from optikit.bench import store
from optikit.bench.plan import Job

PRELOADED = ["optikit.bench.executors.preload"]
GRACE_SECONDS = 600.0
"""What compilation, referee and replay may take beyond the budgeted runs before a job is killed."""


def run_processes(
    jobs: list[Job], folder: pathlib.Path, workers: int, begun: Callable[[Job], None]
) -> Iterator[tuple[Job, str]]:
    """Run jobs with at most `workers` at a time; yields (job, why it left no record)."""
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    (folder / "logs").mkdir(exist_ok=True)
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Job, Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, workers):
                job = waiting.pop()
                begun(job)
                worker = context.Process(
                    target=work,
                    args=(job.model_dump_json(), str(folder), list(sys.path)),
                    daemon=True,
                )
                worker.start()
                running[worker.sentinel] = (job, worker, time.monotonic() + _allowance(job))
            for sentinel in connection.wait(list(running), timeout=1.0):
                job, worker, _ = running.pop(sentinel)
                worker.join()
                yield job, _failure(folder, job, worker.exitcode)
            for sentinel, (job, worker, deadline) in list(running.items()):
                if time.monotonic() > deadline:
                    worker.kill()
                    worker.join()
                    del running[sentinel]
                    yield job, f"killed after {_allowance(job):.0f} s: it did not end"
    finally:
        for _, worker, _ in running.values():
            worker.kill()
        for _, worker, _ in running.values():
            worker.join()


def work(job_json: str, folder: str, path: list[str]) -> None:
    """What a worker does: run one job and write its record. Its output goes to a log file."""
    sys.path[:] = path
    job = Job.model_validate_json(job_json)
    log = os.open(
        pathlib.Path(folder) / "logs" / f"{job.id}.log",
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        0o644,
    )
    for stream in (1, 2):
        os.dup2(log, stream)
    warnings.simplefilter("default")
    from optikit.bench.trial import run_job

    store.write(pathlib.Path(folder), job.id, run_job(job, pathlib.Path(folder)))


def _allowance(job: Job) -> float:
    return GRACE_SECONDS + job.budget.seconds * (2 * job.measure.repeats + 8)


def _failure(folder: pathlib.Path, job: Job, code: int | None) -> str:
    if code == 0:
        record = store.read(folder, job.id)
        return "" if record is None else record.facts["error"] or ""
    how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    return f"the worker ended {how}; see logs/{job.id}.log"
