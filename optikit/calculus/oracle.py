"""The one door to an objective and its derivatives.

An optimizer touches the objective only through an `Oracle`, which binds it to its data. Every
function of the door has a fixed price in `Counts`: `value` costs one value, `value_and_grad` one
grad, an operator carries the price of its parts. `tap` is called by name whenever the door is used
(while tracing); a test puts a callback there and demands that the ledger agrees.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus.objective import (
    Objective,
    example_losses,
    fingerprint,
    loss_of,
    mean_weights,
    outputs_of,
    penalty_residuals,
    residual_vector,
    robust_weights,
    split_data,
    value_and_aux,
)
from optikit.calculus.structured import (
    OutputCurvature,
    add_penalty_diagonal,
    structured_curvature,
)
from optikit.core import Counts, Key, LinearOperator, Params, Scalar, tree
from optikit.losses import Loss, sample_labels

CurvatureKind = Literal["hessian", "ggn", "fisher", "empirical-fisher"]

COLUMNS_AT_ONCE = 256
"""Products evaluated together when a dense matrix is built from products: bounds the memory."""


class Eval(NamedTuple):
    """One evaluation: where, the value, the gradient, and what came with them."""

    params: Params
    value: Scalar
    grad: Params
    aux: Any = None
    local: Any = ()  # what a method had evaluated along, e.g. residuals and their Jacobian


class Oracle(NamedTuple):
    """An objective bound to its data."""

    objective: Objective
    args: tuple
    fixed: bool  # static: will the next step see the same data?
    tap: Callable[[str], None]

    def value(self, params: Params) -> Scalar:
        """f(params). Price: Counts(value=1)."""
        self.tap("value")
        return value_and_aux(self.objective, params, self.args)[0]

    def value_and_grad(self, params: Params) -> Eval:
        """f, its gradient and aux at params. Price: Counts(grad=1)."""
        self.tap("grad")
        (value, aux), grad = jax.value_and_grad(
            lambda p: value_and_aux(self.objective, p, self.args), has_aux=True
        )(params)
        return Eval(params, value, grad, aux)

    def curvature(
        self, kind: CurvatureKind, params: Params, key: Key | None = None
    ) -> LinearOperator:
        """The Hessian, Gauss-Newton or Fisher matrix at params, priced but not yet computed.

        Args:
          kind: "hessian"; "ggn" for J^T H_loss J (J^T J for residuals); "fisher" for the same with
            the Fisher information of the outputs in place of H_loss, exact, or from one set of
            labels sampled with `key`; "empirical-fisher" for the mean of g g^T over examples.

        Raises:
          TypeError: the objective does not have the structure, or its loss no likelihood.
        """
        if kind == "hessian":
            return self._hessian(params)
        if kind == "ggn" or (kind == "fisher" and key is None):
            return self._gauss_newton(kind, params)
        if kind in ("fisher", "empirical-fisher"):
            return self._outer_products(kind, params, key if kind == "fisher" else None)
        msg = f"unknown curvature {kind!r}: use 'hessian', 'ggn', 'fisher' or 'empirical-fisher'."
        raise ValueError(msg)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        """R with f = |r|^2 / 2. Price: Counts(value=1)."""
        self.tap("value")
        return self._residual_function()(params)

    def residuals_and_jacobian(
        self, params: Params
    ) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
        """R and its dense Jacobian over the ravelled parameters. Price: Counts(jacobian=1).

        Of a robust objective, before its loss; see `optikit.calculus.objective.robust_weights`.

        Forward mode, or reverse mode where there are fewer residuals than parameters.
        """
        self.tap("jacobian")
        return value_and_jacobian(self._residual_function(), params)

    def bend(self, params: Params, v: Params) -> Params:
        """J^T r''[v, v], the residuals' second derivative along v; weighted if robust.

        Price: Counts(jvp=2, vjp=1).
        """
        for name in ("jvp", "jvp", "vjp"):
            self.tap(name)
        function = self._residual_function()

        def along(t: Scalar) -> tuple[Array, Array]:
            return jax.jvp(lambda t: function(tree.add_scaled(params, t, v)), (t,), (t * 0 + 1,))

        zero = jnp.zeros((), tree.inner_dtype(params))
        (r, _), (_, second) = jax.jvp(along, (zero,), (zero + 1,))
        if self.objective.robust is not None:
            penalties = penalty_residuals(self.objective, params)
            second = robust_weights(self.objective, r, penalties)[2] ** 2 * second
        return jax.vjp(function, params)[1](second)[0]

    def fisher_sample(self, params: Params, key: Key) -> Params:
        """A random s with E[s s^T] the Fisher information of the mean loss, without the penalty.

        The gradient of sum_n sqrt(w_n) l_n at labels drawn from the model, w_n an example's share
        of the mean: the square of B^(1/2) times a gradient at sampled labels where all are equal.
        Price: Counts(grad=1).

        Raises:
          TypeError: the objective is not composite, or its loss no negative log-likelihood.
        """
        self.tap("grad")
        objective, loss = self._need_composite("a sample of the Fisher information")
        inputs, _, weights = split_data(objective, self.args)

        def total(p: Params) -> Scalar:
            outputs = outputs_of(objective, p, inputs)
            sampled = sample_labels(loss, key, outputs)
            values, _ = example_losses(objective, outputs, sampled, weights)
            share = jnp.sqrt(mean_weights(values, weights))
            return jnp.sum(jnp.where(share == 0, 0, share * values))

        return jax.grad(total)(params)

    def _residual_function(self) -> Callable[[Params], Float[Array, " m"]]:
        function = residual_vector(self.objective)
        if function is None:
            msg = (
                "a least-squares method needs residuals(...), or composite(predict, squared_error)"
                f" with at most an L2 penalty; got {fingerprint(self.objective)}."
            )
            raise TypeError(msg)
        return lambda p: function(p, *self.args)

    def _hessian(self, params: Params) -> LinearOperator:
        if self.objective.kind == "variational" and len(self.args) > 1:
            msg = (
                "a sampled energy has no Hessian here: its gradient is an estimate, not the "
                "derivative of its value. Use 'natural-gradient', or pass all configurations."
            )
            raise TypeError(msg)

        def linearize():
            self.tap("grad")
            product = jax.linearize(jax.grad(self._plain_value), params)[1]
            return self._tapped("hvp", product)

        def matrix():
            self.tap("hessian")
            dense = self._structured("hessian", params)
            if dense is not None:
                return dense
            return columns(jax.linearize(jax.grad(self._plain_value), params)[1], params)

        return LinearOperator(
            linearize, matrix, Counts(hvp=1), setup=Counts(grad=1), matrix_price=Counts(hessian=1)
        )

    def _gauss_newton(self, kind: CurvatureKind, params: Params) -> LinearOperator:
        def product():
            normal = kind == "ggn" or self.objective.robust is None  # |r|^2 / 2 is a normal's NLL
            if self.objective.kind == "residuals" and normal:
                return self._residual_product(params)
            return self._output_product(kind, params)

        def linearize():
            self.tap("value")
            return self._tapped("ggnvp", product())

        def matrix():
            self.tap("hessian")
            dense = self._structured(kind, params)
            return dense if dense is not None else columns(product(), params)

        return LinearOperator(
            linearize,
            matrix,
            Counts(ggnvp=1),
            setup=Counts(value=1),
            matrix_price=Counts(hessian=1),
        )

    def _outer_products(self, kind: str, params: Params, key: Key | None) -> LinearOperator:
        """sum_n w_n g_n g_n^T with g_n the gradient of loss n, at sampled or given targets."""
        objective, loss = self._need_composite(kind)
        inputs, targets, weights = split_data(objective, self.args)

        def product():
            if key is not None:
                sampled = sample_labels(loss, key, outputs_of(objective, params, inputs))
            else:
                sampled = targets

            def losses(p: Params) -> Array:
                outputs = outputs_of(objective, p, inputs)
                return example_losses(objective, outputs, sampled, weights)[0]

            values, forward = jax.linearize(losses, params)
            backward = jax.linear_transpose(forward, params)
            factor = mean_weights(values, weights)

            def apply(v: Params) -> Params:
                slopes = jnp.where(factor == 0, 0, factor * forward(v))
                return self._plus_penalty(backward(slopes)[0], params, v)

            return apply

        def linearize():
            self.tap("value")
            return self._tapped("ggnvp", product())

        def matrix():
            self.tap("hessian")
            return columns(product(), params)

        return LinearOperator(
            linearize,
            matrix,
            Counts(ggnvp=1),
            setup=Counts(value=1),
            matrix_price=Counts(hessian=1),
        )

    def _residual_product(self, params: Params):
        objective = self.objective

        def data_residuals(p: Params):
            result = objective.fun(p, *self.args)
            return result[0] if objective.has_aux else result

        r, forward = jax.linearize(data_residuals, params)
        backward = jax.linear_transpose(forward, params)
        robust = objective.robust
        if robust is None:
            return lambda v: self._plus_penalty(backward(forward(v))[0], params, v)
        curvature = jax.tree.map(lambda x: robust.scaled(x)[1] ** 2, r)

        def apply(v: Params) -> Params:
            weighted = jax.tree.map(jnp.multiply, curvature, forward(v))
            return self._plus_penalty(backward(weighted)[0], params, v)

        return apply

    def _output_product(self, kind: CurvatureKind, params: Params):
        objective, loss = self._need_composite(kind)
        curvature = self.output_curvature(kind)
        inputs, targets, weights = split_data(objective, self.args)
        outputs, forward = jax.linearize(lambda p: outputs_of(objective, p, inputs), params)
        backward = jax.linear_transpose(forward, params)
        values, weights = example_losses(objective, outputs, targets, weights)
        factor = mean_weights(values, weights)
        factor = factor.reshape(factor.shape + (1,) * loss.event_ndim)

        def apply(v: Params) -> Params:
            inner = jnp.where(factor == 0, 0, factor * curvature(outputs, targets, forward(v)))
            return self._plus_penalty(backward(inner)[0], params, v)

        return apply

    def output_curvature(self, kind: str) -> OutputCurvature:
        """The loss's Hessian or Fisher information, as products in output space.

        Raises:
          TypeError: kind is "fisher" and the loss has none.
        """
        loss = loss_of(self.objective)
        if kind != "fisher":
            return loss.hvp
        information = loss.fisher
        if information is None:
            msg = (
                f"{loss.name} is not a negative log-likelihood, so it has no Fisher information: "
                "use ggn(...) or empirical_fisher(...)."
            )
            raise TypeError(msg)
        return lambda outputs, targets, v: information(outputs, v)

    def _structured(self, kind: str, params: Params) -> Float[Array, "n n"] | None:
        if self.objective.kind != "composite":
            return None
        dense = structured_curvature(self.objective, params, self.args, self.output_curvature(kind))
        return None if dense is None else add_penalty_diagonal(dense, self.objective, params)

    def _plus_penalty(self, product: Params, params: Params, v: Params) -> Params:
        penalty = self.objective.penalty
        if penalty is None:
            return product
        if penalty.diagonal is None:
            extra = jax.jvp(jax.grad(penalty.value), (params,), (v,))[1]
        else:
            extra = jax.tree.map(lambda d, x: d.astype(x.dtype) * x, penalty.diagonal(params), v)
        return tree.add(product, extra)

    def _need_composite(self, kind: str) -> tuple[Objective, Loss]:
        if self.objective.kind != "composite":
            need = "composite(...) or residuals(...)" if kind == "ggn" else "composite(...)"
            msg = f"{kind} needs an Objective from {need}; got {fingerprint(self.objective)}."
            raise TypeError(msg)
        return self.objective, loss_of(self.objective)

    def _plain_value(self, params: Params) -> Scalar:
        return value_and_aux(self.objective, params, self.args)[0]

    def _tapped(self, name: str, product):
        def tapped(v: Params) -> Params:
            self.tap(name)
            return product(v)

        return tapped


def bind(
    objective: Objective,
    args: tuple = (),
    *,
    fixed: bool = True,
    tap: Callable[[str], None] = lambda name: None,
) -> Oracle:
    """The door to an objective on its data.

    Args:
      fixed: whether later steps see the same data (full batch) or other batches.
      tap: called with the kind of oracle at each use of the door; see the module.
    """
    return Oracle(objective, tuple(args), fixed, tap)


def value_and_jacobian(
    function: Callable[[Params], Float[Array, " m"]], params: Params
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """A vector function and its dense Jacobian over the ravelled parameters, in one sweep."""
    flat, unravel = ravel_pytree(params)
    count = jax.eval_shape(function, params).size
    if count < flat.size:
        value, pull = jax.vjp(lambda v: function(unravel(v)), flat)
        units = jnp.eye(count, dtype=value.dtype)
        return value, lax.map(lambda u: pull(u)[0], units, batch_size=COLUMNS_AT_ONCE)
    value, push = jax.linearize(lambda v: function(unravel(v)), flat)
    return value, _map_units(push, flat).T


def columns(product: Callable[[Params], Params], params: Params) -> Float[Array, "n n"]:
    """The dense matrix of a symmetric product over the ravelled parameters."""
    flat, unravel = ravel_pytree(params)
    matrix = _map_units(lambda v: ravel_pytree(product(unravel(v)))[0], flat)
    return (matrix + matrix.T) / 2


def _map_units(function: Callable[[Array], Array], flat: Array) -> Array:
    units = jnp.eye(flat.size, dtype=flat.dtype)
    if flat.size <= COLUMNS_AT_ONCE:
        return jax.vmap(function)(units)
    return lax.map(function, units, batch_size=COLUMNS_AT_ONCE)
