"""Jobs as Ray tasks: each in a fresh worker with the CPUs and GPUs asked for, tried again when a
worker or a node is lost.

A job that was lost after it had left its record is not run again: the next attempt finds it. The
results folder must be visible from every node under the same path.
"""

import importlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from optikit.bench.attempt import Ending, run_spec, write_spec
from optikit.bench.executors import ExecutorError
from optikit.bench.plan import Job
from optikit.bench.store import StoreError


def run_ray(
    jobs: list[Job],
    folder: pathlib.Path,
    workers: int | None,
    begun: Callable[[Job], None],
    *,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    retries: int = 3,
) -> Iterator[tuple[Job, str]]:
    """Run jobs on a Ray cluster; yields (job, why it failed).

    Args:
      workers: at most so many at a time; by default, as many as the cluster takes.
      address: of the cluster; by default the one this process is connected to, that RAY_ADDRESS
        names, or a new one on this machine.
      cpus, gpus: what Ray reserves for each job. Ray shows a job only its own GPUs.
      retries: of a job whose worker or node was lost.

    Raises:
      ExecutorError: Ray is not installed, cannot be reached, or has no such resources.
      StoreError: nothing can be recorded in the folder.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            msg = f"no Ray cluster at {address!r}: {error}"
            raise ExecutorError(msg) from error
    try:
        _require(ray, cpus, gpus)
        # one task a process: a second trial would find the first one's compiled code and memory
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries, max_calls=1)(run_spec)
        waiting = list(reversed(jobs))
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (workers or len(jobs)):
                    job = waiting.pop()
                    begun(job)
                    running[task.remote(str(write_spec(job, folder)))] = job
                for reference in ray.wait(list(running), timeout=1.0)[0]:
                    yield running.pop(reference), _failure(ray, reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        msg = "the executor 'ray' needs Ray: pip install 'optikit[ray]'"
        raise ExecutorError(msg) from error


def _require(ray: Any, cpus: float, gpus: float) -> None:
    """Say at once what the cluster can never give, where Ray would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        msg = f"no node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs: ask for less."
        raise ExecutorError(msg)


def _failure(ray: Any, reference: Any) -> str:
    try:
        ending: Ending = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        return f"lost by Ray: {type(error).__name__}: {first}"
    if ending.fatal:
        raise StoreError(ending.fatal)
    return ending.failure
