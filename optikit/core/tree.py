"""Algebra over pytrees of real arrays, one line an operation.

Inner products accumulate in at least float32 and at the highest matmul precision, so that a GPU's
TF32 default does not enter step lengths and convergence tests.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.core.typing import PyTree, Scalar

HIGHEST = jax.lax.Precision.HIGHEST


def inner_dtype(tree: PyTree) -> jnp.dtype:
    """The dtype in which inner products over `tree` are accumulated."""
    wide = any(jnp.dtype(x.dtype).itemsize > 4 for x in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def vdot(a: PyTree, b: PyTree) -> Scalar:
    """<a, b>, accumulated in at least float32."""
    dtype = inner_dtype((a, b))

    def dot(x: Array, y: Array) -> Scalar:
        return jnp.vdot(x.astype(dtype), y.astype(dtype), precision=HIGHEST)

    return functools.reduce(operator.add, jax.tree.leaves(jax.tree.map(dot, a, b)))


def norm(a: PyTree) -> Scalar:
    """The Euclidean norm over all leaves, safe against overflow of the squares."""
    scale = max_abs(a)
    safe = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    scaled = jax.tree.map(lambda x: x / safe.astype(x.dtype), a)
    return safe * jnp.sqrt(vdot(scaled, scaled))


def max_abs(a: PyTree) -> Scalar:
    """The largest absolute entry; NaN if there is one."""
    dtype = inner_dtype(a)
    return functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(a)]
    )


def add_scaled(a: PyTree, t: Scalar | float, b: PyTree) -> PyTree:
    """A + t b, in the dtypes of a."""
    return jax.tree.map(lambda x, y: x + jnp.asarray(t, x.dtype) * y.astype(x.dtype), a, b)


def add(a: PyTree, b: PyTree) -> PyTree:
    """A + b."""
    return jax.tree.map(operator.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """A - b."""
    return jax.tree.map(operator.sub, a, b)


def scale(t: Scalar | float, a: PyTree) -> PyTree:
    """T a, in the dtypes of a."""
    return jax.tree.map(lambda x: jnp.asarray(t, x.dtype) * x, a)


def negative(a: PyTree) -> PyTree:
    """-a."""
    return jax.tree.map(operator.neg, a)


def zeros_like(a: PyTree) -> PyTree:
    """Zeros in the shapes and dtypes of a, without a's weak types."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), a)


def where(condition: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    """A if the condition holds, else b: a choice of values that lets no NaN of the other pass."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(a: PyTree) -> Bool[Array, ""]:
    """Whether every entry is finite."""
    return functools.reduce(
        operator.and_, [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(a)], jnp.asarray(True)
    )


def size(a: PyTree) -> int:
    """The number of scalars."""
    return sum(x.size for x in jax.tree.leaves(a))


def ravel(a: PyTree) -> Float[Array, " n"]:
    """All leaves as one vector, in `jax.flatten_util.ravel_pytree` order."""
    return ravel_pytree(a)[0]


def eps(dtype: jnp.dtype) -> float:
    """The unit roundoff of a dtype as a Python float, which promotes nothing."""
    return float(jnp.finfo(dtype).eps)
