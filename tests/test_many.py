"""Many problems at once: the same answers as one by one, at the price of their work."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit import Status
from optikit.linalg.dense import newton_steps
from optikit.linalg.small import (
    solve_scaled,
    solve_upper,
    solve_upper_transposed,
    triangularize,
)
from optikit.solve import pool


def decay(p, t, y):
    return p["a"] * jnp.exp(-p["b"] * t) - y


def fits(size, seed=0):
    """Fits from starts near and far, the first of them NaN from the start."""
    rng = np.random.default_rng(seed)
    t = np.tile(np.linspace(0, 3, 25), (size, 1))
    a, b = rng.uniform(1, 4, (size, 1)), rng.uniform(0.3, 2, (size, 1))
    y = a * np.exp(-b * t) + 0.01 * rng.normal(size=t.shape)
    factor = np.exp(rng.uniform(-1.5, 1.5, (2, size)))
    start = {"a": jnp.asarray(a[:, 0] * factor[0]), "b": jnp.asarray(b[:, 0] * factor[1])}
    return start, (jnp.asarray(t), jnp.asarray(y).at[0, 0].set(jnp.nan))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 lanes and of 1, so that a small batch is refilled, cut and shrunk."""
    monkeypatch.setattr(pool, "CPU_BLOCK", (16, 2**22))
    monkeypatch.setattr(pool, "FEWEST_LANES", 1)
    monkeypatch.setattr(pool, "STRAGGLING", 4)


def pick(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def same_solution(together, alone, i, rtol):
    one = pick(together, i)
    assert int(one.status) == int(alone.status)
    assert int(one.steps) == int(alone.steps)
    assert jax.tree.map(int, one.counts) == jax.tree.map(int, alone.counts)
    for found, expected in zip(
        jax.tree.leaves((one.params, one.value, one.aux)),
        jax.tree.leaves((alone.params, alone.value, alone.aux)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-13)


@pytest.mark.usefixtures("small_blocks")
def test_fits_together_are_the_fits_one_by_one():
    start, args = fits(37)
    together = ok.least_squares_many(decay, start, args)
    assert together.method == "levenberg-marquardt"
    assert jax.tree.structure(together.params) == jax.tree.structure(start)
    assert together.status.shape == together.steps.shape == together.counts.value.shape == (37,)
    assert int(together.status[0]) == Status.NOT_FINITE
    assert bool(jnp.all(together.success[1:]))
    assert len(np.unique(np.asarray(together.steps))) > 3  # they end at different times
    for i in range(37):
        alone = ok.least_squares(decay, pick(start, i), args=pick(args, i))
        same_solution(together, alone, i, 1e-8)


def bowl(x, centre):
    value = jnp.sum(jnp.cosh(x - centre)) + jnp.sum((x - centre) ** 4)
    return value, {"first": x[0] - centre[0]}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["newton", "optax.sgd"])  # the second is not monotone
def test_any_method_serves_many(method):
    rng = np.random.default_rng(1)
    starts = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)
    centres = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)
    method = ok.optimizers.named(method, **({"learning_rate": 0.2} if "sgd" in method else {}))
    options = {"method": method, "has_aux": True, "max_steps": 30}
    together = ok.minimize_many(bowl, starts, (centres,), **options)
    assert together.params.dtype == together.value.dtype == jnp.float32
    for i in range(0, 20, 3):
        alone = ok.minimize(bowl, starts[i], args=(centres[i],), **options)
        one = pick(together, i)
        assert int(one.status) == int(alone.status)
        np.testing.assert_allclose(one.params, alone.params, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one.aux["first"], alone.aux["first"], atol=1e-4)


def test_a_budget_of_steps_is_kept_and_auto_chooses():
    start, args = fits(5)
    objective = ok.residuals(decay)
    cut = ok.minimize_many(objective, start, args, max_steps=1)
    assert cut.method == "levenberg-marquardt"
    assert cut.reason
    assert cut.steps.tolist() == [0, 1, 1, 1, 1]
    assert cut.status.tolist() == [Status.NOT_FINITE] + [Status.MAX_STEPS] * 4
    none = ok.minimize_many(objective, start, args, max_steps=0)
    np.testing.assert_array_equal(none.params["a"], start["a"])


def test_another_batch_of_the_same_bucket_traces_nothing():
    traced = collections.Counter()

    def counted(p, t, y):
        traced["times"] += 1
        return decay(p, t, y)

    ok.least_squares_many(counted, *fits(13))
    before = traced["times"]
    assert before > 0
    ok.least_squares_many(counted, *fits(13, seed=1), max_steps=50)
    ok.least_squares_many(counted, *fits(9))
    ok.least_squares_many(counted, *fits(16, seed=2))
    assert traced["times"] == before


def test_a_slow_lane_does_not_keep_the_others_at_work(monkeypatch):
    """The lane-steps executed are those of the lanes that run, not the slowest's times the batch."""
    executed = []

    class Counted(pool._Crew):
        def start(self, function, width, *args):
            if function is pool._advance:
                executed.append(width * int(args[3]))
            return super().start(function, width, *args)

    monkeypatch.setattr(pool, "_Crew", Counted)
    monkeypatch.setattr(pool, "STRAGGLING", 0)  # a narrower program is compiled at once
    lanes = 1024
    far = jnp.zeros((lanes, 2)).at[0].set(jnp.array([-1.2, 1.0]))
    steep = jnp.ones(lanes).at[0].set(1e6)  # the others start next to their minimum

    def valley(x, b):
        return (1 - x[0]) ** 2 + b * (x[1] - x[0] ** 2) ** 2

    sol = ok.minimize_many(valley, far, (steep,), method="lbfgs", tol=1e-6)
    assert bool(jnp.all(sol.success))
    slowest, work = int(sol.steps.max()), int(sol.steps.sum())
    assert slowest > 10 * int(jnp.median(sol.steps))
    narrowest = 2 * pool.FEWEST_LANES  # a block of fewer lanes takes as long
    assert sum(executed) <= 2 * work + narrowest * slowest
    assert sum(executed) < slowest * lanes / 8


def test_inside_a_jit_it_is_a_vmap():
    start, args = fits(4)
    outside = ok.least_squares_many(decay, start, args)
    inside = jax.jit(lambda p, a: ok.least_squares_many(decay, p, a))(start, args)
    assert inside.status.tolist() == outside.status.tolist()
    assert inside.steps.tolist() == outside.steps.tolist()
    np.testing.assert_allclose(inside.value[1:], outside.value[1:], rtol=1e-9)


# --- bounds, outliers, continuation --------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_bounds_of_each_problem_and_of_all():
    start, args = fits(21)
    start = jax.tree.map(lambda x: jnp.clip(x, 0.2, 2.5), start)
    upper = {"a": jnp.linspace(2.5, 4.0, 21), "b": 2.5}  # one for each, one for all
    options = {"robust": "soft_l1", "robust_scale": 0.05}
    together = ok.least_squares_many(decay, start, args, bounds=(0.1, upper), **options)
    assert int(together.status[0]) == Status.NOT_FINITE
    assert bool(jnp.all(together.success[1:]))
    assert bool(jnp.any(together.params["a"] == upper["a"]))
    for i in (1, 7, 20):
        bounds = (0.1, {"a": upper["a"][i], "b": 2.5})
        alone = ok.least_squares(
            decay, pick(start, i), args=pick(args, i), bounds=bounds, **options
        )  # fmt: skip
        same_solution(together, alone, i, 1e-8)
        assert float(together.grad_norm[i]) == pytest.approx(float(alone.grad_norm), abs=1e-8)
    mapped = jax.jit(
        lambda p, a: ok.least_squares_many(decay, p, a, bounds=(0.1, upper), **options)
    )(start, args)
    assert mapped.status.tolist() == together.status.tolist()
    outside = {**start, "a": start["a"].at[3].set(9.0)}
    with pytest.raises(ValueError, match=r"params\['a'\]\[3\] starts at 9.0, above its upper"):
        ok.least_squares_many(decay, outside, args, bounds=(0.1, upper))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["newton", "lbfgs", ok.optimizers.bounded_lbfgs(memory=3)])
def test_smooth_methods_in_boxes(method):
    rng = np.random.default_rng(5)
    starts, centres = jnp.zeros((18, 3)), jnp.asarray(rng.normal(size=(18, 3)))
    options = {"method": method, "bounds": (-0.5, 0.5), "has_aux": True}
    together = ok.minimize_many(bowl, starts, (centres,), **options)
    assert bool(jnp.all(together.success))
    np.testing.assert_allclose(together.params, jnp.clip(centres, -0.5, 0.5), atol=1e-6)
    traced = collections.Counter()

    def counted(x, c):
        traced["times"] += 1
        return bowl(x, c)

    ok.minimize_many(counted, starts, (centres,), **options)
    before = traced["times"]
    ok.minimize_many(counted, starts[:17], (centres[:17],), **{**options, "bounds": (-0.1, 0.7)})
    assert traced["times"] == before


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("method", ["levenberg-marquardt", "optax.sgd"])
def test_a_batch_goes_on_where_it_was_cut_off(method):
    start, args = fits(21)
    objective = ok.residuals(decay)
    if "sgd" in method:
        method = ok.optimizers.named(method, learning_rate=0.05)
    solve = functools.partial(ok.minimize_many, objective, start, args, method=method)
    whole = solve(max_steps=12)
    part = solve(max_steps=3)
    rest = solve(max_steps=12, state=part.state)
    # another composition of the blocks rounds otherwise
    same = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    jax.tree.map(same, (rest.params, rest.value), (whole.params, whole.value))
    same_books = (rest.status, rest.steps, rest.counts), (whole.status, whole.steps, whole.counts)
    jax.tree.map(np.testing.assert_array_equal, *same_books)
    alone = ok.minimize(
        objective, pick(start, 4), args=pick(args, 4), method=method, max_steps=12,
        state=pick(part.state, 4),
    )  # fmt: skip
    same_solution(whole, alone, 4, 1e-9)
    with pytest.raises(ValueError, match="state comes from method"):
        solve(max_steps=12, state=dataclasses.replace(part.state, remainder=dataclasses.replace(
            part.state.remainder, method="newton")))  # fmt: skip


def test_settings_of_the_calling_thread_hold_in_the_others(monkeypatch):
    """Blocks run on other threads, where this thread's context managers do not reach."""
    monkeypatch.setattr(pool, "CPU_BLOCK", (4, 2**22))
    monkeypatch.setattr(pool, "_cores", lambda: 3)
    with jax.enable_x64(False):
        start, args = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), "float32"), fits(13))
        sols = ok.least_squares_many(decay, start, args)
    assert sols.value.dtype == jnp.float32
    assert bool(jnp.all(sols.success[1:]))

    def broken(p, t, y):
        raise RuntimeError("from the model")

    with pytest.raises(RuntimeError, match="from the model"):
        ok.least_squares_many(broken, start, args)


def sphere(x, shift=0.0):
    return jnp.sum((x - shift) ** 2)


WRONG = {
    "disagree": (lambda: ok.minimize_many(sphere, {"w": jnp.ones((4, 2))}, (jnp.ones(3),)),
                 ValueError, r"params\['w'\] holds 4 problems, args\[0\] holds 3"),
    "no-axis": (lambda: ok.minimize_many(sphere, jnp.ones((4, 2)), (0.5,)),
                ValueError, r"args\[0\] has no leading axis.*jnp.broadcast_to"),
    "empty": (lambda: ok.minimize_many(sphere, jnp.ones((0, 2))), ValueError, "batch is empty"),
    "integer": (lambda: ok.minimize_many(sphere, jnp.ones((4, 2), int)), TypeError,
                "params is int64: parameters must be floating point"),
    "vector": (lambda: ok.minimize_many(lambda x: x**2, jnp.ones((4, 2))), TypeError,
               r"shape \(2,\): an objective must be a scalar"),
    "budget": (lambda: ok.minimize_many(sphere, jnp.ones((4, 2)), max_steps=-1), ValueError,
               "max_steps must not be negative"),
    "not-squares": (
        lambda: ok.least_squares_many(
            ok.composite(lambda w, x: x @ w, ok.losses.logistic), jnp.ones((2, 2))),
        TypeError, "least_squares_many needs a sum of squares"),
    "method": (lambda: ok.minimize_many(sphere, jnp.ones((4, 2)), method="newtn"), ValueError,
               "did you mean 'newton'"),
    "sampler": (lambda: ok.multi_start(sphere, jax.random.normal), ValueError, "count=None"),
    "no-starts": (lambda: ok.multi_start(sphere, jnp.ones((0, 2))), ValueError, "batch is empty"),
    "one-start": (lambda: ok.multi_start(sphere, {"a": 1.0}), ValueError, "a'] is a single number"),
    "unequal-starts": (lambda: ok.multi_start(sphere, [jnp.ones(2), jnp.ones(3)]), ValueError,
                       r"starts\[0\] holds 2, starts\[1\] holds 3"),
    "many-draws": (lambda: ok.multi_start(sphere, jax.random.normal, count=2.5), ValueError,
                   "count=2.5"),
    "needless-count": (lambda: ok.multi_start(sphere, jnp.ones((4, 2)), count=3), ValueError,
                       "leave it out"),
    "steps": (lambda: ok.multi_start(sphere, jnp.ones((4, 2)), max_steps=-1), ValueError,
              "must not be negative; got -1"),
    "distance": (lambda: ok.multi_start(sphere, jnp.ones((4, 2)), distance=-1.0), ValueError,
                 "must not be negative; got -1"),
    "bounded": (lambda: ok.multi_start(sphere, jnp.ones((4, 2)), method=ok.optimizers.bounded_lbfgs()),
                TypeError, "which multi_start does not take"),
    "jit": (lambda: jax.jit(lambda x: ok.multi_start(sphere, x).best.value)(jnp.ones((4, 2))),
            ValueError, "outside jit and vmap"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_call_raises_at_once(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("shape", [(60, 4), (3, 1), (8, 6)])
def test_small_systems_in_a_batch_are_lapacks(shape, dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, *shape)).astype(dtype)
    a[1] *= 1e-6
    a[2, :, -1] += 1e3 * a[2, :, 0]  # nearly dependent columns
    b = rng.normal(size=(5, shape[0])).astype(dtype)
    uppers, rotated = jax.jit(jax.vmap(triangularize))(jnp.asarray(a), jnp.asarray(b))
    solved = np.asarray(jax.vmap(solve_upper)(uppers, rotated), float)
    turned = np.asarray(jax.vmap(solve_upper_transposed)(uppers, rotated), float)
    eps = float(np.finfo(dtype).eps)
    for i in range(5):
        x, *_ = np.linalg.lstsq(a[i].astype(float), b[i].astype(float), rcond=None)
        singular = np.linalg.svd(a[i].astype(float), compute_uv=False)
        size, condition = singular[0], singular[0] / singular[-1]
        residual = np.linalg.norm(a[i] @ x - b[i]) / size
        bound = 100 * eps * condition * (np.linalg.norm(x) + condition * residual)
        assert np.linalg.norm(solved[i] - x) <= bound
        upper = np.asarray(uppers[i], float)
        gram = a[i].astype(float).T @ a[i]
        np.testing.assert_allclose(upper.T @ upper, gram, atol=50 * eps * np.abs(gram).max())
        w = np.linalg.solve(upper.T, np.asarray(rotated[i], float))
        assert np.linalg.norm(turned[i] - w) <= 100 * eps * condition * np.linalg.norm(w)


@pytest.mark.parametrize("n", [4, 17])
def test_symmetric_systems_in_a_batch_are_lapacks(n, dtype):
    rng = np.random.default_rng(n)
    root = rng.normal(size=(6, n, n)).astype(dtype)
    a = root @ np.swapaxes(root, 1, 2) + np.eye(n, dtype=dtype)
    a *= np.geomspace(1e-6, 1e6, n)[:, None].astype(dtype)  # units
    a *= np.geomspace(1e-6, 1e6, n)[None, :].astype(dtype)
    b = rng.normal(size=(6, n)).astype(dtype)
    a[4] = -a[4]
    a[5, -1] = a[5, :, -1] = 0
    x, pivots = jax.jit(jax.vmap(solve_scaled))(jnp.asarray(a), jnp.asarray(b))
    eps = float(np.finfo(dtype).eps)
    assert bool(jnp.all(pivots[:4] > n * eps))
    assert bool(jnp.all(pivots[4:] <= n * eps))
    for i in range(4):
        d = 1 / np.sqrt(np.diagonal(a[i]).astype(float))
        unit = d[:, None] * a[i] * d
        expected = np.linalg.solve(unit, d * b[i])
        bound = 100 * eps * np.linalg.cond(unit) * np.linalg.norm(expected)
        assert np.linalg.norm(np.asarray(x[i], float) / d - expected) <= bound


def test_newton_steps_of_a_batch_are_those_of_each(dtype):
    """Convex, singular, with negative curvature, zero and not finite, in one batch."""
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(40, 3, 3)))[0]
    spectra = rng.normal(size=(40, 3)) + 1.5
    spectra[5], spectra[6], spectra[7] = [1.0, 2.0, 0.0], 0.0, -1.0
    a = np.einsum("bij,bj,bkj->bik", turns, spectra, turns).astype(dtype)
    a[8] = np.nan
    a, g = jnp.asarray(a), jnp.asarray(rng.normal(size=(40, 3)), dtype)
    one = jnp.ones((), dtype)
    steps, convex = jax.jit(jax.vmap(newton_steps, (0, 0, None)))(a, g, one)
    alone = jax.jit(newton_steps)
    for i in range(40):
        step, is_convex = alone(a[i], g[i], one)
        condition = np.linalg.cond(a[i]) if np.all(np.isfinite(a[i])) else 1.0
        rtol = 1e3 * float(jnp.finfo(dtype).eps) * min(condition, 1e4)
        np.testing.assert_allclose(steps[i], step, rtol=rtol)
        assert bool(convex[i]) == bool(is_convex)


def test_dependent_columns_stay_finite_in_a_batch():
    a = jnp.stack([jnp.zeros((6, 3)), jnp.ones((6, 3))])
    upper, rotated = jax.vmap(triangularize)(a, jnp.ones((2, 6)))
    assert bool(jnp.all(jnp.isfinite(upper)))
    assert bool(jnp.all(jnp.isfinite(rotated)))


def two_wells(x, tilt):
    return jnp.sum((x**2 - 1) ** 2) + tilt * jnp.sum(x)


@functools.cache
def searched():
    sampler = functools.partial(jax.random.uniform, shape=(2,), minval=-2.0, maxval=2.0)
    return ok.multi_start(two_wells, sampler, args=(0.2,), count=40, key=jax.random.key(3))


def test_multi_start_finds_the_distinct_minima_in_order():
    found = searched()
    roots = np.roots([4, 0, -4, 0.2])  # of the derivative along each coordinate
    low, high = float(roots.real.min()), float(roots.real.max())
    minima = [m for m in found.minima if m.certificate.kind == "minimum"]
    expected = [(low, low), (low, high), (low, high), (high, high)]
    assert len(minima) == 4
    for minimum, corner in zip(minima, expected, strict=True):
        np.testing.assert_allclose(np.sort(minimum.params), corner, atol=1e-6)
    values = [m.value for m in found.minima]
    assert values == sorted(values)
    assert found.best is found.minima[0]


def test_multi_start_accounts_for_every_start():
    found = searched()
    led = [i for m in found.minima for i in m.starts]
    assert len(led) == len(set(led))
    assert len(led) + sum(found.failures.values()) == 40
    for minimum in found.minima:
        ends = np.asarray(found.solutions.params)[list(minimum.starts)]
        assert np.max(np.abs(ends - np.asarray(minimum.params))) < 1e-3
    text = str(found)
    assert "distinct from 40 starts by" in text
    assert "minimum" in text


def test_multi_start_reports_failures():
    found = ok.multi_start(lambda x: -jnp.sum(jnp.exp(x)), jnp.ones((3, 2)), max_steps=20)
    assert found.minima == ()
    assert sum(found.failures.values()) == 3
    assert "failed: 3" in str(found)
    with pytest.raises(ValueError, match="no start led to a minimum"):
        found.best  # noqa: B018


def four_wells(p, a, b):
    """Four minima of the same value, where a and b are the parameters' units."""
    return ((p["x"] / a) ** 2 - 1) ** 2 + jnp.sum(((p["y"] / b) ** 2 - 1) ** 2)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("units", [(1.0, 1.0), (1e8, 1e8), (1e-8, 1e-8), (1e8, 1e-8)])
def test_multi_start_tells_minima_apart_in_any_units(units, narrow):
    a, b = (jnp.asarray(u, jnp.float32 if narrow else jnp.float64) for u in units)
    drawn = jax.random.uniform(jax.random.key(1), (2, 24), a.dtype, -2.0, 2.0)
    starts = {"x": a * drawn[0], "y": b * drawn[1][:, None]}
    found = ok.multi_start(four_wells, starts, args=(a, b), certified=0)
    assert len(found.minima) == 4
    assert sum(len(m.starts) for m in found.minima) == 24
    signs = {
        (float(jnp.sign(m.params["x"])), float(jnp.sign(m.params["y"][0]))) for m in found.minima
    }
    assert len(signs) == 4


@pytest.mark.parametrize("unit", [1.0, 1e12, 1e-12])
def test_rounding_noise_of_large_values_makes_no_minima(unit):
    def noisy(x, c):  # one minimum; its value is the rounding of a difference
        return unit * (jnp.sum(x**2) - 2 * jnp.sum(x * c) + jnp.sum(c**2))

    starts = jax.random.uniform(jax.random.key(1), (20, 2), jnp.float32, -2.0, 2.0)
    tol = 1e-4 * min(unit, 1.0)
    found = ok.multi_start(noisy, starts, args=(jnp.float32([1.3, -0.7]),), tol=tol, certified=0)
    assert len(found.minima) == 1


def test_multi_start_without_curvature_is_uncertified():
    @jax.custom_vjp
    def hosted(x):
        like = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(
            lambda v: np.sum(np.asarray(v) ** 2, axis=-1), like, x, vmap_method="expand_dims"
        )

    def slope(x, g):
        return (
            g * jax.pure_callback(lambda v: 2 * np.asarray(v), x, x, vmap_method="expand_dims"),
        )

    hosted.defvjp(lambda x: (hosted(x), x), slope)
    found = ok.multi_start(hosted, jnp.ones((3, 2)), method="lbfgs")
    assert found.best.certificate is None
    assert found.best.starts == (0, 1, 2)
    assert "uncertified" in str(found)
    found = ok.multi_start(sphere, jnp.ones((3, 2), jnp.bfloat16))
    assert found.best.certificate is None
