"""What the host keeps of a run at a step."""

from typing import Any, NamedTuple

from optikit.core import Counts, Status


class Snapshot(NamedTuple):
    """What is kept of a run at a step.

    Attributes:
      step: steps taken, accepted or not. rejected: those that left the parameters as they were;
        None where a library does not tell.
      params: the best so far, on the host. value: the solver's own word for them.
      judged: the referee's value and largest gradient entry.
      counts: cumulative oracle calls.
      refined: whether a replay added it to narrow a first hit.
    """

    step: int
    params: Any
    value: float
    counts: Counts
    rejected: int | None
    status: Status
    judged: tuple[float, float] = (float("nan"), float("nan"))
    refined: bool = False
