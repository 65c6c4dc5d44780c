"""`method="auto"`: by structure, then by size."""

import functools

import jax
import jax.numpy as jnp

from optikit.calculus import Objective
from optikit.calculus.affine import affine_terms
from optikit.calculus.objective import outputs_of, residual_vector, split_data
from optikit.core import Params, tree

DENSE_BLACK_BOX = 100
"""Parameters up to which a black box's Hessian, at n products, is worth having."""

DENSE_STRUCTURED = 2000
"""Parameters up to which a linear model's Hessian, at one Gram product, is worth having."""

DENSE_JACOBIAN = 1000
"""Parameters, or residuals if fewer, up to which a dense least-squares step is worth its flops."""


def choose(objective: Objective, params: Params, args: tuple) -> tuple[str, str]:
    """The name of a method and the reason for it, from what is known without running anything.

    Remembered by objective and shapes, since looking into a model means tracing it.
    """
    leaves, structure = jax.tree.flatten((params, args))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return _choose(objective, structure, shapes)


@functools.lru_cache(maxsize=1024)
def _choose(objective: Objective, structure, shapes: tuple) -> tuple[str, str]:
    blank = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params, args = jax.tree.unflatten(structure, blank)
    n = tree.size(params)
    if objective.kind == "residuals" and (vector := residual_vector(objective)) is not None:
        m = jax.eval_shape(lambda p, a: vector(p, *a), params, args).size
        if min(m, n) <= DENSE_JACOBIAN:
            return (
                "levenberg-marquardt",
                f"{m} residuals of {n} parameters: a dense Jacobian is cheap",
            )
    if objective.kind == "composite" and n <= DENSE_STRUCTURED:
        inputs = split_data(objective, args)[0]
        if _is_affine(objective, params, inputs):
            return "newton", f"a linear model of {n} parameters: its Hessian is a Gram product"
    if n <= DENSE_BLACK_BOX:
        return "newton", f"{n} parameters: a dense Hessian costs at most {n} products"
    return "lbfgs", f"{n} parameters without known structure: gradients only"


def _is_affine(objective: Objective, params: Params, inputs) -> bool:
    found = []

    def look(p: Params, x) -> None:
        terms = affine_terms(lambda q, y: outputs_of(objective, q, y), p, x)
        found.append(terms is not None)

    jax.eval_shape(look, params, inputs)
    return found[0]
