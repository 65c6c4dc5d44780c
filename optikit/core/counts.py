"""The ledger: how often each kind of oracle was called."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Counts(NamedTuple):
    """Oracle calls by kind, each () int32 once inside a compiled loop.

    value: objective values alone. grad: gradients (each comes with its value).
    jvp, vjp: single products with the Jacobian of residuals or outputs, or with its transpose.
    hvp: products with the Hessian. ggnvp: products with a Gauss-Newton or Fisher matrix.
    hessian: dense curvature matrices (Hessian, Gauss-Newton or Fisher) built at once.
    jacobian: dense Jacobians of the residuals, each with the residuals themselves.
    """

    value: Int[Array, ""] | int = 0
    grad: Int[Array, ""] | int = 0
    jvp: Int[Array, ""] | int = 0
    vjp: Int[Array, ""] | int = 0
    hvp: Int[Array, ""] | int = 0
    ggnvp: Int[Array, ""] | int = 0
    hessian: Int[Array, ""] | int = 0
    jacobian: Int[Array, ""] | int = 0


def tally(*counts: Counts) -> Counts:
    """The sum of ledgers, as int32 arrays (so that it can be carried by a compiled loop)."""
    return jax.tree.map(lambda *ns: sum(jnp.asarray(n, jnp.int32) for n in ns), *counts)


def times(number: Int[Array, ""] | int, counts: Counts) -> Counts:
    """A price paid `number` times."""
    return jax.tree.map(lambda n: jnp.asarray(number * n, jnp.int32), counts)
