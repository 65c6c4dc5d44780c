"""From a study to the list of what has to be run, each with an identity.

A trial's id is a hash of everything that determines it: its resolved problem, optimizer, seed,
budget and precision, and the code (optikit's and the user's). A finished id is never run again;
any change makes a new one. Where hyperparameters are tuned, the plan grows once: the reported
trials follow from the records of the tuning trials.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import optikit
from optikit.bench import peers
from optikit.bench.batches import may_share
from optikit.bench.factories import declared_by, find_factory
from optikit.bench.job import DEFAULT, TUNED, Job
from optikit.bench.signature import module_file, registry
from optikit.bench.spaces import spaces
from optikit.bench.spec import Measure, OptimizerUse, ProblemUse, Study, variants
from optikit.bench.store import Record

__all__ = ["Job", "code_version", "outlook", "plan", "problem_job"]


def plan(
    study: Study, records: Mapping[str, Record] | None = None, *, settle: bool = False
) -> list[Job]:
    """All jobs of a study that can be named yet: problems, tuning trials, then reported trials.

    Without search spaces that is everything. With them the reported trials come once every tuning
    trial has a record, so that tuned and untuned methods run interleaved: plan, run, and plan again
    with the records until nothing is new. Rounds and seeds are the outer loops, so that a drift
    of the machine's speed meets every solver alike.

    Args:
      records: of the tuning trials and problems, by job id; others do no harm.
      settle: take tuning trials without a record for failed, and go on with what there is.
    """
    problems = list(_problems(study))
    jobs = [problem_job(_job(study, problem, kind="trial")) for problem in problems]
    tuned = {label: use for label, use in study.optimizers.items() if spaces(use.arguments)}
    if not tuned:
        return jobs + _reported(study, problems, {})
    from optikit.bench.tuning import choose

    trials = _tuning(study, problems, tuned)
    known = records or {}
    if not settle and any(job.id not in known for job in jobs + trials):
        return jobs + trials
    return jobs + trials + _reported(study, problems, choose(study, jobs + trials, known))


def outlook(study: Study) -> tuple[int, int]:
    """How many jobs can be named now, and how many reported trials follow once tuning is done."""
    now = plan(study)
    problems = list(_problems(study))
    tuned = [label for label, use in study.optimizers.items() if spaces(use.arguments)]
    if not tuned:
        return len(now), 0
    chosen = {(problem.label, name): {} for problem in problems for name in tuned}
    return len(now), len(_reported(study, problems, chosen))


class _Problem(NamedTuple):
    """One problem of a study: `base` is its label there, `label` has the swept arguments too."""

    base: str
    label: str
    use: ProblemUse
    arguments: dict[str, Any]
    swept: dict[str, Any]


def _problems(study: Study) -> Iterator[_Problem]:
    for base, use in study.problems.items():
        for arguments, swept in _expanded(use):
            yield _Problem(base, _labelled(base, swept), use, arguments, swept)


def _expanded(use: ProblemUse | OptimizerUse) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The argument sets of a factory, each with those arguments that its grids vary."""
    names = [name for name, value in use.arguments.items() if _is_grid(value)]
    for arguments in variants(use):
        yield arguments, {name: arguments[name] for name in names}


def _is_grid(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"grid"} and isinstance(value["grid"], list)


def _labelled(label: str, swept: Mapping[str, Any]) -> str:
    """The label, with the swept arguments where there is a sweep."""
    inner = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in swept.items()
    )
    return f"{label} ({inner})" if inner else label


def _meets(problem: _Problem, use: OptimizerUse) -> bool:
    """Whether an optimizer is to be run on a problem: all, unless it names some."""
    return use.problems is None or problem.base in use.problems


def _tuning(study: Study, problems: list[_Problem], tuned: Mapping[str, OptimizerUse]) -> list[Job]:
    """The trials that choose hyperparameters: as many for every method."""
    from optikit.bench.tuning import sample, tuning_target

    target = {"targets": [tuning_target(study)]}
    thrifty = {
        label: study.model_copy(update=target | {"measure": _lean(study, use)})
        for label, use in tuned.items()
    }
    tried = {label: sample(use, study.tuning) for label, use in tuned.items()}
    return [
        _trial(
            thrifty[label], problem, label, use, tried[label][i], f"{label} (trial {i + 1})", seed,
            "tune",
        )
        for i in range(study.tuning.trials)
        for seed in study.tuning.seeds
        for problem in problems
        for label, use in tuned.items()
        if _meets(problem, use)
    ]  # fmt: skip


def _lean(study: Study, use: OptimizerUse) -> Measure:
    """How tuning trials are measured: as far as choosing and charging need.

    Lanes are counted as the study is: what a batch executes shows there alone, once for all of it.
    """
    lanes = study.measure.lanes and may_share(use.use)
    needed = study.tuning.axis == "flops" or study.tuning.charge
    counted = study.measure.flops if lanes else needed
    return study.measure.model_copy(update={"repeats": 1, "lanes": lanes, "flops": counted})


def _reported(
    study: Study,
    problems: list[_Problem],
    chosen: Mapping[tuple[str, str], dict[str, Any]],
) -> list[Job]:
    """The trials that are shown: every variant of every optimizer, rounds and seeds outermost."""
    alone = study.measure.model_copy(update={"lanes": False})
    study = study.model_copy(update={"measure": alone})
    return [
        _trial(study, problem, label, use, arguments, variant, seed, "report", repetition)
        for repetition in range(study.measure.rounds)
        for seed in study.seeds
        for problem in problems
        for label, use in study.optimizers.items()
        if _meets(problem, use)
        for variant, arguments in _shown(label, use, chosen.get((problem.label, label)))
    ]


def _shown(
    label: str, use: OptimizerUse, tuned: dict[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """An optimizer's variants: of its grids, or default and tuned where it has a search space."""
    if not spaces(use.arguments):
        for arguments, swept in _expanded(use):
            yield _labelled(label, swept), arguments
        return
    from optikit.bench.tuning import fixed

    if _has_defaults(use):
        yield f"{label} {DEFAULT}", fixed(use)
    if tuned is not None:
        yield f"{label} {TUNED}", tuned


def _has_defaults(use: OptimizerUse) -> bool:
    """Whether every searched argument may be left out."""
    target, _ = find_factory(use.use, _optimizers(), optimizer=True)
    declared = declared_by(target) if target else None
    if declared is None:
        return True  # not readable without importing it: the trial will say
    searched = {space.name for space in spaces(use.arguments)}
    if target.startswith("optax"):
        searched -= {"learning_rate"}  # has a default here; see `named`
    return not any(p.required and p.name in searched for p in declared.parameters)


def _optimizers() -> dict[str, str]:
    return registry("optikit.optimizers", "OPTIMIZERS")


def _trial(
    study: Study, problem: _Problem, label: str, use: OptimizerUse, arguments: dict[str, Any],
    variant: str, seed: int, role: str, repetition: int = 0,
) -> Job:  # fmt: skip
    return _job(
        study,
        problem,
        kind="trial",
        optimizer=label,
        optimizer_use=use.use,
        optimizer_arguments=arguments,
        variant=variant,
        role=role,
        seed=seed,
        round=repetition,
        code=code_version(problem.use.use, use.use),
    )


def _job(study: Study, problem: _Problem, **fields: Any) -> Job:
    return Job(
        problem=problem.label,
        problem_use=problem.use.use,
        problem_arguments=problem.arguments,
        group=problem.use.group or problem.base,
        swept=problem.swept,
        budget=study.budget,
        dtype=study.dtype,
        matmul_precision=study.matmul_precision,
        measure=study.measure,
        targets=study.targets,
        **fields,
    )


OF_PROBLEMS = ("prices", "reference", "spectrum")
"""What of `Measure` is measured once for each problem."""


def problem_job(job: Job) -> Job:
    """The job of what a trial shares with all others on its problem, however they are measured."""
    blank: dict[str, Any] = {
        "kind": "problem",
        "code": code_version(job.problem_use),
        "measure": Measure(**{name: getattr(job.measure, name) for name in OF_PROBLEMS}),
        "role": "report",
    }
    for name in ("optimizer", "optimizer_use", "optimizer_arguments", "variant", "seed", "round"):
        blank[name] = Job.model_fields[name].default
    return job.model_copy(update=blank)


def code_version(*uses: str) -> str:
    """A hash of optikit's sources and of the modules that import paths name."""
    digest = hashlib.sha256(_own_sources().encode())
    for use in uses:
        if peers.is_peer(use):
            digest.update(f"{use} {peers.version(use)}".encode())
        elif ":" in use:
            file = module_file(use.partition(":")[0])
            digest.update(file.read_bytes() if file else use.encode())
    return digest.hexdigest()[:16]


@functools.cache
def _own_sources() -> str:
    digest = hashlib.sha256(optikit.__version__.encode())
    root = pathlib.Path(optikit.__file__).parent
    measured = (
        "core",
        "losses",
        "calculus",
        "linalg",
        "globalize",
        "optimizers",
        "solve",
        "problems",
    )
    for room in measured:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
