"""`multi_start`: the distinct minima that many starts lead to, ranked and certified."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from optikit.analyze.certificate import Certificate
from optikit.analyze.certify import certify
from optikit.analyze.prices import products, refusal
from optikit.calculus import Objective, bind
from optikit.calculus.validate import as_args, as_key, as_objective, as_params
from optikit.core import Key, Params, Status
from optikit.core.compiled import jit, under_transformation
from optikit.optimizers import Bounded
from optikit.solve.loop import gradient_criterion
from optikit.solve.minimize import Method, as_optimizer
from optikit.solve.pool import Data, Task, run
from optikit.solve.solution import Solution


@dataclasses.dataclass(frozen=True)
class Minimum:
    """One of the points that the starts led to.

    Attributes:
      solution: the best of the solves that ended here.
      certificate: what `certify` says of it; None where the curvature is not finite or cannot be
        had: a gradient through a callback, parameters narrower than float32.
      starts: the numbers of the starts that led here, best value first.
    """

    solution: Solution
    certificate: Certificate | None
    starts: tuple[int, ...]

    @property
    def params(self) -> Params:
        """Where it is."""
        return self.solution.params

    @property
    def value(self) -> float:
        """The objective there."""
        return float(self.solution.value)

    def __str__(self) -> str:
        kind = "uncertified" if self.certificate is None else self.certificate.kind.value
        return f"{self.value:<18.10g} {kind:<15} {len(self.starts)} starts"


@dataclasses.dataclass(frozen=True)
class MultiStart:
    """What a multi-start search found; `print` it for the ranking.

    Attributes:
      minima: distinct end points of successful solves, the lowest value first. The certificate of
        each says whether it is a minimum.
      solutions: the Solution of every start, in their order, the starts along axis 0.
      failures: how many starts ended in each `Status` that is no success.
    """

    minima: tuple[Minimum, ...]
    solutions: Solution
    failures: dict[Status, int]

    @property
    def best(self) -> Minimum:
        """The lowest of the minima.

        Raises:
          ValueError: no start succeeded.
        """
        if not self.minima:
            msg = f"no start led to a minimum: {self._failed()}. See .solutions, best seen each."
            raise ValueError(msg)
        return self.minima[0]

    def _failed(self) -> str:
        return ", ".join(f"{n} {status.name}" for status, n in self.failures.items())

    def __str__(self) -> str:
        total = sum(len(m.starts) for m in self.minima) + sum(self.failures.values())
        head = f"{len(self.minima)} distinct from {total} starts by {self.solutions.method}"
        lines = [f"  {rank}. {minimum}" for rank, minimum in enumerate(self.minima, 1)]
        failed = [f"  failed: {self._failed()}"] if self.failures else []
        return "\n".join([head, *lines, *failed])


def multi_start(
    fun: Objective | Callable[..., Any],
    starts: Params | Callable[[Key], Params],
    *,
    args: tuple = (),
    count: int | None = None,
    method: Method = "auto",
    tol: float | None = None,
    max_steps: int = 1000,
    has_aux: bool = False,
    key: Key | None = None,
    distance: float | None = None,
    certified: int = 10,
) -> MultiStart:
    """Minimise fun(params, *args) from many starts, and say what they lead to.

    All solves run as one batch (see `minimize_many`) on the same args.

    Args:
      starts: params with the starts along axis 0 of every leaf; or a sampler, key -> params, of
        which `count` starts are drawn with `key`.
      count: starts to draw, for a sampler.
      distance: end points are the same if no leaf of theirs differs by more than this in length,
        relative to its length there or to what is usual among the starts or the ends, whichever
        is largest, and their values by no more relative to theirs or to what a start usually
        gains; so units do not matter where each leaf has its own. By default 1e-4 in float64 and
        1e-2 in float32, since values near a minimum fix the parameters to half the digits only.
      certified: how many of the lowest get a certificate.

    Cost: the solves, in the solutions' counts; a value at each start; of each certificate 21 grads
      and one hessian, see `certify`.

    Raises:
      ValueError: no starts, starts that disagree on axis 0, a sampler without count, a count
        without a sampler, a negative max_steps or distance; a call under `jit` or `vmap`, where
        the number of minima is not known.
      TypeError: as for `minimize`.

    Example:
      >>> found = multi_start(lambda x: (x**2 - 1) ** 2 + x / 10, jnp.linspace(-2.0, 2.0, 9))
      >>> [(round(float(m.params)), str(m.certificate.kind)) for m in found.minima][:2]
      [(-1, 'minimum'), (1, 'minimum')]
    """
    objective, args = as_objective(fun, has_aux=has_aux), as_args(args)
    _check(starts, args, count, method, max_steps, distance)
    draw_key, solve_key = jax.random.split(as_key(key))
    if callable(starts):
        starts = jax.vmap(starts)(jax.random.split(draw_key, int(count or 0)))
    size = _number(starts)
    starts = as_params(starts)
    args = jax.tree.map(jnp.asarray, args)
    first = jax.tree.map(lambda x: x[0], starts)
    optimizer, reason = as_optimizer(method, objective, first, args)
    task = Task(objective, optimizer, gradient_criterion, shared=True)
    solutions = run(task, starts, Data(args), size, solve_key, tol, max_steps, reason)
    return _ranked(objective, starts, args, solutions, distance, certified)


def _check(starts, args, count, method, max_steps, distance) -> None:
    """Refuse wrong calls."""
    leaves = jax.tree.leaves((() if callable(starts) else starts, args))
    if under_transformation() or any(isinstance(x, core.Tracer) for x in leaves):
        msg = "multi_start counts what it finds: call it outside jit and vmap, or minimize_many."
        raise ValueError(msg)
    if callable(starts) and not (isinstance(count, int | np.integer) and count >= 1):
        msg = f"a sampler needs the number of starts to draw, 1 or more: got count={count}."
        raise ValueError(msg)
    if not callable(starts) and count is not None:
        msg = f"count={count} is for a sampler, and the starts are given: leave it out."
        raise ValueError(msg)
    if isinstance(method, Bounded):
        msg = (
            f"method {method.name!r} is for problems with bounds, which multi_start does not take: "
            "use minimize_many(..., bounds=) and certify_many."
        )
        raise TypeError(msg)
    if max_steps < 0:
        msg = f"max_steps must not be negative; got {max_steps}."
        raise ValueError(msg)
    if distance is not None and not distance >= 0:
        msg = f"distance must not be negative; got {distance}."
        raise ValueError(msg)


def _number(starts: Params) -> int:
    """How many starts there are; every leaf must hold as many."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(starts)[0]:
        name = f"starts{jax.tree_util.keystr(path)}"
        if not jnp.shape(leaf):
            msg = (
                f"{name} is a single number: axis 0 of every leaf holds the starts. Stack them, as "
                "jnp.stack([x, y]); of one start, x[None]."
            )
            raise ValueError(msg)
        sizes[name] = jnp.shape(leaf)[0]
    if len(set(sizes.values())) > 1:
        held = ", ".join(f"{name} holds {size}" for name, size in sizes.items())
        msg = f"the numbers of starts disagree: {held}; axis 0 of every leaf holds the starts."
        raise ValueError(msg)
    if 0 in sizes.values():
        msg = f"the batch is empty: {next(iter(sizes))} holds no starts; give one at least."
        raise ValueError(msg)
    return next(iter(sizes.values()), 0)


def _ranked(objective, starts, args, solutions: Solution, distance, certified) -> MultiStart:
    statuses = np.asarray(solutions.status)
    success = np.asarray(solutions.success)
    values = np.asarray(solutions.value, float)
    if distance is None:
        distance = 1e-4 if solutions.value.dtype.itemsize > 4 else 1e-2
    order = np.flatnonzero(success)[np.argsort(values[success], kind="stable")]
    minima = []
    if order.size:
        before = np.asarray(_values(starts, args, objective=objective), float)
        gain = _usual((before - values)[success], 1.0)
        leaves = _leaves(starts, solutions.params, success)
        for rank, members in enumerate(_groups(leaves, values, gain, order, distance)):
            found = _one(solutions, np.int32(members[0]))
            certificate = _certificate(objective, found.params, args) if rank < certified else None
            minima.append(Minimum(found, certificate, tuple(members)))
    codes, numbers = np.unique(statuses[~success], return_counts=True)
    failures = {Status(int(c)): int(n) for c, n in zip(codes, numbers, strict=True)}
    return MultiStart(tuple(minima), solutions, failures)


@jit
def _one(solutions, i):
    return jax.tree.map(lambda x: x[i], solutions)


@functools.partial(jit, static_argnames="objective")
def _values(starts, args, *, objective):
    return jax.vmap(lambda p: bind(objective, args).value(p))(starts)


def _leaves(starts: Params, ends: Params, success: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Of every leaf the ends as rows, and their usual length; 1 where the starts are zero."""
    found = []
    for start, end in zip(jax.tree.leaves(starts), jax.tree.leaves(ends), strict=True):
        before, after = (np.asarray(x, float).reshape(len(success), -1) for x in (start, end))
        among = _usual(np.linalg.norm(before[success], axis=1), 1.0)
        found.append((after, max(among, float(np.median(np.linalg.norm(after[success], axis=1))))))
    return found


def _usual(numbers: np.ndarray, otherwise: float) -> float:
    """The median size of those that are finite and not zero."""
    sizes = np.abs(numbers)
    kept = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.median(kept)) if kept.size else otherwise


def _groups(
    leaves: list[tuple[np.ndarray, float]], values: np.ndarray, gain: float, order: np.ndarray,
    distance: float,
) -> list[list[int]]:  # fmt: skip
    """End points in the order of their values, gathered around the lowest of each group."""

    def same(i: int, lead: int) -> bool:
        return all(
            np.linalg.norm(x[i] - x[lead]) <= distance * max(usual, np.linalg.norm(x[lead]))
            for x, usual in leaves
        )

    groups: list[list[int]] = []
    leads = np.zeros(0)  # the values of the lowest, which ascend
    for i in order.tolist():
        near = values[i] - leads <= distance * np.maximum(gain, np.abs(leads))
        for which in np.flatnonzero(near).tolist():
            if same(i, groups[which][0]):
                groups[which].append(i)
                break
        else:
            groups.append([i])
            leads = np.append(leads, values[i])
    return groups


def _certificate(objective: Objective, params: Params, args: tuple) -> Certificate | None:
    if any(x.dtype.itemsize < 4 for x in jax.tree.leaves(params)):
        return None
    try:
        return certify(objective, params, args)
    except FloatingPointError:
        return None
    except (TypeError, ValueError, NotImplementedError):
        if refusal(products(objective)["hvp"], params, args, 1):
            return None
        raise
