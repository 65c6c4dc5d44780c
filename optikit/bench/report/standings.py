"""Who is ahead: the order on each axis with its doubts, and ratings against the reference."""

import html
import math
from collections.abc import Sequence

from optikit.bench.axes import AXES
from optikit.bench.report.content import Fronts
from optikit.bench.report.table import PLACED, Summary
from optikit.bench.score import (
    CLOCK_AXES,
    Interval,
    Matched,
    Outcome,
    ProblemScore,
    Rating,
    Standing,
    matched,
    on_front,
    on_one_machine,
    rating_table,
    ratings,
    standings,
)


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
    columns: dict[str, dict[str, str]] = {}
    for axis in PLACED:
        placed = standings(problem, target, axis)
        ahead = on_front(fronts.get((problem.label, axis), []))
        if any(math.isfinite(s.cost) for s in placed):
            columns[axis] = {s.variant: _place(s, placed, s.variant in ahead) for s in placed}
    if not columns:
        return f"<p class=note>No method reached {target:g}.</p>"
    variants = dict.fromkeys(variant for column in columns.values() for variant in column)
    first = next(iter(columns.values()))
    order = [*first, *(v for v in variants if v not in first)]
    rows = "".join(
        f"<tr><td>{html.escape(variant)}</td>{_outcome(met.get(variant))}"
        + "".join(column.get(variant, "<td></td>") for column in columns.values())
        + "</tr>"
        for variant in order
    )
    unit = next((f", {AXES[o.axis].label}" for o in met.values()), "")
    names = ("reached", f"expected{unit}", *(AXES[axis].label for axis in columns))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return (
        f"<div class=scroll><table><thead><tr><th>optimizer</th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
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


def _place(standing: Standing, placed: list[Standing], ahead: bool) -> str:
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
    return f"<td class=n title='{tip}'>{standing.place}{tied}{told}{mark}</td>"


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
        found = {axis: matched(chosen, axis, reference) for axis in ("warm", "steps")}
    except ValueError:
        return ""  # it was never run, or has several variants
    by_problem: dict[str, list[tuple[Matched, Matched]]] = {}
    for warm, steps in zip(*found.values(), strict=True):
        by_problem.setdefault(warm.problem, []).append((warm, steps))
    tables = "".join(
        f"<h3>{html.escape(label)}</h3><div class=scroll><table><thead><tr><th>optimizer</th>"
        "<th>seconds, warm</th><th>times the reference's</th><th>steps</th><th>reached</th>"
        "<th>least gap</th></tr></thead><tbody>"
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


def _match(warm: Matched, steps: Matched) -> str:
    shown = (warm.cost, warm.ratio, steps.cost)
    numbers = [f"{x:.3g}" if math.isfinite(x) else "-" for x in shown]
    cells = [*numbers, f"{warm.reached} of {warm.trials}", f"{warm.gap:.2g}"]
    told = "".join(f"<td class=n>{cell}</td>" for cell in cells)
    return f"<tr><td>{html.escape(warm.variant)}</td>{told}</tr>"
