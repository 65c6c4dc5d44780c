"""Methods that precondition matrices: one rule for stacks of them, Adam for the other leaves."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Params, tree
from optikit.core.paths import Pattern
from optikit.optimizers.buckets import Layout, layout
from optikit.optimizers.descent import Moments, Rate, check_rate, descend, rate_at
from optikit.optimizers.protocol import Optimizer, Refresh

Stack = Float[Array, "b m n"]


class MatrixRule(NamedTuple):
    """What a method does with a stack of matrices.

    Attributes:
      init: first gradients -> state.
      update: (gradients, state, steps before, key) -> (directions, state); the step is minus a
        learning rate times the direction.
      refresh: (gradients, state, steps before) -> state, due before the update of every `every`-th
        step from the first one on: what is too dear for each. None if there is nothing such.
      every: a period in steps.
    """

    init: Callable[[Stack], Any]
    update: Callable[[Stack, Any, Int[Array, ""], Key], tuple[Stack, Any]]
    refresh: Callable[[Stack, Any, Int[Array, ""]], Any] | None = None
    every: int = 1


class MatrixState(NamedTuple):
    """Steps taken, the rule's state for each bucket, and Adam's for each other leaf."""

    steps: Int[Array, ""]
    buckets: tuple[Any, ...]
    others: tuple[Moments, ...]


class Adam(NamedTuple):
    """Adam's hyperparameters for leaves that are no matrices."""

    learning_rate: Rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


def matrix_method(
    rule: MatrixRule,
    *,
    learning_rate: Rate,
    adam: Adam,
    weight_decay: float,
    name: str,
    block: int | None = None,
    largest: int | None = None,
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (),
    bucketed: bool = True,
) -> Optimizer:
    """An Optimizer by a rule for matrices; see `buckets.layout` for what counts as one.

    Cost at the door: the gradient alone.
    """
    check_rate(learning_rate)
    check_rate(adam.learning_rate, name="adam_learning_rate")

    def plan(params: Params) -> Layout:
        return layout(
            params, block=block, largest=largest, stacked=stacked, apart=apart, bucketed=bucketed
        )

    def init(at: Eval) -> MatrixState:
        cut = plan(at.params)
        return MatrixState(
            steps=jnp.asarray(0, jnp.int32),
            buckets=tuple(rule.init(g) for g in cut.gather(at.grad)),
            others=tuple(Moments.blank(g) for g in cut.others(at.grad)),
        )

    def renewal(refresh: Callable[[Stack, Any, Int[Array, ""]], Any]) -> Refresh:
        def update(oracle: Oracle, at: Eval, state: MatrixState, key: Key):
            del oracle, key
            pairs = zip(plan(at.params).gather(at.grad), state.buckets, strict=True)
            buckets = tuple(refresh(g, s, state.steps) for g, s in pairs)
            return state._replace(buckets=buckets), Counts()

        return Refresh(rule.every, update)

    def step(oracle: Oracle, at: Eval, state: MatrixState, key: Key):
        del oracle
        cut, dtype = plan(at.params), tree.inner_dtype(at.params)
        directions, new_buckets = [], []
        for i, (g, s) in enumerate(zip(cut.gather(at.grad), state.buckets, strict=True)):
            d, s = rule.update(g, s, state.steps, jax.random.fold_in(key, i))
            directions.append(d)
            new_buckets.append(s)
        others = [
            m.after(g, adam.b1, adam.b2)
            for m, g in zip(state.others, cut.others(at.grad), strict=True)
        ]
        elementwise = [m.direction(state.steps + 1, adam.b1, adam.b2, adam.eps) for m in others]
        rate = rate_at(learning_rate, state.steps, dtype)
        other_rate = rate_at(adam.learning_rate, state.steps, dtype)
        rates = [
            other_rate if i in cut.rest else rate for i in range(len(jax.tree.leaves(at.params)))
        ]
        params, info = descend(
            at,
            cut.scatter(at.params, directions, elementwise),
            rates,
            weight_decay,
            Counts(),
            learning_rate=rate,
        )
        return params, None, MatrixState(state.steps + 1, tuple(new_buckets), tuple(others)), info

    refreshes = () if rule.refresh is None else (renewal(rule.refresh),)
    return Optimizer(init, step, name=name, refresh=refreshes)


def grams(x: Stack) -> tuple[Float[Array, "b m m"], Float[Array, "b n n"]]:
    """(X X^T, X^T X) of each matrix, at full precision: their roots amplify errors."""
    flipped = jnp.swapaxes(x, 1, 2)
    return exact_product(x, flipped), exact_product(flipped, x)


def exact_product(a: Array, b: Array) -> Array:
    """A B at full precision, where a GPU would by default multiply in TF32."""
    return jnp.matmul(a, b, precision=tree.HIGHEST)


def identities(count: int, n: int, dtype: Any) -> Float[Array, "b n n"]:
    """A stack of identity matrices."""
    return jnp.broadcast_to(jnp.eye(n, dtype=dtype), (count, n, n))
