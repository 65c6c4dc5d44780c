"""optax transformations in, optimizers out.

`from_optax` runs any transformation unmodified under the step protocol, reuses the value and
gradient that its line search already holds, and bills that search's evaluations. `as_optax` turns
an Optimizer into a transformation for loops written against optax.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from optikit.calculus import Eval, Objective, Oracle, bind
from optikit.calculus.validate import as_key, as_objective
from optikit.core import Counts, Key, Params, Scalar, memoized, tally, times, tree
from optikit.optimizers.protocol import Optimizer, StepInfo, folded, running, value_and_grad

_SEARCH_STATES = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)


@memoized
def from_optax(tx: optax.GradientTransformation, *, name: str = "optax") -> Optimizer:
    """An optax transformation as an Optimizer.

    The transformation receives value, grad and value_fn, so optax's line searches work. Their
    evaluations are counted: a search that keeps gradients pays one grad per trial, another one
    value. If the search is the last link of the chain, its value and gradient of the new point are
    reused; otherwise the loop evaluates the new point.

    Args:
      tx: any `optax.GradientTransformation`.
    """
    tx = optax.with_extra_args_support(tx)

    def init(at: Eval) -> Any:
        with _lenient():
            return tx.init(at.params)

    def step(oracle: Oracle, at: Eval, state: Any, key: Key):
        del key
        evaluations = {"value": at.value, "grad": at.grad, "value_fn": value_function(oracle)}
        with _lenient():
            updates, new = tx.update(at.grad, state, at.params, **evaluations)
            params = optax.apply_updates(at.params, updates)
        search = _last_search(new)
        known = None if oracle.objective.has_aux or not oracle.fixed else _held(search, params, at)
        size = jnp.sqrt(tree.vdot(updates, updates)).astype(at.value.dtype)
        info = StepInfo(size, size > 0, _bill(new), None, running(), {})
        return params, known, new, info

    return Optimizer(init, step, name=name)


@contextlib.contextmanager
def _lenient():
    """Let optax promote dtypes implicitly, as it must, where a user forbids it elsewhere."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def value_function(oracle: Oracle):
    """oracle.value for optax: differentiating it costs one grad at the door, not value and grad."""

    @jax.custom_jvp
    def value(params: Params) -> Scalar:
        return oracle.value(params)

    @value.defjvp
    def _(primals, tangents):
        at = oracle.value_and_grad(primals[0])
        return at.value, tree.vdot(at.grad, tangents[0]).astype(at.value.dtype)

    return value


def _search_states(state: Any) -> list:
    found = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, _SEARCH_STATES))
    return [s for s in found if isinstance(s, _SEARCH_STATES)]


def _bill(state: Any) -> Counts:
    """What the line searches inside a transformation evaluated in its last update."""
    bills = [
        times(s.info.num_linesearch_steps, Counts(value=1) if s.grad is None else Counts(grad=1))
        for s in _search_states(state)
    ]
    return tally(Counts(), *bills)


def _last_search(state: Any) -> Any:
    """The state of a search that is the last link of the chain, else None."""
    while isinstance(state, tuple) and not isinstance(state, _SEARCH_STATES):
        if not state or hasattr(state, "_fields"):
            return None
        state = state[-1]
    return state if isinstance(state, _SEARCH_STATES) else None


def _held(search: Any, params: Params, at: Eval) -> Eval | None:
    """The evaluation of the new point that a search holds; the old one if it did not move."""
    if search is None or search.grad is None:
        return None
    new = Eval(params, search.value.astype(at.value.dtype), search.grad, at.aux, at.local)
    return tree.where(search.learning_rate > 0, new, at._replace(params=params))


class AsOptaxState(NamedTuple):
    """State of an exported optimizer: its own, the key, and whether it has begun."""

    inner: Any
    key: Key
    begun: Bool[Array, ""]


def as_optax(
    optimizer: Optimizer,
    objective: Objective | None = None,
    *,
    key: Key | None = None,
    example: tuple | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An Optimizer as an optax transformation, for training loops written against optax.

    `update(grads, state, params, args=(...))` needs params and the data of this step. Where `value`
    is given, it and grads are taken as they are; else they are evaluated again. The returned
    updates are differences of parameters, to be applied by `optax.apply_updates`.

    Args:
      objective: what it minimises, called as objective(params, *args). A method that asks for
        nothing but gradients (Muon, Shampoo, SOAP, PSGD) needs none: `update(grads, state, params)`
        is then all, as with any transformation of optax.
      key: for methods that draw random numbers.
      example: the data of some step, for methods whose state depends on the model's layers; only
        its shapes matter.

    Raises:
      TypeError: while tracing, if a method without an objective asks for more than gradients.

    Example:
      >>> import optikit as ok
      >>> sphere = ok.black_box(lambda x: jnp.sum(x**2))
      >>> tx = as_optax(ok.optimizers.newton(), sphere)
      >>> x = jnp.array([3.0, -4.0])
      >>> updates, state = tx.update(2 * x, tx.init(x), x, value=jnp.sum(x**2))
      >>> bool(jnp.allclose(optax.apply_updates(x, updates), 0, atol=1e-6))
      True
    """
    alone, optimizer = objective is None, folded(optimizer)
    objective = _missing(optimizer.name) if objective is None else as_objective(objective)
    key = as_key(key)

    def init(params: Params) -> AsOptaxState:
        # the state's shapes follow from a pretended evaluation; its contents from the first update
        scalar = jnp.zeros((), tree.inner_dtype(params))
        at = Eval(params, scalar, tree.zeros_like(params))
        if example is not None:
            oracle = bind(objective, example, fixed=False)
            shapes = jax.eval_shape(lambda p: optimizer.evaluate(oracle, p)[0].local, params)
            at = at._replace(local=tree.zeros_like(shapes))
        return AsOptaxState(optimizer.init(at), key, jnp.asarray(False))

    def update(updates, state, params=None, *, value=None, args=(), **extra):
        del extra
        if params is None:
            msg = (
                "an exported optimizer needs the parameters: tx.update(grads, state, params, ...)."
            )
            raise ValueError(msg)
        oracle = bind(objective, args, fixed=False)
        if alone and value is None:
            value = jnp.zeros((), tree.inner_dtype(params))  # which no method looks at
        if value is None or optimizer.evaluate is not value_and_grad:
            at, _ = optimizer.evaluate(oracle, params)
            if value is not None:  # then nothing uses the gradient above: it is not computed again
                at = at._replace(value=jnp.asarray(value), grad=updates)
        else:
            at = Eval(params, jnp.asarray(value), updates)
        inner = tree.where(state.begun, state.inner, optimizer.init(at))
        step_key, next_key = jax.random.split(state.key)
        new_params, _, inner, _ = optimizer.step(oracle, at, inner, step_key)
        change = tree.subtract(new_params, params)
        return change, AsOptaxState(inner, next_key, jnp.asarray(True))

    return optax.GradientTransformationExtraArgs(init, update)


def _missing(name: str) -> Objective:
    """The objective of a method that was exported without one."""

    def fun(*arguments: Any) -> Scalar:
        del arguments
        msg = f"{name} needs its objective for more than gradients: as_optax(method, objective)."
        raise TypeError(msg)

    return as_objective(fun)
