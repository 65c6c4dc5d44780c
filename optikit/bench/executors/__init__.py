"""Where jobs run. Every executor runs the same idempotent work and leaves the same records."""

import importlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from optikit.bench.plan import Job

EXECUTORS = {
    "inline": "optikit.bench.executors.inline:run_inline",
    "process": "optikit.bench.executors.process:run_processes",
    "ray": "optikit.bench.executors.on_ray:run_ray",
    "slurm": "optikit.bench.executors.on_slurm:run_slurm",
}
"""Executors by name, imported when they are used."""


class Executor(Protocol):
    """Runs jobs in a results folder with some workers, telling `begun` of every start.

    Yields each job as it ends, with "" or the reason why it failed. What else it takes, as keyword
    arguments, are its options.
    """

    def __call__(
        self,
        jobs: list[Job],
        folder: pathlib.Path,
        workers: int | None,
        begun: Callable[[Job], None],
        **options: Any,
    ) -> Iterator[tuple[Job, str]]:
        """Run them."""
        ...


class ExecutorError(Exception):
    """An executor that is not there, or that cannot be used as asked, in words."""


def executor_named(name: str, options: dict[str, Any]) -> Executor:
    """An executor that takes some options.

    Raises:
      ExecutorError: there is none of that name, or it does not know an option.
    """
    if name not in EXECUTORS:
        msg = f"{name!r} is not an executor: {', '.join(EXECUTORS)}"
        raise ExecutorError(msg)
    module, _, function = EXECUTORS[name].partition(":")
    executor = getattr(importlib.import_module(module), function)
    parameters = list(inspect.signature(executor).parameters.values())[4:]
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(known) == len(parameters):
        for option in options:
            if option not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                msg = f"{option!r} is no option of the executor {name!r}: {takes}"
                raise ExecutorError(msg)
    return executor


__all__ = ["EXECUTORS", "Executor", "ExecutorError", "executor_named"]
