"""From a study to the list of what has to be run, each with an identity.

A trial's id is a hash of everything that determines it: its resolved problem, optimizer, seed,
budget and precision, and the code (optikit's and the user's). A finished id is never run again;
any change makes a new one.
"""

import functools
import hashlib
import itertools
import json
import pathlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

import optikit
from optikit.bench import peers
from optikit.bench.signature import module_file
from optikit.bench.spec import Budget, Measure, OptimizerUse, Study, variants


class Job(BaseModel):
    """One unit of work, run in a process of its own and recorded as one file.

    Attributes:
      kind: "trial": one optimizer on one problem. "problem": what all its trials share: the
        reference optimum and the price of each oracle.
      problem: label of the problem. use: its factory. arguments: of the factory.
      optimizer: likewise, empty for a "problem".
      variant: the optimizer's label with the arguments that were swept.
      round: which repetition of the trial in a process of its own.
      targets: what first hits are narrowed for; no part of its identity, since other targets are
        read off the same records.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["trial", "problem"]
    problem: str
    problem_use: str
    problem_arguments: dict[str, Any]
    optimizer: str = ""
    optimizer_use: str = ""
    optimizer_arguments: dict[str, Any] = {}
    variant: str = ""
    seed: int = 0
    round: int = 0
    budget: Budget = Budget()
    dtype: str = "float64"
    matmul_precision: str = "highest"
    measure: Measure = Measure()
    targets: list[float] = []
    code: str = ""

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json", exclude={"targets"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """For people."""
        if self.kind == "problem":
            return f"{self.problem} · reference"
        again = f" · round {self.round + 1}" if self.round else ""
        return f"{self.problem} · {self.variant} · seed {self.seed}{again}"

    def of_problem(self) -> "Job":
        """The job of what this trial shares with all others on its problem."""
        own = {"optimizer", "optimizer_use", "optimizer_arguments", "variant", "seed", "round"}
        fields = self.model_dump(exclude=own)
        return Job(**fields | {"kind": "problem", "code": code_version(self.problem_use)})


def plan(study: Study) -> list[Job]:
    """All jobs of a study: the problems first, then trials interleaved over optimizers.

    Rounds and seeds are the outer loops, so that a drift of the machine's speed meets every solver
    alike.
    """
    jobs = [
        _job(study, label, kind="problem", code=code_version(use.use))
        for label, use in study.problems.items()
    ]
    for repetition, seed in itertools.product(range(study.measure.rounds), study.seeds):
        for label, problem in study.problems.items():
            for name, optimizer in study.optimizers.items():
                if optimizer.problems is not None and label not in optimizer.problems:
                    continue
                for arguments in variants(optimizer):
                    jobs.append(
                        _job(
                            study,
                            label,
                            kind="trial",
                            optimizer=name,
                            optimizer_use=optimizer.use,
                            optimizer_arguments=arguments,
                            variant=_variant(name, optimizer, arguments),
                            seed=seed,
                            round=repetition,
                            code=code_version(problem.use, optimizer.use),
                        )
                    )
    return jobs


def _job(study: Study, label: str, **fields: Any) -> Job:
    use = study.problems[label]
    return Job(
        problem=label,
        problem_use=use.use,
        problem_arguments=use.arguments,
        budget=study.budget,
        dtype=study.dtype,
        matmul_precision=study.matmul_precision,
        measure=study.measure,
        targets=study.targets,
        **fields,
    )


def _variant(label: str, use: OptimizerUse, arguments: dict[str, Any]) -> str:
    """The label, with the swept arguments where there is a sweep."""
    swept = [name for name, value in use.arguments.items() if isinstance(value, dict)]
    inner = ", ".join(
        f"{name}={arguments[name]:g}"
        if isinstance(arguments[name], float)
        else f"{name}={arguments[name]}"
        for name in swept
    )
    return f"{label} ({inner})" if inner else label


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
