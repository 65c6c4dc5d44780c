"""One HTML file with everything in it: curves on any axis, table, environment, configuration.

The plotting library is inlined once, the data once, as JSON; a few lines of script draw a chart per
problem and redraw it when another axis is chosen. No network is needed to read it. Everything that
comes from a study (labels, messages) is escaped.
"""

import html
import json
import math
import pathlib
from typing import Any

import optikit
from optikit.bench import store
from optikit.bench.axes import AXES, compile_seconds, known_axes
from optikit.bench.plan import Job
from optikit.bench.report.table import COLUMNS, Summary
from optikit.bench.score import ProblemScore
from optikit.bench.spec import Study
from optikit.bench.store import Record

FLOOR = 1e-17
"""Gaps of zero are drawn here: a logarithmic axis has no zero."""


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

    template = (pathlib.Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    script = (pathlib.Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    environments = [r.facts["environment"] for r in records.values() if "environment" in r.facts]
    fill = {
        "TITLE": html.escape(study.name),
        "VERDICTS": "".join(f"<li>{html.escape(v)}</li>" for v in summary.verdicts),
        "WARNINGS": _warnings(environments, summary),
        "TARGET": f"{summary.target:g}",
        "TABLE": _table(summary),
        "PROBLEMS": _problem_notes(problems),
        "COMPILE": _compile_table(problems),
        "ENVIRONMENT": _environment(environments),
        "STUDY": html.escape(study.model_dump_json(indent=2)),
        "COUNT": f"{sum(job.kind == 'trial' for job in jobs)}",
        "VERSION": html.escape(optikit.__version__),
        "DATA": _script_safe(_data(problems)),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": script,
    }
    for name, text in fill.items():
        template = template.replace(f"<!--{name}-->", text, 1)
    store.write_atomically(path, template.encode())


def _data(problems: list[ProblemScore]) -> dict[str, Any]:
    """What the script draws."""
    axes = known_axes(curve.costs for problem in problems for curve in problem.curves)
    return {
        "axes": [{"key": a.key, "label": a.label, "meaning": a.meaning} for a in axes],
        "problems": [
            {
                "label": problem.label,
                "curves": [
                    {
                        "name": curve.variant
                        + (f" · seed {curve.seed}" if _several_seeds(problem) else ""),
                        "gap": [_finite(max(g, FLOOR)) for g in curve.gaps],
                        "grad": [_finite(g) for g in curve.grad_norms],
                        "cost": {k: [_finite(x) for x in v] for k, v in curve.costs.items()},
                        "second": curve.second_order,
                    }
                    for curve in problem.curves
                ],
            }
            for problem in problems
        ],
    }


def _several_seeds(problem: ProblemScore) -> bool:
    return len({curve.seed for curve in problem.curves}) > 1


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _script_safe(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _table(summary: Summary) -> str:
    rows = []
    for row in summary.rows:
        name = row["optimizer"] + (f" · seed {row['seed']}" if row["several_seeds"] else "")
        gap = "-" if row["gap"] is None else f"{row['gap']:.1e}"
        cells = [_cell(row[column]) for column in COLUMNS]
        rows.append(
            f"<tr><td>{html.escape(row['problem'])}</td><td>{html.escape(name)}</td>"
            f"<td class=n>{gap}</td>{''.join(cells)}"
            f"<td>{html.escape(row['status'].lower().replace('_', ' '))}</td></tr>"
        )
    rows += [
        f"<tr class=bad><td colspan=10>{html.escape(f'failed: {title}: {reason}')}</td></tr>"
        for title, reason in summary.failures
    ]
    heads = "".join(f"<th>{html.escape(AXES[column].label)}</th>" for column in COLUMNS)
    return (
        "<table><thead><tr><th>problem</th><th>optimizer</th><th>best gap</th>"
        f"{heads}<th>ended</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(x: float | None) -> str:
    return "<td class=n>-</td>" if x is None else f"<td class=n>{x:.4g}</td>"


def _problem_notes(problems: list[ProblemScore]) -> str:
    items = []
    for problem in problems:
        facts = problem.facts
        items.append(
            f"<li><b>{html.escape(problem.label)}</b>: {html.escape(facts['description'])}, "
            f"{facts['parameters']} parameters. f* = {problem.optimum:.15g} "
            f"({html.escape(problem.optimum_source)}). At the reference solution: "
            f"{html.escape(facts['reference']['certificate'])} "
            f"{_prices(facts['prices'])}</li>"
        )
    return "".join(items)


def _prices(prices: dict[str, float]) -> str:
    unit = prices.get("grad")
    if not unit:
        return ""
    parts = [f"{kind} {seconds / unit:.2g}" for kind, seconds in prices.items() if kind != "grad"]
    return f"One gradient takes {unit * 1e6:.3g} µs; in gradients: {html.escape(', '.join(parts))}."


def _compile_table(problems: list[ProblemScore]) -> str:
    rows = []
    for problem in problems:
        for curve in problem.curves:
            stages = curve.facts["seconds"]
            memory = curve.facts["memory_bytes"]
            rows.append(
                f"<tr><td>{html.escape(problem.label)}</td><td>{html.escape(curve.variant)}</td>"
                + "".join(
                    f"<td class=n>{stages[s]:.3f}</td>" for s in ("trace", "lower", "compile")
                )
                + f"<td class=n>{compile_seconds(curve.facts):.3f}</td>"
                + f"<td class=n>{'-' if memory is None else f'{memory / 2**20:.2f}'}</td></tr>"
            )
    return (
        "<table><thead><tr><th>problem</th><th>optimizer</th><th>trace s</th><th>lower s</th>"
        f"<th>compile s</th><th>sum s</th><th>program MiB</th></tr></thead><tbody>{''.join(rows)}"
        "</tbody></table>"
    )


def _environment(environments: list[dict[str, Any]]) -> str:
    if not environments:
        return ""
    first = environments[0]
    rows = []
    for key, value in first.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) or "none"
        rows.append(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _warnings(environments: list[dict[str, Any]], summary: Summary) -> str:
    notes = []
    machines = {e["machine"] for e in environments}
    if len(machines) > 1:
        notes.append(
            f"These records come from {len(machines)} different machines or set-ups: times are not "
            "comparable between them."
        )
    loads = [e["load"] for e in environments if e.get("load") is not None and e.get("cores")]
    busy = [e for e in environments if e.get("load") and e["load"] > 1.5 * (e["cores"] or 1)]
    if loads and len(busy) > len(environments) / 4:
        notes.append("The machine was busy with other work during many trials: times are noisy.")
    if summary.failures:
        notes.append(f"{len(summary.failures)} jobs failed; see the table.")
    return "".join(f"<p class=warning>{html.escape(note)}</p>" for note in notes)
