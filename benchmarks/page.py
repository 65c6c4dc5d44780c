"""One page from the committed results: benchmarks/results/README.md.

    python benchmarks/page.py [--check]

With --check nothing is written, and the exit code is 1 if the page is not what the results say.
"""

import json
import math
import pathlib
import sys
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
PAGE = RESULTS / "README.md"

INTRODUCTION = """# Measured

Written by `python benchmarks/page.py` from the JSON files beside it; do not edit. Every ratio is a
median over pairs of runs taken in turn on one machine, with its quartiles. Times from different
machines do not compare."""


def page(folder: pathlib.Path) -> str:
    """The results under a folder, in Markdown."""
    parts = [INTRODUCTION]
    for machine in sorted(p for p in folder.iterdir() if p.is_dir()):
        studies = [json.loads(path.read_text()) for path in sorted(machine.glob("*.json"))]
        if studies:
            parts.append(f"## {machine.name}")
            parts += [_study(record) for record in studies]
    return "\n\n".join(parts) + "\n"


def _study(record: dict[str, Any]) -> str:
    rows = [row for row in record["results"] if "verdicts" not in row]
    lines = [f"### {record['study']}: {record['question']}"]
    for row in record["results"]:
        if "verdicts" in row:
            minutes = f"{row['name']} ({row['wall_seconds']:.0f} s, {row['ended']}):"
            lines.append("\n".join([minutes, *(f"- {v}" for v in row["verdicts"])]))
    columns = [c for c in COLUMNS if any(COLUMNS[c](row) for row in rows)]
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    table += [[COLUMNS[c](row) for c in columns] for row in rows]
    lines.append("\n".join("| " + " | ".join(cells) + " |" for cells in table))
    lines.append(f"`{record['command']}`. {_environment(record['environment'])}")
    return "\n\n".join(lines)


def _environment(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
    cores = f"{found['processor']}, {found['cores']} cores"
    device = cores if found["platform"] == "cpu" else f"{found['device']} beside {cores}"
    return f"{device}; Python {found['python']}; {versions}; commit {found['commit']}."


def _ratio(row: dict[str, Any]) -> str:
    if "ratio" not in row:
        return ""
    found = row["ratio"]
    return f"**{found['median']:.2f}** ({found['low']:.2f} to {found['high']:.2f})"


def _target(row: dict[str, Any]) -> str:
    if "target" not in row:
        return ""
    return f"{row['target']:g}: {'met' if row['met'] else '**missed**'}"


def _seconds(row: dict[str, Any]) -> str:
    found = row.get("seconds", {})
    return ", ".join(f"{k} {_short(v)}" for k, v in found.items() if v is not None)


def _facts(row: dict[str, Any]) -> str:
    shown = ("error", "status", "gap", "steps", "gradients", "flops", "max_grad", "excess",
             "reached", "tol", "largest_difference", "cases", "digits_6", "digits_8",
             "false_claims", "median_steps", "steps_over_scipy_lm", "problems", "solved", "lowest",
             "unsolved", "fastest_share", "within_2x", "within_10x", "workers", "skipped",
             "fits_per_second", "chosen_within_1.5x", "chosen_worst", "chosen_failed",
             "best_chosen",
             "chosen_predicted_within_3x", "all_predicted_within_3x", "steps_within_3x",
             "predicted_above_1_ms_within_3x",
             "predicted_within_3x_by_source", "predictions_by_source",
             "fits_per_second", "over_one_device", "bytes", "bytes_over_parameters", "collectives",
             "projected_efficiency", "products", "products_to_our_error", "residual",
             "memory_over_parameters", "ours", "rival", "error_ratio", "clock")  # fmt: skip
    return ", ".join(f"{k} {_short(row[k])}" for k in shown if row.get(k) is not None)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.3g}" if math.isfinite(value) else str(value)
    return str(value).replace("|", "/")


COLUMNS = {
    "what": lambda row: row["name"].replace("|", "/"),
    "ratio": _ratio,
    "target": _target,
    "seconds": _seconds,
    "facts": _facts,
}


def main() -> None:
    """Write or check the page."""
    text = page(RESULTS)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text() == text else 1)
    PAGE.write_text(text)
    print(PAGE)


if __name__ == "__main__":
    main()
