"""The derivative checker tells right from wrong, in both precisions, and names the place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok

START = np.array([0.5, 1.0, 2.0, -1.0])


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


RIGHT = {
    "exp": lambda x: jnp.sum(jnp.exp(x)),
    "quadratic": lambda x: jnp.sum(x**2),
    "linear": lambda x: jnp.sum(x),
    "constant": lambda x: jnp.sum(0 * x),
    "rosenbrock": rosenbrock,
    "large-offset": lambda x: 1e6 + jnp.sum(jnp.exp(x)),
    "softplus": lambda x: jnp.sum(jax.nn.softplus(30 * x)),
    "small-parameters": lambda x: jnp.sum(jnp.sin(x - jnp.asarray(START, x.dtype) + 1e-6)),
    "kink-near-by": lambda x: jnp.sum(jnp.abs(x - 0.499)),
    "relu-network": lambda x: jnp.mean(
        jax.nn.relu(jnp.outer(jnp.linspace(-2, 2, 40, dtype=x.dtype), x) + 0.1).sum(1) ** 2
    ),
}


@jax.custom_jvp
def cube_off_by_one_percent(x):
    return x**3


@cube_off_by_one_percent.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    wrong = jnp.ones_like(x).at[2].set(1.01)
    return cube_off_by_one_percent(x), 3 * x**2 * wrong * t


@jax.custom_jvp
def cube_off_by_a_third(x):
    return x**3


@cube_off_by_a_third.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return x**3, 3 * x**2 * jnp.where(jnp.arange(x.size) == 2, 4 / 3, 1).astype(x.dtype) * t


@jax.custom_jvp
def cube(x):
    return x**3


@jax.custom_jvp
def cube_slope(x):
    return 3 * x**2


@cube.defjvp
def _(primals, tangents):
    return cube(*primals), cube_slope(*primals) * tangents[0]


@cube_slope.defjvp
def _(primals, tangents):
    return cube_slope(*primals), 6.3 * primals[0] * tangents[0]


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_right_derivatives_pass(name, dtype):
    report = ok.check_derivatives(RIGHT[name], jnp.asarray(START, dtype))
    assert report, str(report)
    assert report.leaf is None


@pytest.mark.parametrize("name", ["exp", "rosenbrock"])
def test_observed_orders_are_those_of_theory(name):
    report = ok.check_derivatives(RIGHT[name], jnp.asarray(START))
    assert report.gradient_order == pytest.approx(2, abs=0.1)
    assert report.hessian_order == pytest.approx(2, abs=0.1)


def test_a_wrong_gradient_entry_is_named(dtype):
    params = {"w": [jnp.asarray(START, dtype)], "b": jnp.asarray(1.0, dtype)}
    report = ok.check_derivatives(
        lambda p: jnp.sum(cube_off_by_one_percent(p["w"][0])) + p["b"], params
    )
    assert not report
    assert report.gradient_order == pytest.approx(1, abs=0.3)
    assert (report.leaf, report.index) == ("params['w'][0]", (2,))
    assert report.claimed == pytest.approx(12.12, rel=1e-5)
    assert report.observed == pytest.approx(12, rel=1e-3)
    assert "params['w'][0][2]" in str(report)


def test_a_wrong_hessian_is_told_from_a_wrong_gradient(dtype):
    report = ok.check_derivatives(lambda x: jnp.sum(cube(x)), jnp.asarray(START, dtype))
    assert not report
    assert report.gradient_order > 1.5
    assert report.hessian_order == pytest.approx(1, abs=0.3)
    assert "Hessian does not belong" in str(report)


def test_a_stopped_gradient_is_found(dtype):
    report = ok.check_derivatives(
        lambda x: jnp.sum(x * jax.lax.stop_gradient(x)), jnp.asarray(START, dtype)
    )
    assert not report


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_parameters_of_any_size_are_looked_at_in_their_own(size, dtype):
    point, unit = jnp.asarray(START * size, dtype), jnp.asarray(1 / size, dtype)
    assert ok.check_derivatives(lambda x: jnp.sum((unit * x) ** 3 + jnp.sin(unit * x)), point)
    report = ok.check_derivatives(lambda x: jnp.sum(cube_off_by_a_third(unit * x)), point)
    assert (report.problem, report.index) == ("gradient", (2,)), str(report)


@pytest.mark.parametrize("digits", [1, 3])
def test_rounding_on_the_way_is_found_between_its_steps(digits):
    scale = 10.0**digits
    report = ok.check_derivatives(
        lambda x: jnp.sum((jnp.round(scale * x) / scale - 0.2) ** 2), jnp.asarray(START) + 0.1234
    )
    assert not report
    assert report.problem == "gradient"
    assert report.claimed == 0
    assert "rounding" in str(report)


def test_a_kink_at_the_point_is_found():
    report = ok.check_derivatives(lambda x: jnp.sum(jnp.abs(x - 0.5)), jnp.asarray(START))
    assert not report
    assert report.index == (0,)
    assert report.problem == "kink"


@pytest.mark.parametrize(
    "kink",
    [lambda x: jax.nn.relu(x), lambda x: jnp.maximum(x, 0) - 3 * x, lambda x: 0.1 * jnp.abs(x)],
    ids=["relu", "maximum", "abs"],
)
def test_a_kink_is_told_from_a_wrong_rule(kink, dtype):
    params = {"a": jnp.ones(2, dtype), "b": jnp.asarray([1.0, 0.0, 2.0], dtype)}
    report = ok.check_derivatives(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(kink(p["b"])), params)
    assert not report
    assert (report.problem, report.leaf, report.index) == ("kink", "params['b']", (1,))
    assert "from the left" in str(report)
    assert "softplus" in str(report)


def test_float32_inside_float64_is_found_and_named():
    def through_single(p):
        inner = jax.jit(lambda x: x.astype(jnp.float32) ** 2)
        return jnp.sum(p["a"] ** 2) + jnp.sum(inner(p["b"]).astype(p["a"].dtype))

    params = {"a": jnp.ones(2), "b": jnp.full(3, 0.3)}
    report = ok.check_derivatives(through_single, params)
    assert not report
    assert (report.problem, report.leaf) == ("float32", "params['b']")
    assert "astype" in str(report)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert ok.check_derivatives(through_single, single)


def test_lost_digits_are_found_and_named(dtype):
    """Most digits of x are lost in (s + x) - s."""
    big = jnp.asarray(1e5 if dtype == "float32" else 1e9, dtype)

    def cancelling(p, big):
        return 0 * jnp.sum(p["a"]) + jnp.sum(((big + p["b"]) - big) * jnp.asarray([1, 0], dtype))

    params = {"a": jnp.full(2, 0.3, dtype), "b": jnp.full(2, 0.7, dtype)}
    report = ok.check_derivatives(cancelling, params, (big,))
    assert not report
    assert (report.problem, report.leaf, report.index) == ("precision", "params['b']", (0,))
    assert report.noise > 1e-9
    assert "large numbers" in str(report)


def test_an_answer_that_changes_is_found():
    rng = np.random.default_rng(0)

    @jax.custom_jvp
    def noisy(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return x * jax.pure_callback(lambda: np.asarray(rng.normal(), x.dtype), shape)

    @noisy.defjvp
    def _(primals, tangents):
        return noisy(*primals), tangents[0]

    report = ok.check_derivatives(
        lambda p: jnp.sum(p["a"] ** 2) + noisy(p["b"]), {"a": jnp.ones(2), "b": jnp.asarray(2.0)}
    )
    assert not report
    assert report.problem == "non-deterministic"
    assert "a fixed key" in str(report)


def test_a_nan_gradient_behind_where_is_explained():
    report = ok.check_derivatives(
        lambda x: jnp.sum(jnp.where(x > 3, jnp.sqrt(x - 3), x)), jnp.asarray(START)
    )
    assert not report
    assert "jnp.where" in str(report)
    assert report.problem == "not-finite"


def test_one_wrong_entry_among_many_is_found_by_bisection():
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def _(primals, tangents):
        slope = (jnp.cos(primals[0]) * tangents[0]).at[7777].multiply(2)
        return sine(*primals), slope

    report = ok.check_derivatives(lambda x: jnp.sum(sine(x)), jnp.linspace(0.0, 1.0, 10_000))
    assert not report
    assert report.index == (7777,)


def test_a_point_where_the_function_is_lost_is_an_error():
    with pytest.raises(FloatingPointError, match="the function is nan"):
        ok.check_derivatives(lambda x: jnp.sum(jnp.log(x)), jnp.asarray(START))


def test_data_and_auxiliary_output_are_passed_through():
    report = ok.check_derivatives(
        lambda x, y: (jnp.sum((x - y) ** 2), x), jnp.ones(3), (jnp.zeros(3),), has_aux=True
    )
    assert report
