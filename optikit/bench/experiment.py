"""Studies in plain Python: the same plan, trials, store and report, from objects or names."""

import contextlib
import dataclasses
import math
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from optikit.bench import resolve, store
from optikit.bench.earlier import earlier
from optikit.bench.plan import Job
from optikit.bench.record import Record
from optikit.bench.report import Summary, figures, summarise, write_page
from optikit.bench.rounds import lost
from optikit.bench.run import Manner, Watcher, manner_of, planned, run_study, study_of
from optikit.bench.score import (
    ProblemScore,
    merged,
    read_known,
    score,
    write_known,
)
from optikit.bench.score.known import FILE as KNOWN
from optikit.bench.signature import importable_from
from optikit.bench.spec import ConfigError, Study, validate
from optikit.bench.track import Tracker, tracker_named
from optikit.bench.tuning import Tuned, charged, tuning_report
from optikit.bench.yaml_source import Source


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A study built from Python objects.

    Attributes:
      problems: by label: an `ok.Problem`, or what a YAML study would say (`"rosenbrock"`,
        `{"use": "logistic-regression", "data": "digits"}`).
      optimizers: by label: an Optimizer, an optax transformation, a name, or a YAML-like dict.
      seeds, budget, dtype, matmul_precision, targets, measure, tuning, reference, best_known: as
        in a YAML study; budget, measure and tuning as dicts.

    Example:
      >>> import jax.numpy as jnp, optikit as ok
      >>> bowl = ok.Problem(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3), optimum=0.0)
      >>> experiment = ok.Experiment("bowls", {"bowl": bowl}, {"newton": ok.optimizers.newton()},
      ...                            measure={"repeats": 1, "prices": False})
      >>> results = experiment.run()
      >>> results.summary.rows[0]["steps"]
      1
    """

    name: str
    problems: Mapping[str, Any]
    optimizers: Mapping[str, Any]
    seeds: Sequence[int] = (0,)
    budget: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float64"
    matmul_precision: str = "highest"
    targets: Sequence[float] = (1e-2, 1e-4, 1e-6, 1e-8)
    measure: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    best_known: str | None = None

    def study(self) -> Study:
        """The study as data; objects are entered under a name made of their content.

        Raises:
          ConfigError: with everything that is wrong.
        """
        data = {
            "name": self.name,
            "problems": {k: _entry(k, v) for k, v in self.problems.items()},
            "optimizers": {k: _entry(k, v) for k, v in self.optimizers.items()},
            "seeds": list(self.seeds),
            "budget": dict(self.budget),
            "dtype": self.dtype,
            "matmul_precision": self.matmul_precision,
            "targets": list(self.targets),
            "measure": dict(self.measure),
            "tuning": dict(self.tuning),
            "reference": self.reference,
            "best_known": self.best_known,
        }
        study, problems = validate(Source("Experiment", data, {}), objects=True)
        if problems or study is None:
            msg = "Experiment"
            raise ConfigError(msg, problems)
        return study

    def run(
        self,
        out: str | pathlib.Path | None = None,
        *,
        executor: str | None = None,
        workers: int | None = None,
        options: Mapping[str, Any] | None = None,
        track: str | Tracker | None = None,
        watcher: Watcher | None = None,
    ) -> "Results":
        """Run what is not recorded yet in the folder `out` (by default a temporary one).

        Args:
          executor: "inline" (this process), "process", "ray" or "slurm"; by default "process" where
            everything is given by name, else "inline", since objects stay in this process.
          workers: trials at a time; by default one, or as many as a cluster takes.
          options: of the executor, such as `{"gpus": 1}` for Ray and SLURM.
          track: "trackio", "wandb", or a `Tracker`: where results go too.
          watcher: is told how it goes.

        Raises:
          ConfigError: the experiment is not valid.
          StoreError: the folder cannot be written, or is in use.
          ExecutorError, TrackerError: what was asked for is not there.
          ValueError: objects were given with another executor than "inline".
        """
        study = self.study()
        objects = has_objects(study)
        if executor is None:
            executor = "inline" if objects else "process"
        if objects and executor != "inline":
            msg = f"Python objects run inline; for {executor!r} give names or import paths instead."
            raise ValueError(msg)
        folder = pathlib.Path(tempfile.mkdtemp(prefix="optikit-") if out is None else out)
        manner = Manner(
            executor=executor, workers=workers, options=dict(options or {}), path=list(sys.path)
        )
        tracker = tracker_named(track) if isinstance(track, str) else track
        outcome = run_study(study, folder, manner, watcher=watcher, tracker=tracker)
        return collect(study, outcome.folder, outcome.jobs, outcome.failures)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
      study: what was run.
      folder: where its records are.
      jobs: its jobs. records: theirs, by job id.
      problems: curves and optima. summary: table and verdicts.
    """

    study: Study
    folder: pathlib.Path
    jobs: list[Job]
    records: dict[str, Record]
    problems: list[ProblemScore]
    summary: Summary

    def tuning(self) -> list[Tuned]:
        """How the tuning of each optimizer on each problem went."""
        return tuning_report(self.study, self.problems)

    def page(self, path: str | pathlib.Path | None = None) -> pathlib.Path:
        """Write the HTML page (by default report.html in the folder) and return its path."""
        target = self.folder / "report.html" if path is None else pathlib.Path(path)
        write_page(target, self.study, self.jobs, self.records, self.problems, self.summary)
        return target

    def figures(
        self,
        folder: str | pathlib.Path | None = None,
        format: str = "pdf",
    ) -> list[pathlib.Path]:
        """Write the figures for a paper (by default into figures/ of the folder)."""
        return figures(self, self.folder / "figures" if folder is None else folder, format)

    def __str__(self) -> str:
        return "\n".join(self.summary.verdicts)


def has_objects(study: Study) -> bool:
    """Whether a study holds Python objects, which only the process that made it can run."""
    uses = [*study.problems.values(), *study.optimizers.values()]
    return any(resolve.is_object(entry.use) for entry in uses)


def collect(
    study: Study,
    folder: pathlib.Path,
    jobs: list[Job],
    failures: Mapping[str, str],
    records: dict[str, Record] | None = None,
) -> Results:
    """Read a study's records and score them; lower values found are kept with the records."""
    if records is None:
        records = store.read_all(folder, [job.id for job in jobs])
    shared = read_known(pathlib.Path(study.best_known)) if study.best_known else {}
    own = read_known(folder / KNOWN)
    known = merged(own, shared)
    problems = score(jobs, records, known)
    known |= {p.identity: p.best for p in problems if math.isfinite(p.best.value)}
    if known != own:
        with contextlib.suppress(
            store.StoreError
        ):  # a folder that is only read has its values all the same
            write_known(folder / KNOWN, known)
    if study.tuning.charge:
        problems = [charged(problem) for problem in problems]
    told = [(job.title, failures[job.id]) for job in jobs if job.id in failures]
    summary = summarise(
        problems, study.targets, told,
        reference=study.reference, budget=study.budget, failed=lost(jobs, records, failures),
    )  # fmt: skip
    return Results(study, folder, jobs, records, problems, summary)


def load(folder: str | pathlib.Path) -> Results:
    """The results in a folder, as far as they have got, also where earlier code left them.

    What the code at hand has recorded counts; where it has recorded nothing yet, be it of the
    whole study or of what uses one module of the user's, what earlier code did.

    Raises:
      StoreError: it is not a results folder, or is damaged.
    """
    folder = pathlib.Path(folder)
    study = study_of(folder)
    with importable_from(manner_of(folder).path):
        jobs = planned(study, folder)
        records = store.read_all(folder, [job.id for job in jobs])
        now = {job.code for job in jobs if job.id in records}
        if any(job.code not in now for job in jobs):
            before, found = earlier(study, folder)
            kept = [job for job in before if job.code not in now]
            jobs = list({job.id: job for job in [*jobs, *kept]}.values()) if now else before
            records |= {job.id: found[job.id] for job in kept if job.id in found}
    failures = {k: r.facts["error"] for k, r in records.items() if r.facts.get("error")}
    return collect(study, folder, jobs, failures, records)


def _entry(label: str, given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        return {"use": given}
    if isinstance(given, dict):
        return given
    return {"use": resolve.enter(label, given)}
