"""Low-rank matrix factorisation, of a whole matrix or of the entries that were observed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optikit import losses
from optikit.calculus import residuals
from optikit.core import Key, Params
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least


def _misfit(p: Params, matrix: Float[Array, "r c"]) -> Float[Array, "r c"]:
    return p["left"] @ p["right"].T - matrix


def _misfit_observed(
    p: Params, rows: Int[Array, " m"], columns: Int[Array, " m"], entries: Float[Array, " m"]
) -> Float[Array, " m"]:
    return jnp.sum(p["left"][rows] * p["right"][columns], axis=1) - entries


def matrix_factorization(
    rows: int = 30,
    columns: int = 20,
    rank: int = 3,
    condition: float = 10.0,
    observed: float = 1.0,
    noise: float = 0.0,
    l2: float = 0.0,
    scale: float = 0.1,
    seed: int = 0,
) -> Problem:
    """|U V' - M|^2 / 2 over the observed entries + l2 (|U|^2 + |V|^2) / 2: saddles, no bad minima.

    The least value is known without a penalty if all entries are observed (half the sum of the
    squared singular values beyond the rank, Eckart & Young 1936) or if there is no noise.

    Args:
      rows, columns: of M, whose singular values run from 1 to 1/condition over the rank.
      rank: of M before noise, and of the factors.
      condition: largest over least of them.
      observed: the share of entries that count, drawn at random; below 1 this is matrix completion.
      noise: standard deviation of noise on M.
      l2: coefficient of the penalty.
      scale: of the factors' random start; 0 would be a saddle.
      seed: of the matrix; the start is drawn from the trial's own seed.

    Raises:
      ValueError: a rank above the matrix's sides, or no observed entries.

    Reference: Ge, Lee & Ma (2016), "Matrix completion has no spurious local minimum".
    """
    at_least(1, rows=rows, columns=columns)
    if not 1 <= rank <= min(rows, columns):
        msg = f"rank must be 1 to {min(rows, columns)} for a {rows} x {columns} matrix; got {rank}."
        raise ValueError(msg)
    if not 0 < observed <= 1:
        msg = f"observed is a share of the entries, above 0 and at most 1; got {observed}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rank)))[0]
    half = np.sqrt(np.geomspace(1, 1 / condition, rank))
    truth = {"left": left * half, "right": right * half}
    matrix = truth["left"] @ truth["right"].T + noise * rng.standard_normal((rows, columns))
    optimum, solution = None, None
    if l2 == 0 and noise == 0:
        optimum, solution = 0.0, truth
    elif l2 == 0 and observed == 1:
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
        optimum = float(np.sum(values[rank:] ** 2) / 2)
        half = np.sqrt(values[:rank])
        solution = {"left": u[:, :rank] * half, "right": vt[:rank].T * half}
    data: tuple[Any, ...] = (matrix,)
    if observed < 1:
        seen = rng.random((rows, columns)) < observed
        seen[rng.integers(rows), rng.integers(columns)] = True
        i, j = np.nonzero(seen)
        data = (i.astype(np.int32), j.astype(np.int32), matrix[seen])

    def start(key: Key) -> Params:
        ours, theirs = jax.random.split(key)
        return {
            "left": scale * jax.random.normal(ours, (rows, rank)),
            "right": scale * jax.random.normal(theirs, (columns, rank)),
        }

    return Problem(
        residuals(
            _misfit if observed == 1 else _misfit_observed, penalty=losses.l2(l2) if l2 else None
        ),
        start,
        data,
        optimum,
        f"rank {rank} factors of a {rows} x {columns} matrix",
        solution=solution,
    )
