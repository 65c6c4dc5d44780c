"""Who is ahead: the order on each axis with its doubts, and ratings against the reference."""

import html
import math
from collections.abc import Sequence

from optikit.bench.axes import AXES
from optikit.bench.report.content import Fronts
from optikit.bench.report.table import PLACED, Summary
from optikit.bench.score import (
    CLOCK_AXES,
    BreakEven,
    Interval,
    Matched,
    Outcome,
    ProblemScore,
    Rating,
    Standing,
    matched,
    on_front,
    on_one_machine,
    portfolio,
    probability_cheapest,
    rating_table,
    ratings,
    standings,
    tunes,
)
from optikit.bench.score.portfolio import names


def standings_tables(problems: Sequence[ProblemScore], summary: Summary, fronts: Fronts) -> str:
    """Per problem, how often each method met the target, what that costs, and its place by axis.

    The first problem's table is open.
    """
    chosen, _ = on_one_machine(problems)
    tables = [
        f"<details{'' if i else ' open'}><summary>{html.escape(problem.label)}</summary>"
        f"{_standings(problem, summary, fronts)}"
        f"{_told(summary.trade_offs.get(problem.label, ''))}</details>"
        for i, problem in enumerate(p for p in chosen if p.curves)
    ]
    return "".join(tables)


def _told(sentence: str) -> str:
    return f"<p>{html.escape(sentence)}</p>" if sentence else ""


def _standings(problem: ProblemScore, summary: Summary, fronts: Fronts) -> str:
    target = summary.target
    met = {o.variant: o for o in summary.outcomes if o.problem == problem.label}
    repaid = {b.variant: b for b in summary.break_even if b.problem == problem.label}
    columns: dict[str, dict[str, str]] = {}
    least: dict[str, float] = {}
    for axis in PLACED:
        placed = standings(problem, target, axis)
        ahead = on_front(fronts.get((problem.label, axis), []))
        if any(math.isfinite(s.cost) for s in placed):
            best = probability_cheapest(problem, target, axis)
            columns[axis] = {
                s.variant: _place(s, placed, s.variant in ahead, best.get(s.variant))
                for s in placed
            }
            least[axis] = placed[0].cost
    if not columns:
        return f"<p class=note>No method reached {target:g}.</p>"
    variants = dict.fromkeys(variant for column in columns.values() for variant in column)
    first = next(iter(columns.values()))
    order = [*first, *(v for v in variants if v not in first)]
    rows = "".join(
        f"<tr><td>{html.escape(variant)}</td>{_outcome(met.get(variant))}"
        + (_repaid(repaid.get(variant)) if repaid else "")
        + "".join(column.get(variant, "<td></td>") for column in columns.values())
        + "</tr>"
        for variant in order
    )
    rows += _portfolio(problem, target, least, 2 + bool(repaid)) if tunes([problem]) else ""
    unit = next((f", {AXES[o.axis].label}" for o in met.values()), "")
    against = [f"solves to pay against {b.reference}" for b in repaid.values()][:1]
    titles = ("reached", f"expected{unit}", *against, *(AXES[axis].label for axis in columns))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in titles)
    return (
        f"<div class=scroll><table><thead><tr><th>optimizer</th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _repaid(found: BreakEven | None) -> str:
    """From how many solves on, or for how many, a method takes no more time in all."""
    if found is None:
        return "<td></td>"
    first, last = (f"{x:.4g}" for x in (found.first, found.last))
    told = "never"
    if math.isfinite(found.first):
        told = f"from {first}" if math.isinf(found.last) else f"{first} to {last}"
    return f"<td class=n>{told if found.certain else f'({told})'}</td>"


def _portfolio(problem: ProblemScore, target: float, least: dict[str, float], empty: int) -> str:
    """The untuned methods as one: a row for the best alone, a row for the cost of trying all."""
    found = {axis: portfolio(problem, target, axis) for axis in least}
    tried = [len(one.tried) for one in found.values() if one is not None]
    if not tried:
        return ""
    rows: list[str] = ["", ""]
    for axis, one in found.items():
        costs = (math.inf, math.inf) if one is None else (one.alone, one.total)
        for i, cost in enumerate(costs):
            known = math.isfinite(cost) and least[axis] > 0
            told = f"{cost / least[axis]:.3g}x" if known else "-"
            tip = f"{cost:.4g}" + (f", {one.best}" if one and one.best and i == 0 else "")
            rows[i] += f"<td class=n title='{html.escape(tip)}'>{told}</td>"
    return "".join(
        f"<tr><td><i>{html.escape(name)}</i></td>{'<td></td>' * empty}{row}</tr>"
        for name, row in zip(names(tried), rows, strict=True)
    )


def _outcome(found: Outcome | None) -> str:
    """Success rate and expected running time with their intervals; the median on pointing."""
    if found is None:
        return "<td></td>" * 2
    share = f"{100 * found.success.low:.0f} to {100 * found.success.high:.0f} %"
    median, expected = (_interval(x, found.axis) for x in (found.median, found.expected))
    return (
        f"<td class=n>{found.reached} of {found.trials} ({share})</td>"
        f"<td class=n title='median {median}'>{expected}</td>"
    )


def _interval(found: Interval, axis: str) -> str:
    if not math.isfinite(found.estimate):
        return "-"
    scale, unit = 1.0, ""
    if axis in CLOCK_AXES:
        scale, unit = (1e3, " ms") if found.estimate < 1 else (1.0, " s")
    estimate, low, high = (f"{scale * x:.3g}".replace("inf", "∞") for x in found[:3])
    return f"{estimate}{unit} ({low} to {high})"


def _place(standing: Standing, placed: list[Standing], ahead: bool, best: float | None) -> str:
    if not math.isfinite(standing.cost):
        return "<td class=n>-</td>"
    before = placed[placed.index(standing) - 1] if placed.index(standing) else None
    tied = "=" if before is not None and before.place == standing.place else ""
    mark = " ●" if ahead else ""
    told, tip = "", f"median {standing.cost:.4g}"
    if standing.behind is not None and standing.behind.joint:
        ratio = standing.behind.interval
        told = f" ({ratio.estimate:.3g}x)"
        tip += f"; ratio {ratio.low:.3g} to {ratio.high:.3g} from {ratio.units} seeds"
    share = f" {best:.0%}" if best else ""
    return f"<td class=n title='{tip}'>{standing.place}{tied}{told}{mark}{share}</td>"


def ratings_table(problems: Sequence[ProblemScore], target: float, reference: str | None) -> str:
    """Ratings against the reference solver in warm seconds and gradient equivalents."""
    chosen, _ = on_one_machine(problems)
    if sum(bool(p.curves) for p in chosen) < 2:
        return ""  # a mean over problems needs several
    parts = []
    for axis in ("warm", "gradients"):
        try:
            against = rating_table(chosen, [target], axis, reference)
        except ValueError:
            continue  # the reference was never run, or has several variants
        found = [r for r in ratings(against) if math.isfinite(r.score.estimate)]
        if found:
            rows = "".join(map(_rating, found))
            parts.append(
                f"<h3>{html.escape(AXES[axis].label)} to {target:g}: how many times cheaper than "
                f"{html.escape(against.reference)}</h3><div class=scroll><table><thead><tr>"
                "<th>optimizer</th><th>times cheaper</th><th>95 % interval</th><th>problems</th>"
                "<th>best in resamples</th><th>place if one problem is left out</th></tr></thead>"
                f"<tbody>{rows}</tbody></table></div>"
            )
    if not parts:
        return ""
    note = (
        "<p class=note>A geometric mean over problems; another rival in the study moves none.</p>"
    )
    title = "<summary>Ratings against a fixed reference</summary>"
    return f"<details>{title}{note}{''.join(parts)}</details>"


def _rating(rating: Rating) -> str:
    score = rating.score
    best = "-" if math.isnan(rating.best) else f"{rating.best:.0%}"
    low, high = rating.places
    places = "-" if not high else f"{low}" if low == high else f"{low} to {high}"
    return (
        f"<tr><td>{html.escape(rating.solver)}</td><td class=n>{2**score.estimate:.3g}</td>"
        f"<td class=n>{2**score.low:.3g} to {2**score.high:.3g}</td>"
        f"<td class=n>{rating.problems}</td><td class=n>{best}</td><td class=n>{places}</td></tr>"
    )


def matched_tables(problems: Sequence[ProblemScore], reference: str | None) -> str:
    """Per problem, what it cost each method to get where the study's reference ended."""
    if reference is None:
        return ""  # only a study that names one asks
    chosen, _ = on_one_machine(problems)
    try:
        found = [matched(chosen, axis, reference) for axis in ("warm", "cold", "steps")]
    except ValueError:
        return ""  # it was never run, or has several variants
    by_problem: dict[str, list[tuple[Matched, ...]]] = {}
    for row in zip(*found, strict=True):
        by_problem.setdefault(row[0].problem, []).append(row)
    tables = "".join(
        f"<h3>{html.escape(label)}</h3><div class=scroll><table><thead><tr><th>optimizer</th>"
        "<th>seconds, warm</th><th>times the reference's</th><th>seconds with compilation</th>"
        "<th>times the reference's</th><th>steps</th><th>reached</th><th>least gap</th></tr>"
        "</thead><tbody>"
        f"{''.join(_match(*row) for row in sorted(rows, key=lambda row: row[0].cost))}"
        "</tbody></table></div>"
        for label, rows in by_problem.items()
    )
    if not tables:
        return ""
    title = f"<summary>To where {html.escape(reference)} ended</summary>"
    note = (
        "<p class=note>The end is the median, over its seeds, of the least gap it came to within "
        "the budget. Medians over seeds; -: missed by most.</p>"
    )
    return f"<details open>{title}{note}{tables}</details>"


def _match(warm: Matched, cold: Matched, steps: Matched) -> str:
    shown = (warm.cost, warm.ratio, cold.cost, cold.ratio, steps.cost)
    numbers = [f"{x:.3g}" if math.isfinite(x) else "-" for x in shown]
    cells = [*numbers, f"{warm.reached} of {warm.trials}", f"{warm.gap:.2g}"]
    told = "".join(f"<td class=n>{cell}</td>" for cell in cells)
    return f"<tr><td>{html.escape(warm.variant)}</td>{told}</tr>"
