"""Derivatives of an objective at a point, as values: gradients, products, operators, matrices.

These are functions of a point, not transformations: `grad(fun, params, args)` is what
`jax.grad(fun)(params, *args)` returns. All work under `jit` and `vmap`; `fun` is a plain function
or an Objective. Costs are oracle calls as in `Counts`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus.columns import COLUMNS_AT_ONCE, value_and_jacobian
from optikit.calculus.objective import (
    Objective,
    example_losses,
    fingerprint,
    outputs_of,
    residual_vector,
    split_data,
)
from optikit.calculus.oracle import Oracle, bind
from optikit.calculus.validate import as_args, as_key, as_objective, as_params, check_scalar
from optikit.core import Key, LinearOperator, Params, PyTree, Scalar

Fun = Objective | Callable[..., Any]


def _open(fun: Fun, params: Params, args: tuple) -> tuple[Oracle, Params]:
    objective, params, args = as_objective(fun), as_params(params), as_args(args)
    check_scalar(objective, params, args)
    return bind(objective, args), params


def value_and_grad(fun: Fun, params: Params, args: tuple = ()) -> tuple[Scalar, Params]:
    """F and its gradient, in the structure of params. Cost: one grad.

    Raises:
      TypeError: fun is not scalar, or a parameter not floating point.
    """
    oracle, params = _open(fun, params, args)
    at = oracle.value_and_grad(params)
    return at.value, at.grad


def grad(fun: Fun, params: Params, args: tuple = ()) -> Params:
    """The gradient at params, in their structure. Cost: one grad.

    Example:
      >>> grad(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
      Array([ 3., 12.], dtype=float32...)
    """
    return value_and_grad(fun, params, args)[1]


def hvp(fun: Fun, params: Params, vector: Params, args: tuple = ()) -> Params:
    """The Hessian at params times a vector, forward-over-reverse. Cost: one grad and one hvp.

    For many products at one point use `hessian(...)`, which linearises once.

    Example:
      >>> hvp(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
      Array([ 6., 12.], dtype=float32...)
    """
    oracle, params = _open(fun, params, args)
    return oracle.curvature("hessian", params).mv(_like(params, vector))


def hessian(fun: Fun, params: Params, args: tuple = ()) -> LinearOperator:
    """The Hessian at params as a linearised operator.

    `op @ v` and `op.mv(v)` cost one hvp; `op.dense()` is the (n, n) matrix over the ravelled
    parameters and costs one hessian: by weighted Gram products where a composite objective's model
    is affine in the parameters, else by n products.

    Example:
      >>> hessian(lambda x: x[0] * x[1], jnp.array([1.0, 2.0])).dense()
      Array([[0., 1.],
             [1., 0.]], dtype=float32...)
    """
    oracle, params = _open(fun, params, args)
    return oracle.curvature("hessian", params).linearized()


def ggn(fun: Objective, params: Params, args: tuple = ()) -> LinearOperator:
    """The generalised Gauss-Newton matrix J^T H J of a composite objective (mean over examples,
    H the output-space Hessian), or J^T J of residuals; plus the penalty's Hessian.

    Positive semidefinite where the loss is convex in the outputs. Cost: one value; one ggnvp a
    product. Reference: Schraudolph (2002), "Fast curvature matrix-vector products", section 3.

    Raises:
      TypeError: fun is a black box.
    """
    oracle, params = _open(fun, params, args)
    return oracle.curvature("ggn", params).linearized()


def fisher(
    fun: Objective, params: Params, args: tuple = (), key: Key | None = None
) -> LinearOperator:
    """The Fisher information (mean over examples) of a composite objective, plus the penalty's
    Hessian: exact in output space, or an unbiased estimate from one set of sampled labels.

    Args:
      key: a PRNG key to sample labels from the model's own distribution; None for the exact one.

    Raises:
      TypeError: the loss is not a negative log-likelihood, or fun is not composite.

    Reference: Kunstner, Balles & Hennig (2019), "Limitations of the empirical Fisher", section 2.
    """
    oracle, params = _open(fun, params, args)
    key = None if key is None else as_key(key)
    return oracle.curvature("fisher", params, key).linearized()


def empirical_fisher(fun: Objective, params: Params, args: tuple = ()) -> LinearOperator:
    """The mean over examples of g g^T, g an example's loss gradient at its own target, plus the
    penalty's Hessian. Not the Fisher information; see `fisher`.
    """
    oracle, params = _open(fun, params, args)
    return oracle.curvature("empirical-fisher", params).linearized()


class Jacobian(NamedTuple):
    """The Jacobian of a vector function of the parameters, with m outputs and n parameters.

    Attributes:
      mv: params-shaped vector -> outputs-shaped: J v. One jvp.
      rmv: outputs-shaped vector -> params-shaped: J^T u. One vjp.
      matrix: () -> dense (m, n) over ravelled outputs and parameters. One jacobian.
    """

    mv: Callable[[Params], PyTree]
    rmv: Callable[[PyTree], Params]
    matrix: Callable[[], Float[Array, "m n"]]

    def dense(self) -> Float[Array, "m n"]:
        """The matrix, rows over outputs, columns over parameters, both ravelled."""
        return self.matrix()

    def __matmul__(self, vector: Params) -> PyTree:
        return self.mv(vector)


def jacobian(fun: Fun, params: Params, args: tuple = ()) -> Jacobian:
    """The Jacobian of a function's outputs, of a composite's model, or of residuals.

    The dense matrix takes forward mode, or reverse mode where outputs are fewer than parameters.

    Example:
      >>> jacobian(lambda x: x**2, jnp.array([1.0, 3.0])).dense()
      Array([[2., 0.],
             [0., 6.]], dtype=float32...)
    """
    params, args = as_params(params), as_args(args)
    function = _vector_function(fun, args)
    _, forward = jax.linearize(function, params)
    backward = jax.linear_transpose(forward, params)

    def matrix() -> Array:
        return value_and_jacobian(lambda p: ravel_pytree(function(p))[0], params)[1]

    return Jacobian(forward, lambda u: backward(u)[0], matrix)


def _vector_function(fun: Fun, args: tuple) -> Callable[[Params], PyTree]:
    if not isinstance(fun, Objective):
        return lambda p: fun(p, *args)
    if fun.kind == "composite":
        inputs = split_data(fun, args)[0]
        return lambda p: outputs_of(fun, p, inputs)
    if fun.kind == "residuals":
        stacked = residual_vector(fun)
        if stacked is not None:
            return lambda p: stacked(p, *args)
    return lambda p: fun.fun(p, *args)[0] if fun.has_aux else fun.fun(p, *args)


def per_example_grads(fun: Objective, params: Params, args: tuple = ()) -> Params:
    """The gradient of each example's loss: leaves (batch, *leaf.shape), without the penalty.

    Unweighted (weights in args are ignored), not divided by the batch; examples along axis 0 of
    every leaf of inputs and targets. Where a loss has several values per example (outputs of shape
    (batch, K) under an elementwise loss), their mean. Memory: batch times the parameters.

    Raises:
      TypeError: fun is not composite.

    Example:
      >>> import optikit as ok
      >>> obj = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
      >>> per_example_grads(obj, jnp.array([1.0]), (jnp.array([[1.0], [2.0]]), jnp.zeros(2)))
      Array([[2.],
             [8.]], dtype=float32...)
    """
    params, args = as_params(params), as_args(args)
    if not isinstance(fun, Objective) or fun.kind != "composite":
        got = fingerprint(fun) if isinstance(fun, Objective) else "a plain function"
        msg = f"per-example gradients need an Objective from composite(...); got {got}."
        raise TypeError(msg)
    inputs, targets, _ = split_data(fun, args)

    def one(example: PyTree, target: Array) -> Params:
        def loss(p: Params) -> Scalar:
            outputs = outputs_of(fun, p, jax.tree.map(lambda x: x[None], example))
            return jnp.mean(example_losses(fun, outputs, target[None], None)[0])

        return jax.grad(loss)(params)

    return lax.map(
        lambda pair: one(*pair), (inputs, jnp.asarray(targets)), batch_size=COLUMNS_AT_ONCE
    )


def _like(params: Params, vector: Params) -> Params:
    """A vector checked against the parameters' structure and cast to their dtypes."""
    if jax.tree.structure(vector) != jax.tree.structure(params):
        msg = (
            f"the vector's structure {jax.tree.structure(vector)} differs from the parameters' "
            f"{jax.tree.structure(params)}."
        )
        raise ValueError(msg)
    return jax.tree.map(lambda p, v: jnp.asarray(v, p.dtype).reshape(p.shape), params, vector)
