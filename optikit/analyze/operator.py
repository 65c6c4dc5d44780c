"""What the instruments look at: a curvature matrix as products of flat vectors, with its price."""

import fnmatch
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus import Objective, bind
from optikit.calculus.batched import curvature_in_batches
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, LinearOperator, Params


class Look(NamedTuple):
    """Which matrix is looked at; hashable, so that it can be static.

    Attributes:
      curvature: "hessian", "ggn", "fisher" or "empirical-fisher".
      batch_size: examples at a time; None for all at once.
      leaves: a pattern (`fnmatch`) on the paths of the leaves, e.g. "*'w'*", for the block of these
        alone; None for all.
    """

    curvature: CurvatureKind = "hessian"
    batch_size: int | None = None
    leaves: str | None = None


class Flat(NamedTuple):
    """A symmetric operator on flat vectors, or on lists of the leaves looked at.

    Attributes:
      product: (n,) -> (n,). dense: () -> (n, n). apply: leaves -> leaves, without copies.
      like: those leaves.
      restore: a flat vector in the parameters' structure, with zeros in leaves not looked at.
      whole: the same of leaves.
      price, setup, dense_price: oracle calls of a product, of reading `product`, of `dense`.
    """

    product: Callable[[Float[Array, " n"]], Float[Array, " n"]]
    dense: Callable[[], Float[Array, "n n"]]
    apply: Callable[[list[Array]], list[Array]]
    like: list[Array]
    whole: Callable[[list[Array]], Params]
    restore: Callable[[Float[Array, " n"]], Params]
    size: int
    dtype: jnp.dtype
    price: Counts
    setup: Counts
    dense_price: Counts


def check_wide(params: Params) -> None:
    """Refuse parameters in which there are no factorisations, nor digits for curvature.

    Raises:
      TypeError: a leaf is narrower than float32; it is named.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if leaf.dtype.itemsize < 4:
            name = f"params{jax.tree_util.keystr(path)}"
            msg = (
                f"{name} is {leaf.dtype.name}: eigenvalues cannot be had in it; convert it to "
                "float32, and back inside the function if that is the precision to be looked at."
            )
            raise TypeError(msg)


def flat_operator(
    subject: Objective | LinearOperator,
    params: Params,
    args: tuple,
    look: Look,
    scaling: Params | None,
) -> Flat:
    """The matrix S A S restricted to the chosen leaves, with S the square root of `scaling`.

    Raises:
      ValueError: a pattern that matches no leaf; batches of an operator.
    """
    operator = _operator(subject, params, args, look)
    chosen = _matching(params, look.leaves)
    leaves, structure = jax.tree.flatten(params)

    def taken(v: Params) -> list[Array]:
        return [x for x, take in zip(jax.tree.leaves(v), chosen, strict=True) if take]

    like = taken(params)
    vector, unravel = ravel_pytree(like)
    roots, root = None, None
    if scaling is not None:
        roots = taken(jax.tree.map(lambda s, p: jnp.sqrt(jnp.asarray(s, p.dtype)), scaling, params))
        root = ravel_pytree(roots)[0]

    def whole(parts: list[Array]) -> Params:
        left = iter(parts)
        every = [
            next(left) if take else jnp.zeros_like(x)
            for x, take in zip(leaves, chosen, strict=True)
        ]
        return jax.tree.unflatten(structure, every)

    mv = operator.mv

    def scaled(parts: list[Array]) -> list[Array]:
        return parts if roots is None else [r * x for r, x in zip(roots, parts, strict=True)]

    def apply(parts: list[Array]) -> list[Array]:
        return scaled(taken(mv(whole(scaled(parts)))))

    def product(v: Array) -> Array:
        return ravel_pytree(apply(unravel(v)))[0]

    def restore(v: Array) -> Params:
        return whole(unravel(v))

    def dense() -> Array:
        mask = ravel_pytree(
            [jnp.full(x.shape, take) for x, take in zip(leaves, chosen, strict=True)]
        )[0]
        matrix = operator.dense()
        if not all(chosen):
            rows = jnp.nonzero(mask, size=vector.size)[0]
            matrix = matrix[rows][:, rows]
        return matrix if root is None else root[:, None] * matrix * root[None, :]

    return Flat(
        product, dense, apply, like, whole, restore, vector.size, vector.dtype,
        operator.price, operator.setup, operator.matrix_price,
    )  # fmt: skip


def require_factorizable(flat: Flat) -> None:
    """Raises: TypeError: parameters of half precision, which no factorisation knows."""
    if flat.dtype.itemsize < 4:
        msg = f"params are {flat.dtype.name}: cast them to float32 for what factorises."
        raise TypeError(msg)


def semidefinite(subject: Objective | LinearOperator, curvature: CurvatureKind) -> bool:
    """Whether a curvature matrix is positive semidefinite by construction, and no penalty's.

    A GGN is where the loss is convex in the outputs; which is taken for granted of likelihoods.
    """
    if isinstance(subject, LinearOperator) or curvature == "hessian" or subject.penalty is not None:
        return False
    if curvature == "ggn" and subject.kind == "composite":
        return subject.loss is not None and subject.loss.fisher is not None
    return curvature != "ggn" or subject.robust is None


def _operator(
    subject: Objective | LinearOperator, params: Params, args: tuple, look: Look
) -> LinearOperator:
    if isinstance(subject, LinearOperator):
        if look.batch_size is not None:
            msg = "batch_size is for an objective; an operator has its data in it already."
            raise ValueError(msg)
        return subject
    if look.batch_size is not None:
        return curvature_in_batches(subject, params, args, look.curvature, look.batch_size)
    return bind(subject, args).curvature(look.curvature, params)


def _matching(params: Params, pattern: str | None) -> list[bool]:
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    if pattern is None:
        return [True] * len(paths)
    chosen = [fnmatch.fnmatchcase(path, _literal(pattern)) for path in paths]
    if not any(chosen):
        msg = f"no leaf matches {pattern!r}: the leaves are {', '.join(paths)}."
        raise ValueError(msg)
    return chosen


def _literal(pattern: str) -> str:
    """The pattern with square brackets, which paths are full of, taken as they are."""
    return "".join(f"[{c}]" if c == "[" else c for c in pattern)
