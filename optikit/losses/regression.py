"""Losses for real, count and positive targets; all elementwise.

Conventions follow optax where it has the loss (`squared_error` carries no 1/2, `huber` does).
The residual is target - output or its negative; every formula stands beside its code.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array

from optikit.core import Key, memoized
from optikit.losses.base import Loss, float_targets


def _diagonal(second_derivative):
    """An output-space Hessian product for an elementwise loss, l''(o, t) v."""

    def hvp(outputs: Array, targets: Array, vectors: Array) -> Array:
        return second_derivative(outputs, float_targets(outputs, targets)) * vectors

    return hvp


def _constant_fisher(information):
    """A Fisher product for a location family: the information does not depend on the output."""
    return lambda outputs, vectors: jnp.asarray(information, outputs.dtype) * vectors


def _squared_error_value(outputs: Array, targets: Array) -> Array:
    return (outputs - float_targets(outputs, targets)) ** 2


squared_error = Loss(
    value=_squared_error_value,
    hvp=_diagonal(lambda o, t: jnp.full_like(o, 2)),
    # exp(-(t - o)^2) is the normal density with variance 1/2
    sample=lambda key, o: (
        o + jnp.sqrt(0.5).astype(o.dtype) * jax.random.normal(key, o.shape, o.dtype)
    ),
    fisher=_constant_fisher(2),
    residual=lambda o, t: jnp.sqrt(2).astype(o.dtype) * (o - float_targets(o, t)),
    name="squared_error",
)
"""(o - t)^2, without 1/2 (as optax): the NLL of a normal with variance 1/2; information 2."""


@memoized
def _huber(delta: float = 1.0) -> Loss:
    def value(outputs: Array, targets: Array) -> Array:
        # written with a clip, not an absolute value: right second derivative at e = 0 too
        error = outputs - float_targets(outputs, targets)
        inside = jnp.clip(error, -delta, delta)
        return inside * (error - inside / 2)

    def masses(dtype) -> tuple[Array, Array]:
        d = jnp.asarray(delta, dtype)
        centre = jnp.sqrt(2 * jnp.pi).astype(dtype) * (2 * ndtr(d) - 1)
        return centre, 2 * jnp.exp(-(d**2) / 2) / d

    def sample(key: Key, outputs: Array) -> Array:
        kinds, middles, tails, signs = jax.random.split(key, 4)
        shape, dtype = outputs.shape, outputs.dtype
        d = jnp.asarray(delta, dtype)
        centre, tail = masses(dtype)
        inner = jax.random.truncated_normal(middles, -d, d, shape, dtype)
        outer = jax.random.rademacher(signs, shape, dtype) * (
            d + jax.random.exponential(tails, shape, dtype) / d
        )
        central = jax.random.bernoulli(kinds, centre / (centre + tail), shape)
        return outputs + jnp.where(central, inner, outer)

    def fisher(outputs: Array, vectors: Array) -> Array:
        centre, tail = masses(outputs.dtype)
        return centre / (centre + tail) * vectors

    return Loss(
        value,
        _diagonal(lambda o, t: (jnp.abs(o - t) <= delta).astype(o.dtype)),
        sample,
        fisher,
        name="huber",
        family=_huber,
    )


huber = _huber()
"""e^2/2 for |e| <= delta, else delta (|e| - delta/2); `huber(delta=1.0)`. Huber (1964)."""


@jax.custom_jvp
def _logcosh(error: Array) -> Array:
    # log cosh e = log1p(2 sinh^2(e/2)) near 0, |e| + log1p(exp(-2|e|)) - log 2 beyond:
    # each is exact to rounding where it is used.
    size = jnp.abs(error)
    small = jnp.minimum(size, 1)
    near = jnp.log1p(2 * jnp.sinh(small / 2) ** 2)
    far = size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(error.dtype)
    return jnp.where(size < 1, near, far)


@_logcosh.defjvp
def _logcosh_jvp(primals, tangents):
    (error,), (tangent,) = primals, tangents
    return _logcosh(error), jnp.tanh(error) * tangent


def _sech_squared(error: Array) -> Array:
    decay = jnp.exp(-2 * jnp.abs(error))
    return 4 * decay / (1 + decay) ** 2


def _sample_log_cosh(key: Key, outputs: Array) -> Array:
    # the hyperbolic secant law, density sech(e)/pi, by inversion: e = log tan(pi u / 2)
    tiny = jnp.finfo(outputs.dtype).eps
    u = jax.random.uniform(key, outputs.shape, outputs.dtype, tiny, 1 - tiny)
    return outputs + jnp.log(jnp.tan(jnp.pi * u / 2)).astype(outputs.dtype)


log_cosh = Loss(
    value=lambda o, t: _logcosh(o - float_targets(o, t)),
    hvp=_diagonal(lambda o, t: _sech_squared(o - t)),
    sample=_sample_log_cosh,
    fisher=_constant_fisher(0.5),
    name="log_cosh",
)
"""log cosh(o - t): quadratic near 0, linear far out, smooth; the NLL of the hyperbolic secant."""


@memoized
def _quantile(q: float = 0.5) -> Loss:
    def value(outputs: Array, targets: Array) -> Array:
        error = float_targets(outputs, targets) - outputs
        return jnp.where(error >= 0, q * error, (q - 1) * error)

    def sample(key: Key, outputs: Array) -> Array:
        # density q (1 - q) exp(-rho_q(e)): below 0 with probability q
        sides, sizes = jax.random.split(key)
        below = jax.random.bernoulli(sides, q, outputs.shape)
        size = jax.random.exponential(sizes, outputs.shape, outputs.dtype)
        return outputs + jnp.where(below, -size / (1 - q), size / q)

    return Loss(
        value,
        _diagonal(lambda o, t: jnp.zeros_like(o)),
        sample,
        _constant_fisher(q * (1 - q)),
        name="quantile",
        family=_quantile,
    )


quantile = _quantile()
"""The pinball loss max(q e, (q - 1) e), e = t - o; `quantile(q=0.5)`. Koenker & Bassett (1978).

Piecewise linear: its Hessian is zero wherever it exists, its Fisher information is q (1 - q)."""


@memoized
def _smooth_quantile(q: float = 0.5, width: float = 0.1) -> Loss:
    def value(outputs: Array, targets: Array) -> Array:
        error = float_targets(outputs, targets) - outputs
        return q * error + width * jax.nn.softplus(-error / width)

    def second_derivative(o: Array, t: Array) -> Array:
        scaled = (t - o) / width
        return jax.nn.sigmoid(scaled) * jax.nn.sigmoid(-scaled) / width

    return Loss(
        value, _diagonal(second_derivative), name="smooth_quantile", family=_smooth_quantile
    )


smooth_quantile = _smooth_quantile()
"""q e + width log(1 + exp(-e / width)), e = t - o: pinball as width -> 0, within width log 2 of it;
`smooth_quantile(q=0.5, width=0.1)`. Zheng (2011), "Gradient descent algorithms for quantile
regression with smooth approximation", eq. 5."""


poisson = Loss(
    value=lambda o, t: jnp.exp(o) - float_targets(o, t) * o,
    hvp=_diagonal(lambda o, t: jnp.exp(o)),
    sample=lambda key, o: jax.random.poisson(key, jnp.exp(o)).astype(o.dtype),
    fisher=lambda o, v: jnp.exp(o) * v,
    name="poisson",
)
"""exp(o) - t o with o the log rate: the Poisson NLL without log t!. Overflows where exp(o) does."""


gamma = Loss(
    value=lambda o, t: o + float_targets(o, t) * jnp.exp(-o),
    hvp=_diagonal(lambda o, t: t * jnp.exp(-o)),
    sample=lambda key, o: jnp.exp(o) * jax.random.exponential(key, o.shape, o.dtype),
    fisher=_constant_fisher(1),
    name="gamma",
)
"""o + t exp(-o) with o the log mean, t > 0: the gamma NLL per unit shape, up to a constant (labels
are sampled with shape 1). Its Hessian t exp(-o) depends on the target; its information is 1."""
