"""Jobs as array tasks of SLURM, submitted by submitit.

The results folder must be on a file system that all nodes share. Nobody needs to stay: when the
run that submitted is gone, its tasks go on and leave their records, and `optikit resume` submits
what is missing; a task that finds its job recorded, or in work, does not run it again.
"""

import importlib
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from optikit.bench.attempt import allowance, run_spec, write_spec
from optikit.bench.executors import ExecutorError
from optikit.bench.plan import Job
from optikit.bench.store import StoreError

ARRAY = 500
"""Tasks in one array; SLURM's usual limit is 1,000."""

PATIENCE = 3
"""Looks at the queue that must miss a task without a result before it counts as lost: shared file
systems show a result late."""


def run_slurm(
    jobs: list[Job],
    folder: pathlib.Path,
    workers: int | None,
    begun: Callable[[Job], None],
    *,
    cluster: str = "slurm",
    minutes: int | None = None,
    cpus: int = 1,
    gpus: int = 0,
    retries: int = 1,
    poll: float = 5.0,
    **parameters: Any,
) -> Iterator[tuple[Job, str]]:
    """Run jobs through SLURM; yields (job, why it failed).

    Args:
      workers: at most so many of an array at a time; by default, as many as the cluster takes.
      cluster: "slurm", or "local" for submitit's processes on this machine.
      minutes: time limit of a task; by default what the job's budget allows.
      cpus, gpus: of a task.
      retries: of a job whose task was lost or killed.
      poll: seconds between two looks.
      parameters: of submitit, such as `slurm_partition`, `slurm_account` or `mem_gb`.

    Raises:
      ExecutorError: submitit is not installed, or SLURM does not accept the tasks.
      StoreError: nothing can be recorded in the folder.
    """
    submitit = _submitit()
    try:
        executor = submitit.AutoExecutor(folder=str(folder.resolve() / "slurm"), cluster=cluster)
        executor.update_parameters(
            name="optikit",
            timeout_min=minutes or 1 + int(max(map(allowance, jobs), default=0) / 60),
            cpus_per_task=cpus,
            **({"gpus_per_node": gpus} if gpus else {}),
            **({"slurm_array_parallelism": workers} if workers else {}),
            **parameters,
        )
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        msg = f"the executor 'slurm' cannot start: {error}"
        raise ExecutorError(msg) from error
    running: dict[Any, Job] = {}
    missed: dict[Any, int] = {}
    tries: dict[str, int] = {}
    try:
        _submit(submitit, executor, jobs, folder, begun, running)
        while running:
            time.sleep(poll)
            lost = []
            queue = _queue() if cluster == "slurm" else None
            for task, job in list(running.items()):
                if queue is not None and task.job_id not in queue:
                    missed[task] = missed.get(task, 0) + 1
                arrived = task.paths.result_pickle.exists()
                if not arrived and missed.get(task, 0) < PATIENCE and not _is_over(task, cluster):
                    continue
                del running[task]
                failure = _failure(submitit, task) if arrived else None
                if failure is None and tries.get(job.id, 0) < retries:
                    tries[job.id] = tries.get(job.id, 0) + 1
                    lost.append(job)
                else:
                    yield job, f"lost; see {task.paths.stderr}" if failure is None else failure
            _submit(submitit, executor, lost, folder, begun, running)
    finally:
        _cancel(running, cluster)


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        msg = "the executor 'slurm' needs submitit: pip install 'optikit[slurm]'"
        raise ExecutorError(msg) from error


def _submit(
    submitit: Any,
    executor: Any,
    jobs: list[Job],
    folder: pathlib.Path,
    begun: Callable[[Job], None],
    running: dict[Any, Job],
) -> None:
    for start in range(0, len(jobs), ARRAY):
        batch = jobs[start : start + ARRAY]
        specs = [str(write_spec(job, folder)) for job in batch]
        try:
            tasks = executor.map_array(run_spec, specs)
        except (submitit.core.utils.FailedSubmissionError, RuntimeError, OSError) as error:
            msg = f"SLURM does not accept the tasks: {error}"
            raise ExecutorError(msg) from error
        for task, job in zip(tasks, batch, strict=True):
            begun(job)
            running[task] = job


def _queue() -> set[str] | None:
    """The array tasks of this user that have not ended, or None if SLURM does not answer.

    Not by `sacct`, which needs an accounting database that small clusters do not have.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(answer.stdout.split())


def _is_over(task: Any, cluster: str) -> bool:
    return cluster != "slurm" and task.done()


def _failure(submitit: Any, task: Any) -> str | None:
    """Why a job failed, or "", or None if its task was lost."""
    try:
        ending = task.result()
    except submitit.core.utils.UncompletedJobError:
        return None
    if ending.fatal:
        raise StoreError(ending.fatal)
    return ending.failure


def _cancel(running: dict[Any, Job], cluster: str) -> None:
    if cluster == "slurm" and running:
        arrays = sorted({task.job_id.partition("_")[0] for task in running})
        subprocess.run(["scancel", *arrays], capture_output=True, check=False)
    elif running:
        for task in running:
            task.cancel(check=False)
