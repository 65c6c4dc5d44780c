"""What a problem's curvature looks like: the Hessian's spectrum where trials start and should end.

It is a picture of why a method pays or does not: how far the eigenvalues spread, how many stand
apart, whether there are negative ones.
"""

from typing import Any

import jax
import numpy as np

from optikit.analyze import spectrum
from optikit.problems import Problem, cast_floats

POINTS = 200
"""Of each density that is kept."""


def spectra(problem: Problem, key: jax.Array, end: Any = None) -> list[dict[str, Any]]:
    """Densities in float64 as plain data: at the start and, where there was a solve, at its end.

    Where steps see batches, of the first batch. A point at which the Hessian is not finite is
    left out.

    Args:
      end: parameters of the reference solution; None where there is none.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = problem.cast("float64")
        args = exact.step_args(key)
        places = {"the start": exact.start(key), "the reference solution": end}
        found = []
        for where, params in places.items():
            if params is None:
                continue
            seen = spectrum(exact.objective, cast_floats(params, "float64"), args)  # type: ignore[arg-type]
            if np.all(np.isfinite(seen.nodes)):
                found.append({"where": where, **_plain(seen)})
    return found


def _plain(seen: Any) -> dict[str, Any]:
    drawn = seen.density(points=POINTS)
    floor = 0.01 / (seen.size * drawn.width * (2 * np.pi) ** 0.5)  # nothing to be seen below
    kept = {"x": drawn.points, "mean": drawn.mean, "low": drawn.low, "high": drawn.high}
    return {
        **{name: [float(f"{v:.6g}") for v in values] for name, values in kept.items()},
        "floor": float(floor),
        "exact": bool(seen.exact),
        "largest": [float(v) for v in seen.largest],
        "smallest": [float(v) for v in seen.smallest],
    }
