"""`fit`: a stream of minibatches, several steps a dispatch, budgets that are kept.

The device runs ahead of the host: steps are dispatched in chunks without waiting, and their
outcomes are looked at every so often; batches are read and copied ahead by a thread.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from optikit.calculus import Objective
from optikit.calculus.validate import as_key, as_objective, as_params
from optikit.core import Key, Params, Status
from optikit.optimizers import Optimizer, named
from optikit.solve.budget import DEFAULT_BUDGET, Budget, exhausted
from optikit.solve.checkpoint import Checkpoint, Record, as_checkpoint
from optikit.solve.feed import Feed, Position
from optikit.solve.history import Row
from optikit.solve.minimize import Method, as_optimizer
from optikit.solve.placement import placement_over
from optikit.solve.progress import bar
from optikit.solve.run import Evaluate, Run
from optikit.solve.solution import Solution


def fit(
    fun: Objective | Callable[..., Any],
    params: Params,
    batches: Iterable[tuple],
    *,
    method: Method,
    budget: Budget = DEFAULT_BUDGET,
    key: Key | None = None,
    has_aux: bool = False,
    progress: bool | None = None,
    prefetch: bool = True,
    checkpoint: Checkpoint | str | None = None,
    recoveries: int = 5,
    evaluate: Evaluate | None = None,
    on_look: Callable[[int, Row], Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    spread: bool = False,
) -> Solution:
    """Minimise the expectation of fun(params, *batch) over a stream of batches.

    Args:
      fun: as for `minimize`.
      batches: args tuples. A collection that can be iterated again (a list, a data set) is, epoch
        after epoch; a one-shot iterator that ends before the budget ends the fit with
        Status.OUT_OF_DATA. Batches of one shape share one executable.
      method: a name, an Optimizer or an optax transformation.
      budget: at least one bound; steps are the default.
      key: for methods that draw random numbers.
      progress: a bar on stderr; by default only on a terminal.
      prefetch: read batches on a thread ahead of their use, and copy them to the device there;
        those of a list or tuple are at hand. No more are read than a budget of steps needs.
      checkpoint: a folder, or an `ok.Checkpoint`. If there is one of this fit, it goes on from it,
        bit by bit as if it had not been cut off; `params` and `key` then only say what shapes they
        have. Where the stream stood: a list or tuple is indexed; what has `state_dict` and
        `load_state_dict` is asked; a collection with `set_epoch(n)` begins in the right epoch;
        all else must give the same batches again from its beginning, and those used are read and
        dropped. A fit that has ended returns the same Solution at once; with a larger budget of
        steps, seconds or gradients it goes on.
      recoveries: a step that meets NaN or infinity in value, gradient or new parameters is void:
        its batch is skipped. A method with a damping (`Optimizer.calm`) raises it, and where
        another batch fails at the same parameters goes back to the ones before, of which it keeps
        a copy; others stay where they are. After more than so many in a row the fit ends with
        Status.NOT_FINITE; with 0 the first ends it.
      evaluate: (batches, n) or (function of params, n): after each multiple of n steps the mean of
        fun over these batches, or what the function returns, is entered in `trace.validation`. It
        sees the parameters that the method reports, and is not in the counts.
      on_look: called as on_look(steps, row) when the host looks at the device, up to ten times a
        second: row.value, row.skipped, row.gradients.
      mesh: devices over which each batch is split along axis 0, e.g. `jax.make_mesh((8,),
        ("batch",))`; parameters and state are on all of them. With several processes
        (`jax.distributed.initialize`) it spans them all, and each brings its own rows.
      spread: split large arrays of the method's state over the mesh, too.

    Returns: a Solution at the last finite parameters, as the method reports them (its average, if
      it keeps one). Its value, gradient and aux are of the last batch, before its step (of the
      first batch if the last was not finite); row k of its trace is step k, with the batch value
      before that step.

    Raises:
      ValueError: there is no batch, no budget, or an unknown method; a batch does not divide among
        the devices; the checkpoint is of another fit.
      TypeError: a batch is not a tuple, or as for `minimize`.

    Example:
      >>> import optikit as ok
      >>> batches = [(jnp.full(4, t),) for t in (1.0, 3.0)]
      >>> run = fit(lambda x, b: jnp.mean((x - b) ** 2), jnp.array(0.0), batches,
      ...           method=ok.optimizers.adam(0.05), budget=ok.Budget(steps=400))
      >>> abs(float(run.params) - 2.0) < 0.1
      True
    """
    if all(bound is None for bound in budget):
        msg = "the budget is empty: give ok.Budget(steps=...), seconds= or gradients=."
        raise ValueError(msg)
    params, objective = as_params(params), as_objective(fun, has_aux=has_aux)
    placement, files = placement_over(mesh, spread=spread), as_checkpoint(checkpoint)
    evaluate = _repeatable(evaluate)
    found = None if files is None else files.newest()
    record = None if found is None else Record(found)
    over = Status.RUNNING if record is None else _over(record, budget)
    start = Position() if record is None or over != Status.RUNNING else record.position
    limit = None if budget.steps is None else max(1, budget.steps - start.taken)
    limit = limit if over == Status.RUNNING else 1
    at_hand = isinstance(batches, (list, tuple))  # nothing to be gained, and nothing changes
    place = functools.partial(placement.batch, copy=not at_hand)
    with Feed(
        batches, start=start, limit=limit, place=place, threaded=prefetch and not at_hand,
        remember=files is not None,
    ) as feed:  # fmt: skip
        feed.peek()
        if feed.example is None:
            msg = "batches is empty: there is no batch to take a step on."
            raise ValueError(msg)
        optimizer, reason = _chosen(method, record, objective, params, feed.example)
        run = Run(
            objective, optimizer, params, as_key(key), feed,
            budget=budget, recoveries=recoveries, reason=reason, files=files, record=record,
            evaluate=evaluate, placement=placement,
        )  # fmt: skip
        if over != Status.RUNNING:
            return run.solution(over, over=True)
        with bar(budget, progress) as report:
            try:
                ended = run.on(report, on_look)
            except KeyboardInterrupt:
                run.interrupted()
                raise
        return run.solution(ended, over=False)


def _over(record: Record, budget: Budget) -> Status:
    """How a recorded fit has ended, for a budget that may be another than its own."""
    if record.ended in (Status.NOT_FINITE, Status.OUT_OF_DATA):
        return record.ended
    used = record.position.taken, record.seconds, record.gradients
    ended = exhausted(budget, *used)
    return record.ended if ended != Status.RUNNING and record.ended != Status.RUNNING else ended


def _chosen(
    method: Method, record: Record | None, objective: Objective, params: Params, batch: tuple
) -> tuple[Optimizer, str]:
    """The method; "auto", which may measure, chooses only once."""
    if record is not None and method == "auto":
        return named(record.method), record.chosen
    return as_optimizer(method, objective, params, batch)


def _repeatable(evaluate: Evaluate | None) -> Evaluate | None:
    """The batches of validation and how often, checked.

    Raises:
      TypeError: it is no pair, or its batches can be read only once.
      ValueError: the period is not positive.
    """
    if evaluate is None:
        return None
    if not isinstance(evaluate, tuple) or len(evaluate) != 2 or not isinstance(evaluate[1], int):
        msg = (
            f"evaluate must be a pair (batches or function, every so many steps); got {evaluate!r}."
        )
        raise TypeError(msg)
    what, every = evaluate
    if every <= 0:
        msg = f"evaluate: the number of steps must be positive; got {every}."
        raise ValueError(msg)
    if isinstance(what, Iterator):
        msg = "evaluate: its batches are read again and again: give a list, not an iterator."
        raise TypeError(msg)
    return evaluate
