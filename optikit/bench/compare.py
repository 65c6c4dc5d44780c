"""Two results folders side by side: two commits, or two machines; what got better, what got worse.

Trials are matched by problem, settings and seed. A change is a regression or an improvement when a
test says so and it is larger than a minimum effect: Mann-Whitney's U at p < 0.002 where there are
seeds enough for it to get that small, else the paired bootstrap interval. Times are compared only
between records of one machine.

Reference: Mann & Whitney (1947), Ann. Math. Stat. 18.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from optikit.bench.job import Job
from optikit.bench.score import Interval
from optikit.bench.score.reach import MACHINE_AXES
from optikit.bench.store import Record

SIGNIFICANT = 0.002
LEAST_EFFECT = 0.05
"""Relative changes below this are no matter, however certain."""

COMPARED = ("steps", "calls", "gradients", "flops", "warm", "cold")
MEASURED = MACHINE_AXES | {"gradients"}
"""Axes that differ between machines: gradient equivalents weigh by measured prices."""

MACHINE = ("device", "platform", "processor", "cores", "driver", "flags")
"""What of an environment a time depends on, besides the versions that a comparison is about."""


class Side(Protocol):
    """What is compared: the jobs and records of a results folder (such as `Results`)."""

    @property
    def jobs(self) -> list[Job]:
        """Its jobs."""
        ...

    @property
    def records(self) -> dict[str, Record]:
        """Its records, by job id."""
        ...


class Change(NamedTuple):
    """One solver on one problem and axis, before and after.

    Attributes:
      verdict: "regression", "improvement", "unchanged", "not separable", or "not comparable".
      ratio: cost after / cost before, over seeds that met the target in both.
      p: of Mann-Whitney's test; None where there are too few seeds for it.
      seeds: matched.
      reason: why it is not comparable, or what is worth knowing, in words.
    """

    problem: str
    variant: str
    axis: str
    verdict: str
    ratio: Interval | None
    p: float | None
    seeds: int
    reason: str


class Comparison(NamedTuple):
    """Everything about two results folders.

    Attributes:
      changes: by problem, solver and axis.
      only_before, only_after: (problem, variant) that have no partner.
      notes: what differs between the environments, in words.
    """

    target: float
    changes: list[Change]
    only_before: list[tuple[str, str]]
    only_after: list[tuple[str, str]]
    notes: list[str]

    def of(self, verdict: str) -> list[Change]:
        """The changes with a verdict."""
        return [change for change in self.changes if change.verdict == verdict]

    def as_text(self) -> str:
        """A line per regression and improvement, and the tally, for people."""
        raise NotImplementedError


def compare(
    before: Side, after: Side, target: float, *, axes: Sequence[str] = COMPARED
) -> Comparison:
    """What changed between two results folders, in the cost of meeting a target.

    Both are judged against the same best known values: the better of the two.
    """
    raise NotImplementedError
