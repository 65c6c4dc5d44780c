"""The progress of a fit on a terminal."""

import sys
from collections.abc import Callable

from optikit.solve.budget import Budget
from optikit.solve.history import Row


class bar:
    """A progress bar on stderr, or nothing."""

    def __init__(self, budget: Budget, wanted: bool | None):
        self.budget = budget
        self.wanted = sys.stderr.isatty() if wanted is None else wanted

    def __enter__(self) -> Callable[[int, Row], None]:
        if not self.wanted:
            return lambda taken, row: None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("step {task.completed:.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.6g}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.progress.start()
        task = self.progress.add_task("fit", total=self.budget.steps, loss=float("nan"))
        return lambda taken, row: self.progress.update(task, completed=taken, loss=row.value)

    def __exit__(self, *_) -> None:
        if self.wanted:
            self.progress.stop()
