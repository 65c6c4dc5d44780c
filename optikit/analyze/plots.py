"""Pictures: spectra, slices, surfaces, convergence. Matplotlib axes in, axes out.

Needs the extra `bench` (matplotlib). Nothing is shown or saved: that is the caller's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optikit.analyze.certificate import Certificate, Kind
from optikit.analyze.spectrum import Spectrum
from optikit.calculus import bind
from optikit.calculus.derivatives import Fun
from optikit.calculus.validate import as_args, as_objective, as_params
from optikit.core import Params, tree

MARKS = {
    Kind.MINIMUM: "o",
    Kind.SADDLE: "x",
    Kind.MAXIMUM: "^",
    Kind.DEGENERATE: "s",
    Kind.NOT_STATIONARY: "|",
    Kind.CANNOT_TELL: "$?$",
    Kind.NON_SMOOTH: "v",
}
"""Of certificates, by kind."""


def spectrum(found: Spectrum, ax: Any = None, *, width: float | None = None) -> Any:
    """The density of eigenvalues on a logarithmic scale with its 95 % band; the ends as ticks.

    Args:
      width: of the normal distribution that stands for each eigenvalue; see `Spectrum.density`.

    Returns: the axes, new ones if none are given.
    """
    ax = _axes(ax)
    shown = found.density(width=width)
    # below one eigenvalue of all, widened, there is nothing to be seen
    floor = 0.01 / (found.size * shown.width * (2 * np.pi) ** 0.5)
    (line,) = ax.plot(shown.points, np.maximum(shown.mean, floor), lw=1.2)
    if not found.exact:
        low, high = np.maximum(shown.low, floor), np.maximum(shown.high, floor)
        ax.fill_between(shown.points, low, high, color=line.get_color(), alpha=0.25, lw=0)
    ends = np.concatenate([np.asarray(found.largest), np.asarray(found.smallest)])
    ax.plot(ends, np.full(len(ends), floor), "|", color="black", ms=9)
    ax.set(yscale="log", ylim=(floor / 1.5, None), xlabel="eigenvalue", ylabel="density")
    return ax


def slice(
    fun: Fun,
    params: Params,
    direction: Params,
    args: tuple = (),
    *,
    ax: Any = None,
    lengths: Sequence[float] | np.ndarray | None = None,
    points: int = 81,
    has_aux: bool = False,
) -> Any:
    """The function along a line, with its tangent and its parabola at params.

    Where the parabola leaves the curve, a Newton step is trusted too far.

    Args:
      direction: in the structure of params; steps are in units of it.
      lengths: where to look; by default `points` of them from -1 to 1.

    Cost: a value a point, one grad and one hvp. Returns: the axes.
    """
    ax = _axes(ax)
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    t = np.linspace(-1, 1, points) if lengths is None else np.asarray(lengths, float)

    @jax.jit
    def look(t):
        oracle = bind(objective, args)
        values = lax.map(lambda s: oracle.value(tree.add_scaled(params, s, direction)), t)
        at = oracle.value_and_grad(params)
        bend = oracle.curvature("hessian", params).mv(direction)
        return values, at.value, tree.vdot(at.grad, direction), tree.vdot(direction, bend)

    values, value, slope, bend = (np.asarray(x) for x in look(jnp.asarray(t)))
    ax.plot(t, values, lw=1.4, label="function")
    ax.plot(t, value + slope * t, lw=0.8, ls=":", color="gray", label="tangent")
    ax.plot(t, value + slope * t + bend * t**2 / 2, lw=0.8, ls="--", label="parabola")
    seen = values[np.isfinite(values)]
    if seen.size:
        room = 0.1 * (seen.max() - seen.min() or 1.0)
        ax.set_ylim(seen.min() - room, seen.max() + room)
    ax.plot([0], [value], "o", color="black", ms=4)
    ax.set(xlabel="step", ylabel="value")
    ax.legend(frameon=False)
    return ax


def surface(
    fun: Fun,
    params: Params,
    directions: tuple[Params, Params],
    args: tuple = (),
    *,
    ax: Any = None,
    reach: float = 1.0,
    points: int = 41,
    path: Sequence[Params] = (),
    has_aux: bool = False,
) -> Any:
    """Contours of the function over a plane through params, spaced by quantiles of its values.

    Args:
      directions: two, e.g. the vectors of `ok.eigenpairs(..., k=2)`; orthonormalised here.
      reach: of each axis from -reach to reach, in units of the normalised directions.
      path: points to be projected onto the plane and joined, e.g. of an optimizer.

    Cost: points^2 values. Returns: the axes.

    Raises:
      ValueError: directions that are parallel or zero.

    Reference: Li, Xu, Taylor, Studer & Goldstein (2018), "Visualizing the loss landscape of neural
    nets".
    """
    ax = _axes(ax)
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    first, second = _orthonormal(*directions)
    t = np.linspace(-reach, reach, points)

    @jax.jit
    def look(t):
        oracle = bind(objective, args)

        def at(a, b):
            return oracle.value(tree.add_scaled(tree.add_scaled(params, a, first), b, second))

        return lax.map(lambda b: lax.map(lambda a: at(a, b), t), t)

    values = np.asarray(look(jnp.asarray(t)), float)
    finite = values[np.isfinite(values)]
    levels = np.unique(np.quantile(finite, np.linspace(0, 1, 16))) if finite.size else []
    if len(levels) > 1:
        from matplotlib.colors import BoundaryNorm

        norm = BoundaryNorm(levels, 256)  # a step of colour for each level
        shown = np.ma.masked_invalid(values)
        drawn = ax.contourf(t, t, shown, levels=levels, cmap="viridis", norm=norm)
        ax.figure.colorbar(drawn, ax=ax, label="value")
    if path:
        steps = [tree.subtract(p, params) for p in path]
        trail = [(float(tree.vdot(s, first)), float(tree.vdot(s, second))) for s in steps]
        ax.plot(*np.transpose(trail), ".-", color="white", ms=4, lw=0.9)
    ax.plot([0], [0], "o", color="black", ms=4)
    ax.set(xlabel="first direction", ylabel="second direction", aspect="equal")
    return ax


def convergence(
    solutions: Mapping[str, Any],
    *,
    optimum: float | None = None,
    certificates: Mapping[str, Certificate] | None = None,
    ax: Any = None,
) -> Any:
    """Distance of each solution's traced values to the optimum, with a mark for its end.

    Steps are on a logarithmic scale where one takes more than 20 times as many as another.

    Args:
      solutions: by name, each with a trace (`minimize(..., trace=True)`, or of `fit`).
      optimum: by default the lowest value of all, whose own curve then ends early.
      certificates: by the same names; the mark of a curve's end is its kind's.

    Raises:
      ValueError: a solution without a trace.
    """
    ax = _axes(ax)
    curves = {}
    for name, solution in solutions.items():
        if solution.trace is None:
            msg = f"solution {name!r} has no trace: solve it with trace=True."
            raise ValueError(msg)
        curves[name] = np.asarray(solution.trace.value, float)[: int(solution.steps) + 1]
    least = min(np.nanmin(values) for values in curves.values()) if optimum is None else optimum
    for name, values in curves.items():
        gap = np.where(values > least, values - least, np.nan)
        (line,) = ax.plot(gap, lw=1.2, label=name)
        shown = np.flatnonzero(np.isfinite(gap))
        if certificates is not None and name in certificates and shown.size:
            kind = certificates[name].kind
            last = shown[-1]
            ax.plot(
                [last], [gap[last]], MARKS[kind], color=line.get_color(), label=f"{name}: {kind}"
            )
    ax.set(yscale="log", xlabel="step", ylabel="value above the optimum")
    lengths = [len(values) for values in curves.values()]
    if max(lengths) > 20 * min(lengths):
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, None)
    ax.legend(frameon=False)
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "pictures need matplotlib: pip install 'optikit[bench]'."
        raise ImportError(msg) from error
    return Figure(figsize=(6, 4), layout="constrained").add_subplot()


def _orthonormal(first: Params, second: Params) -> tuple[Params, Params]:
    size = tree.norm(first)
    first = tree.scale(1 / jnp.where(size > 0, size, 1), first)
    rest = tree.add_scaled(second, -tree.vdot(first, second), first)
    left = tree.norm(rest)
    if not (float(size) > 0 and float(left) > 1e-6 * float(tree.norm(second))):
        msg = "the two directions are parallel, or one is zero: they span no plane."
        raise ValueError(msg)
    return first, tree.scale(1 / left, rest)
