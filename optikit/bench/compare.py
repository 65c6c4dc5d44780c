"""Two results folders side by side: two commits, or two machines; what got better, what got worse.

Trials are matched by problem, settings and seed. A change is a regression or an improvement when a
test says so and it is larger than a minimum effect. The tests are Mann-Whitney's U at p < 0.002,
where there are seeds enough for it to get that small, and the paired ratio's 99.8 % interval: a
folder holds many comparisons, and few of them may be false alarms. Times are compared only between
records of one machine.

Reference: Mann & Whitney (1947), Ann. Math. Stat. 18.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from optikit.bench.axes import AXES
from optikit.bench.job import Job
from optikit.bench.score.curves import Curve, ProblemScore, score
from optikit.bench.score.intervals import Interval
from optikit.bench.score.known import merged
from optikit.bench.score.reach import CLOCK_AXES, MACHINE_AXES, Ratio, Reach, cost_ratio, reach
from optikit.bench.store import Record

SIGNIFICANT = 0.002
ENOUGH = 7
"""Seeds from which Mann-Whitney's test can reach that level: 2 / (14 choose 7) is 0.0006."""

EFFECT, CLOCK_EFFECT = 0.05, 0.1
"""Relative changes below these are no matter, however certain; clocks drift between runs."""

COMPARED = ("steps", "calls", "gradients", "flops", "warm", "cold")

MACHINE = ("device", "platform", "processor", "cores", "driver", "flags")
"""What of an environment a time depends on, besides the versions that a comparison is about."""

SETTINGS = ("optimizer_use", "optimizer_arguments", "budget", "dtype", "matmul_precision")


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
      axis: an axis of cost, or "success".
      verdict: "regression", "improvement", "unchanged", "not separable", or "not comparable".
      ratio: cost after / cost before, over seeds that met the target in both.
      p: of Mann-Whitney's test, or of the sign test for successes; None with too few seeds.
      seeds: matched.
      reason: why it is not comparable, or what is worth knowing, in words.
    """

    problem: str
    variant: str
    axis: str
    verdict: str
    ratio: Interval | None = None
    p: float | None = None
    seeds: int = 0
    reason: str = ""

    def __str__(self) -> str:
        name = AXES[self.axis].label if self.axis in AXES else self.axis
        factor = ""
        if self.ratio is not None:
            x, low, high, _ = self.ratio
            factor = f" {x:.3g}x ({low:.3g} to {high:.3g})"
        notes = [f"p = {self.p:.2g}"] if self.p is not None else []
        notes += [f"{self.seeds} seeds"] if self.seeds > 1 else []
        notes += [self.reason] if self.reason else []
        told = f" ({', '.join(notes)})" if notes else ""
        return f"{self.verdict}: {self.problem}, {self.variant}, {name}{factor}{told}"


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

    def as_json(self) -> str:
        """For programs: every change with its verdict, ratio and p; what cannot be told is null."""
        changes = [
            change._asdict() | {"ratio": None if change.ratio is None else change.ratio._asdict()}
            for change in self.changes
        ]
        return json.dumps(_finite(self._asdict() | {"changes": changes}), indent=2, allow_nan=False)

    def as_text(self) -> str:
        """Regressions and improvements line by line, then the tally, for people."""
        told = [str(c) for kind in ("regression", "improvement") for c in self.of(kind)]
        verdicts = list(dict.fromkeys(change.verdict for change in self.changes))
        tally = ", ".join(f"{len(self.of(kind))} {kind}" for kind in verdicts) or "nothing matched"
        told.append(f"cost to reach {self.target:g} of the optimum: {tally}")
        reasons = dict.fromkeys(c.reason for c in self.of("not comparable"))
        told += [f"not comparable: {reason}" for reason in reasons]
        for name, pairs in (("before", self.only_before), ("after", self.only_after)):
            if pairs:
                told.append(f"only {name}: " + ", ".join(f"{v} on {p}" for p, v in pairs))
        return "\n".join([*told, *self.notes])


def _finite(data: Any) -> Any:
    """The same as JSON can hold it: numbers that are none, or infinite, as null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def compare(
    before: Side, after: Side, target: float, *, axes: Sequence[str] = COMPARED
) -> Comparison:
    """What changed between two results folders, in the cost of meeting a target.

    Both are judged against the same best known values, the better of the two, and with the same
    prices of oracles, those of `before`: gradient equivalents then compare across machines too.
    """
    old, new = _scored(before, after)
    was, now = _curves(old.values()), _curves(new.values())
    jobs_old, jobs_new = _reported(before.jobs), _reported(after.jobs)
    changes: list[Change] = []
    for key in was:
        if key not in now:
            continue
        label, variant = key
        apart = _apart(old[label], new[label], jobs_old[key], jobs_new[key])
        pairs = [
            (was[key][seed], now[key][seed]) for seed in sorted(was[key].keys() & now[key].keys())
        ]
        blank = Change(label, variant, "success", "not comparable", seeds=len(pairs))
        if apart or not pairs:
            changes.append(blank._replace(reason=apart or "no seed in common"))
        else:
            changes += _changes(blank, pairs, target, axes)
    return Comparison(
        target,
        changes,
        sorted(was.keys() - now.keys()),
        sorted(now.keys() - was.keys()),
        _notes(before.records.values(), after.records.values()),
    )


def _scored(before: Side, after: Side) -> tuple[dict[str, ProblemScore], dict[str, ProblemScore]]:
    """Both sides' scores by problem, against common best known values and common prices."""
    prices = {
        job.problem: before.records[job.id].facts["prices"]
        for job in before.jobs
        if job.kind == "problem" and "prices" in _facts(before, job)
    }
    priced = {
        job.id: after.records[job.id]._replace(
            facts=_facts(after, job) | {"prices": prices[job.problem]}
        )
        for job in after.jobs
        if job.kind == "problem" and job.problem in prices and _facts(after, job)
    }
    sides = [(before.jobs, before.records), (after.jobs, after.records | priced)]
    known = merged(*({p.identity: p.best for p in score(*side)} for side in sides))
    old, new = ({p.label: p for p in score(*side, known)} for side in sides)
    return old, new


def _facts(side: Side, job: Job) -> dict[str, Any]:
    record = side.records.get(job.id)
    return record.facts if record else {}


def _reported(jobs: Iterable[Job]) -> dict[tuple[str, str], Job]:
    return {(j.problem, j.variant): j for j in jobs if j.kind == "trial" and j.role == "report"}


def _curves(problems: Iterable[ProblemScore]) -> dict[tuple[str, str], dict[int, Curve]]:
    """Curves by problem and variant, then by seed."""
    found: dict[tuple[str, str], dict[int, Curve]] = {}
    for problem in problems:
        for curve in problem.curves:
            found.setdefault((problem.label, curve.variant), {})[curve.seed] = curve
    return found


def _apart(old: ProblemScore, new: ProblemScore, was: Job, now: Job) -> str:
    """Why two trials of the same name are not the same trial, or an empty string."""
    if old.identity != new.identity:
        return "another problem under the same label: its data, arguments or start differ"
    for name in SETTINGS:
        tuned = name == "optimizer_arguments" and was.variant.endswith("(tuned)")
        if getattr(was, name) != getattr(now, name) and not tuned:
            return f"{name} differs"
    return ""


def _clocks_differ(pairs: Sequence[tuple[Curve, Curve]]) -> str:
    """Why times of trials do not compare, or an empty string."""
    seen = [curve.facts.get("environment", {}) for pair in pairs for curve in pair]
    for key in MACHINE:
        if len({repr(e.get(key)) for e in seen}) > 1:
            return f"times of different machines do not compare: {key} differs"
    return ""


def _changes(
    blank: Change, pairs: Sequence[tuple[Curve, Curve]], target: float, axes: Sequence[str]
) -> list[Change]:
    """One change of success, and one of cost for each axis."""
    found = [_success(blank, [(min(a.gaps) <= target, min(b.gaps) <= target) for a, b in pairs])]
    clocks = _clocks_differ(pairs)
    for axis in axes:
        one = blank._replace(axis=axis)
        met = [(reach(a, target, axis), reach(b, target, axis)) for a, b in pairs]
        joint = [(a, b) for a, b in met if a.reached and b.reached]
        if axis in MACHINE_AXES and clocks:
            found.append(one._replace(reason=clocks))
        elif any(math.isnan(t.cost) for pair in joint for t in pair):
            found.append(one._replace(reason=f"{axis} was not measured in every trial"))
        elif joint:  # else the change of success says all
            found.append(_cost(one._replace(seeds=len(joint)), joint))
    return found


def _success(blank: Change, met: list[tuple[bool, bool]]) -> Change:
    """Whether the target is met by more or by fewer seeds: a sign test on those that changed."""
    from scipy.stats import binomtest

    lost = sum(a and not b for a, b in met)
    gained = sum(b and not a for a, b in met)
    if not lost and not gained:
        return blank._replace(verdict="unchanged")
    p = float(binomtest(lost, lost + gained).pvalue)
    reason = f"{lost} seeds no longer meet the target, {gained} newly do"
    whole = len(met) > 2 and max(lost, gained) == len(met)  # from always to never, or back
    verdict = "not separable"
    if p < SIGNIFICANT or whole:
        verdict = "regression" if lost > gained else "improvement"
    return blank._replace(verdict=verdict, p=p, reason=reason)


def _cost(blank: Change, joint: list[tuple[Reach, Reach]]) -> Change:
    """Whether the target costs more or less than before, where both met it."""
    was, now = [a for a, _ in joint], [b for _, b in joint]
    ratio = cost_ratio(now, was)
    if all((a.lower, a.cost, a.upper) == (b.lower, b.cost, b.upper) for a, b in joint):
        return blank._replace(verdict="unchanged", ratio=ratio.interval)
    p = None
    if len(joint) >= ENOUGH:
        from scipy.stats import mannwhitneyu

        p = float(mannwhitneyu([t.cost for t in now], [t.cost for t in was]).pvalue)
    effect = 1 + (CLOCK_EFFECT if blank.axis in CLOCK_AXES else EFFECT)
    firm = cost_ratio(now, was, level=1 - SIGNIFICANT).separable
    certain = ratio.separable and (firm or (p is not None and p < SIGNIFICANT))
    verdict, reason = _judged(ratio, effect, certain=certain)
    return blank._replace(verdict=verdict, ratio=ratio.interval, p=p, reason=reason)


def _judged(ratio: Ratio, effect: float, *, certain: bool) -> tuple[str, str]:
    """A verdict on a ratio of costs, with what is worth knowing."""
    x, low, high, units = ratio.interval
    if units < 2:
        return "not separable", "one seed"
    if certain and x > effect:
        return "regression", ""
    if certain and x < 1 / effect:
        return "improvement", ""
    if low > 1 / effect and high < effect:
        return "unchanged", ""
    return "not separable", "certain, but too small to matter" if certain else ""


def _notes(before: Iterable[Record], after: Iterable[Record]) -> list[str]:
    """What differs between the environments of the two folders."""
    old, new = ([r.facts.get("environment", {}) for r in side] for side in (before, after))
    told = []
    for name, of in _ASPECTS.items():
        a, b = (sorted({str(of(e)) for e in side} - {"None"}) for side in (old, new))
        if a != b:
            was, now = (", ".join(side) or "unknown" for side in (a, b))
            told.append(f"{name}: {was} before, {now} after")
    return told


def _plain(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda environment: environment.get(key)


def _version(package: str) -> Callable[[dict[str, Any]], Any]:
    return lambda environment: environment.get("versions", {}).get(package)


_ASPECTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{key: _plain(key) for key in ("commit", *MACHINE)},
    **{name: _version(name) for name in ("optikit", "jax", "jaxlib", "optax", "numpy")},
}
