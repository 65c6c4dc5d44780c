"""Jobs in a process each: memory peaks, precision flags and compilation caches stay apart.

Processes are forked from a server that has imported the libraries but started no JAX backend, so
a trial does not pay for the imports again; where there is no fork server, they are spawned. They
end with the run that started them, so that no orphan disturbs the next one.
"""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple

from optikit.bench.attempt import Ending, allowance, run_spec, write_spec
from optikit.bench.batches import is_recorded
from optikit.bench.plan import Job
from optikit.bench.store import StoreError

PRELOADED = ["optikit.bench.executors.preload"]


RESTARTS = 10
"""Tries to start a worker, in three seconds, while the fork server is coming back."""


class _Running(NamedTuple):
    job: Job
    process: Any
    deadline: float


def run_processes(
    jobs: list[Job], folder: pathlib.Path, workers: int | None, begun: Callable[[Job], None]
) -> Iterator[tuple[Job, str]]:
    """Run jobs with at most `workers` (by default one) at a time; yields (job, why it failed).

    Raises:
      StoreError: nothing can be recorded in the folder.
    """
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    waiting = list(reversed(jobs))
    running: dict[connection.Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (workers or 1):
                job = waiting.pop()
                begun(job)
                answer, process = _started(context, str(write_spec(job, folder)))
                running[answer] = _Running(job, process, time.monotonic() + allowance(job))
            # by their answers, not by their sentinels: those say "gone" when the fork server is
            for answer in connection.wait(list(running), timeout=1.0):
                assert isinstance(answer, connection.Connection)
                ended = running.pop(answer)
                yield ended.job, _failure(folder, ended, answer)
            for answer, late in list(running.items()):
                if time.monotonic() > late.deadline:
                    late.process.kill()
                    late.process.join()
                    del running[answer]
                    yield late.job, f"killed after {allowance(late.job):.0f} s: it did not end"
    finally:
        for left in running.values():
            left.process.kill()
        for left in running.values():
            left.process.join()


def _started(context: Any, spec: str) -> tuple[connection.Connection, Any]:
    """A worker, and the pipe of its answer; a fork server that was killed is started again."""
    for tries in range(1, RESTARTS + 1):
        answer, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(spec, theirs, list(sys.path)), daemon=True)
        try:
            with _uninterrupted():
                process.start()
        except (EOFError, ConnectionError):
            answer.close()
            if tries == RESTARTS:
                raise
            time.sleep(0.05 * tries)  # until it is seen to be gone, or listens
        else:
            return answer, process
        finally:
            theirs.close()
    raise AssertionError  # the last try has raised


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put interrupts off: a worker that is cut off while it starts ends with a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came:
            signal.raise_signal(number)


def _work(spec: str, answer: connection.Connection, path: list[str]) -> None:
    """What a worker does."""
    sys.path[:] = path
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ending = run_spec(spec)
    with contextlib.suppress(ConnectionError):  # the run is gone, and this process follows it
        answer.send(tuple(ending))
    answer.close()


def _end_with_parent() -> None:
    """Sleep until the run is gone, and go too; a sleeping thread does not disturb a timing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _failure(folder: pathlib.Path, ended: _Running, answer: connection.Connection) -> str:
    """Why a job whose worker has answered, or died, failed; or ""."""
    try:
        ending = Ending(*answer.recv())
    except (EOFError, OSError):  # killed, perhaps in the middle of its answer
        ending = None
    finally:
        answer.close()
    ended.process.join()
    if ending is not None:
        if ending.fatal:
            raise StoreError(ending.fatal)
        return ending.failure
    if is_recorded(folder, ended.job):  # killed after it, before the answer
        return ""
    code = ended.process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
    return f"the worker ended {how}; see logs/{ended.job.id}.log"
