"""The part of a fit that runs on the device: steps on batches, in buffers that are used again.

A step that meets NaN or infinity, in the value, the gradient or the new parameters, is void: the
batch may be to blame, and the next one may do. A method that can be calmer is asked to be, and if
another batch fails at the same parameters it goes back to the ones before. For other methods these
are not kept: the same step would follow, and the copy would cost a small model 5 % of a step. Where
too many follow upon each other the fit is over, and every later step is void, so nothing is lost by
looking late.

A method's refreshes are not chosen here: the host says which are due, and a step with other ones is
another program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import Eval, Objective, Oracle, bind
from optikit.calculus.validate import check_scalar
from optikit.core import Counts, Key, Params, Scalar, Status, tally, times, tree
from optikit.core.compiled import jit
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import Refresh, keep, refresh_key, unchanged
from optikit.solve.history import Page
from optikit.solve.placement import Placement


class Last(NamedTuple):
    """The last evaluation, without the parameters, which are gone by then."""

    value: Scalar
    grad: Params
    aux: Any


class Health(NamedTuple):
    """How a fit gets on with NaN and infinity, each () int32."""

    skipped: Int[Array, ""]  # void steps in all
    trouble: Int[Array, ""]  # those since a step led to a point where the next batch was finite
    here: Int[Array, ""]  # those since the last step that counted
    begun: Int[Array, ""]  # 1 once there is a state


class Course(NamedTuple):
    """What a fit carries on the device, in buffers that each step reuses."""

    params: Params
    last: Last
    size: Scalar
    state: Any
    counts: Counts
    steps: Int[Array, ""]
    status: Int[Array, ""]
    key: Key
    page: Page
    good: Params | None  # where a batch was last finite; None if there is no going back
    health: Int[Array, "4"]


def begin(
    params: Params,
    batch: tuple,
    key: Key,
    objective: Objective,
    optimizer: Optimizer,
    *,
    placement: Placement,
) -> Course:
    """The start, with blanks that the first step fills from its own evaluation."""
    leaves, structure = jax.tree.flatten((params, batch))
    blanks = _blanks(objective, optimizer, structure, tuple(jax.typeof(x) for x in leaves))
    last, state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blanks)
    course = Course(
        params=jax.tree.map(jnp.copy, params),  # a step donates its input, which is the user's here
        last=last,
        size=jnp.zeros_like(last.value),
        state=state,
        counts=times(0, Counts()),
        steps=jnp.asarray(0, jnp.int32),
        status=jnp.asarray(Status.RUNNING.value, jnp.int32),
        key=jax.random.clone(key),
        page=Page.blank(last.value.dtype),
        good=None if optimizer.calm is unchanged else jax.tree.map(jnp.copy, params),
        health=jnp.zeros(4, jnp.int32),
    )
    return placement.put(course)


@functools.lru_cache(maxsize=64)
def _blanks(objective: Objective, optimizer: Optimizer, structure: Any, leaves: tuple) -> Any:
    """Shapes of the first evaluation and state; tracing is as dear as many steps, so once."""
    params, batch = jax.tree.unflatten(structure, leaves)
    check_scalar(objective, params, batch)

    def initial(p: Params, args: tuple):
        at, _ = optimizer.evaluate(bind(objective, args, fixed=False), p)
        return Last(at.value, at.grad, at.aux), optimizer.init(at)

    return jax.eval_shape(initial, params, batch)


@functools.partial(
    jit,
    static_argnames=("objective", "optimizer", "placement", "due"),
    donate_argnames=("course",),
)
def take(course, batches, steps, recoveries, *, objective, optimizer, placement, due=()):
    """So many steps on the first of the batches, in one dispatch.

    Args:
      due: the numbers of the method's refreshes before each of them; all of them before the first.
    """
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def step(k, course):
        batch = jax.tree.map(lambda x: x[k], stacked) if len(batches) > 1 else batches[0]
        return placement.hold(_step(course, batch, recoveries, objective, optimizer, due))

    # held once more outside: the compiler may lay out a loop's result otherwise than its body
    return placement.hold(jax.lax.fori_loop(0, steps, step, course))


def _step(
    course: Course,
    batch: tuple,
    recoveries: Int[Array, ""],
    objective: Objective,
    optimizer: Optimizer,
    due: tuple[int, ...],
) -> Course:
    oracle = bind(objective, batch, fixed=False)
    health = Health(*course.health)
    at, price = optimizer.evaluate(oracle, course.params)
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    usable = jnp.isfinite(at.value) & jnp.isfinite(size)
    key = jax.random.fold_in(course.key, course.steps + health.skipped)
    state, prices = course.state, [price]
    if due or not optimizer.refresh:
        state = tree.where(health.begun > 0, state, optimizer.init(at))
    for i in due:
        state, spent = _refreshed(optimizer.refresh[i], oracle, at, state, refresh_key(key, i))
        prices.append(spent)
    params, _, new_state, info = optimizer.step(oracle, at, state, key)
    alive = course.status == Status.RUNNING.value
    finite = usable & tree.all_finite(params)
    # a batch on which a search fails is skipped; another batch may do
    trouble = jnp.where(finite, jnp.where(health.here > 0, health.trouble, 0), health.trouble + 1)
    ended = trouble > recoveries
    status = jnp.where(ended, Status.NOT_FINITE.value, Status.RUNNING.value)
    status = jnp.where(alive, status, course.status).astype(jnp.int32)
    kept, void = alive & finite, alive & ~finite
    held, good = course.params, course.good
    if good is not None:
        back = void & ~usable & ((health.here > 0) | ended)
        held = tree.where(back, good, course.params)
        good = tree.where(alive & usable, course.params, good)
    held_state, begun = course.state, kept
    if optimizer.calm is not unchanged:  # what it is made from is kept, too
        held_state, begun = tree.where(void, optimizer.calm(state), course.state), usable
    counts = tree.where(alive, tally(course.counts, *prices, info.counts), course.counts)
    after = Health(
        skipped=health.skipped + (void & ~ended).astype(jnp.int32),
        trouble=trouble,
        here=jnp.where(finite, 0, health.here + 1),
        begun=jnp.where(begun, 1, health.begun),
    )
    return Course(
        params=tree.where(kept, params, held),
        last=Last(at.value, at.grad, at.aux),
        size=size,
        state=tree.where(kept, new_state, held_state),
        counts=counts,
        steps=course.steps + kept.astype(jnp.int32),
        status=status,
        key=course.key,
        page=course.page.write(at.value, size, counts, after.skipped, status),
        good=good,
        health=jnp.stack([x.astype(jnp.int32) for x in after]),
    )


def _refreshed(refresh: Refresh, oracle: Oracle, at: Eval, state: Any, key: Key):
    """The state after a refresh, unless that is not finite."""
    new, price = refresh.update(oracle, at, state, key)
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)
    changed = [x for x, old in pairs if x is not old and jnp.issubdtype(x.dtype, jnp.floating)]
    return tree.where(tree.all_finite(changed), new, state), price


@functools.partial(
    jit,
    static_argnames=("objective", "optimizer", "placement"),
    donate_argnames=("course",),
)
def look(course, batch, *, objective, optimizer, placement):
    """An evaluation at the parameters kept, where the last step's own is of no use."""
    at, price = optimizer.evaluate(bind(objective, batch, fixed=False), course.params)
    counts = tally(course.counts, price)
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    return placement.hold(
        course._replace(
            counts=counts,
            last=Last(at.value, at.grad, at.aux),
            size=size,
            page=course.page.write(at.value, size, counts, course.health[0], course.status),
        )
    )


@functools.partial(jit, static_argnames=("readout",))
def answer(params: Params, state: Any, *, readout: Callable[[Params, Any], Params]) -> Params:
    """What the method reports for these parameters: its own read-out, if that is finite."""
    read = readout(params, state)
    return tree.where(tree.all_finite(read), read, params)


def answered(course: Course, optimizer: Optimizer) -> Params:
    """The parameters that the method reports."""
    if optimizer.readout is keep:
        return course.params
    return answer(course.params, course.state, readout=optimizer.readout)


@functools.partial(jit, static_argnames=("objective",))
def value(params: Params, batch: tuple, *, objective: Objective) -> Scalar:
    """The objective on a batch."""
    return bind(objective, batch, fixed=False).value(params)
