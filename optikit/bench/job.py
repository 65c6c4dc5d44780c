"""One unit of work, as data with an identity."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from optikit.bench.spec import Budget, Measure

TUNED, DEFAULT = "(tuned)", "(default)"
"""How the variants of an optimizer with a search space end."""


class Job(BaseModel):
    """One unit of work, run in a process of its own and recorded as one file.

    Attributes:
      kind: "trial": one optimizer on one problem. "problem": what all its trials share: the
        reference optimum and the price of each oracle. "lanes": trials that may share a program,
        its `members`; each leaves its own record.
      problem: label of the problem, with swept arguments. use: its factory. arguments: of the
        factory.
      group: problems of one group are alike. swept: the arguments that a sweep varies.
      optimizer: label of the optimizer, likewise; empty for a "problem".
      variant: the optimizer's label with the arguments that were swept.
      role: "report": its result is shown. "tune": it serves to choose hyperparameters.
      round: which repetition of the trial in a process of its own.
      targets: what first hits are narrowed for, relative to `known`, the best value known when the
        trial begins. They are no part of the identity: other targets are read off the same record.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["trial", "problem", "lanes"]
    problem: str
    problem_use: str
    problem_arguments: dict[str, Any]
    group: str = ""
    swept: dict[str, Any] = {}
    optimizer: str = ""
    optimizer_use: str = ""
    optimizer_arguments: dict[str, Any] = {}
    variant: str = ""
    role: Literal["report", "tune"] = "report"
    seed: int = 0
    round: int = 0
    budget: Budget = Budget()
    dtype: str = "float64"
    matmul_precision: str = "highest"
    measure: Measure = Measure()
    targets: list[float] = []
    known: float | None = None
    code: str = ""
    members: list["Job"] = []

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits."""
        decisive = self.model_dump(mode="json", exclude={"targets", "known", "members"})
        if self.members:
            decisive["members"] = [member.id for member in self.members]
        text = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """For people."""
        if self.kind == "problem":
            return f"{self.problem} · reference"
        if self.members:
            return f"{self.problem} · {self.variant}"
        again = f" · round {self.round + 1}" if self.round else ""
        return f"{self.problem} · {self.variant} · seed {self.seed}{again}"
