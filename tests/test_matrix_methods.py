"""Preconditioners of matrices against their dense definitions in float64, and what they share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import optikit as ok
from optikit.calculus import Eval, bind
from optikit.linalg.roots import inverse_root, orthogonalize
from optikit.optimizers import (
    adahessian,
    averaged,
    muon,
    named,
    psgd_kron,
    shampoo,
    soap,
    sophia,
)
from optikit.optimizers.adahessian import hutchinson
from optikit.optimizers.buckets import layout
from optikit.optimizers.protocol import folded

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def linear(params, grads):
    """A function whose gradient is its data, so that any gradients can be fed to a method."""
    return sum(jnp.vdot(p, g) for p, g in zip(*map(jax.tree.leaves, (params, grads)), strict=True))


def fed(method, params, grads):
    """(params after each step, state at the end) of a method that sees these gradients in turn."""
    method = folded(method)

    def evaluated(p, g):
        oracle = bind(ok.black_box(linear), (g,), fixed=False)
        return oracle, oracle.value_and_grad(p)

    @jax.jit
    def run(p, stacked):
        state = method.init(evaluated(p, jax.tree.map(lambda g: g[0], stacked))[1])

        def step(carry, item):
            p, state = carry
            k, g = item
            oracle, at = evaluated(p, g)
            p, _, state, info = method.step(oracle, at, state, jax.random.fold_in(KEY, k))
            return (p, state), (p, info)

        length = jax.tree.leaves(stacked)[0].shape[0]
        (_, state), (path, infos) = jax.lax.scan(
            step, (p, state), (jnp.arange(length, dtype=jnp.uint32), stacked)
        )
        return path, state, infos

    return run(params, grads)


def directions(method, grads, learning_rate):
    """Of a method with this rate, fed gradients of one matrix: -(x_k+1 - x_k) / rate."""
    start = jnp.zeros_like(grads[0])
    path = fed(method, start, grads)[0]
    return -np.diff(np.concatenate([start[None], path]), axis=0) / learning_rate


def gradients(steps, *shape):
    return jnp.asarray(RNG.normal(size=(steps, *shape)))


def power(matrix, exponent):
    return np.real(scipy.linalg.fractional_matrix_power(matrix, exponent))


# --- roots and orthogonal factors ----------------------------------------------------------------


@pytest.mark.parametrize("root", [1, 2, 4])
def test_inverse_roots_both_ways(root):
    x = RNG.normal(size=(2, 5, 7))
    spd = x @ np.swapaxes(x, 1, 2)
    for method in ("eigh", "newton"):
        found = inverse_root(jnp.asarray(spd), root, ridge=0.0, method=method)
        for a, r in zip(spd, found, strict=True):
            # condition numbers are near 100, so 1e-10 leaves room for 1e4 roundings
            np.testing.assert_allclose(r, power(a, -1 / root), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["eigh", "newton"])
def test_inverse_roots_where_there_is_none(method):
    rank_one = np.outer([1.0, 2.0], [1.0, 2.0])
    stack = jnp.asarray([rank_one, np.zeros((2, 2)), np.full((2, 2), np.nan), np.eye(2) * 1e-30])
    found = inverse_root(stack, 2, ridge=1e-4, method=method)
    # with a ridge relative to the largest eigenvalue 5 (or its bound, the norm)
    np.testing.assert_allclose(found[0], power(rank_one + 5e-4 * np.eye(2), -0.5), rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.eye(2))
    assert np.all(np.isnan(found[2]))
    np.testing.assert_allclose(found[3], np.eye(2) * (1.0001e-30) ** -0.5, rtol=1e-6)


def test_orthogonal_factors():
    x = RNG.normal(size=(3, 5, 9))
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    exact = orthogonalize(jnp.asarray(x), steps=10, coefficients="polar-express")
    # the last quintic's error is cubed at each turn beyond the eighth: float64's end
    np.testing.assert_allclose(exact, u @ vt, atol=1e-12)
    quick = np.asarray(orthogonalize(jnp.asarray(np.swapaxes(x, 1, 2))))
    inside = np.swapaxes(u, 1, 2) @ np.swapaxes(quick, 1, 2) @ np.swapaxes(vt, 1, 2)
    values = np.diagonal(inside, axis1=1, axis2=2)
    np.testing.assert_allclose(inside, values[:, :, None] * np.eye(5), atol=1e-12)
    assert np.all((values > 0.67) & (values < 1.14))
    np.testing.assert_array_equal(orthogonalize(jnp.zeros((2, 3))), 0)
    low = orthogonalize(jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert np.all(np.linalg.svd(np.asarray(low, np.float64))[1] < 1.25)


@pytest.mark.parametrize("turns", [5, 8])
def test_polar_express_lifts_small_singular_values(turns):
    sizes = np.geomspace(1e-3, 1, 50)
    found = np.diagonal(
        orthogonalize(jnp.diag(jnp.asarray(sizes)), steps=turns, coefficients="polar-express")
    )
    # in these units the smallest is 1e-3 / |sizes|: five turns bring it over 0.2, eight to 1
    assert np.all(np.abs(found - 1) < {5: 0.8, 8: 1e-2}[turns])


def test_wrong_arguments_of_roots():
    with pytest.raises(ValueError, match="method must be"):
        inverse_root(jnp.eye(2), 2, method="qr")
    with pytest.raises(ValueError, match="positive integer powers"):
        inverse_root(jnp.eye(2), 1.5, method="newton")
    with pytest.raises(ValueError, match="as many triples"):
        orthogonalize(jnp.eye(2), steps=3, coefficients=((1.5, -0.5, 0.0),))
    with pytest.raises(ValueError, match="coefficients must be"):
        orthogonalize(jnp.eye(2), coefficients="cubic")


# --- leaves as matrices --------------------------------------------------------------------------

TREE = {
    "conv": jnp.asarray(RNG.normal(size=(3, 3, 4, 5))),
    "heads": jnp.asarray(RNG.normal(size=(6, 2, 3))),
    "layers": jnp.asarray(RNG.normal(size=(2, 6, 6))),
    "embed": jnp.asarray(RNG.normal(size=(9, 4))),
    "column": jnp.asarray(RNG.normal(size=(7, 1))),
    "bias": jnp.asarray(RNG.normal(size=5)),
    "scale": jnp.asarray(1.5),
}
ORDER = sorted(TREE)


def test_leaves_become_matrices():
    cut = layout(TREE, stacked=("layers",), apart=("emb*",))
    assert cut.shapes == ((1, 36, 5), (3, 6, 6))  # (6, 2, 3) merged, with the two layers
    assert [ORDER[i] for i in cut.rest] == ["bias", "column", "embed", "scale"]
    np.testing.assert_array_equal(cut.gather(TREE)[1][0], TREE["heads"].reshape(6, 6))
    np.testing.assert_array_equal(cut.gather(TREE)[1][1:], TREE["layers"])
    assert layout({"w": jnp.zeros((9, 8))}, largest=7).rest == (0,)
    assert layout({"w": jnp.zeros((9, 7))}, largest=7).rest == ()


@pytest.mark.parametrize("options", [{}, {"block": 4}, {"block": 5, "stacked": ("layers",)},
                                     {"block": 7, "bucketed": False}])  # fmt: skip
def test_scatter_undoes_gather(options):
    cut = layout(TREE, **options)
    again = cut.scatter(TREE, cut.gather(TREE), cut.others(TREE))
    jax.tree.map(np.testing.assert_array_equal, again, TREE)
    if "block" in options:
        assert max(max(s[1:]) for s in cut.shapes) <= options["block"]
    if options.get("bucketed", True):
        assert len({s[1:] for s in cut.shapes}) == len(cut.shapes)


MATRIX = {
    "shampoo": shampoo(0.1, precondition_every=2),
    "kl": shampoo(0.1, variant="kl", precondition_every=2),
    "soap": soap(0.1, precondition_every=2),
    "psgd-kron": psgd_kron(0.1),
    "muon": muon(0.1),
}
APART = {
    "shampoo": shampoo(0.1, precondition_every=2, bucketed=False),
    "kl": shampoo(0.1, variant="kl", precondition_every=2, bucketed=False),
    "soap": soap(0.1, precondition_every=2, bucketed=False),
    "muon": muon(0.1, bucketed=False),
}
PAIR = {"a": gradients(5, 3, 4), "b": gradients(5, 4), "c": gradients(5, 3, 4)}


@pytest.mark.parametrize("name", sorted(APART))  # PSGD's noise is drawn for a whole bucket
def test_buckets_change_nothing(name):
    start = jax.tree.map(lambda g: g[0], PAIR)
    together, apart = (fed(m[name], start, PAIR)[0] for m in (MATRIX, APART))
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_bfloat16_parameters_have_float32_state(name):
    low = jax.tree.map(lambda g: g.astype(jnp.bfloat16), PAIR)
    start = jax.tree.map(lambda g: g[0], low)
    path, state, infos = fed(MATRIX[name], start, low)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(path))
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats
    assert all(x.dtype == jnp.float32 for x in floats)
    assert np.all(np.isfinite(np.asarray(infos.step_norm, float)))
    # the same from float32 parameters and gradients: but for the rounding of positions, equal
    wide = fed(
        MATRIX[name], *(jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (start, low))
    )
    for x, y in zip(jax.tree.leaves(path), jax.tree.leaves(wide[0]), strict=True):
        # five roundings to 8 bits of entries up to 4
        np.testing.assert_allclose(np.asarray(x, float), y, atol=5 * 4 * 2**-8)


# --- each against its dense definition -----------------------------------------------------------


def adam_direction(seen, b1, b2, eps=1e-8):
    first = sum((1 - b1) * b1 ** (len(seen) - 1 - i) * g for i, g in enumerate(seen))
    second = sum((1 - b2) * b2 ** (len(seen) - 1 - i) * g**2 for i, g in enumerate(seen))
    t = len(seen)
    return first / (1 - b1**t), first / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + eps)


@pytest.mark.parametrize("root", ["eigh", "newton"])
def test_shampoo_is_the_root_of_a_kronecker_product(root):
    b1, b2, every = 0.9, 0.95, 4
    grads = gradients(7, 3, 4)
    method = shampoo(0.1, b1=b1, b2=b2, precondition_every=every, ridge=1e-9, root=root)
    found = directions(method, grads, 0.1)
    left = right = 0.0
    kept = None
    for k, g in enumerate(np.asarray(grads)):
        if k % every == 0 and k:
            kept = np.kron(left, right)
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        averaged, adams = adam_direction(np.asarray(grads)[: k + 1], b1, b2)
        expected = adams
        if kept is not None:
            expected = (power(kept, -0.25) @ averaged.ravel()).reshape(g.shape)
            expected *= np.linalg.norm(adams) / np.linalg.norm(expected)
        # the ridge of 1e-9, through a fourth root of condition 1e3, and the rounding of sums
        np.testing.assert_allclose(found[k], expected, rtol=1e-5, atol=1e-6)


def test_shampoo_treats_blocks_as_matrices_of_their_own():
    grads = gradients(5, 4, 3)
    whole = directions(shampoo(0.1, precondition_every=2, block=2), grads, 0.1)
    parts = {
        "a": grads[:, :2, :2],
        "b": grads[:, :2, 2:],
        "c": grads[:, 2:, :2],
        "d": grads[:, 2:, 2:],
    }
    start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), parts)
    path = fed(shampoo(0.1, precondition_every=2, block=2), start, parts)[0]
    # a column of a matrix is one to a block of it and an elementwise leaf by itself
    for name in ("a", "c"):
        rows = slice(0, 2) if name == "a" else slice(2, 4)
        mine = -np.diff(np.concatenate([start[name][None], path[name]]), axis=0) / 0.1
        np.testing.assert_allclose(whole[:, rows, :2], mine, rtol=1e-9, atol=1e-9)


def test_kl_shampoo_whitens_a_gradient_that_stays():
    """Where L = G R^-1 G^T / n and R = G^T L^-1 G / m, the direction D has D D^T = n I."""
    g = gradients(1, 3, 3)
    method = shampoo(0.1, variant="kl", b1=0.0, b2=0.5, precondition_every=1, ridge=0.0)
    d = directions(method, jnp.repeat(g, 60, axis=0), 0.1)[-1]
    np.testing.assert_allclose(d @ d.T, 3 * np.eye(3), atol=1e-6)


def test_kl_shampoo_one_step_of_its_statistics():
    grads = gradients(2, 2, 3)
    method = shampoo(0.1, variant="kl", b1=0.0, b2=0.5, precondition_every=1, ridge=0.0)
    state = fed(method, jnp.zeros((2, 3)), grads)[1].inner.buckets[0]
    size = float(np.sqrt(np.mean(np.asarray(grads[0]) ** 2)))
    left, right = size * np.eye(2), size * np.eye(3)
    for g in np.asarray(grads):
        new_left = 0.5 * left + 0.5 * g @ np.linalg.inv(right) @ g.T / 3
        right = 0.5 * right + 0.5 * g.T @ np.linalg.inv(left) @ g / 2
        left = new_left
    np.testing.assert_allclose(state.left[0], left, rtol=1e-10)
    np.testing.assert_allclose(state.right[0], right, rtol=1e-10)


@pytest.mark.parametrize("refresh_by", ["qr", "eigh"])
def test_soap_is_adam_in_a_basis_that_stays(refresh_by):
    """Gradients with common singular vectors U, V: their coordinates go through Adam."""
    u, v = (np.linalg.qr(RNG.normal(size=(n, n)))[0] for n in (3, 4))
    sizes = np.array([3.0, 2.0, 1.0]) * RNG.uniform(0.8, 1.2, size=(7, 3))
    inner = np.zeros((7, 3, 4))
    inner[:, np.arange(3), np.arange(3)] = sizes
    method = soap(0.1, precondition_every=1, refresh_by=refresh_by)
    found = directions(method, jnp.asarray(u @ inner @ v.T), 0.1)
    np.testing.assert_array_equal(found[0], 0)  # the first gradient only sets the basis
    for k in range(1, 7):
        expected = adam_direction(inner[1 : k + 1], 0.95, 0.95)[1]
        np.testing.assert_allclose(u.T @ found[k] @ v, expected, atol=1e-6)


def test_soap_step_by_step():
    """The published algorithm in numpy: eigenvectors first, then QR power iterations, sorted."""
    b, every, steps = 0.95, 3, 9
    grads = np.asarray(gradients(steps, 3, 4))
    found = directions(soap(0.1, precondition_every=every), jnp.asarray(grads), 0.1)
    left, right = (1 - b) * grads[0] @ grads[0].T, (1 - b) * grads[0].T @ grads[0]
    ql, qr = (np.linalg.eigh(m)[1][:, ::-1] for m in (left, right))
    first, second = np.zeros((3, 4)), np.zeros((3, 4))
    for k in range(1, steps):
        if k % every == 0:
            order = np.argsort(-np.diag(ql.T @ left @ ql))
            ql, second = np.linalg.qr((left @ ql)[:, order])[0], second[order]
            order = np.argsort(-np.diag(qr.T @ right @ qr))
            qr, second = np.linalg.qr((right @ qr)[:, order])[0], second[:, order]
        g = grads[k]
        first = b * first + (1 - b) * g
        second = b * second + (1 - b) * (ql.T @ g @ qr) ** 2
        hats = (ql.T @ first @ qr) / (1 - b**k), second / (1 - b**k)
        expected = ql @ (hats[0] / (np.sqrt(hats[1]) + 1e-8)) @ qr.T
        np.testing.assert_allclose(found[k], expected, rtol=1e-6, atol=1e-8)
        left, right = b * left + (1 - b) * g @ g.T, b * right + (1 - b) * g.T @ g


def test_soap_leaves_a_large_side_alone():
    grads = gradients(4, 2, 5)
    state = fed(soap(0.1, largest=3), jnp.zeros((2, 5)), grads)[1].inner.buckets[0]
    assert state.right is None
    assert state.left.basis.shape == (1, 2, 2)
    np.testing.assert_allclose(state.left.basis[0] @ state.left.basis[0].T, np.eye(2), atol=1e-12)


def test_psgd_whitens_a_gradient_that_stays():
    """P g g^T P = I for both sides: with D = P_L G P_R, D D^T = n I and D^T D = m I."""
    g = gradients(1, 4, 4)
    method = psgd_kron(0.1, momentum=0.0, damping=0.0, clip=np.inf, precondition_every=1)
    path, state, _ = fed(method, jnp.zeros((4, 4)), jnp.repeat(g, 600, axis=0))
    d = -np.asarray(path[-1] - path[-2]) / 0.1
    np.testing.assert_allclose(d @ d.T, 4 * np.eye(4), atol=1e-6)
    for q in (state.buckets[0].left.q[0], state.buckets[0].right.q[0]):
        assert np.min(np.linalg.eigvalsh(q)) > 0


def test_psgd_whitens_random_gradients():
    """Of A Z B with Z white, second moments (A A^T) x (B^T B): P is their inverse square root."""
    a, b = np.eye(3) + np.triu(RNG.normal(size=(3, 3)), 1), np.diag([0.1, 1.0, 3.0, 10.0])
    grads = jnp.asarray(a @ RNG.normal(size=(3000, 3, 4)) @ b)
    method = psgd_kron(1e-3, momentum=0.0, preconditioner_rate=0.02, precondition_every=1)
    state = fed(method, jnp.zeros((3, 4)), grads)[1].buckets[0]
    pl, pr = (f.q[0] @ f.q[0] for f in (state.left, state.right))
    white = np.kron(pl @ a @ a.T @ pl, pr @ b.T @ b @ pr)
    # the last 1 / 0.02 samples weigh in: about 1 / sqrt(50 * 4) in each factor's eigenvalues
    assert np.max(np.abs(np.linalg.eigvalsh(white) - 1)) < 0.5
    np.testing.assert_allclose(np.trace(white) / 12, 1, atol=0.2)


def test_psgd_with_diagonal_factors_equilibrates_rows_and_columns():
    g = gradients(1, 3, 4)
    method = psgd_kron(0.1, momentum=0.0, damping=0.0, clip=np.inf, largest=3)
    path, state, _ = fed(method, jnp.zeros((3, 4)), jnp.repeat(g, 800, axis=0))
    assert [f.q.shape for f in state.buckets[0][1:3]] == [(1, 3, 3), (1, 4)]
    d = -np.asarray(path[-1] - path[-2]) / 0.1
    np.testing.assert_allclose(np.sum(d * d, axis=0), 3, rtol=1e-6)


@pytest.mark.parametrize("rms", [None, 0.2])
def test_muon_is_that_of_optax(rms):
    """Without Nesterov's look ahead, whose correction for the start is another there."""
    grads = {"w": gradients(4, 3, 5), "b": gradients(4, 5)}
    start = jax.tree.map(lambda g: g[0], grads)
    mine = fed(
        muon(0.02, nesterov=False, scale="rms" if rms else "spectral", adam_learning_rate=0.01,
             adam_b2=0.999, weight_decay=0.1), start, grads)[0]  # fmt: skip
    tx = optax.contrib.muon(0.02, nesterov=False, consistent_rms=rms, adam_learning_rate=0.01,
                            weight_decay=0.1, adam_weight_decay=0.1)  # fmt: skip
    theirs = fed(ok.from_optax(tx), start, grads)[0]
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)  # their eps in the norm is 1e-8


def test_muon_leaves_embeddings_and_heads_to_adam():
    names = [
        "wte",
        "tok_embed",
        "Embed_0/embedding",
        "lm_head",
        "logits",
        "heads/out",
        "proj/kernel",
    ]
    params = {n: jnp.ones((2, 3)) for n in names}
    at = Eval(params, jnp.asarray(1.0), params)
    state = muon().init(at)
    assert state.buckets[0].momentum.shape == (2, 2, 3)
    assert len(state.others) == 5


def test_muon_moves_every_direction_alike():
    g = gradients(1, 4, 3)
    d = directions(muon(0.1, coefficients="polar-express", steps=9, nesterov=False), g, 0.1)[0]
    np.testing.assert_allclose(np.linalg.svd(d)[1], 1, atol=1e-9)
    wide = directions(muon(0.1, coefficients="polar-express", steps=9), jnp.swapaxes(g, 1, 2), 0.1)[
        0
    ]
    np.testing.assert_allclose(np.linalg.svd(wide)[1], np.sqrt(4 / 3), atol=1e-9)


# --- diagonals -----------------------------------------------------------------------------------


def test_adahessian_knows_a_diagonal_hessian():
    h = jnp.asarray([1.0, -4.0, 1e4])
    objective = ok.black_box(lambda x: jnp.sum(h * x**2) / 2)
    oracle, x = bind(objective), jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(hutchinson(oracle, x, KEY), h, rtol=1e-14)
    method = folded(adahessian(0.1))
    at = oracle.value_and_grad(x)
    moved, _, _, info = method.step(oracle, at, method.init(at), KEY)
    np.testing.assert_allclose(moved, x - 0.1 * h * x / (np.abs(h) + 1e-4), rtol=1e-12)
    assert (int(info.counts.grad), int(info.counts.hvp)) == (1, 1)


def test_adahessian_averages_over_a_convolutions_window():
    h = jnp.asarray(RNG.uniform(1, 2, size=(2, 2, 3, 4)))
    objective = ok.black_box(lambda x: jnp.sum(h * x**2) / 2)
    x = jnp.ones_like(h)
    oracle, method = bind(objective), folded(adahessian(0.1, eps=0.0))
    at = oracle.value_and_grad(x)
    moved = method.step(oracle, at, method.init(at), KEY)[0]
    np.testing.assert_allclose(
        moved, x - 0.1 * h / jnp.mean(h, axis=(0, 1), keepdims=True), rtol=1e-12
    )


def test_hutchinson_and_the_fisher_sample_are_unbiased():
    """z-tests of the mean over 4000 keys, at 5 standard errors for each of 8 + 8 entries."""
    x = jnp.asarray(RNG.normal(size=(6, 4)))
    weights = jnp.asarray([1.0, 2.0, 0.0, 0.5, 1.0, 3.0])
    args = (x, jnp.asarray([0, 1, 1, 0, 1, 0]), weights)
    objective = ok.composite(lambda w, x: jnp.tanh(x) @ w, ok.losses.softmax_cross_entropy)
    w = jnp.asarray(RNG.normal(size=(4, 2)))
    oracle = bind(objective, args)
    keys = jax.random.split(KEY, 4000)
    samples = jax.jit(jax.vmap(lambda k: oracle.fisher_sample(w, k).ravel() ** 2))(keys)
    products = jax.jit(jax.vmap(lambda k: hutchinson(oracle, w, k).ravel()))(keys)
    for found, exact in (
        (samples, ok.fisher(objective, w, args)),
        (products, ok.hessian(objective, w, args)),
    ):
        error = np.std(found, axis=0) / np.sqrt(4000)
        assert np.all(np.abs(np.mean(found, axis=0) - np.diag(exact.dense())) < 5 * error + 1e-12)


def test_sophia_clips_and_adds_the_penaltys_curvature():
    data = (jnp.asarray([[1.0], [2.0]]), jnp.asarray([1.0, 0.0]))
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(0.5))
    w = jnp.asarray([0.3])
    oracle = bind(objective, data)
    at = oracle.value_and_grad(w)
    method = sophia(0.1, b1=0.0, b2=0.0, gamma=2.0)
    state, price = method.refresh[0].update(oracle, at, method.init(at), KEY)
    assert price.grad == 1
    h = oracle.fisher_sample(w, KEY) ** 2 + 0.5
    np.testing.assert_allclose(state.curvature[0], h, rtol=1e-12)
    moved, _, _, info = method.step(oracle, at, state, KEY)
    np.testing.assert_allclose(moved, w - 0.1 * np.clip(at.grad / (2 * h), -1, 1), rtol=1e-12)
    assert 0 <= float(info.extras["unclipped"]) <= 1
    hutch = sophia(0.1, variant="hutchinson", gamma=1e-9).refresh[0]
    assert hutch.update(oracle, at, method.init(at), KEY)[1].hvp == 1
    black = bind(ok.black_box(lambda w: jnp.sum(w**2)))
    assert method.refresh[0].update(black, at, method.init(at), KEY)[1].hvp == 1


# --- what they share -----------------------------------------------------------------------------


def test_schedules_decay_and_numbers_in_arrays():
    grads = gradients(6, 2, 3)
    schedule = optax.cosine_decay_schedule(0.1, 6)
    path, _, infos = fed(soap(schedule, weight_decay=0.3), jnp.ones((2, 3)), grads)
    rates = [float(schedule(k)) for k in range(6)]
    np.testing.assert_allclose(infos.extras["learning_rate"], rates, rtol=1e-6)
    np.testing.assert_allclose(
        path[0], 1 - 0.3 * rates[0], rtol=1e-6
    )  # SOAP's first step: decay alone
    swept = jax.vmap(lambda rate: fed(muon(rate), jnp.ones((2, 3)), grads)[0])(
        jnp.asarray([0.1, 0.2])
    )
    for rate, found in zip((0.1, 0.2), swept, strict=True):
        np.testing.assert_allclose(found, fed(muon(rate), jnp.ones((2, 3)), grads)[0], rtol=1e-9)


def test_an_average_is_read_out():
    grads = gradients(5, 2, 3)
    method = averaged(shampoo(0.1, precondition_every=2), 0.8)
    path, state, _ = fed(method, jnp.ones((2, 3)), grads)
    plain = fed(shampoo(0.1, precondition_every=2), jnp.ones((2, 3)), grads)[0]
    np.testing.assert_array_equal(path, plain)
    weights = 0.8 ** np.arange(4, -1, -1.0)
    expected = np.tensordot(weights / weights.sum(), plain, 1)
    np.testing.assert_allclose(folded(method).readout(path[-1], state), expected, rtol=1e-12)


def test_a_gradient_of_zeros_moves_nothing_and_is_no_nan():
    grads = {"w": jnp.zeros((4, 3, 3)), "b": jnp.zeros((4, 3))}
    start = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    for name, method in MATRIX.items():
        for leaf in jax.tree.leaves(fed(method, start, grads)[0]):
            np.testing.assert_array_equal(leaf, 1, err_msg=name)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: shampoo(variant="k"), ValueError, "variant must be"),
    (lambda: shampoo(graft="sgd"), ValueError, "graft must be"),
    (lambda: soap(precondition_every=0), ValueError, "positive integer"),
    (lambda: soap("0.1"), TypeError, "number or a schedule"),
    (lambda: soap(refresh_by="svd"), ValueError, "refresh_by must be"),
    (lambda: muon(scale="none"), ValueError, "scale must be"),
    (lambda: sophia(variant="gnb"), ValueError, "variant must be"),
    (lambda: adahessian(every=0), ValueError, "positive integer"),
    (lambda: named("psgd-cron"), ValueError, "did you mean 'psgd-kron'"),
])  # fmt: skip
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
