"""Ten thousand small fits at once: fits per second, against peers under `vmap` and scipy in a loop.

    python benchmarks/batch.py [--fits 10000]

A fit is a sum of two exponentials, 4 parameters, 60 noisy points; the starts lie from near to far,
so the fits take different numbers of steps. A fit counts as solved if its sum of squares, evaluated
in float64 outside the solvers, is the lowest that any solver found for it, to a relative 1e-8.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, ratio, row, save, summary

import optikit as ok

POINTS, SCIPY_FITS = 60, 500


def model_residuals(p, t, y):
    """Two decays, the parameters along axis 0."""
    return p[0] * jnp.exp(-p[1] * t) + p[2] * jnp.exp(-p[3] * t) - y


def fits(count: int, dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Starts (count, 4) and data (t, y), each (count, 60)."""
    rng = np.random.default_rng(0)
    low, high = [1.0, 2.0, 0.5, 0.1], [4.0, 5.0, 2.0, 0.6]
    truth = rng.uniform(low, high, (count, 4))
    t = np.tile(np.linspace(0, 4, POINTS), (count, 1))
    a, b, c, d = truth.T[:, :, None]
    y = a * np.exp(-b * t) + c * np.exp(-d * t) + 0.01 * rng.standard_normal(t.shape)
    far = rng.uniform(0, 0.6, (count, 1))
    start = truth * np.exp(far * rng.uniform(-1, 1, (count, 4)))
    return jnp.asarray(start, dtype), (jnp.asarray(t, dtype), jnp.asarray(y, dtype))


def ours(start, data) -> Callable[[], Any]:
    """The fits by `least_squares_many`."""
    return lambda: ok.least_squares_many(model_residuals, start, data).params


def by_optimistix(start, data, tol: float) -> Callable[[], Any]:
    """Optimistix's Levenberg-Marquardt under vmap."""
    import optimistix

    solver = optimistix.LevenbergMarquardt(rtol=tol, atol=tol)

    @jax.jit
    @jax.vmap
    def run(p, t, y):
        return optimistix.least_squares(
            lambda q, data: model_residuals(q, *data), solver, p, (t, y), max_steps=1000,
            throw=False,
        ).value  # fmt: skip

    return lambda: run(start, *data)


def by_jaxopt(start, data, tol: float) -> Callable[[], Any]:
    """Jaxopt's Levenberg-Marquardt under vmap, with its fastest solver for small systems."""
    import jaxopt

    solver = jaxopt.LevenbergMarquardt(
        model_residuals, maxiter=1000, tol=tol, xtol=tol, gtol=tol, solver="cholesky",
        materialize_jac=True, stop_criterion="madsen-nielsen",
    )  # fmt: skip
    run = jax.jit(jax.vmap(lambda p, t, y: solver.run(p, t=t, y=y).params))
    return lambda: run(start, *data)


def by_scipy(start, data) -> Callable[[], Any]:
    """MINPACK by scipy, in a loop over the first fits, with an analytic Jacobian."""
    from scipy.optimize import least_squares

    def residual(p, t, y):
        return p[0] * np.exp(-p[1] * t) + p[2] * np.exp(-p[3] * t) - y

    def jacobian(p, t, y):
        del y
        first, second = np.exp(-p[1] * t), np.exp(-p[3] * t)
        return np.stack([first, -p[0] * t * first, second, -p[2] * t * second], axis=1)

    starts, t, y = (np.asarray(x[:SCIPY_FITS], float) for x in (start, *data))

    def run():
        problems = zip(starts, t, y, strict=True)
        return np.stack(
            [least_squares(residual, p, jacobian, method="lm", args=(t, y)).x
             for p, t, y in problems]
        )  # fmt: skip

    return run


def solved(found: dict[str, Any], start, data, slack: float) -> dict[str, float]:
    """The share of fits that each solver brought to the lowest sum of squares found."""
    t, y = (np.asarray(x, float) for x in data)

    def squares(params) -> np.ndarray:
        p = np.asarray(params, float)
        a, b, c, d = p.T[:, :, None]
        rows = slice(0, len(p))
        with np.errstate(over="ignore", invalid="ignore"):
            r = a * np.exp(-b * t[rows]) + c * np.exp(-d * t[rows]) - y[rows]
            return np.nan_to_num(np.sum(r**2, axis=1), nan=np.inf)

    lowest = squares(start)
    sums = {name: squares(params) for name, params in found.items()}
    for each in sums.values():
        lowest[: len(each)] = np.minimum(lowest[: len(each)], each)
    return {
        name: float(np.mean(each <= lowest[: len(each)] * (1 + slack)))
        for name, each in sums.items()
    }


def study(count: int, dtype, *, scipy: bool) -> list[dict[str, Any]]:
    """One batch: fits per second of everybody here, and our time over the best peer's."""
    wide = jnp.dtype(dtype).itemsize > 4
    with jax.enable_x64(wide):  # peers mix in float64 where it is allowed
        return _study(count, dtype, wide, scipy)


def _study(count: int, dtype, wide: bool, scipy: bool) -> list[dict[str, Any]]:
    tol, slack = (1e-8, 1e-8) if wide else (1e-4, 1e-4)
    start, data = fits(count, dtype)
    calls = {"optikit": ours(start, data)}
    for name, peer in {"optimistix": by_optimistix, "jaxopt": by_jaxopt}.items():
        if importlib.util.find_spec(name):
            calls[name] = peer(start, data, tol)
    sizes = dict.fromkeys(calls, count)
    if scipy:
        calls["scipy in a loop"] = by_scipy(start, data)
        sizes["scipy in a loop"] = min(SCIPY_FITS, count)
    stamps = interleaved(calls, rounds=9, seconds=60.0)
    seconds = summary(stamps)
    rates = {name: sizes[name] / s for name, s in seconds.items()}
    facts = {
        "fits_per_second": rates,
        "solved": solved({name: call() for name, call in calls.items()}, start, data, slack),
        "seconds": seconds,
    }
    name = f"{count} fits of 4 parameters to {POINTS} points, {jnp.dtype(dtype).name}"
    rivals = [n for n in ("optimistix", "jaxopt") if n in rates]
    if not rivals:
        return [row(name, **facts)]
    best = max(rivals, key=rates.__getitem__)
    return [
        row(f"our seconds over the best peer's ({best}): {name}", 1 / 3,
            ratio=ratio(stamps, "optikit", best), **facts)
    ]  # fmt: skip


def device_part(dtype, count: int) -> list[dict[str, Any]]:
    """The study on a device, without the host's solver."""
    return study(count, dtype, scipy=False)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=10_000)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    parts = [functools.partial(study, options.fits, t) for t in (jnp.float64, jnp.float32)]
    results = [line for part in parts for line in part(scipy=part is parts[0])]
    save("batch", "How many small fits per second?", results)


if __name__ == "__main__":
    main()
