"""What is said over all problems: penalised costs, whether the ranking holds, results in doubt."""

import html
import math
from collections.abc import Sequence

from optikit.bench.axes import AXES
from optikit.bench.job import Job
from optikit.bench.record import Record
from optikit.bench.report.table import Summary
from optikit.bench.score import (
    Par2,
    ProblemScore,
    cost_table,
    leave_one_solver_out,
    on_one_machine,
    ranking,
    sceptical,
)
from optikit.bench.score.verdicts import main_axis

SWAPS_TOLD = 3
"""Pairs named where a method's absence changes the order of others."""

SHOWN_DOUBTS = 12
"""Results in doubt that are in the open."""


def overall(problems: Sequence[ProblemScore], summary: Summary) -> str:
    """The table of penalised costs, and how firm the ranking by performance profile is."""
    return _penalised(summary.par2, summary.target) + _stability(problems, summary.target)


def _penalised(found: Sequence[Par2], target: float) -> str:
    axes = list(dict.fromkeys(one.axis for one in found))
    if not axes:
        return ""
    of = {(one.variant, one.axis): one for one in found}
    first = {one.variant: one for one in reversed(found)}
    rows = "".join(
        f"<tr><td>{html.escape(variant)}</td><td class=n>{first[variant].solved} of "
        f"{first[variant].trials}</td>"
        + "".join(_score(of.get((variant, axis))) for axis in axes)
        + "</tr>"
        for variant in dict.fromkeys(one.variant for one in found)
    )
    budgets = {one.axis: one.budget for one in found}
    heads = "".join(
        f"<th>{html.escape(AXES[axis].label)}, budget {budgets[axis]:g}</th>" for axis in axes
    )
    return (
        f"<details open><summary>PAR-2 to {target:g}</summary><p class=note>Penalised average cost "
        "of a trial: what it cost to meet the target, or twice the budget if it did not, which "
        "trials that failed did not; a mean over problems of means over trials, with its 95 % "
        "interval where families of problems could be resampled. Methods that were not run on "
        "every problem are left out.</p><div class=scroll><table><thead><tr><th>optimizer</th>"
        f"<th>trials that met it</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</details>"
    )


def _score(found: Par2 | None) -> str:
    if found is None:
        return "<td class=n>-</td>"
    estimate, low, high, units = found.score
    doubt = f" ({low:.3g} to {high:.3g})" if units > 1 else ""
    return f"<td class=n>{estimate:.3g}{doubt}</td>"


def _stability(problems: Sequence[ProblemScore], target: float) -> str:
    """Whether leaving one method out changes the order of the others in performance profiles."""
    ran = [p for p in on_one_machine(problems)[0] if p.curves]
    if len(ran) < 2:
        return ""
    items = "".join(
        f"<li>{html.escape(said)}</li>"
        for axis in dict.fromkeys((main_axis(ran), "gradients"))
        if (said := stability(ran, target, axis))
    )
    if not items:
        return ""
    return (
        "<details open><summary>Is the ranking the company's?</summary><p class=note>Methods by "
        "the area under their performance profile. A profile is relative to the cheapest of those "
        "that are shown, so an order may turn on who else is.</p>"
        f"<ul class=verdicts>{items}</ul></details>"
    )


def stability(problems: Sequence[ProblemScore], target: float, axis: str) -> str:
    """Whose absence changes the order of the others on an axis, in a sentence or two.

    "" with fewer than three methods, or where none met the target.
    """
    table = cost_table(problems, target, axis)
    if len(table.solvers) < 3 or not any(math.isfinite(x) for x in table.values.flat):
        return ""
    order = [name for name, _ in ranking(table)]
    lead = f"{AXES[axis].label} to {target:g}: {', '.join(order)}."
    changed = leave_one_solver_out(table)
    if not changed:
        return f"{lead} Whichever one is left out, the others keep their order."
    told = []
    for left in changed:
        pairs = [f"{behind} ahead of {ahead}" for ahead, behind in left.swapped[:SWAPS_TOLD]]
        more = len(left.swapped) - SWAPS_TOLD
        pairs += [f"{more} more"] if more > 0 else []
        told.append(f"without {left.solver}, {', '.join(pairs)}")
    rest = len(order) - len(changed)
    firm = f"; without any one of the other {rest} nothing changes" if rest > 1 else ""
    return f"{lead} It changes {'; '.join(told)}{firm}."


def sceptical_list(
    problems: Sequence[ProblemScore],
    target: float,
    jobs: Sequence[Job],
    records: dict[str, Record],
) -> str:
    """Results that disagree with what one would expect, in one place."""
    chosen = [p for p in on_one_machine(problems)[0] if p.curves]
    if not chosen:
        return ""
    rows = [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in doubt)}</tr>"
        for doubt in sceptical(chosen, target, jobs, records)
    ]
    tables = [_doubts(rows[:SHOWN_DOUBTS])] if rows else ["<p>None was found.</p>"]
    if more := rows[SHOWN_DOUBTS:]:
        tables.append(f"<details><summary>{len(more)} more</summary>{_doubts(more)}</details>")
    return (
        "<h2>Results to look at twice</h2><p class=note>Defaults that beat their tuned setting; "
        "methods quicker than another library's of the same name; trials that say they converged "
        "and end at no minimum; rounds of one trial that disagree. Each beyond its own interval, "
        "and none an error by itself.</p>" + "".join(tables)
    )


def _doubts(rows: Sequence[str]) -> str:
    return (
        "<div class=scroll><table><thead><tr><th>problem</th><th>optimizer</th><th>what</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
