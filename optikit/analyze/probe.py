"""A probe of the curvature at a point, as a descent method from there would meet it.

Lanczos from the gradient gives the Gauss quadrature of the gradient's spectral measure: how much of
the gradient lies at which eigenvalue. On the quadratic model the course of conjugate gradients and
of gradient descent depends on nothing else.

References: Golub & Meurant (2010), "Matrices, moments and quadrature", chapter 7; McCandlish et al.
(2018), "An empirical model of large-batch training", eq. 2.9 for the noise scale.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from optikit.analyze.instruments import trace
from optikit.calculus import Objective, bind
from optikit.calculus.objective import split_data
from optikit.core import Params, tree
from optikit.core.compiled import jit
from optikit.linalg.lanczos import lanczos

PRODUCTS = 64
"""Hessian products of a probe, fewer where there are fewer parameters."""


class Probe(NamedTuple):
    """What is known of a point.

    Attributes:
      value, grad_norm: the objective, and its largest absolute gradient entry.
      nodes: (k,) Ritz values of the Hessian, ascending.
      weights: (k,) shares of the squared gradient that lie there; they sum to 1.
      errors: (k,) a true eigenvalue lies within this distance of each node.
      size: the number of parameters; with k nodes of as many parameters, all eigenvalues are known.
      decrease: g' H^-1 g / 2, what the quadratic model promises; infinite where it has no minimum.
      noise_scale: tr(covariance of example gradients) / |g|^2 in examples: batches much smaller
        than that are mostly noise; infinite without a gradient. None for an objective that has no
        examples.
    """

    value: float
    grad_norm: float
    nodes: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    size: int
    decrease: float
    noise_scale: float | None = None

    @property
    def largest(self) -> float:
        """The largest Ritz value: never above the largest eigenvalue."""
        return float(self.nodes[-1])

    @property
    def smallest(self) -> float:
        """The smallest Ritz value: never below the smallest eigenvalue."""
        return float(self.nodes[0])

    @property
    def condition(self) -> tuple[float, float]:
        """A bracket of largest / smallest, by the errors of both; infinite where 0 is within."""
        top, bottom = self.nodes[-1], self.nodes[0]
        if not bottom > 0:
            return np.inf, np.inf
        low = top / bottom  # Ritz values lie inside the spectrum
        left = bottom - self.errors[0]
        return float(low), float((top + self.errors[-1]) / left) if left > 0 else np.inf

    @property
    def effective_decay(self) -> float:
        """The share of the gradient's energy, sum of w / node, held by the lowest tenth of nodes.

        Near 1 where almost everything left to gain lies along the flattest directions.
        """
        gains = self.weights / np.maximum(np.abs(self.nodes), np.finfo(float).tiny)
        lowest = max(1, len(gains) // 10)
        return float(np.sum(gains[:lowest]) / max(np.sum(gains), np.finfo(float).tiny))

    @property
    def negative(self) -> int:
        """How many Ritz values are below zero by more than their errors."""
        return int(np.sum(self.nodes + self.errors < 0))

    def __str__(self) -> str:
        low, high = self.condition
        known = f"{low:.3g}" if high <= 1.01 * low else f"{low:.3g} to {high:.3g}"
        parts = [f"eigenvalues {self.smallest:.3g} to {self.largest:.3g}"]
        parts.append(f"condition {known}" if np.isfinite(low) else "not positive definite")
        if self.negative:
            parts.append(f"{self.negative} negative")
        if self.noise_scale is not None:
            parts.append(f"noise scale {self.noise_scale:.3g} examples")
        return f"value {self.value:.6g}, max|grad| {self.grad_norm:.3g}: " + ", ".join(parts)


def probe(
    objective: Objective, params: Params, args: tuple, *, num_products: int = PRODUCTS
) -> Probe:
    """A probe, for `num_products` Hessian products and two gradients.

    At a stationary point, where there is no gradient, from a random vector. The noise scale costs
    eight products with the empirical Fisher matrix more.

    Example:
      >>> from optikit.calculus import black_box
      >>> found = probe(black_box(lambda x: jnp.sum(jnp.arange(1.0, 4.0) * x**2)), jnp.ones(3), ())
      >>> [round(float(v), 3) for v in found.nodes]
      [2.0, 4.0, 6.0]
    """
    found = _probe(params, args, objective=objective, num_products=num_products)
    value, largest, length, nodes, weights, errors = (np.asarray(x, np.float64) for x in found)
    convex = nodes[0] > 0
    # in an order in which no square overflows
    decrease = float(length * (length * np.sum(weights / nodes)) / 2) if convex else np.inf
    rounding = len(nodes) * tree.eps(tree.inner_dtype(params)) * np.max(np.abs(nodes))
    errors = np.maximum(errors, float(rounding))
    noise = _noise_scale(objective, params, args)
    return Probe(
        float(value), float(largest), nodes, weights, errors, tree.size(params), decrease, noise
    )


@functools.partial(jit, static_argnames=("objective", "num_products"))
def _probe(params, args, *, objective, num_products) -> tuple[Array, ...]:
    door = bind(objective, args)
    at = door.value_and_grad(params)
    operator = door.curvature("hessian", params)
    flat, unravel = ravel_pytree(at.grad)
    mv = operator.mv
    key = jax.random.key(0)
    usable = jnp.isfinite(flat).all() & (jnp.max(jnp.abs(flat)) > 0)
    start = jnp.where(usable, flat, jax.random.normal(key, flat.shape, flat.dtype))
    start = start / jnp.max(jnp.abs(start))  # its square neither overflows nor vanishes
    ritz = lanczos(lambda v: tree.ravel(mv(unravel(v))), start, num_products, key)
    largest, length = tree.max_abs(at.grad), tree.norm(at.grad)
    return at.value, largest, length, ritz.values, ritz.weights, ritz.residuals


def _noise_scale(objective: Objective, params: Params, args: tuple) -> float | None:
    if objective.kind != "composite":
        return None
    inputs = jax.tree.leaves(split_data(objective, args)[0])
    if not inputs or jnp.ndim(inputs[0]) == 0 or inputs[0].shape[0] < 2:
        return None
    plain = objective._replace(penalty=None)
    grad = bind(plain, args).value_and_grad(params).grad
    square = float(tree.vdot(grad, grad))
    products = min(8, tree.size(params))
    second = trace(plain, params, args, curvature="empirical-fisher", num_products=products)
    return max(float(second.value) - square, 0.0) / square if square > 0 else np.inf
