"""The page's figures on paper: PDF, PNG or SVG by matplotlib, one file each."""

import collections
import io
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optikit.bench import store
from optikit.bench.axes import AXES
from optikit.bench.report.content import FLOOR, axes_of, floor, variant_names
from optikit.bench.score import (
    Curve,
    ProblemScore,
    Steps,
    cost_table,
    data_profile,
    ecdf,
    front,
    on_one_machine,
    performance_profile,
    placement,
    tunes,
    with_portfolio,
)
from optikit.bench.tuning import Tuned

if TYPE_CHECKING:
    from optikit.bench.experiment import Results

FORMATS = ("pdf", "png", "svg")
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888", "#000000",
    "#ee7733", "#009988",
)  # fmt: skip
"""Tol's bright scheme and two more; told apart by the colour-blind."""

MARKERS = "os^Dxv"
PAPER: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ecf2",
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
PANEL = (3.3, 2.5)
"""Inches: two panels are a page's width."""

Styles = dict[str, dict[str, Any]]


def figures(
    results: "Results",
    folder: str | pathlib.Path,
    format: str = "pdf",
    axes: Sequence[str] = ("steps", "gradients", "flops", "warm"),
) -> list[pathlib.Path]:
    """Write the figures of a study for a paper and return their paths.

    One file per problem (suboptimality against each axis: median over seeds, 10-90 % band, the
    Pareto front in grey), and one of its spectra where they were measured; over all problems
    performance and data profiles, and targets met by those of one size; tuning curves where there
    was tuning; model FLOPs a second against FLOPs per byte where both were counted.

    Args:
      results: from `Experiment.run` or `optikit.bench.experiment.load`.
      folder: made if need be.
      format: pdf, png or svg.
      axes: axes of cost, a panel each; those without data are left out.

    Raises:
      ValueError: an unknown format or axis, or one that has no curves.
      ImportError: matplotlib is not installed.
      StoreError: they cannot be written there.
    """
    if format not in FORMATS:
        msg = f"unknown format {format!r}: choose from {', '.join(FORMATS)}."
        raise ValueError(msg)
    curved = [axis.key for axis in AXES.values() if not axis.whole]
    unknown = [axis for axis in axes if axis not in curved]
    if unknown:
        msg = f"no curves on an axis {unknown[0]!r}: choose from {', '.join(curved)}."
        raise ValueError(msg)
    try:
        import matplotlib as mpl
    except ImportError as error:
        msg = "figures are drawn with matplotlib: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    place = pathlib.Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store.unwritable(place, error) from error
    problems = [p for p in on_one_machine(results.problems)[0] if p.curves]
    known = {axis.key for axis in axes_of(problems)}
    shown = [axis for axis in axes if axis in known]
    styles = _styles(problems)
    target = results.summary.target
    drawn: dict[str, Any] = {}
    with mpl.rc_context(PAPER):
        for problem in problems if shown else []:
            name = f"convergence-{_file_name(problem.label, drawn)}"
            drawn[name] = _convergence(problem, shown, styles)
        for problem in problems:
            if problem.facts.get("spectra"):
                drawn[f"spectrum-{_file_name(problem.label, drawn, 'spectrum')}"] = _spectra(
                    problem
                )
        if len(problems) > 1 and shown:
            drawn |= _profiles(problems, shown, target, styles)
        tuned = results.tuning()
        if tuned:
            drawn["tuning"] = _tuning(tuned)
        if roofline := _roofline(problems, styles):
            drawn["roofline"] = roofline
        return [_save(figure, place / f"{name}.{format}") for name, figure in drawn.items()]


def _file_name(label: str, taken: dict[str, Any], kind: str = "convergence") -> str:
    """A label as part of a file name, different from those before."""
    plain = re.sub(r"[^A-Za-z0-9_+=.-]+", "-", label).strip("-.") or "problem"
    name, k = plain, 1
    while f"{kind}-{name}" in taken:
        k += 1
        name = f"{plain}-{k}"
    return name


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    # no date in the file: the same results make the same bytes
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:])
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=200, metadata=metadata, bbox_inches="tight")
    store.write_atomically(path, drawn.getvalue())
    return path


def _styles(problems: Sequence[ProblemScore]) -> Styles:
    """A colour per variant, as on the page; dotted for first order."""
    second = {c.variant for p in problems for c in p.curves if c.second_order}
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "linestyle": "-" if name in second else ":"}
        for i, name in enumerate(variant_names(problems))
    }


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with panels in two columns, and room for a legend below."""
    from matplotlib.figure import Figure

    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One for all panels, below them."""
    entries: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label}
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center",
            ncols=min(len(entries), 4),
        )  # fmt: skip


def _convergence(problem: ProblemScore, axes: Sequence[str], styles: Styles) -> Any:
    figure, panels = _panels(len(axes))
    figure.suptitle(problem.label, fontsize=9)
    least = floor(problem)
    for panel, axis in zip(panels, axes, strict=True):
        best = [(p.cost, max(p.gap, least)) for p in front(problem, axis) if p.cost > 0]
        if best:
            panel.step(*zip(*best, strict=True), where="post", color="#c9ced6", linewidth=5)
        for variant, style in styles.items():
            own = [c for c in problem.curves if c.variant == variant]
            if own and all(math.isfinite(x) for c in own for x in c.costs[axis]):
                _course(panel, own, axis, variant, style, least)
        panel.set(xscale="log", yscale="log", xlabel=AXES[axis].label)
        panel.set_ylabel(r"$(f - f^\ast) / (f_0 - f^\ast)$")
    _legend(figure, panels)
    return figure


def _spectra(problem: ProblemScore) -> Any:
    figure, (panel,) = _panels(1)
    for i, seen in enumerate(problem.facts["spectra"]):
        colour, floor = PALETTE[i], seen["floor"]
        mean, low, high = (np.maximum(seen[name], floor) for name in ("mean", "low", "high"))
        panel.plot(seen["x"], mean, color=colour, label=seen["where"])
        if not seen["exact"]:
            panel.fill_between(seen["x"], low, high, color=colour, alpha=0.25, lw=0)
        ends = [*seen["smallest"], *seen["largest"]]
        panel.plot(ends, np.full(len(ends), floor), "|", color=colour, ms=9)
    panel.set(title=problem.label, yscale="log", xlabel="eigenvalue of the Hessian")
    panel.set_ylabel("density")
    _legend(figure, [panel])
    return figure


def _course(
    panel: Any, curves: Sequence[Curve], axis: str, variant: str, style: dict[str, Any],
    least: float,
) -> None:  # fmt: skip
    """A variant's median over seeds, with its band if there are several."""
    costs, low, middle, high = course(curves, axis, least=least)
    panel.step(costs, middle, where="post", label=variant, **style)
    if len(curves) > 1:
        panel.fill_between(costs, low, high, step="post", color=style["color"], alpha=0.15, lw=0)


def course(
    curves: Sequence[Curve], axis: str, points: int = 200, least: float = FLOOR
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(costs, 10 %, median, 90 %) of the gap over seeds, each seed a step function of cost.

    A trial that has ended keeps its last gap; none is below `least`. Costs of zero are left out,
    for a logarithmic axis.
    """
    every = np.unique(np.concatenate([np.asarray(c.costs[axis], float) for c in curves]))
    every = every[every > 0]
    if every.size == 0:
        return every, every, every, every
    costs = every[np.unique(np.linspace(0, every.size - 1, points).astype(int))]
    gaps = np.empty((len(curves), costs.size))
    for i, curve in enumerate(curves):
        at = np.searchsorted(np.asarray(curve.costs[axis], float), costs, side="right") - 1
        gaps[i] = np.maximum(np.asarray(curve.gaps, float), least)[np.maximum(at, 0)]
    logs = np.log(np.minimum(gaps, 1e300))
    low, middle, high = np.exp(np.quantile(logs, [0.1, 0.5, 0.9], axis=0))
    return costs, low, middle, high


def _profiles(
    problems: Sequence[ProblemScore], axes: Sequence[str], target: float, styles: Styles
) -> dict[str, Any]:
    tables = {axis: cost_table(problems, target, axis) for axis in axes}
    if tunes(problems):
        own = {name for table in tables.values() for name in table.solvers}
        tables = {axis: with_portfolio(table, problems) for axis, table in tables.items()}
        joined = dict.fromkeys(n for t in tables.values() for n in t.solvers if n not in own)
        dashes = itertools.cycle(("--", "-."))
        extra = {name: {"color": "#555555", "linestyle": next(dashes)} for name in joined}
        styles = {**styles, **extra}
    met = {axis: ecdf(problems, [10.0**-k for k in range(1, 9)], axis) for axis in axes}
    alike = collections.Counter(int(p.facts["parameters"]) for p in problems)
    sizes = [n for n in sorted(alike) if alike[n] > 1]  # of one problem alone its curves say more
    drawn = {
        "performance-profile": _shares(
            {axis: performance_profile(t) for axis, t in tables.items()}, styles,
            lambda axis: f"{AXES[axis].label}, multiple of the least",
            f"share of problems solved to {target:g}",
        ),
        "data-profile": _shares(
            {axis: data_profile(t) for axis, t in tables.items()}, styles,
            lambda axis: f"{AXES[axis].label} / (n + 1)",
            f"share of problems solved to {target:g}",
        ),
    }  # fmt: skip
    for n in sizes:
        drawn[f"targets-met-n{n}"] = _shares(
            {axis: found[n] for axis, found in met.items() if n in found}, styles,
            lambda axis: AXES[axis].label, f"share of targets met, n = {n}",
        )  # fmt: skip
    return drawn


def _shares(
    found: dict[str, list[Steps]], styles: Styles, label: Callable[[str], str], share: str
) -> Any:
    figure, panels = _panels(len(found))
    for panel, (axis, steps) in zip(panels, found.items(), strict=True):
        last = max((s.x[-1] for s in steps if s.x), default=1.0)
        for solver in steps:
            first = min((x for x in solver.x if x > 0), default=1.0)
            x = [first, *(max(v, first) for v in solver.x), 1.3 * last]
            y = [0.0, *solver.share, solver.share[-1] if solver.share else 0.0]
            panel.step(x, y, where="post", label=solver.solver, **styles[solver.solver])
        panel.set(xscale="log", xlabel=label(axis), ylabel=share, ylim=(-0.03, 1.03))
    _legend(figure, panels)
    return figure


def _roofline(problems: Sequence[ProblemScore], styles: Styles) -> Any:
    """Achieved model GFLOP/s against model FLOPs per byte; None where nothing was counted."""
    found: dict[str, list[tuple[float, float]]] = {}
    for curve in (c for p in problems for c in p.curves):
        x, y, _ = placement(curve)
        if math.isfinite(x) and math.isfinite(y):
            found.setdefault(curve.variant, []).append((x, y))
    if not found:
        return None
    figure, (panel,) = _panels(1)
    for i, (variant, style) in enumerate(styles.items()):
        if variant in found:
            x, y = zip(*found[variant], strict=True)
            marker = MARKERS[i // len(PALETTE) % len(MARKERS)]
            filled = style["color"] if style["linestyle"] == "-" else "none"
            panel.plot(x, y, marker, color=style["color"], mfc=filled, ms=4, label=variant)
    # limits by hand: trials that all lie at one place have none of their own
    every = np.array([point for points in found.values() for point in points])
    (left, low), (right, high) = every.min(axis=0) / 2, every.max(axis=0) * 2
    panel.set(xlim=(left, right), ylim=(low, high), xscale="log", yscale="log")
    panel.set(xlabel="model FLOPs per model byte", ylabel="model GFLOP/s, warm")
    _legend(figure, [panel])
    return figure


def _tuning(tuned: Sequence[Tuned]) -> Any:
    labels = list(dict.fromkeys(t.problem for t in tuned))
    figure, panels = _panels(len(labels))
    names = list(dict.fromkeys(t.optimizer for t in tuned))
    for panel, label in zip(panels, labels, strict=True):
        for t in (t for t in tuned if t.problem == label):
            k = [b.k for b in t.curve if math.isfinite(b.expected)]
            cost = [b.expected for b in t.curve if math.isfinite(b.expected)]
            i = names.index(t.optimizer)
            panel.plot(k, cost, label=t.optimizer, color=PALETTE[i % len(PALETTE)],
                       marker=MARKERS[i % len(MARKERS)], markersize=3)  # fmt: skip
        panel.set(title=label, xlabel="settings tried, k")
        panel.set(ylabel=f"expected {AXES[tuned[0].axis].label}", yscale="log")
    _legend(figure, panels)
    return figure
