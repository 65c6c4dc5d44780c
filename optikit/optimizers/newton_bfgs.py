"""Newton's method, relieved by BFGS where it creeps.

Both fail now and then, seldom on the same ground. Along a curved wall, such as a barrier's, every
Newton step ends where the next model is as wrong as the last, and thousands of them gain alike;
BFGS, whose matrix averages over the steps behind it, gets round. In a narrow straight valley it is
the other way about. So they take turns, each from the point reached: who gains less per step than
the other did when it was last judged is relieved, and so is who finds no step at all. BFGS begins
each turn anew, since pairs from where Newton's method creeps are as ill-conditioned as its models.
The line search is the same for both, so that the compiled program holds it once.

Only Newton's method ends a solve: a point is called a minimum on the true curvature there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Scalar, Status, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.globalize import wolfe
from optikit.linalg import Direction, Inner, cholesky
from optikit.optimizers.bfgs import BfgsState, begun, updated
from optikit.optimizers.protocol import Optimizer, info_from_search
from optikit.optimizers.quasi_newton import unit_of

SPELL = 25
"""Steps after which a turn is judged; Newton's first one is not, it takes in the way downhill."""


class NewtonBfgsState(NamedTuple):
    """What the next step needs."""

    learnt: BfgsState
    relieved: Bool[Array, ""]  # it is BFGS's turn
    spell: Int[Array, ""]  # steps of this turn since it was last judged; negative: a grace
    began: Scalar  # the value then
    rival: Scalar  # what the other one gained per step when it was last judged
    lost: Bool[Array, ""]  # the other one, with nothing to forget, found no step from this point


@memoized
def newton_bfgs(*, spell: int = SPELL, max_trials: int = 40) -> Optimizer:
    """Newton's method with a dense Hessian, and BFGS in its place where that gains more per step.

    It is `newton` for the first 2 `spell` steps, within which most solves end.

    Args:
      spell: steps after which a turn is judged.
      max_trials: trials per line search.

    Cost per step: one hessian and n^3/3 flops in Newton's turn, O(n^2) flops in both, one grad a
    trial.

    Raises:
      ValueError: a spell below 1.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda x: jnp.sum(x**4 - x), jnp.ones(2), method=newton_bfgs())
      >>> [round(float(v), 4) for v in sol.params]
      [0.63, 0.63]
    """
    if spell < 1:
        msg = f"spell must be at least 1 step; got {spell}."
        raise ValueError(msg)
    dense, search_along = cholesky(), wolfe(c2=0.3, max_trials=max_trials)

    def init(at: Eval) -> NewtonBfgsState:
        untried = jnp.full((), jnp.inf, at.value.dtype)
        no, grace = jnp.asarray(False), jnp.asarray(-spell, jnp.int32)
        gradient = ravel_pytree(at.grad)[0]
        learnt = begun(gradient, unit_of(gradient))
        return NewtonBfgsState(learnt, no, grace, at.value, untried, no)

    def step(oracle: Oracle, at: Eval, state: NewtonBfgsState, key: Key):
        def by_newton() -> tuple[Direction, Counts]:
            model = dense.prepare(oracle, at, "hessian", key)
            zero = jnp.zeros_like(at.value)
            return model.propose(zero, Inner(zero, zero)), model.counts

        direction, paid = lax.cond(state.relieved, lambda: _by_bfgs(at, state.learnt), by_newton)
        search = search_along.search(oracle, at, lambda radius: direction, ())
        end = search.next
        assert end is not None
        # what is left, by the model of whose turn it is, is for Newton's method to finish; the
        # bounds are those of the loop at the default tolerance
        scale, eps = jnp.maximum(1, jnp.abs(at.value)), tree.eps(at.value.dtype)
        close = search.promised <= eps**0.5 * scale
        failed = ~search.accepted & (search.status == Status.LINE_SEARCH_FAILED.value)
        flat = tree.max_abs(at.grad) <= eps**0.375 * scale
        ended = close & (~failed | flat)
        change, new = _judged(state, end, spell, failed, ended)
        status = jnp.where(failed & change, Status.RUNNING.value, search.status)
        # a vanishing gradient shows nothing: the next step has to look at the curvature there
        blind = (tree.max_abs(end.grad) == 0) & (tree.max_abs(at.grad) > 0)
        search = search._replace(
            promised=jnp.where(state.relieved | blind, jnp.inf, search.promised),
            counts=tally(paid, search.counts),
            status=status.astype(jnp.int32),
        )
        s = ravel_pytree(tree.subtract(search.params, at.params))[0]
        y = ravel_pytree(tree.subtract(end.grad, at.grad))[0]
        learnt = updated(state.learnt, s, y, search.accepted)
        anew = begun(ravel_pytree(end.grad)[0], learnt.unit)
        learnt = tree.where(new.relieved & state.relieved, learnt, anew)
        new = new._replace(learnt=learnt)
        return search.params, end, new, info_from_search(search, relieved=state.relieved)

    return Optimizer(init, step, monotone=True, name="newton-bfgs")


def _by_bfgs(at: Eval, learnt: BfgsState) -> tuple[Direction, Counts]:
    gradient, unravel = ravel_pytree(at.grad)
    d = -jnp.matmul(learnt.inverse_hessian, gradient / learnt.unit, precision=HIGHEST)
    slope = jnp.vdot(gradient, d).astype(at.value.dtype)
    no, yes, free = jnp.asarray(False), jnp.asarray(True), times(0, Counts())
    return Direction(unravel(d), slope, -slope, no, yes, jnp.zeros_like(slope), free), free


def _judged(
    state: NewtonBfgsState, at: Eval, limit: int, failed: Bool[Array, ""], close: Bool[Array, ""]
) -> tuple[Bool[Array, ""], NewtonBfgsState]:
    """Whether the turn changes, and the state (as yet without what this step taught).

    It does after a failure, if the other one has not just failed from there, and after a turn that
    gained less than the other's; from BFGS also close to the end, and never to it there.
    """
    spell = state.spell + 1
    over = spell >= limit
    dtype = at.value.dtype
    gained = (state.began - at.value) / jnp.maximum(spell, 1).astype(dtype)
    wanted = jnp.where(failed, ~state.lost, over & (gained < state.rival))
    change = jnp.where(state.relieved, wanted | (close & ~failed), wanted & ~close)
    fresh = change | over | (spell == 0)
    rate = jnp.where(failed, 0, gained).astype(dtype)
    new = NewtonBfgsState(
        learnt=state.learnt,
        relieved=state.relieved ^ change,
        spell=jnp.where(fresh, 0, spell),
        began=jnp.where(fresh, at.value, state.began),
        rival=jnp.where(change, rate, state.rival),
        lost=failed & (~state.relieved | state.learnt.fresh),
    )
    return change, new
