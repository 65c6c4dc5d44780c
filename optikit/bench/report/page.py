"""One HTML file with everything in it: curves on any axis, profiles, tables, how it was made.

The plotting library is inlined once, the data once, as JSON; a script draws what comes into view
and redraws it when another axis is chosen. No network is needed to read it, and the page's own
policy forbids it any. Everything that comes from a study (labels, messages) is escaped.
"""

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import optikit
from optikit.bench import store
from optikit.bench.axes import AXES
from optikit.bench.job import Job
from optikit.bench.plain import counted
from optikit.bench.report.content import all_fronts, content
from optikit.bench.report.overall import overall, sceptical_list
from optikit.bench.report.standings import (
    matched_tables,
    ratings_table,
    standings_tables,
)
from optikit.bench.report.table import Summary
from optikit.bench.score import Curve, ProblemScore
from optikit.bench.spec import Study
from optikit.bench.store import Record
from optikit.bench.tuning import Tuned, tuning_report

_HERE = pathlib.Path(__file__).parent


def write_page(
    path: pathlib.Path,
    study: Study,
    jobs: list[Job],
    records: dict[str, Record],
    problems: list[ProblemScore],
    summary: Summary,
) -> None:
    """Write the page, replacing an older one only when it is complete."""
    from plotly.offline import get_plotlyjs

    environments = [r.facts["environment"] for r in records.values() if "environment" in r.facts]
    tuned, fronts = tuning_report(study, problems), all_fronts(problems)
    fill = {
        "TITLE": html.escape(study.name),
        "COUNT": counted(sum(job.kind == "trial" for job in jobs), "trial"),
        "NUMBER": counted(len(problems), "problem"),
        "WARNINGS": _warnings(environments, problems, summary),
        "VERDICTS": _verdicts(summary, sum(bool(p.curves) for p in problems)),
        "TARGET": f"{summary.target:g}",
        "OVERALL": overall(problems, summary),
        "RATINGS": ratings_table(problems, summary.target, study.reference),
        "MATCHED": matched_tables(problems, study.reference),
        "STANDINGS": standings_tables(problems, summary, fronts),
        "TUNING": _tuning(tuned),
        "SCEPTICAL": sceptical_list(problems, summary.target, jobs, records),
        "FAILURES": _failures(summary),
        "PROBLEMS": "".join(_problem(problem) for problem in problems),
        "CERTIFICATES": _certificates(problems),
        "ENVIRONMENT": _environments(environments),
        "STUDY": html.escape(study.model_dump_json(indent=2)),
        "VERSION": html.escape(optikit.__version__),
        "DATA": _script_safe(content(problems, study.targets, summary.target, tuned, fronts)),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    # in one pass over the template: what is filled in is never searched for places
    before, *places = (_HERE / "page.html").read_text(encoding="utf-8").split("<!--")
    parts = [before]
    for place in places:
        name, _, after = place.partition("-->")
        parts += [fill[name], after]
    store.write_atomically(path, "".join(parts).encode())


def _verdicts(summary: Summary, single: int) -> str:
    """The sentences; of those on single problems, which come first, a few are in the open."""
    items = [f"<li>{html.escape(v)}</li>" for v in summary.verdicts]
    first, rest, last = items[:4], items[4:single], items[max(4, single) :]
    if not rest:
        return f"<ul class=verdicts>{''.join(items)}</ul>"
    return (
        f"<ul class=verdicts>{''.join(first + last)}</ul><details><summary>{len(rest)} more "
        f"verdicts</summary><ul class=verdicts>{''.join(rest)}</ul></details>"
    )


def _script_safe(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table of cells that are escaped already."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<div class=scroll><table>{inside}</table></div>"


def _tuning(tuned: list[Tuned]) -> str:
    """Best-of-k charts (drawn by the script), and what was chosen, with every doubt."""
    if not tuned:
        return ""
    rows = []
    shared = any(t.lanes for t in tuned)
    for t in tuned:
        chosen = ", ".join(f"{k} = {v:.3g}" if isinstance(v, float) else f"{k} = {v}"
                           for k, v in t.searched.items())  # fmt: skip
        ks = [b for b in t.curve if b.k in (1, 5, 20, len(t.curve))]
        best = "; ".join(
            f"k = {b.k}: {b.expected:.3g} ({b.reached:.0%})" if b.reached else f"k = {b.k}: -"
            for b in ks
        )
        cells = (
            t.problem,
            t.optimizer,
            chosen,
            best,
            f"{t.charge[t.axis]:.3g}",
            "; ".join(t.flags),
            *([t.lanes] if shared else []),
        )
        rows.append(map(html.escape, cells))
    axis = html.escape(AXES[tuned[0].axis].label)
    return (
        "<h2>Tuning</h2><p class=note>Expected cost of the best of k settings, drawn without "
        "replacement from those tried, where it meets the target; in parentheses how often one "
        "does. The seeds of tuning are none of the report's.</p>"
        + (
            "<p class=note>Lanes are trials of one method that ran as one program under vmap: each "
            "has its own counts and status, while the program executed what any of them needed. "
            "Its seconds are shared out equally over the lanes still running, add up to what was "
            "spent, and chose nothing.</p>"
            if shared
            else ""
        )
        + '<div class="charts" id="tuning"></div>'
        + _table(
            ("problem", "optimizer", "chosen", f"best of k, {axis}", f"{axis} spent", "doubts")
            + (("lanes",) if shared else ()),
            rows,
        )
    )


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    items = "".join(
        f"<tr class=bad><td>{html.escape(title)}</td><td>{html.escape(reason)}</td></tr>"
        for title, reason in summary.failures
    )
    return f"<h3>Failed</h3><div class=scroll><table><tbody>{items}</tbody></table></div>"


def _problem(problem: ProblemScore) -> str:
    facts = problem.facts
    size = counted(facts["parameters"], "parameter")
    what = ", ".join(filter(None, (facts["description"], size)))
    return (
        f"<li><b>{html.escape(problem.label)}</b>: {html.escape(what)}. "
        f"f* = {problem.optimum:.15g} ({html.escape(problem.optimum_source)}). "
        f"{_certified(facts['reference'])}{_prices(facts['prices'])}</li>"
    )


def _certified(reference: dict[str, Any]) -> str:
    said = reference["certificate"]
    return f"At the reference solution: {html.escape(said)} " if said else ""


def _prices(prices: dict[str, float]) -> str:
    unit = prices.get("grad")
    if not unit:
        return ""
    parts = [f"{kind} {seconds / unit:.2g}" for kind, seconds in prices.items() if kind != "grad"]
    return f"One gradient takes {unit * 1e6:.3g} µs; in gradients: {html.escape(', '.join(parts))}."


def _certificates(problems: Sequence[ProblemScore]) -> str:
    """What kind of point each method ended at: one row for trials that say the same."""
    rows = []
    for problem in problems:
        same: dict[tuple[str, str], list[Curve]] = {}
        for curve in problem.curves:
            kind = (curve.facts.get("certificate") or {}).get("kind", "not examined")
            same.setdefault((curve.variant, kind), []).append(curve)
        for (variant, kind), curves in same.items():
            said = (curves[0].facts.get("certificate") or {}).get("message", "")
            seeds = ", ".join(str(c.seed) for c in curves[:8]) + (" …" if len(curves) > 8 else "")
            cells = (problem.label, variant, seeds, kind.replace("-", " "), said)
            rows.append(map(html.escape, cells))
    return _table(("problem", "optimizer", "seeds", "final point", "evidence (first seed)"), rows)


def _environments(environments: list[dict[str, Any]]) -> str:
    """One table per machine and set-up."""
    machines: dict[str, list[dict[str, Any]]] = {}
    for environment in environments:
        machines.setdefault(environment.get("machine", ""), []).append(environment)
    parts = []
    for machine, same in machines.items():
        rows = []
        for key, value in same[0].items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) or "none"
            rows.append(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>")
        parts.append(
            f"<h3>machine {html.escape(machine)}, {len(same)} records</h3>"
            f"<table>{''.join(rows)}</table>"
        )
    return "".join(parts)


def _warnings(
    environments: list[dict[str, Any]], problems: Sequence[ProblemScore], summary: Summary
) -> str:
    notes = []
    machines = {e["machine"] for e in environments}
    if len(machines) > 1:
        notes.append(
            f"These records come from {len(machines)} different machines or set-ups: times are not "
            "comparable between them."
        )
    busy = [e for e in environments if e.get("load") and e["load"] > 1.5 * (e.get("cores") or 1)]
    if len(busy) > len(environments) / 4:
        notes.append("The machine was busy with other work during many trials: times are noisy.")
    invalid = sum(bool(c.facts.get("invalid")) for p in problems for c in p.curves)
    if invalid:
        notes.append(f"{invalid} trials have an invalid clock and are on no axis of time.")
    if summary.failures:
        notes.append(f"{len(summary.failures)} jobs failed; see below the trials.")
    return "".join(f"<p class=warning>{html.escape(note)}</p>" for note in notes)
