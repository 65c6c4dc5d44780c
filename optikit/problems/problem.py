"""What a problem is: an objective, its data, a start, and the optimum where it is known."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optikit.calculus import Objective
from optikit.calculus.validate import as_objective, as_params
from optikit.core import Key, Params, PyTree


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
    """

    objective: Objective | Callable[..., Any]
    params: Params | Callable[[Key], Params]
    args: tuple = ()
    optimum: float | None = None
    description: str = ""
    solution: Params | None = None

    def start(self, key: Key) -> Params:
        """Starting parameters for a seed's key."""
        drawn = self.params(key) if callable(self.params) else self.params
        return as_params(drawn)

    def cast(self, dtype: Any) -> "Problem":
        """The same problem with all floating-point data and parameters in a dtype."""
        begin = self.start
        return dataclasses.replace(
            self,
            objective=as_objective(self.objective),
            params=lambda key: cast_floats(begin(key), dtype),
            args=cast_floats(self.args, dtype),
            solution=None if self.solution is None else cast_floats(self.solution, dtype),
        )


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating-point leaf in a dtype; integers and booleans as they are."""

    def cast(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
