"""The command line: optikit run | resume | status | report | compare | query | compact | list |
config | env.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 all went well, 1 some trials
failed, 2 the configuration or the call is wrong, 130 interrupted. Nothing here imports JAX before a
trial runs.
"""

import os
import pathlib
import signal
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
Set = Annotated[
    list[str] | None, typer.Option("--set", help="An override; the same as one behind the file")
]
ConfigFile = Annotated[pathlib.Path, typer.Argument(help="A study in YAML")]
Folder = Annotated[pathlib.Path, typer.Argument(help="A results folder")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", "-j", min=1, help="Trials at a time [default: 1; on a cluster: what it takes]"
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="Options of the executor, e.g. gpus=1 slurm_partition=a100"),
]
Track = Annotated[str | None, typer.Option(help="trackio or wandb, beside our own store")]


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    code = _carried_out()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    sys.exit(code)


def _carried_out() -> Any:
    """Run the command that the arguments name; gives its exit code."""
    from optikit.bench import ConfigError, ExecutorError, QueryError, StoreError, TrackerError

    try:
        app()
    except (ConfigError, ExecutorError, QueryError, StoreError, TrackerError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except SystemExit as ended:
        # where the reader has left, as `head` does, Typer and Rich would end with 1
        if not isinstance(ended.__context__, BrokenPipeError):
            return ended.code
        _discard_stdout()
    return 0


def _discard_stdout() -> None:
    """Nobody reads on: what is still buffered must not fail when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command("bench", hidden=True)
@app.command()
def run(
    study_file: ConfigFile,
    overrides: Overrides = None,
    set_: Set = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Results folder [default: results/NAME]")
    ] = None,
    executor: Annotated[str, typer.Option(help="process, inline, ray or slurm")] = "process",
    workers: Workers = None,
    with_: With = None,
    track: Track = None,
    json: AsJson = False,
    quiet: Quiet = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run")] = False,
) -> None:
    """Run a study: what is recorded already is skipped, so running again goes on where it ended."""
    from optikit.bench.executors import executor_named, options_of
    from optikit.bench.plain import counted
    from optikit.bench.plan import outlook, plan
    from optikit.bench.run import Manner, importable
    from optikit.bench.spec import load_study

    study = load_study(study_file, [*(overrides or []), *(set_ or [])])
    manner = Manner(
        executor=executor,
        workers=workers,
        options=options_of(with_ or []),
        path=[str(study_file.resolve().parent), os.getcwd()],
    )
    executor_named(manner.executor, manner.options)
    importable(manner.path)
    if dry_run:
        for job in plan(study):
            print(f"{job.id}  {job.title}")
        if later := outlook(study)[1]:
            told = f"then {counted(later, 'trial')}, default and as tuning chooses"
            print(told, file=sys.stderr)
        return
    folder = pathlib.Path("results") / study.name if out is None else out
    _carry_out(study, folder, manner, track=track, json=json, quiet=quiet)


@app.command()
def resume(
    folder: Folder,
    executor: Annotated[
        str | None, typer.Option(help="process, inline, ray or slurm [default: as before]")
    ] = None,
    workers: Workers = None,
    with_: With = None,
    track: Track = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run what a results folder still lacks, as it was run before unless said otherwise."""
    from optikit.bench.executors import options_of
    from optikit.bench.experiment import has_objects
    from optikit.bench.run import importable, manner_of, study_of
    from optikit.bench.store import StoreError

    study, manner = study_of(folder), manner_of(folder)
    if has_objects(study):
        msg = f"{folder} holds a study of Python objects: run the script that made it again."
        raise StoreError(msg)
    changes: dict[str, Any] = {}
    if executor is not None and executor != manner.executor:
        changes |= {"executor": executor, "workers": None, "options": {}}
    if workers is not None:
        changes["workers"] = workers
    if with_:
        changes["options"] = options_of(with_)
    manner = manner.model_copy(update=changes)
    importable(manner.path)
    _carry_out(study, folder, manner, track=track, json=json, quiet=quiet)


def _carry_out(
    study: Any, folder: pathlib.Path, manner: Any, *, track: str | None, json: bool, quiet: bool
) -> None:
    """Run a study, print what it found, and end with the right code."""
    from optikit.bench.experiment import collect
    from optikit.bench.live import watcher
    from optikit.bench.run import run_study
    from optikit.bench.track import tracker_named

    tracker = tracker_named(track) if track else None
    started = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers are ended in order then
    try:
        inline = manner.executor == "inline"
        with watcher(folder, quiet=quiet, workers=manner.workers or 1, inline=inline) as shown:
            outcome = run_study(study, folder, manner, watcher=shown, tracker=tracker)
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
def status(folder: Folder, json: AsJson = False) -> None:
    """Tell how far a results folder has got, also while it is being run; changes nothing."""
    from optikit.bench.status import progress

    found = progress(folder)
    print(found.as_json() if json else found)


@app.command()
def report(
    folder: Folder,
    json: AsJson = False,
    figures: Annotated[
        str | None, typer.Option(help="Write figures for a paper too: pdf, png or svg")
    ] = None,
) -> None:
    """Print the table and write the page of a results folder, as far as it has got.

    Where the folder cannot be written, the table is all there is.
    """
    from optikit.bench.experiment import load
    from optikit.bench.report.figures import FORMATS
    from optikit.bench.store import StoreError

    if figures is not None and figures not in FORMATS:
        msg = f"--figures {figures}: choose from {', '.join(FORMATS)}"
        raise typer.BadParameter(msg)
    results = load(folder)
    missing = len(results.jobs) - len(results.records)
    if missing:
        print(f"{missing} of {len(results.jobs)} jobs have no record yet", file=sys.stderr)
    codes = {job.id: job.code for job in results.jobs}
    if any(record.job.get("code") != codes[k] for k, record in results.records.items()):
        print("recorded by another version of the code; `run` would run it anew", file=sys.stderr)
    try:
        page = f"Page: {results.page()}"
    except StoreError as error:  # of a read-only folder the table is worth having
        page = f"no page: {error}"
    print(results.summary.as_json()) if json else results.summary.print()
    print(page, file=sys.stderr)
    if figures is not None:
        drawn = results.figures(format=figures)
        print(f"Figures: {len(drawn)} in {folder / 'figures'}", file=sys.stderr)


@app.command()
def query(
    folder: Folder,
    sql: Annotated[str, typer.Argument(help="One SELECT over trials and snapshots")],
    json: AsJson = False,
) -> None:
    """Ask the records a question in SQL, as tab-separated text; they cannot be changed by it."""
    from optikit.bench.query import query

    answer = query(folder, sql)
    print(answer.as_json() if json else answer)


@app.command()
def compare(
    before: Annotated[pathlib.Path, typer.Argument(help="A results folder")],
    after: Annotated[pathlib.Path, typer.Argument(help="Another: a later commit, a machine")],
    target: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="[default: the study's main target]")
    ] = None,
    json: AsJson = False,
) -> None:
    """Tell what got better and what got worse, by a test; ends with 1 if something got worse."""
    from optikit.bench.compare import compare
    from optikit.bench.experiment import load
    from optikit.bench.score import main_target

    old, new = load(before), load(after)
    found = compare(old, new, main_target(old.study.targets) if target is None else target)
    print(found.as_json() if json else found.as_text())
    if found.of("regression"):
        raise typer.Exit(FAILED)


@app.command()
def compact(folder: Folder) -> None:
    """Put a folder's many record files into one; everything works on it as before."""
    from optikit.bench.store import compact

    print(f"{compact(folder)} records in {folder / 'records.parquet'}")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="problems, optimizers, losses or data")],
) -> None:
    """List what a study can name, with a line on each."""
    from optikit.bench import peers
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
        print("Other libraries' methods, as library:method:")
        for name, library in peers.LIBRARIES.items():
            print(f"  {name}: {', '.join(library.methods)}")


@app.command()
def env() -> None:
    """Print the environment that results would carry."""
    from optikit.bench.environment import capture

    for key, value in capture().items():
        print(f"{key}: {value}")


@config.command()
def check(study_file: ConfigFile, overrides: Overrides = None, set_: Set = None) -> None:
    """Validate a study; every mistake is reported with its line and column."""
    from optikit.bench.plain import counted
    from optikit.bench.plan import outlook, plan
    from optikit.bench.spec import load_study

    study = load_study(study_file, [*(overrides or []), *(set_ or [])])
    jobs, later = plan(study), outlook(study)[1]
    trials = sum(job.kind == "trial" for job in jobs)
    tuned = f" ({trials} of them to tune)" if later else ""
    told = f"{counted(trials + later, 'trial')}{tuned} on {counted(len(jobs) - trials, 'problem')}"
    print(f"{study_file}: ok, {told}")


@config.command()
def show(study_file: ConfigFile, overrides: Overrides = None, set_: Set = None) -> None:
    """Print a study with every default filled in, as YAML that can be run again."""
    import yaml

    from optikit.bench.spec import load_study

    study = load_study(study_file, [*(overrides or []), *(set_ or [])])
    plain = study.model_dump(mode="json", exclude_none=True)
    print(yaml.safe_dump(plain, sort_keys=False), end="")


@config.command()
def schema() -> None:
    """Print the JSON schema of studies, for editors: `# yaml-language-server: $schema=FILE`."""
    import json

    from optikit.bench.schema import study_schema

    print(json.dumps(study_schema(), indent=1))


if __name__ == "__main__":
    main()
