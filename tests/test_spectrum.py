"""Instruments of curvature: identities of Ritz pairs, quadratures and estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.linalg.eigenpairs import eigenpairs
from optikit.linalg.quadrature import lanczos_quadrature
from optikit.linalg.signs import signs
from optikit.linalg.trace import hutchinson, hutchinson_trace, xdiagonal, xnystrace, xtrace

N = 60
EPS32 = float(np.finfo(np.float32).eps)


def symmetric(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T


RNG = np.random.default_rng(1)
SPECTRA = {
    "clustered": np.concatenate([[50.0, 50.0, 50.0, 20.0, -30.0], RNG.normal(size=N - 5)]),
    "decaying": 0.7 ** np.arange(N),
    "low-rank": np.concatenate([[3.0, -2.0, 1.0], np.zeros(N - 3)]),
    "zero": np.zeros(N),
}
WANTED = {
    "largest": lambda v, k: np.sort(v)[::-1][:k],
    "smallest": lambda v, k: np.sort(v)[:k],
    "magnitude": lambda v, k: v[np.argsort(-abs(v), kind="stable")][:k],
    "ends": lambda v, k: np.stack([np.sort(v)[::-1], np.sort(v)], 1).ravel()[:k],
}


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("which", sorted(WANTED))
def test_ritz_pairs_keep_their_bounds(which, block, dtype):
    k = 4
    solve = jax.jit(
        lambda a, key: eigenpairs(
            lambda v: a @ v, N, k, key, dtype=a.dtype, which=which, block=block
        )
    )
    for name, values in SPECTRA.items():
        a = jnp.asarray(symmetric(values), dtype)
        found = solve(a, jax.random.key(2))
        exact, vectors = np.asarray(a, np.float64), np.asarray(found.vectors, np.float64)
        theta = np.asarray(found.values, np.float64)
        # the lower end of the decaying spectrum is a crowd within 1e-8 of the largest
        crowded = name == "decaying" and which in ("ends", "smallest")
        assert found.converged or crowded, name
        left = np.linalg.norm(vectors @ exact - theta[:, None] * vectors, axis=1)
        eps = float(jnp.finfo(dtype).eps)
        scale = max(abs(values).max(), 1e-300)
        assert (left <= np.asarray(found.residuals) + 10 * eps * N * scale).all(), name
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=100 * eps)
        # an eigenvalue within each residual; the wanted ones as the gaps allow
        true = np.linalg.eigvalsh((exact + exact.T) / 2)
        nearest = abs(true[None, :] - theta[:, None]).min(axis=1)
        assert (nearest <= np.asarray(found.residuals) + 10 * eps * N * scale).all(), name
        worst = abs(np.sort(theta) - np.sort(WANTED[which](values, k))).max()
        assert worst <= 1e-3 * scale, name


@pytest.mark.parametrize("power", [-100, -66, 66, 100])
def test_units_change_no_pair_and_no_bound(power):
    """Squares of 2^-100 and 2^100 are not numbers of single precision."""
    values = SPECTRA["clustered"]
    unit = jnp.float32(2.0**power)
    a = jnp.asarray(symmetric(values), jnp.float32)
    for block in (1, 2):
        one, other = (
            eigenpairs(
                lambda v, u=u: (a @ v) * u, N, 5, jax.random.key(0), dtype=a.dtype, block=block
            )
            for u in (jnp.float32(1), unit)
        )
        assert one.converged
        assert other.converged
        assert int(one.products) == int(other.products)
        # the same up to rounding, which lengths taken in other units do otherwise
        np.testing.assert_allclose(other.values / unit, one.values, atol=100 * EPS32 * 50)
        np.testing.assert_allclose(other.residuals / unit, one.residuals, atol=100 * EPS32 * 50)


@pytest.mark.parametrize(("k", "block", "basis"), [(1, 10, None), (1, 20, None), (4, 3, 12)])
def test_a_restart_keeps_what_is_wanted_whatever_the_block(k, block, basis):
    values = np.concatenate([np.linspace(0.0, 1.0, 290), 2.0 + np.arange(10.0)])
    found = eigenpairs(
        lambda v: jnp.asarray(values) * v, 300, k, jax.random.key(0), dtype=jnp.float64,
        block=block, basis=basis,
    )  # fmt: skip
    assert found.converged
    np.testing.assert_allclose(found.values, np.sort(values)[::-1][:k], rtol=1e-9)
    assert int(found.products) < 300


@pytest.mark.parametrize(("n", "k", "block"), [(5, 5, 2), (7, 2, 1), (1, 1, 1)])
def test_a_small_space_is_searched_whole(n, k, block):
    values = np.arange(1.0, n + 1)
    a = jnp.asarray(symmetric(values))
    found = eigenpairs(lambda v: a @ v, n, k, jax.random.key(0), dtype=a.dtype, block=block)
    np.testing.assert_allclose(found.values, values[::-1][:k], rtol=1e-12)
    assert int(found.products) == n


def test_pairs_that_do_not_settle_say_so():
    values = np.linspace(1.0, 1.0 + 1e-6, 400)
    a = jnp.asarray(values)
    found = eigenpairs(
        lambda v: a * v, 400, 3, jax.random.key(0), dtype=a.dtype, tol=1e-12, max_restarts=2
    )
    assert not found.converged
    assert (np.asarray(found.residuals) > 1e-12).any()


def _pairs_of(n):
    return lambda key: eigenpairs(
        lambda v: v * jnp.linspace(0.0, 1.0, n) ** 8, n, 3, key, dtype=jnp.float64, basis=9
    )


def test_a_restart_goes_over_the_basis_in_pieces(monkeypatch):
    whole = _pairs_of(50)(jax.random.key(0))
    monkeypatch.setattr("optikit.linalg.eigenpairs.COLUMNS", 7)  # and the last overlaps
    pieces = _pairs_of(50)(jax.random.key(0))
    assert int(pieces.products) > 2 * 9  # there were restarts
    np.testing.assert_allclose(pieces.values, whole.values, rtol=1e-12)
    np.testing.assert_allclose(pieces.vectors, whole.vectors, atol=1e-9)


def test_pairs_take_the_memory_of_their_basis():
    n = 400_000
    program = jax.jit(_pairs_of(n)).lower(jax.random.key(0)).compile().memory_analysis()
    assert program.temp_size_in_bytes < (9 + 7) * 8 * n


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": N + 1}, {"block": 0}, {"k": 4, "basis": 5}])
def test_pairs_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match="give"):
        eigenpairs(
            lambda v: v, N, **{"k": 2, "key": jax.random.key(0), "dtype": jnp.float64, **bad}
        )


def test_units_change_no_density():
    a = jnp.asarray(symmetric(SPECTRA["clustered"]), jnp.float32)
    for unit in (2.0**-100, 2.0**100):
        one, other = (
            lanczos_quadrature(
                lambda v, u=u: (a @ v) * jnp.float32(u), jnp.zeros(N, a.dtype), jax.random.key(0),
                num_probes=1, num_products=8,
            )
            for u in (1.0, unit)
        )  # fmt: skip
        np.testing.assert_allclose(other.nodes / np.float32(unit), one.nodes, atol=50 * 1e-4)
        np.testing.assert_allclose(other.weights, one.weights, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_the_quadrature_has_the_moments_of_its_vectors(name):
    values = SPECTRA[name]
    a = jnp.asarray(symmetric(values))
    key, probes, k = jax.random.key(3), 3, 12
    found = lanczos_quadrature(
        lambda v: a @ v, jnp.zeros(N), key, num_probes=probes, num_products=k
    )
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    for row, one in enumerate(jax.random.split(key, probes)):
        z = signs(one, jnp.zeros(N)) / N**0.5
        power = z
        for degree in range(2 * k):  # exact up to degree 2 k - 1
            moment = float(z @ power)
            got = float(jnp.sum(found.weights[row] * found.nodes[row] ** degree))
            scale = abs(values).max() ** degree
            assert abs(got - moment) <= 1e-10 * max(scale, 1e-300), (degree, got, moment)
            power = a @ power


ESTIMATORS = {
    "xtrace": lambda product, key, m: xtrace(product, N, key, dtype=jnp.float64, num_products=m),
    "xnystrace": lambda product, key, m: xnystrace(
        product, N, key, dtype=jnp.float64, num_products=m
    ),
    "xdiagonal": lambda product, key, m: xdiagonal(
        product, N, key, dtype=jnp.float64, num_products=m
    ),
    "hutchinson": lambda product, key, m: hutchinson(product, jnp.zeros(N), key, num_products=m),
    "hutchinson_trace": lambda product, key, m: hutchinson_trace(
        product, jnp.zeros(N), key, num_products=m
    ),
}
SEEDS = 1000


@pytest.mark.parametrize("name", ["clustered", "decaying"])
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_estimates_are_unbiased_and_know_their_error(estimator, name):
    """z-scores over 1,000 seeds: of the mean (unbiased), and of each estimate by its own error."""
    values = abs(SPECTRA[name]) if estimator == "xnystrace" else SPECTRA[name]
    a = symmetric(values)
    truth = np.diag(a) if estimator in ("xdiagonal", "hutchinson") else np.sum(values)
    m = 20
    keys = jax.random.split(jax.random.key(4), SEEDS)
    run = jax.jit(
        lambda a, keys: jax.vmap(lambda key: ESTIMATORS[estimator](lambda v: a @ v, key, m))(keys)
    )
    found = run(jnp.asarray(a), keys)
    errors = np.asarray(found.value) - truth
    real = errors.std(axis=0)
    bias = errors.mean(axis=0) / (real / SEEDS**0.5)
    # 61 of 1e5 normal z-scores are beyond 4
    assert np.abs(bias).max() < 4, bias
    # the mean of squared standard errors is the variance, or more: left-out estimates share vectors
    claimed = np.sqrt(np.mean(np.asarray(found.error) ** 2, axis=0))
    assert ((claimed > 0.85 * real) & (claimed < 2 * real)).mean() > 0.9, claimed / real


def test_left_out_vectors_beat_plain_means_where_eigenvalues_decay():
    a = jnp.asarray(symmetric(SPECTRA["decaying"]))
    keys = jax.random.split(jax.random.key(5), 100)

    def error(by):
        one = lambda k: ESTIMATORS[by](lambda v: a @ v, k, 40)  # noqa: E731
        found = jax.jit(jax.vmap(one))(keys)
        return float(jnp.sqrt(jnp.mean((found.value - jnp.trace(a)) ** 2)))

    assert error("xtrace") < error("hutchinson_trace") / 50


@pytest.mark.parametrize("values", [0.7 ** np.arange(N), 1 / (1 + np.arange(N)) ** 2])
def test_a_semidefinite_operator_that_decays_is_seen_better(values):
    a = jnp.asarray(symmetric(values))
    keys = jax.random.split(jax.random.key(5), 300)

    def error(by, m):
        found = jax.vmap(lambda key: ESTIMATORS[by](lambda v: a @ v, key, m))(keys)
        return float(jnp.sqrt(jnp.mean((found.value - jnp.trace(a)) ** 2)))

    for m in (10, 20):
        assert error("xnystrace", m) < error("xtrace", m)


def test_a_semidefinite_trace_is_exact_on_low_rank_and_warns_of_the_indefinite(dtype):
    eps = float(jnp.finfo(dtype).eps)

    def found(values, m, unit=1.0):
        a = jnp.asarray(symmetric(np.asarray(values) * unit), dtype)
        return xnystrace(lambda v: a @ v, N, jax.random.key(1), dtype=a.dtype, num_products=m)

    low = np.concatenate([[3.0, 2.0, 1.0], np.zeros(N - 3)])
    for m, unit in ((5, 1.0), (20, 1.0), (5, 1e-30)):  # squares of the last vanish in float32
        exact = found(low, m, unit)
        # rounding, by the condition of five random vectors in three dimensions
        assert abs(float(exact.value) / unit - 6) < 5000 * eps
        assert float(exact.error) < 5000 * eps * unit
    assert float(found(np.zeros(N), 4).value) == 0
    whole = found(np.arange(N), N)
    assert float(whole.value) == pytest.approx(N * (N - 1) / 2, rel=100 * eps)
    assert float(whole.error) == 0
    assert np.isinf(found(SPECTRA["low-rank"], 8).error)
    assert np.isnan(found(np.full(N, np.nan), 8).value)


def test_traces_of_tiny_operators_are_theirs_in_single_precision():
    """Sizes whose squares vanish: 1e-30 in float32, whose smallest number is 1e-38."""
    a = jnp.asarray(symmetric(SPECTRA["decaying"]), jnp.float32)
    for by in (xtrace, xdiagonal):
        one, tiny = (
            by(lambda v, u=u: (a @ v) * u, N, jax.random.key(0), dtype=a.dtype, num_products=20)
            for u in (jnp.float32(1), jnp.float32(2.0**-100))
        )
        np.testing.assert_allclose(tiny.value * 2.0**100, one.value, rtol=1e-4)
        np.testing.assert_allclose(tiny.error * 2.0**100, one.error, rtol=1e-2)


def test_enough_products_leave_no_error():
    a = jnp.asarray(symmetric(SPECTRA["clustered"][:9]))
    product = lambda v: a @ v  # noqa: E731
    found = xtrace(product, 9, jax.random.key(0), dtype=a.dtype, num_products=18)
    np.testing.assert_allclose(found.value, jnp.trace(a), rtol=1e-13)
    found = xdiagonal(product, 9, jax.random.key(0), dtype=a.dtype, num_products=18)
    np.testing.assert_allclose(found.value, jnp.diagonal(a), rtol=1e-12)
    low = jnp.asarray(symmetric(SPECTRA["low-rank"]))
    found = xtrace(lambda v: low @ v, N, jax.random.key(0), dtype=a.dtype, num_products=12)
    assert abs(float(found.value) - 2.0) < 1e-8  # of rank 3, seen whole by 5 vectors


# --- of objectives -------------------------------------------------------------------------------


def net(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


def bowl(x, data):
    return jnp.sum(x**2) * jnp.mean(data**2)


def problem(dtype=jnp.float64, rows=40):
    keys = jax.random.split(jax.random.key(7), 5)
    params = {
        "w": jax.random.normal(keys[0], (6, 12), dtype) / 2,
        "b": jnp.zeros(12, dtype),
        "v": jax.random.normal(keys[1], (12, 3), dtype) / 2,
    }
    x = jax.random.normal(keys[2], (rows, 6), dtype)
    y = jax.random.randint(keys[3], (rows,), 0, 3)
    return (
        ok.composite(net, ok.losses.softmax_cross_entropy, penalty=ok.losses.l2(1e-3)),
        params,
        (x, y),
    )


@pytest.fixture(scope="module")
def small():
    objective, params, args = problem()
    return objective, params, args, ok.hessian(objective, params, args).dense()


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_a_spectrum_by_products_is_that_of_the_matrix(small, kind):
    objective, params, args, _ = small
    exact = ok.spectrum(objective, params, args, curvature=kind, k=3)
    found = ok.spectrum(objective, params, args, curvature=kind, k=3, dense=False, num_probes=30)
    assert exact.exact
    assert not found.exact
    off = jnp.abs(exact.largest - found.largest)
    assert bool(jnp.all(off <= found.largest_errors + 1e-10))
    # of an eigenvalue as multiple as a singular matrix's zero, one vector need not find every copy
    off = jnp.min(jnp.abs(found.smallest[:, None] - exact.nodes), axis=1)
    assert bool(jnp.all(off <= found.smallest_errors + 1e-10))
    assert float(found.smallest[0] - exact.smallest[0]) <= float(found.smallest_errors[0]) + 1e-10
    for name in ("trace", "frobenius"):
        value, error = getattr(found, name)
        # 30 probes: a t-distribution of 29 degrees; 1 in 10,000 is beyond 4.5
        assert abs(float(value - getattr(exact, name)[0])) < 4.5 * float(error), name
    value, error = found.effective_dimension(0.1)
    assert abs(float(value - exact.effective_dimension(0.1)[0])) < 4.5 * float(error)
    shown = found.density()
    total = np.trapezoid(shown.mean, shown.points)
    assert total == pytest.approx(1, abs=1e-3)  # the grid's own error
    assert (shown.low <= shown.mean).all()
    assert "probes" in str(found)
    assert "all eigenvalues" in str(exact)


def test_batches_blocks_and_scalings_are_those_of_the_matrix(small):
    objective, params, args, matrix = small
    whole = ok.eigenpairs(objective, params, args, k=3)
    weights = np.linalg.eigvalsh(matrix)
    top = weights[np.argsort(-abs(weights))][:3]
    np.testing.assert_allclose(whole.values, top, rtol=1e-7)
    parts = ok.eigenpairs(objective, params, args, k=3, batch_size=16)  # 16 + 16 + 8
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-10)
    assert int(parts.counts.grad) == int(parts.counts.hvp)
    weighted = (*args, jnp.linspace(0.0, 2.0, 40))
    np.testing.assert_allclose(
        ok.eigenpairs(objective, params, weighted, k=2, batch_size=16).values,
        ok.eigenpairs(objective, params, weighted, k=2).values,
        rtol=1e-9,
    )
    # leaves come in the order b, v, w
    block = ok.spectrum(objective, params, args, leaves="['v']", k=36)
    np.testing.assert_allclose(
        block.largest[::-1], np.linalg.eigvalsh(matrix[12:48, 12:48]), atol=1e-12
    )
    scaling = jax.tree.map(lambda p: 0.5 + p**2, params)
    s = np.sqrt(np.asarray(jax.flatten_util.ravel_pytree(scaling)[0]))
    scaled = ok.spectrum(objective, params, args, scaling=scaling, k=120)
    np.testing.assert_allclose(
        scaled.largest[::-1], np.linalg.eigvalsh(s[:, None] * np.asarray(matrix) * s), atol=1e-12
    )


def test_traces_and_diagonals_of_an_objective(small):
    objective, params, args, matrix = small
    found = ok.trace(objective, params, args, rtol=0.05)
    assert float(found.error) <= 0.05 * abs(float(found.value))
    assert abs(float(found.value) - float(jnp.trace(matrix))) < 5 * float(found.error)
    assert int(found.counts.hvp) >= 32
    diagonal = ok.diagonal(objective, params, args, num_products=400)  # 2 n: exact
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(diagonal.value)[0], jnp.diagonal(matrix), atol=1e-12
    )
    # semidefinite by construction: as many test vectors as products, and the error holds
    bare = objective._replace(penalty=None)
    for kind in ("ggn", "fisher", "empirical-fisher"):
        whole = ok.spectrum(bare, params, args, curvature=kind).trace[0]
        found = ok.trace(bare, params, args, curvature=kind, num_products=24)
        named = ok.trace(bare, params, args, curvature=kind, num_products=24, method="xnystrace")
        assert float(found.value) == float(named.value)
        assert abs(float(found.value - whole)) < 5 * float(found.error)
    with pytest.raises(ValueError, match="unknown method 'xnystrace' for the diagonal"):
        ok.diagonal(objective, params, args, method="xnystrace")
    operator = ok.hessian(objective, params, args)
    np.testing.assert_allclose(
        ok.trace(operator, params).value, ok.trace(objective, params, args).value, rtol=1e-10
    )


def test_summaries_of_a_singular_matrix_and_of_any_unit():
    for unit in (1.0, 1e-30, 1e30):  # in single precision, whose squares are not numbers
        seen = ok.spectrum(
            lambda x, u: u * (x[0] ** 2 / 2 + 3 * x[1] ** 2 + 0 * x[2]),
            jnp.zeros(3, jnp.float32), (jnp.float32(unit),),
        )  # fmt: skip
        assert float(seen.frobenius[0]) == pytest.approx(37**0.5 * unit, rel=1e-5)
        # no ridge: the rank
        assert [float(x) for x in seen.effective_dimension(0.0)] == [2.0, 0.0]
        drawn = seen.density()
        assert drawn.points[0] < 0 < 6 * unit < drawn.points[-1] < 7 * unit


def test_a_small_matrix_by_products_and_a_single_probe():
    for n in (1, 3):
        seen = ok.spectrum(bowl, jnp.ones(n), (jnp.ones(2),), dense=False, num_probes=1)
        assert float(seen.largest[0]) == pytest.approx(2)
        # one probe knows nothing of its error, nor of what it missed
        assert np.isnan(seen.trace[1])
    assert np.isnan(ok.spectrum(bowl, jnp.ones(9), (jnp.ones(2),), dense=False, k=0,
                                num_probes=1).largest_errors[0])  # fmt: skip


def test_the_diagonal_of_the_identity_does_not_claim_to_be_known():
    def found(key):
        return xdiagonal(lambda v: v, 24, key, dtype=jnp.float64, num_products=6)

    seen = jax.vmap(found)(jax.random.split(jax.random.key(0), 200))
    real = float(jnp.sqrt(jnp.mean((seen.value - 1) ** 2)))
    claimed = float(jnp.sqrt(jnp.mean(seen.error**2)))
    # three vectors share much: half of it; of two vectors there would be nothing
    assert real / 2.5 < claimed < real * 1.5
    with pytest.raises(ValueError, match="6 products"):
        xdiagonal(lambda v: v, 24, jax.random.key(0), dtype=jnp.float64, num_products=4)


def test_instruments_work_under_jit_and_vmap(small):
    objective, params, args, _ = small
    here = ok.spectrum(objective, params, args, k=2, dense=False, num_probes=2, num_products=8)
    scaled = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)

    @jax.jit
    def both(stack):
        return jax.vmap(
            lambda p: ok.spectrum(
                objective, p, args, k=2, dense=False, num_probes=2, num_products=8
            )
        )(stack)

    found = both(scaled)
    np.testing.assert_allclose(found.nodes[0], here.nodes, rtol=1e-6, atol=1e-9)
    assert found.largest.shape == (2, 2)
    with pytest.raises(ValueError, match="num_products"):
        jax.jit(lambda p: ok.trace(objective, p, args, rtol=0.1).value)(params)


def test_a_function_that_is_not_finite_gives_nan_and_no_trip_around_the_world():
    found = ok.eigenpairs(lambda x: jnp.sum(jnp.sqrt(x)), -jnp.ones(50), k=2)
    assert not found.converged
    assert not np.isfinite(np.asarray(found.values)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda o, p, a: ok.spectrum(o, p, a, leaves="*nothing*"), r"\['w'\]"),
        (lambda o, p, a: ok.trace(o, p, a, num_products=2), "4 products"),
        (lambda o, p, a: ok.trace(ok.hessian(o, p, a), p, batch_size=4), "operator"),
        (lambda o, p, a: ok.trace(bowl, p["b"], (a[0],), batch_size=7), "do not divide"),
        (lambda o, p, a: ok.diagonal(o, p, a, method="guess"), "xtrace"),
        (lambda o, p, a: ok.eigenpairs(o, p, a, which="top"), "'largest'"),
        (lambda o, p, a: ok.trace(o, p, a, batch_size=0), "1 or more"),
        (lambda o, p, a: ok.trace(o, p, a, num_products=0, method="hutchinson"), "1 products"),
        (lambda o, p, a: ok.spectrum(o, p, a, num_probes=0, dense=False), "1 or more"),
    ],
)
def test_wrong_calls_are_refused_with_the_remedy(small, call, said):
    objective, params, args, _ = small
    with pytest.raises(ValueError, match=said):
        call(objective, params, args)


def test_half_precision_is_refused_where_matrices_are_factorised():
    x = jnp.zeros(30, jnp.bfloat16)
    for call in (ok.spectrum, ok.eigenpairs, ok.trace, ok.certify):
        with pytest.raises(TypeError, match="float32"):
            call(lambda x: jnp.sum(x**2), x)
    assert float(ok.trace(lambda x: jnp.sum(x**2), x, method="hutchinson").value) == 60
