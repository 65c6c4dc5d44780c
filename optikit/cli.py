"""The command line: optikit run | report | list | config | env.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 all went well, 1 some trials
failed, 2 the configuration or the call is wrong, 130 interrupted. Nothing here imports JAX before a
trial runs.
"""

import os
import pathlib
import sys
import time
from typing import Annotated, Any

import typer

FAILED, WRONG, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does second order pay, on your problem and your hardware?",
)
config = typer.Typer(no_args_is_help=True, help="Look at a study without running it.")
app.add_typer(config, name="config")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, e.g. budget.steps=500 seeds=[0,1]")
]
ConfigFile = Annotated[pathlib.Path, typer.Argument(help="A study in YAML")]


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    from optikit.bench import ConfigError, StoreError

    try:
        app()
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG)
    except BrokenPipeError:  # e.g. piped into head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@app.command()
def run(
    study_file: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Results folder [default: results/NAME]")
    ] = None,
    executor: Annotated[str, typer.Option(help="process or inline")] = "process",
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, help="Trials at a time; 1 keeps timings clean")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run")] = False,
) -> None:
    """Run a study: what is recorded already is skipped, so running again goes on where it ended."""
    from optikit.bench.executors import EXECUTORS
    from optikit.bench.plan import plan
    from optikit.bench.spec import load_study

    study = load_study(study_file, overrides or [])
    if executor not in EXECUTORS:
        known = " or ".join(sorted(EXECUTORS))
        msg = f"{executor!r} is not an executor: {known}"
        raise typer.BadParameter(msg, param_hint="--executor")
    _make_importable(study_file)
    folder = pathlib.Path("results") / study.name if out is None else out
    if dry_run:
        for job in plan(study):
            print(f"{job.id}  {job.title}")
        return
    from optikit.bench.experiment import collect
    from optikit.bench.run import run_study

    started = time.perf_counter()
    try:
        with _Progress(quiet) as watcher:
            outcome = run_study(study, folder, executor=executor, workers=workers, watcher=watcher)
    except KeyboardInterrupt:
        print("interrupted; finished trials are kept: run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    results = collect(study, folder, outcome.jobs, outcome.failures)
    page = results.page()
    if json:
        print(results.summary.as_json())
    else:
        results.summary.print()
        print(f"\n{time.perf_counter() - started:.0f} s. Page: {page}")
    if outcome.failures:
        raise typer.Exit(FAILED)


@app.command()
def report(
    folder: Annotated[pathlib.Path, typer.Argument(help="A results folder")],
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON")] = False,
) -> None:
    """Print the table and write the page of a results folder, as far as it has got."""
    from optikit.bench.experiment import collect
    from optikit.bench.plan import plan
    from optikit.bench.spec import Study
    from optikit.bench.store import StoreError

    try:
        study = Study.model_validate_json((folder / "study.json").read_bytes())
    except OSError as error:
        msg = f"{folder} is not a results folder: no study.json in it ({error.strerror})."
        raise StoreError(msg) from error
    except ValueError as error:
        msg = f"{folder / 'study.json'} is damaged: run the study again to restore it."
        raise StoreError(msg) from error
    jobs = plan(study)
    results = collect(study, folder, jobs, {})
    failures = {
        job_id: record.facts["error"]
        for job_id, record in results.records.items()
        if record.facts.get("error")
    }
    results = collect(study, folder, jobs, failures)
    missing = len(jobs) - len(results.records)
    if missing:
        print(f"{missing} of {len(jobs)} jobs have no record yet", file=sys.stderr)
    page = results.page()
    print(results.summary.as_json()) if json else results.summary.print()
    print(f"Page: {page}", file=sys.stderr)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="problems, optimizers, losses or data")],
) -> None:
    """List what a study can name, with a line on each."""
    from optikit.bench.signature import registry, signature

    registries = {
        "problems": ("optikit.problems", "PROBLEMS"),
        "optimizers": ("optikit.optimizers", "OPTIMIZERS"),
        "losses": ("optikit.losses", "LOSSES"),
        "data": ("optikit.problems.data", "DATA"),
    }
    if what not in registries:
        msg = f"{what!r}: choose from {', '.join(registries)}"
        raise typer.BadParameter(msg)
    found = registry(*registries[what])
    width = max(map(len, found))
    for name, target in found.items():
        declared = signature(target) if target else None
        print(f"{name:{width}}  {declared.summary if declared else ''}".rstrip())
        if declared and what in ("problems", "optimizers") and declared.parameters:
            print(f"{'':{width}}  takes {', '.join(p.name for p in declared.parameters)}")
    if what == "optimizers":
        print("\nAny optimizer of optax can be named too: adamw, lion, optax.lbfgs, muon, ...")


@app.command()
def env() -> None:
    """Print the environment that results would carry."""
    from optikit.bench.environment import capture

    for key, value in capture().items():
        print(f"{key}: {value}")


@config.command()
def check(study_file: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a study; every mistake is reported with its line and column."""
    from optikit.bench.plan import plan
    from optikit.bench.spec import load_study

    study = load_study(study_file, overrides or [])
    trials = sum(job.kind == "trial" for job in plan(study))
    print(f"{study_file}: ok, {trials} trials on {len(study.problems)} problems")


@config.command()
def show(study_file: ConfigFile, overrides: Overrides = None) -> None:
    """Print a study with every default filled in, as YAML that can be run again."""
    import yaml

    from optikit.bench.spec import load_study

    study = load_study(study_file, overrides or [])
    plain = study.model_dump(mode="json", exclude_none=True)
    print(yaml.safe_dump(plain, sort_keys=False), end="")


def _make_importable(study_file: pathlib.Path) -> None:
    """Let import paths in a study find modules beside it and in the current folder."""
    for folder in (study_file.resolve().parent, pathlib.Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


class _Progress:
    """How a study goes, on stderr: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.bar: Any = None
        self.task: Any = None
        self.total = self.done = 0

    def __enter__(self) -> "_Progress":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self.bar = Progress(
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def planned(self, total: int, done: int) -> None:
        """Show how much there is to do."""
        self.total, self.done = total, done
        if self.bar:
            self.task = self.bar.add_task("starting", total=total, completed=done)
        elif not self.quiet:
            print(f"{total} jobs, {done} recorded already", file=sys.stderr, flush=True)

    def begun(self, job: Any) -> None:
        """Show what runs."""
        if self.bar:
            self.bar.update(self.task, description=job.title)

    def ended(self, job: Any, failure: str) -> None:
        """Count it, and say what failed."""
        self.done += 1
        if self.bar:
            self.bar.update(self.task, completed=self.done)
            if failure:
                self.bar.console.print(f"failed: {job.title}: {failure}", markup=False)
        elif not self.quiet:
            note = f"  failed: {failure}" if failure else ""
            print(f"[{self.done}/{self.total}] {job.title}{note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
