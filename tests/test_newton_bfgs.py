"""Newton's method relieved by BFGS: the same where Newton's method is good, more where it creeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.core import Status
from optikit.optimizers import newton_bfgs


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def wall(x, pull):
    """A pull upward inside a circle, with a barrier: from its side the way is along the wall."""
    return -pull * x[1] - jnp.log(100.0 - jnp.sum(x**2))


BESIDE = jnp.array([10 - 1e-4, 0.0])


@pytest.fixture(scope="module")
def along_the_wall():
    return ok.minimize(wall, BESIDE, args=(600.0,), method="newton-bfgs", trace=True)


def test_it_is_newton_within_its_first_spells():
    own, plain = (
        ok.minimize(rosenbrock, jnp.array([-1.2, 1.0]), method=m) for m in ("newton-bfgs", "newton")
    )
    assert own.success
    assert own.steps == plain.steps
    assert jax.tree.map(int, own.counts) == jax.tree.map(int, plain.counts)
    np.testing.assert_allclose(own.params, plain.params, rtol=1e-12)


def test_it_follows_a_curved_wall_to_its_end(along_the_wall):
    """Newton's method alone has gone a third of the way after a thousand steps."""
    sol = along_the_wall
    assert sol.success, str(sol)
    # stationary: x1 = 0 and 2 x2 / (100 - x2^2) = pull, in the form that does not cancel
    top = 100.0 / (jnp.sqrt(100.0 + 1 / 600.0**2) + 1 / 600.0)
    np.testing.assert_allclose(sol.params, [0.0, top], atol=1e-9)
    assert int(sol.counts.hessian) < int(sol.steps) / 2  # most of the way went BFGS
    # the method is monotone across the changes of turns
    values = np.asarray(sol.trace.value)[: int(sol.steps) + 1]
    assert np.all(np.diff(values) <= 1e-14 * np.abs(values[:-1]))


def test_newton_has_the_last_step(along_the_wall):
    """What is called a minimum was seen with the true curvature: the last step has a Hessian."""
    hessians = np.asarray(along_the_wall.trace.counts.hessian)
    last = int(along_the_wall.steps)
    assert hessians[last] == hessians[last - 1] + 1


def test_a_cut_goes_on_across_a_change_of_turns(along_the_wall):
    first = ok.minimize(wall, BESIDE, args=(600.0,), method="newton-bfgs", max_steps=53)
    assert int(first.status) == Status.MAX_STEPS
    assert int(first.counts.hessian) < 53  # BFGS is at it
    again = ok.minimize(wall, BESIDE, args=(600.0,), method="newton-bfgs", state=first.state)
    assert int(again.steps) == int(along_the_wall.steps)
    np.testing.assert_allclose(again.params, along_the_wall.params, atol=1e-12)


def test_a_spell_is_at_least_a_step():
    with pytest.raises(ValueError, match="at least 1 step"):
        newton_bfgs(spell=0)
