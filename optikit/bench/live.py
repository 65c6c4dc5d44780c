"""How a study goes, on stderr: a live table on a terminal, plain lines elsewhere.

Everything is drawn by the parent process, once a second at most: nothing is drawn inside a trial.
"""

import pathlib
import sys
import time
from typing import Any

from optikit.bench import store
from optikit.bench.plain import on_lines, on_one_line
from optikit.bench.plan import Job
from optikit.bench.status import duration, lowest


def watcher(folder: pathlib.Path, *, quiet: bool, workers: int, inline: bool) -> Any:
    """The watcher that suits where stderr goes; a context manager too."""
    if quiet:
        return Lines(folder, only_failures=True)
    if sys.stderr.isatty():
        return Table(folder, workers=workers, refresh=not inline)
    return Lines(folder)


class _Tally:
    """What both count: jobs, failures, the best value by problem, and the pace."""

    def __init__(self, folder: pathlib.Path, workers: int = 1):
        self.folder, self.workers = folder, workers
        self.total = self.done = self.failed = 0
        self.best: dict[str, tuple[float, str]] = {}
        self.counts: dict[str, int] = {}
        self.running: dict[str, tuple[Job, float]] = {}
        self.spent: list[float] = []

    def planned(self, total: int, done: int) -> None:
        """Take note of how much there is to do."""
        self.total, self.done = total, done

    def begun(self, job: Job) -> None:
        """Take note of a start."""
        now = time.monotonic()
        self.running |= {one.id: (job, now) for one in job.members or [job]}

    def ended(self, job: Job, failure: str) -> None:
        """Take note of an end, and of what was found."""
        whole, since = self.running.pop(job.id, (job, time.monotonic()))
        self.spent.append((time.monotonic() - since) / max(len(whole.members), 1))
        self.done += 1
        self.failed += bool(failure)
        if failure or job.kind != "trial":
            return
        self.counts[job.problem] = self.counts.get(job.problem, 0) + 1
        record = store.read(self.folder, job.id)
        if record is not None:
            value = lowest(record)
            if value < self.best.get(job.problem, (float("inf"), ""))[0]:
                self.best[job.problem] = (value, job.variant)

    @property
    def seconds_left(self) -> float | None:
        """What is left, at the mean time so far; None before anything has ended."""
        if not self.spent:
            return None
        mean = sum(self.spent) / len(self.spent)
        return mean * (self.total - self.done) / self.workers


class Lines(_Tally):
    """A line for every job; with `only_failures`, nothing: failures are told at the end."""

    def __init__(self, folder: pathlib.Path, *, only_failures: bool = False):
        super().__init__(folder)
        self.silent = only_failures

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def planned(self, total: int, done: int) -> None:
        """Say how much there is to do."""
        super().planned(total, done)
        self._say(f"{total} jobs, {done} recorded already")

    def ended(self, job: Job, failure: str) -> None:
        """Count it, and say what failed."""
        super().ended(job, failure)
        note = f"  failed: {failure}" if failure else ""
        self._say(f"[{self.done}/{self.total}] {job.title}{note}")

    def _say(self, line: str) -> None:
        if not self.silent:
            print(on_one_line(line), file=sys.stderr, flush=True)


class Table(_Tally):
    """A table on a terminal: by problem, what is done, the best so far and what runs.

    Args:
      workers: trials at a time, for the time left.
      refresh: redraw every second; not where trials run in this very process.
    """

    def __init__(self, folder: pathlib.Path, *, workers: int, refresh: bool):
        super().__init__(folder, workers)
        self.refresh = refresh
        self.live: Any = None

    def __enter__(self) -> "Table":
        from rich.console import Console
        from rich.live import Live

        self.live = Live(
            get_renderable=self.drawn,
            console=Console(stderr=True),
            auto_refresh=self.refresh,
            refresh_per_second=1,
        )
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def planned(self, total: int, done: int) -> None:
        """Show how much there is to do."""
        super().planned(total, done)
        self.live.refresh()

    def begun(self, job: Job) -> None:
        """Show what runs."""
        super().begun(job)
        self.live.refresh()

    def ended(self, job: Job, failure: str) -> None:
        """Show what it found; a failure stays above the table."""
        super().ended(job, failure)
        if failure:
            told = on_lines(f"failed: {job.title}: {failure}")
            self.live.console.print(told, markup=False, emoji=False)
        self.live.refresh()

    def drawn(self) -> Any:
        """The table as it is now. Names are shown as they are, never read as markup."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False)
        for name in ("problem", "trials", "best value so far", "by", "running"):
            grid.add_column(name, justify="right" if name == "trials" else "left")
        now: dict[str, list[str]] = {}
        for job, since in {job.id: (job, since) for job, since in self.running.values()}.values():
            what = job.variant or "reference"
            now.setdefault(job.problem, []).append(f"{what} {time.monotonic() - since:.0f} s")
        for problem in dict.fromkeys([*self.counts, *now]):
            value, by = self.best.get(problem, (None, ""))
            running = ", ".join(now.get(problem, [])[:3])
            found = "" if value is None else f"{value:.9g}"
            cells = (problem, str(self.counts.get(problem, 0)), found, by, running)
            grid.add_row(*(Text(on_one_line(cell)) for cell in cells))
        left = self.seconds_left
        state = f"{self.done}/{self.total}" + (f", {self.failed} failed" if self.failed else "")
        if left is not None and self.done < self.total:
            state += f", about {duration(left)} left"
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=40)
        return Group(grid, bar, Text(state))
