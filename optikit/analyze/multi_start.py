"""`multi_start`: the distinct minima that many starts lead to, ranked and certified."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.analyze.certificate import Certificate
from optikit.analyze.certify import certify
from optikit.calculus import Objective
from optikit.calculus.validate import as_args, as_objective, as_params
from optikit.core import Key, Params, Status
from optikit.solve.loop import gradient_criterion
from optikit.solve.many import batch_size
from optikit.solve.minimize import Method, as_optimizer
from optikit.solve.pool import Data, Task, run
from optikit.solve.solution import Solution


@dataclasses.dataclass(frozen=True)
class Minimum:
    """One of the points that the starts led to.

    Attributes:
      solution: the best of the solves that ended here.
      certificate: what `certify` says of it; None where the curvature is not finite.
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
      distance: end points are the same if they are this close, relative to the larger of 1 and the
        parameters' size, and their values agree alike; by default 1e-4 in float64 and 1e-2 in
        float32, since values near a minimum fix the parameters to half the digits only.
      certified: how many of the lowest get a certificate.

    Cost: the solves, in the solutions' counts; of each certificate one grad and one hessian, see
      `certify`.

    Raises:
      ValueError: no starts, starts that disagree on axis 0, a sampler without count.
      TypeError: as for `minimize`.

    Example:
      >>> found = multi_start(lambda x: (x**2 - 1) ** 2 + x / 10, jnp.linspace(-2.0, 2.0, 9))
      >>> [(round(float(m.params)), str(m.certificate.kind)) for m in found.minima][:2]
      [(-1, 'minimum'), (1, 'minimum')]
    """
    objective, args = as_objective(fun, has_aux=has_aux), as_args(args)
    draw_key, solve_key = jax.random.split(jax.random.key(0) if key is None else key)
    if callable(starts):
        if count is None or count < 1:
            msg = f"a sampler needs the number of starts to draw: got count={count}."
            raise ValueError(msg)
        starts = jax.vmap(starts)(jax.random.split(draw_key, count))
    if any(0 in jnp.shape(x)[:1] for x in jax.tree.leaves(starts)):
        batch_size(starts, ())
    starts = as_params(starts)
    size = batch_size(starts, ())
    args = jax.tree.map(jnp.asarray, args)
    first = jax.tree.map(lambda x: x[0], starts)
    optimizer, reason = as_optimizer(method, objective, first, args)
    task = Task(objective, optimizer, gradient_criterion, shared=True)
    solutions = run(task, starts, Data(args), size, solve_key, tol, max_steps, reason)
    return _ranked(objective, args, solutions, distance, certified)


def _ranked(objective, args, solutions: Solution, distance, certified) -> MultiStart:
    statuses = np.asarray(solutions.status)
    success = np.asarray(solutions.success)
    leaves = [np.asarray(x, float) for x in jax.tree.leaves(solutions.params)]
    flat = np.concatenate([x.reshape(len(statuses), -1) for x in leaves], axis=1)
    values = np.asarray(solutions.value, float)
    if distance is None:
        distance = 1e-4 if solutions.value.dtype.itemsize > 4 else 1e-2
    order = np.flatnonzero(success)[np.argsort(values[success], kind="stable")]
    minima = []
    for rank, members in enumerate(_groups(flat, values, order, distance)):
        found = jax.tree.map(lambda x, i=members[0]: x[i], solutions)
        certificate = _certificate(objective, found.params, args) if rank < certified else None
        minima.append(Minimum(found, certificate, tuple(members)))
    codes, numbers = np.unique(statuses[~success], return_counts=True)
    failures = {Status(int(c)): int(n) for c, n in zip(codes, numbers, strict=True)}
    return MultiStart(tuple(minima), solutions, failures)


def _groups(points: np.ndarray, values: np.ndarray, order: np.ndarray, distance: float):
    """End points in the order of their values, gathered around the lowest of each group."""
    groups: list[list[int]] = []
    for i in order.tolist():
        for group in groups:
            lead = group[0]
            apart = np.linalg.norm(points[i] - points[lead])
            reach = max(1.0, float(np.linalg.norm(points[lead])))
            higher = values[i] - values[lead]
            if apart <= distance * reach and higher <= distance * max(1.0, abs(values[lead])):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _certificate(objective: Objective, params: Params, args: tuple) -> Certificate | None:
    try:
        return certify(objective, params, args)
    except FloatingPointError:
        return None
