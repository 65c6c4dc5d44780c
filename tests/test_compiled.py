"""How programs are compiled: what the loop carries, which options suit which size."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.core import compiled
from optikit.core.loops import while_loop
from optikit.solve import drive


def fibonacci_like(packed):
    """A loop with scalars of several dtypes, arrays, a key and an empty field in its carry."""
    loop = while_loop if packed else jax.lax.while_loop
    start = {
        "a": jnp.float64(0), "b": jnp.float64(1), "narrow": jnp.float32(1), "count": jnp.int32(0),
        "flag": jnp.asarray(False), "key": jax.random.key(0), "row": jnp.zeros(3), "none": None,
    }  # fmt: skip

    def body(c):
        return c | {
            "a": c["b"], "b": c["a"] + c["b"], "narrow": c["narrow"] / 3, "count": c["count"] + 1,
            "flag": ~c["flag"], "key": jax.random.fold_in(c["key"], c["count"]),
            "row": c["row"].at[c["count"] % 3].add(c["a"]),
        }  # fmt: skip

    return loop(lambda c: c["count"] < 11, body, start)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_a_loop_with_packed_scalars_is_the_same_loop(wrap):
    plain, packed = wrap(lambda: fibonacci_like(False))(), wrap(lambda: fibonacci_like(True))()
    assert jax.tree.structure(plain) == jax.tree.structure(packed)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(packed), strict=True):
        assert a.dtype == b.dtype
        a, b = (jax.random.key_data(x) if x.dtype == plain["key"].dtype else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


def test_a_packed_loop_batches():
    def halved(x):
        return while_loop(lambda c: c[0] > 1, lambda c: (c[0] / 2, c[1] + 1), (x, 0))[1]

    np.testing.assert_array_equal(jax.vmap(halved)(jnp.array([1.0, 3.0, 100.0])), [0, 2, 7])


def test_a_trace_is_not_interrupted_by_garbage_collection():
    """And whether collection was on is as before, also where the function raises."""
    seen = []

    def function(x, fail):
        seen.append(gc.isenabled())
        if fail:
            raise RuntimeError
        return x + 1

    program = compiled.jit(function, static_argnames=("fail",))
    try:
        for on in (True, False):
            (gc.enable if on else gc.disable)()
            program(jnp.ones(2 + on), fail=False)
            assert gc.isenabled() == on
            with pytest.raises(RuntimeError):
                program(jnp.ones(2 + on), fail=True)
            assert gc.isenabled() == on
    finally:
        gc.enable()
    assert seen == [False] * 4


def test_options_follow_the_size():
    if jax.default_backend() != "cpu":
        pytest.skip("the options are of XLA's CPU compiler")
    few, many = jnp.zeros(10), jnp.zeros(compiled.SMALL + 1)
    assert compiled.compiler_options(few, few) is compiled.AT_ONCE
    assert compiled.compiler_options((few, jnp.zeros(1000)), few) is compiled.QUICK
    assert compiled.compiler_options(jnp.zeros(40), jnp.zeros(40)) is compiled.QUICK
    assert compiled.compiler_options(few) is compiled.QUICK
    assert compiled.compiler_options(many, many) is compiled.THOROUGH
    found = []
    jax.jit(lambda x: found.append(compiled.compiler_options(x, x)) or x)(few)
    assert found == [compiled.THOROUGH]


def test_large_linear_models_are_compiled_for_their_products():
    """By structure, where a solve is Newton's; asked once for a function and shapes."""
    if jax.default_backend() != "cpu":
        pytest.skip("the options are of XLA's CPU compiler")
    traces = []

    def predict(w, x):
        traces.append(1)
        return x @ w

    linear = ok.composite(predict, ok.losses.logistic)
    x = jnp.zeros((compiled.SMALL // 10, 100))
    w, data = jnp.zeros(100), (x, jnp.zeros(len(x)))
    newton, gradients = ok.optimizers.newton(), ok.optimizers.lbfgs()
    bent = ok.composite(lambda w, x: jnp.tanh(x @ w), ok.losses.logistic)
    few = jax.tree.map(lambda v: v[:9], data)

    def chosen(objective, data, method):
        program = drive._run._fitting((objective, w, data, ()), {"method": method})
        return next(o for o, p in drive._run._programs if p is program)

    assert chosen(linear, data, newton) is compiled.PRODUCTS
    before = len(traces)
    assert chosen(linear, data, newton) is compiled.PRODUCTS
    assert len(traces) == before
    assert chosen(linear, data, gradients) is compiled.THOROUGH
    assert chosen(bent, data, newton) is compiled.THOROUGH
    assert chosen(linear, few, newton) is compiled.QUICK


TRACES = {
    "adam": 4, "bfgs": 3, "cubic": 4, "dogleg": 4, "gradient-descent": 4, "lbfgs": 3, "newton": 4,
    "newton-bfgs": 4, "newton-cg": 4, "nonlinear-cg": 3, "sr1": 3, "trust-region": 4,
    "trust-region-exact": 4,
}  # fmt: skip
"""For its shape, at the start, in the loop's search, and for a curvature there; a method that is
not monotone evaluates its best point once more."""

OF_RESIDUALS = {"dogleg": 4, "gauss-newton": 4, "levenberg-marquardt": 4}
"""The same, with a value for a trial, and a Jacobian in place of gradient and curvature."""


def traced(method, objective, seen):
    """How often the objective is traced by a first call and by another with other data."""
    numbers = []
    for scale in (1.0, 2.0):
        ok.minimize(objective, jnp.ones(3), args=(jnp.asarray(scale),), method=method, max_steps=3)
        numbers.append(len(seen))
    return numbers


@pytest.mark.parametrize("method", sorted(TRACES))
def test_the_objective_is_traced_few_times_and_once_for_all(method):
    seen = []

    def fun(x, scale):
        seen.append(1)
        return jnp.sum(scale * x**4 + x**2)

    assert traced(method, fun, seen) == [TRACES[method]] * 2


@pytest.mark.parametrize("method", sorted(OF_RESIDUALS))
def test_residuals_are_traced_few_times_and_once_for_all(method):
    seen = []

    def fun(x, scale):
        seen.append(1)
        return jnp.concatenate([scale * x**2, x])

    assert traced(method, ok.residuals(fun), seen) == [OF_RESIDUALS[method]] * 2
