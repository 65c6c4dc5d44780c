"""What a study is: problems x optimizers x hyperparameters x seeds, within a budget.

A study is data, validated without importing JAX: structure by pydantic, the arguments of every
problem and optimizer against the signature in its source. All mistakes are reported at once, each
with its place in the file.
"""

import difflib
import itertools
import os
import pathlib
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from optikit.bench import limits, yaml_source
from optikit.bench.entries import unknown_entry
from optikit.bench.factories import declared_by, find_factory
from optikit.bench.plain import on_one_line
from optikit.bench.protocol import TUNING_SEEDS, check_protocol, resolve_best_known
from optikit.bench.signature import Parameter, Signature, importable_from, registry
from optikit.bench.spaces import kind_of
from optikit.bench.yaml_source import Mark, Path, Source

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
Scalar = bool | int | float | str | None
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # JAX folds 32 bits into a key


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class Budget(_Strict):
    """What one trial may use, whichever is used up first.

    Seconds are of warm running time; compilation is measured apart.
    """

    steps: int = Field(default=1000, ge=1, lt=2**31)  # counted in int32
    seconds: float = Field(default=30.0, gt=0)


class Measure(_Strict):
    """How a trial is measured."""

    repeats: int = Field(
        default=3, ge=1,
        description="least number of warm runs, of which the median counts; short runs are "
        "repeated more, unless this is 1",
    )  # fmt: skip
    rounds: int = Field(
        default=1, ge=1, le=100,
        description="processes a trial is repeated in; timing claims want 5 and more",
    )  # fmt: skip
    growth: float = Field(default=1.2, gt=1, le=10, description="ratio of the snapshot grid")
    refine: bool = Field(default=True, description="narrow first hits of targets by replays")
    flops: bool = Field(
        default=True, description="count model FLOPs and bytes in a replay off the clock"
    )
    prices: bool = Field(default=True, description="time each oracle, for gradient equivalents")
    reference: bool = Field(
        default=True,
        description="solve each problem beforehand for its best value; else that of all trials is",
    )
    certificates: bool = Field(default=True, description="say what kind of point was reached")
    spectrum: bool = Field(
        default=False,
        description="draw the Hessian's spectrum where each problem starts and at its solution",
    )
    lanes: bool = Field(
        default=False,
        description="run the tuning trials of a method on a problem as lanes of one program; their "
        "seconds are shares of its own, and choose nothing",
    )
    trace: bool = Field(
        default=False,
        description="keep value, gradient, step length and oracle calls of every step, on the "
        "device; it costs some microseconds a step",
    )
    energy: bool = Field(
        default=False,
        description="joules, where the device counts them; runs are repeated for some seconds",
    )


class _Use(BaseModel):
    """A factory by name or import path, and its arguments beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, ser_json_inf_nan="constants")
    use: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but `use` and our own fields."""
        return dict(self.__pydantic_extra__ or {})


class ProblemUse(_Use):
    """`use: logistic-regression` or `use: my_lab.models:wide_net`, and its arguments.

    An argument may be a grid: `n: {grid: [10, 100, 1000]}` makes a problem for each value.
    """

    group: Label | None = Field(
        default=None,
        description="problems of one group are alike: resampled together; by default each label",
    )


class OptimizerUse(_Use):
    """`use: newton-cg`, `use: adamw` (optax), `use: scipy:trust-exact` (another library's, see
    `optikit.bench.peers`) or `use: my_lab.solvers:mine`, and its arguments.

    An argument may be a grid: `learning_rate: {grid: [0.01, 0.1]}` makes a variant for each value.
    Or it may be a search space, to be tuned: `{log_uniform: [1e-4, 1.0]}`, `{uniform: [a, b]}`,
    `{int_uniform: [a, b]}`, `{choice: [...]}`, with `when: {name: value}` if it is conditional.
    """

    problems: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="labels to run on; all if absent"
    )


class Tuning(_Strict):
    """How hyperparameters with a search space are chosen: as many trials for every method."""

    trials: int = Field(default=20, ge=1, le=4096, description="settings tried per problem")
    seeds: list[Seed] = Field(
        default=TUNING_SEEDS, min_length=1, description="none of the report's"
    )
    sampler: Literal["sobol", "halton"] = "sobol"
    seed: int = Field(default=0, ge=0, description="scrambles the quasi-random sequence")
    criterion: Literal["cost", "gap"] = Field(
        default="cost", description="least cost to the target, or least gap at the end"
    )
    target: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="by default the study's main target"
    )
    axis: Literal["steps", "calls", "gradients", "flops", "warm", "cold"] = "gradients"
    charge: bool = Field(default=False, description="add the cost of tuning to tuned methods")


class Study(_Strict):
    """A whole study."""

    name: Label
    problems: dict[Label, ProblemUse] = Field(min_length=1)
    optimizers: dict[Label, OptimizerUse] = Field(min_length=1)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    budget: Budget = Budget()
    dtype: Literal["float32", "float64"] = "float64"
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    targets: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[1e-2, 1e-4, 1e-6, 1e-8],
        min_length=1,
        description="(f - f*) / (f0 - f*) to be reached",
    )
    measure: Measure = Measure()
    tuning: Tuning = Tuning()
    reference: str | None = Field(
        default=None, description="the optimizer that ratings compare with; by default the first"
    )
    best_known: str | None = Field(
        default=None, description="a file of best known values, relative to the study's"
    )


class ConfigError(Exception):
    """Everything that is wrong with a study, each with its place."""

    def __init__(self, name: str, problems: list[tuple[Mark, str]]):
        self.problems = sorted(problems)
        lines = [
            f"{name}:{m.line}:{m.column}: {text}" if m.line else f"override: {text}"
            for m, text in ((m, on_one_line(text)) for m, text in self.problems)
        ]
        super().__init__("\n".join(lines))


def load_study(path: pathlib.Path, overrides: list[str] | tuple[str, ...] = ()) -> Study:
    """A validated study from a YAML file, with `a.b=value` overrides applied.

    Raises:
      ConfigError: with every mistake found.
    """
    source, syntax = yaml_source.read(path)
    problems = [(p.mark, p.message) for p in syntax]
    if source.data is None:
        if not problems:
            problems = [(Mark(1, 1), "the file is empty")]
        raise ConfigError(source.name, problems)
    source, wrong = yaml_source.overridden(source, overrides)
    with importable_from([str(path.parent.resolve()), os.getcwd()]):
        study, more = validate(source)
    shared, missing = resolve_best_known(source, path.parent)
    problems += wrong + more + missing
    if problems or study is None:
        raise ConfigError(source.name, problems)
    return study.model_copy(update={"best_known": shared})


def validate(
    source: Source, *, objects: bool = False
) -> tuple[Study | None, list[tuple[Mark, str]]]:
    """The study of parsed data, and all that is wrong with it.

    Args:
      objects: whether it may name Python objects that an `Experiment` has entered.
    """
    problems: list[tuple[Mark, str]] = []
    try:
        study = Study.model_validate(source.data)
    except pydantic.ValidationError as error:
        study = None
        for item in error.errors():
            path = item["loc"]
            if path[-1:] == ("[key]",) and item["type"] != "extra_forbidden":
                path = path[:-1]  # pydantic's way to say that the key itself is wrong
            problems.append((_place(source, path, item["type"]), _explained(path, item)))
    if isinstance(source.data, dict):
        problems += _check_uses(source, "problems", "optikit.problems", "PROBLEMS", objects)
        problems += _check_uses(source, "optimizers", "optikit.optimizers", "OPTIMIZERS", objects)
        problems += _check_labels(source)
        problems += check_protocol(source)
        problems += limits.repetitions(source)
    if study is not None and not problems:
        problems += limits.size(source, study)
    return study, problems


def _place(source: Source, path: Path, kind: str) -> Mark:
    """Extra keys are marked where the key stands, other mistakes where the value does."""
    if kind != "extra_forbidden" and (*path, "=") in source.marks:
        return source.marks[(*path, "=")]
    return source.mark(path)


def _explained(path: Path, item: Any) -> str:
    where = ".".join(map(str, path)) or "the file"
    message = item["msg"]
    if item["type"] == "extra_forbidden":
        fields = _fields_at(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), fields, 1)
        message = "unknown key" + (f": did you mean {close[0]!r}?" if close else "")
        if not close and fields:
            message += f"; known are {', '.join(sorted(fields))}"
        return f"{where}: {message}"
    if item["type"] == "missing":
        return f"{where}: this key is required"
    value = item.get("input")
    return f"{where}: {message}" + ("" if isinstance(value, dict) else f" (got {value!r})")


def _fields_at(path: Path) -> list[str]:
    models = {(): Study, ("budget",): Budget, ("measure",): Measure, ("tuning",): Tuning}
    model: Any = models.get(tuple(path))
    return list(model.model_fields) if model else []


def _check_uses(
    source: Source, section: str, module: str, name: str, objects: bool
) -> list[tuple[Mark, str]]:
    """Names and arguments of a section's factories, against their signatures."""
    entries = source.data.get(section)
    if not isinstance(entries, dict):
        return []
    known = registry(module, name)
    own = {"use", *(OptimizerUse if section == "optimizers" else ProblemUse).model_fields}
    problems = []
    for label, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
            continue
        path = (section, label)
        if objects and entry["use"].startswith("object "):
            continue  # entered by Experiment
        target, complaint = find_factory(entry["use"], known, optimizer=section == "optimizers")
        if complaint:
            problems.append(
                (_place(source, (*path, "use"), ""), f"{section}.{label}.use: {complaint}")
            )
            continue
        declared = declared_by(target)
        if declared is None:
            continue  # not readable without importing it: checked when it is built
        given = {k: v for k, v in entry.items() if k not in own}
        problems += _check_arguments(source, path, given, declared, target=target)
    return problems


def _check_arguments(
    source: Source, path: Path, given: dict, declared: Signature, *, target: str
) -> list[tuple[Mark, str]]:
    parameters = {p.name: p for p in declared.parameters}
    problems = []
    for name, value in given.items():
        where = ".".join(map(str, (*path, name)))
        if name not in parameters:
            if not declared.open:
                close = difflib.get_close_matches(name, parameters, 1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                if not close:
                    hint = f"; it takes {', '.join(parameters) or 'no arguments'}"
                problems.append((source.mark((*path, name)), f"{where}: unknown argument{hint}"))
            continue
        for variant, place in _variants_of(value, (*path, name)):
            complaint = _mismatch(parameters[name], variant)
            complaint = complaint or unknown_entry(name, variant, target)
            if complaint:
                problems.append((_place(source, place, ""), f"{where}: {complaint}"))
    rated = target.startswith("optax")  # a missing learning rate has a default; see `named`
    for parameter in declared.parameters:
        optional = rated and parameter.name == "learning_rate"
        if parameter.required and parameter.name not in given and not optional:
            mark = source.mark((*path, "use"))
            problems.append((mark, f"{'.'.join(map(str, path))}: needs {parameter.name!r}"))
    return problems


def _variants_of(value: Any, path: Path) -> list[tuple[Any, Path]]:
    """The values that a grid or a search space may give an argument, each with its place."""
    if isinstance(value, dict):
        kind = "grid" if "grid" in value else kind_of(value)
        if kind:  # what is no list is told by check_protocol
            items = value[kind] if isinstance(value[kind], list) else []
            return [(item, (*path, kind, i)) for i, item in enumerate(items)]
    return [(value, path)]


def _mismatch(parameter: Parameter, value: Any) -> str:
    """What is wrong with a value, or an empty string."""
    if parameter.choices:
        if value in parameter.choices:
            return ""
        choices = ", ".join(map(repr, parameter.choices))
        return f"must be one of {choices} (got {value!r})"
    if not parameter.types:
        return ""
    allowed = set(parameter.types)
    if float in allowed:
        allowed.add(int)
    if type(value) in allowed:
        return ""
    names = " or ".join(t.__name__ if t is not type(None) else "null" for t in parameter.types)
    return f"must be {names} (got {value!r})"


def _check_labels(source: Source) -> list[tuple[Mark, str]]:
    """Optimizers may only be restricted to problems that exist."""
    optimizers, known = source.data.get("optimizers"), source.data.get("problems")
    if not isinstance(optimizers, dict) or not isinstance(known, dict):
        return []
    problems = []
    for label, entry in optimizers.items():
        wanted = entry.get("problems") if isinstance(entry, dict) else None
        for i, name in enumerate(wanted if isinstance(wanted, list) else []):
            if not isinstance(name, str) or name not in known:
                place = source.mark(("optimizers", label, "problems", i))
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                problems.append((place, f"optimizers.{label}.problems: no problem {name!r}{hint}"))
    return problems


def variants(use: ProblemUse | OptimizerUse) -> list[dict[str, Any]]:
    """The argument sets of a factory: the product of its grids."""
    axes = {
        name: value["grid"]
        if isinstance(value, dict) and set(value) == {"grid"} and isinstance(value["grid"], list)
        else [value]
        for name, value in use.arguments.items()
    }
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
