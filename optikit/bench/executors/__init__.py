"""Where jobs run. Every executor runs the same idempotent work and leaves the same records."""

import importlib
import inspect
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from optikit.bench.plan import Job
from optikit.bench.yaml_source import parse

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


def options_of(texts: Iterable[str]) -> dict[str, Any]:
    """Options of an executor from `name=value`, values read as YAML.

    Raises:
      ExecutorError: one is not of that form.
    """
    options = {}
    for text in texts:
        name, equals, raw = text.partition("=")
        value, wrong = parse(raw, text)
        if not equals or not name.isidentifier() or wrong:
            msg = f"--with {text}: write it as name=value"
            raise ExecutorError(msg)
        options[name] = value.data
    return options


__all__ = ["EXECUTORS", "Executor", "ExecutorError", "executor_named", "options_of"]
