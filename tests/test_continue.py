"""A solve that was cut off goes on as if it had not been."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import METHODS, optimizer, ready, usual

import optikit as ok
from optikit.core import Status

QUICK = {"adam", "lbfgs", "levenberg-marquardt", "newton", "trust-region"}


def marked(name):
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def assert_same(a, b):
    """Everything but the state, bit by bit."""
    for name in ("params", "value", "aux", "grad", "grad_norm", "status", "steps", "counts"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("method", [marked(m) for m in [*METHODS, "optax.lbfgs", "sgd"]])
def test_in_two_parts_is_the_same_bit_by_bit(method):
    objective, params, args = ready(usual(method, "rosenbrock", "diabetes"))
    chosen = optimizer(method)

    def solve(steps, state=None):
        return ok.minimize(
            objective, params, args=args, method=chosen, max_steps=steps, tol=1e-11, state=state
        )

    whole = solve(23)
    assert_same(solve(23, solve(4).state), whole)
    assert_same(solve(23, solve(9, solve(4).state).state), whole)
    assert_same(solve(23, whole.state), whole)


def test_least_squares_goes_on_with_its_jacobian():
    objective, params, args = ready("exponential-decay")

    def solve(steps, state=None):
        return ok.least_squares(objective, params, args=args, max_steps=steps, state=state)

    part = solve(2)
    assert int(part.status) == Status.MAX_STEPS
    assert_same(solve(100, part.state), solve(100))


def test_no_work_is_repeated_and_nothing_is_compiled_twice():
    traced = collections.Counter()

    def fun(x):
        traced["times"] += 1
        return rosenbrock(x)

    def solve(steps, state=None):
        return ok.minimize(fun, -jnp.ones(3), method="bfgs", max_steps=steps, state=state)

    part = solve(5)
    again = solve(5, part.state)
    assert_same(again, part)  # not one oracle call more
    before = traced["times"]
    sol = solve(7)
    for steps in (9, 14, 500):
        sol = solve(steps, sol.state)
    assert bool(sol.success)
    assert traced["times"] == before


def test_a_tighter_tolerance_goes_on_and_an_equal_one_does_not():
    def solve(tol, state=None):
        return ok.minimize(
            rosenbrock, -jnp.ones(3), method="gradient-descent", max_steps=20_000, tol=tol,
            state=state,
        )  # fmt: skip

    loose = solve(1e-2)
    assert_same(solve(1e-2, loose.state), loose)
    tight = solve(1e-3, loose.state)
    assert bool(tight.success)
    assert int(tight.steps) > int(loose.steps)
    assert float(tight.grad_norm) < float(loose.grad_norm)


def test_the_best_point_is_remembered_by_a_method_that_leaves_it():
    def solve(steps, state=None):
        return ok.minimize(
            lambda x: jnp.sum(x**2), jnp.ones(2), method=ok.optimizers.adam(0.5), max_steps=steps,
            state=state,
        )  # fmt: skip

    parts = solve(3)
    for steps in range(4, 9):
        parts = solve(steps, parts.state)
    assert float(parts.value) == float(solve(8).value)


def test_a_trace_holds_the_new_steps_in_their_rows():
    def solve(steps, state=None):
        return ok.minimize(
            rosenbrock, -jnp.ones(3), method="newton", max_steps=steps, trace=True, state=state
        )

    whole, part = solve(8), solve(3)
    rest = solve(8, part.state)
    for name in ("value", "grad_norm"):
        rows = np.asarray(getattr(rest.trace, name))
        assert np.all(np.isnan(rows[:3]))
        np.testing.assert_array_equal(rows[3:], getattr(whole.trace, name)[3:])
    np.testing.assert_array_equal(rest.trace.counts.grad[3:], whole.trace.counts.grad[3:])


def test_random_numbers_go_on_where_they_were():
    objective, params, args = ready("breast-cancer")
    chosen = ok.second_order(curvature="fisher", name="sampled-fisher")

    def solve(steps, key=None, state=None):
        return ok.minimize(
            objective, params, args=args, method=chosen, max_steps=steps, key=key, state=state
        )

    key = jax.random.key(7, impl="rbg")
    assert_same(solve(6, state=solve(2, key).state), solve(6, key))


def test_a_state_travels_like_a_solution():
    def start(x):
        return ok.minimize(rosenbrock, x, method="lbfgs", max_steps=4)

    def go_on(x, state):
        return ok.minimize(rosenbrock, x, method="lbfgs", max_steps=300, state=state)

    xs = jnp.stack([-jnp.ones(3), jnp.zeros(3)])
    parts = jax.block_until_ready(jax.vmap(start)(xs))
    ends = jax.jit(jax.vmap(go_on))(xs, parts.state)
    for i in range(2):
        host = jax.device_get(jax.tree.map(lambda a, i=i: a[i], parts))
        alone = go_on(xs[i], host.state)
        assert int(alone.steps) == int(ends.steps[i])
        np.testing.assert_allclose(alone.params, ends.params[i], rtol=1e-9)
        np.testing.assert_allclose(alone.params, 1, rtol=1e-6)
    sol = start(xs[0])
    assert "state" not in repr(sol)
    assert "lbfgs" in repr(sol.state)
    assert sol.state.grad is sol.grad  # held once
    assert len(jax.tree.leaves(sol.remainder)) < 10


def test_the_derivative_of_a_continued_solve_is_that_of_the_whole():
    def solution(t):
        def fun(x, t):
            return jnp.sum((x - t) ** 2) + jnp.sum(x**4)

        part = ok.minimize(fun, jnp.zeros(2), args=(t,), method="newton", max_steps=1)
        return ok.minimize(fun, jnp.zeros(2), args=(t,), method="newton", state=part.state).params

    t = jnp.asarray(0.8)
    np.testing.assert_allclose(jax.jacrev(solution)(t), 1 / (1 + 6 * solution(t) ** 2), rtol=1e-8)


def test_a_state_of_another_solve_is_refused():
    def solve(method, params=None, state=None):
        start = -jnp.ones(3) if params is None else params
        return ok.minimize(rosenbrock, start, method=method, max_steps=2, state=state)

    sol = solve("newton")
    with pytest.raises(ValueError, match="'newton', but this call runs 'bfgs'"):
        solve("bfgs", state=sol.state)
    with pytest.raises(ValueError, match=r"params is float64\[3\] in the state, but float64\[4\]"):
        solve("newton", -jnp.ones(4), state=sol.state)
    with pytest.raises(ValueError, match="params does not fit"):
        ok.minimize(lambda p: rosenbrock(p["x"]), {"x": jnp.ones(3)}, method="newton",
                    state=sol.state)  # fmt: skip
    with pytest.raises(TypeError, match=r"pass its \.state"):
        solve("newton", state=sol)
    with pytest.raises(TypeError, match="got dict"):
        solve("newton", state={})
    short = solve(ok.optimizers.lbfgs(memory=3))
    with pytest.raises(ValueError, match=r"state\.state\.pairs is float64\[2, 3, 3\]"):
        solve(ok.optimizers.lbfgs(memory=5), state=short.state)
