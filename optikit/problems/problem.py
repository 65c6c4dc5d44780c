"""What a problem is: an objective, its data, a start, and the optimum where it is known."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optikit.calculus import Objective
from optikit.calculus.validate import as_objective, as_params
from optikit.core import Key, Params, PyTree
from optikit.problems.batches import Batches


class Metric(NamedTuple):
    """A number besides the objective that says how good parameters are.

    Attributes:
      fun: (params, *args) -> scalar; pure.
      args: its own data, such as examples that were held out.
    """

    fun: Callable[..., Any]
    args: tuple = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """An optimisation problem, ready to be solved or measured.

    Attributes:
      objective: an Objective, or a plain function (params, *args) -> scalar.
      params: the starting parameters, or a function of a PRNG key that draws them.
      args: the data.
      optimum: the least value where it is known in closed form, else None.
      description: one line for reports.
      solution: parameters that attain the optimum, where one such point is known, else None.
      batches: (key, step, args) -> the args of that step's batch, for a problem whose methods see
        minibatches; see `optikit.problems.batches`. None: every step sees the whole data.
      held_out: args of the objective on which points are judged instead of the training data;
        methods never see them.
      metrics: by name, what else is reported of a point.
    """

    objective: Objective | Callable[..., Any]
    params: Params | Callable[[Key], Params]
    args: tuple = ()
    optimum: float | None = None
    description: str = ""
    solution: Params | None = None
    batches: Batches | None = None
    held_out: tuple | None = None
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)

    def start(self, key: Key) -> Params:
        """Starting parameters for a seed's key."""
        drawn = self.params(key) if callable(self.params) else self.params
        return as_params(drawn)

    def step_args(self, key: Key) -> tuple:
        """The args of a step's calls: the data, or a batch of it."""
        if self.batches is None:
            return self.args
        args = jax.tree.map(jnp.asarray, self.args)
        return self.batches(key, jnp.asarray(0, jnp.int32), args)

    @property
    def judged(self) -> tuple:
        """The args on which points are judged: those held out, else the data."""
        return self.args if self.held_out is None else self.held_out

    def cast(self, dtype: Any) -> "Problem":
        """The same problem with all floating-point data and parameters in a dtype."""
        begin = self.start
        return dataclasses.replace(
            self,
            objective=as_objective(self.objective),
            params=lambda key: cast_floats(begin(key), dtype),
            args=cast_floats(self.args, dtype),
            solution=None if self.solution is None else cast_floats(self.solution, dtype),
            held_out=None if self.held_out is None else cast_floats(self.held_out, dtype),
            metrics={
                name: metric._replace(args=cast_floats(metric.args, dtype))
                for name, metric in self.metrics.items()
            },
        )


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating-point leaf in a dtype; integers and booleans as they are."""

    def cast(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
