"""Results to be sceptical of: records that disagree with what one would expect of them.

None of these is an error. Each is a reason to look twice before a number is believed, and all are
read off the records: a default that beats its tuned setting on the report's seeds, a method quicker
than another library's of its name, a success that ends at no minimum, rounds that disagree.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from optikit.bench.job import DEFAULT, TUNED, Job
from optikit.bench.record import Record
from optikit.bench.rounds import Moved, moved
from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.intervals import LEVEL
from optikit.bench.score.reach import Ratio, cost_ratio, reaches
from optikit.bench.score.repeats import merged_repeats
from optikit.bench.score.verdicts import SPOKEN, main_axis

NO_MINIMUM = ("not-stationary", "saddle", "maximum")
"""Certificates that a success disagrees with."""


class Doubt(NamedTuple):
    """A result to look at twice, and why."""

    problem: str
    variant: str
    reason: str


def sceptical(
    problems: Sequence[ProblemScore],
    target: float,
    jobs: Sequence[Job] = (),
    records: dict[str, Record] | None = None,
) -> list[Doubt]:
    """Every doubt that the records give rise to, by problem; rounds last.

    Args:
      problems: of one machine (`on_one_machine`).
      jobs, records: of the study, for what rounds say of each other.
    """
    found = []
    for problem in problems:
        merged = merged_repeats(problem).problem
        found += _untuned_ahead(merged, target)
        found += _ahead_of_twin(merged, target)
        found += _no_minimum(problem)
    return [*found, *_rounds(moved(jobs, records or {}))]


def _untuned_ahead(problem: ProblemScore, target: float) -> Iterator[Doubt]:
    """Defaults that are cheaper than the setting that tuning chose, beyond the interval."""
    axis = main_axis([problem])
    for label in dict.fromkeys(curve.optimizer for curve in problem.curves):
        default, tuned = (
            reaches([problem], target, axis, f"{label} {kind}") for kind in (DEFAULT, TUNED)
        )
        paid = any(c.costs["steps"][0] > 0 for c in problem.curves if c.optimizer == label)
        if not default or not tuned or paid:  # what tuning cost is no fault of the setting
            continue
        ratio = cost_ratio(default, tuned)
        met = [sum(t.reached for t in trials) for trials in (default, tuned)]
        if ratio.joint and ratio.interval.high < 1:
            said = f"{_told(ratio)} of the tuned setting's {SPOKEN.get(axis, axis)} to {target:g}"
            yield Doubt(problem.label, f"{label} {DEFAULT}", said)
        elif met[0] > met[1]:
            said = (
                f"met {target:g} in {met[0]} of {len(default)} trials, the tuned setting in "
                f"{met[1]} of {len(tuned)}"
            )
            yield Doubt(problem.label, f"{label} {DEFAULT}", said)


def _ahead_of_twin(problem: ProblemScore, target: float) -> Iterator[Doubt]:
    """Methods quicker than another library's of the same name: do both do the same work?"""
    methods = {c.variant: str(c.facts.get("method", "")) for c in problem.curves}
    peers = {c.variant for c in problem.curves if c.facts.get("peer")}
    for peer in methods:
        for own in methods:
            if peer not in peers or own in peers or _plain(methods[own]) != _plain(methods[peer]):
                continue
            ratio = cost_ratio(
                reaches([problem], target, "warm", own), reaches([problem], target, "warm", peer)
            )
            if ratio.joint and ratio.interval.high < 1:
                said = (
                    f"{_told(ratio)} of the warm seconds of {peer}, another library's method of "
                    "that name"
                )
                yield Doubt(problem.label, own, said)


def _plain(method: str) -> str:
    """A method's name without its library and spelling: `jaxopt:LBFGS` is `lbfgs`."""
    return re.sub(r"[^a-z0-9]", "", method.rpartition(":")[2].lower())


def _no_minimum(problem: ProblemScore) -> Iterator[Doubt]:
    """Trials that said they had converged, and whose final point is certified to be no minimum."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for curve in problem.curves:
        kind = (curve.facts.get("certificate") or {}).get("kind", "")
        if str(curve.facts.get("status", "")).startswith("CONVERGED") and kind in NO_MINIMUM:
            seeds.setdefault((curve.variant, kind), []).append(curve.seed)
    for (variant, kind), own in seeds.items():
        where = kind.replace("-", " ")
        said = f"{len(own)} trials say that they converged, and end at a point certified {where}"
        yield Doubt(problem.label, variant, said)


def _rounds(found: Sequence[Moved]) -> Iterator[Doubt]:
    """Rounds that disagree, one line for all seeds of a variant."""
    by_variant: dict[tuple[str, str], list[Moved]] = {}
    for one in found:
        by_variant.setdefault((one.job.problem, one.job.variant), []).append(one)
    for (problem, variant), own in by_variant.items():
        seconds = max(one.seconds for one in own)
        value = max(one.value for one in own)
        parts = [f"warm seconds up to {seconds:.3g}x apart"] if seconds > 1 else []
        parts += [f"values up to {value:.1g} apart, relative"] if value > 0 else []
        said = f"rounds of {len(own)} trials disagree beyond their intervals: {', '.join(parts)}"
        yield Doubt(problem, variant, said)


def _told(ratio: Ratio) -> str:
    estimate, low, high = ratio.interval[:3]
    if ratio.interval.units == 1 or not math.isfinite(low):
        return f"{estimate:.3g} (one run each)"
    return f"{estimate:.3g} ({LEVEL:.0%} interval {low:.3g} to {high:.3g})"
