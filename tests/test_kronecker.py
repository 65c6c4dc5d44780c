"""Stacks of factors: inverses and eigenbases against dense float64 definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optikit.linalg.kronecker import (
    buckets,
    damped_inverses,
    eigenbases,
    kronecker_product,
    mean_eigenvalue,
)


def factors(dtype):
    """Of three sizes, one of them singular, in stacks of one to three."""
    found = []
    for seed, (k, d, rank) in enumerate([(2, 6, 9), (1, 5, 9), (3, 6, 3), (1, 2, 4)]):
        rows = jax.random.normal(jax.random.key(seed), (k, rank, d), dtype)
        found.append(jnp.einsum("kri,krj->kij", rows, rows) / rank)
    return found


@pytest.mark.parametrize(
    ("method", "slack", "warm"),
    [
        ("cholesky", 0.0, False),
        ("cholesky", 0.2, False),
        ("newton-schulz", 0.0, False),
        ("newton-schulz", 0.2, True),
    ],
)
def test_damped_inverses_are_those_of_each_matrix(method, slack, warm, dtype):
    dtype = jnp.dtype(dtype)
    given = factors(dtype)
    shifts = [jnp.linspace(0.3, 0.5, a.shape[0]).astype(dtype) for a in given]
    # warm starts: near for all but the last, of which nothing is known
    near = [jnp.linalg.inv(a + 1.1 * s[:, None, None] * jnp.eye(a.shape[1], dtype=dtype)[None])
            for a, s in zip(given, shifts, strict=True)]  # fmt: skip
    near[-1] = 100 * jnp.ones_like(near[-1])
    found = damped_inverses(given, shifts, method=method, warm=near if warm else None, slack=slack)
    for a, s, x in zip(given, shifts, found, strict=True):
        assert x.dtype == dtype
        dense = np.linalg.inv(
            np.asarray(a, np.float64)
            + np.asarray(s, np.float64)[:, None, None] * np.eye(a.shape[1])[None]
        )
        # condition numbers are below 20: rounding of a few dozen operations
        np.testing.assert_allclose(x, dense, atol=200 * jnp.finfo(dtype).eps)
        np.testing.assert_array_equal(x, jnp.swapaxes(x, 1, 2))


def test_what_is_not_positive_is_nan_alone():
    pair = jnp.stack([jnp.eye(3), -jnp.eye(3)])
    for method in ("cholesky", "newton-schulz"):
        (x,) = damped_inverses([pair], [jnp.zeros(2)], method=method)
        np.testing.assert_allclose(x[0], jnp.eye(3), atol=1e-12)
        assert bool(jnp.all(jnp.isnan(x[1])) | jnp.any(~jnp.isfinite(x[1])))


def test_a_warm_start_takes_few_turns():
    """Quadratic convergence: from 10 per cent off, four turns square it to rounding."""
    a = factors(jnp.float64)[0] + 0.3 * jnp.eye(6)[None]
    exact = jnp.linalg.inv(a)
    x = 0.9 * exact
    for _ in range(4):
        x = x @ (2 * jnp.eye(6)[None] - a @ x)
    np.testing.assert_allclose(x, exact, atol=1e-13)


def test_eigenbases_diagonalise_each_matrix(dtype):
    given = factors(jnp.dtype(dtype))
    values, vectors = eigenbases(given)
    for a, e, u in zip(given, values, vectors, strict=True):
        back = np.einsum("kij,kj,klj->kil", *(np.asarray(x, np.float64) for x in (u, e, u)))
        np.testing.assert_allclose(back, a, atol=50 * jnp.finfo(dtype).eps)
        assert bool(jnp.all(jnp.diff(e, axis=1) >= 0))


def test_a_kronecker_product_acts_as_the_dense_one():
    left, right = factors(jnp.float64)[0], factors(jnp.float64)[2][:2]
    v = jax.random.normal(jax.random.key(9), (2, 6, 6))
    dense = [np.kron(a, b) @ x.ravel() for a, b, x in zip(left, right, v, strict=True)]
    np.testing.assert_allclose(kronecker_product(left, v, right).reshape(2, -1), dense, rtol=1e-12)


def test_sizes_go_together_where_they_nearly_agree():
    assert buckets([5, 8, 5, 2]) == [[1], [0, 2], [3]]
    assert buckets([5, 8, 7, 2], slack=0.2) == [[1, 2], [0], [3]]
    assert buckets([]) == []
    np.testing.assert_allclose(mean_eigenvalue(jnp.asarray([[[1.0, 5.0], [5.0, 3.0]]])), [2.0])
