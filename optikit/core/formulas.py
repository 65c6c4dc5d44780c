"""What one operation costs: FLOPs by arithmetic, bytes as operands read plus results written.

FLOPs: 2 m n k for a product, one for each arithmetic or transcendental operation on a real entry,
n^3/3 for a Cholesky factorisation, and so on (`_DENSE`); moving, comparing and selecting cost
nothing, a sort its n log2 n comparisons. They are those of the algorithm, before any compiler's
simplification.

Bytes: every operation by itself, as if each result went to memory and came back, so the count is an
upper bound of what a compiler that fuses operations moves, and a lower bound inside a factorisation
that passes over its matrix several times. Slices, gathers and updates count what they touch, not
the array they touch it in.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

_ARITHMETIC = {
    "add", "sub", "mul", "div", "rem", "neg", "max", "min", "abs", "sign", "square", "pow",
    "integer_pow", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "sin", "cos",
    "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "logistic", "erf", "erfc", "erf_inv", "lgamma", "digamma", "polygamma", "zeta", "floor", "ceil",
    "round", "clamp", "nextafter", "add_any", "igamma", "igammac", "igamma_grad_a",
    "bessel_i0e", "bessel_i1e", "regularized_incomplete_beta", "reduce_precision",
}  # fmt: skip
_REDUCTIONS = {
    "reduce", "reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum",
    "cumprod", "cummax", "cummin", "cumlogsumexp", "top_k", "approx_top_k",
}  # fmt: skip
_FREE = {
    "and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to",
    "select_n", "is_finite", "reduce_and", "reduce_or", "reduce_xor", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "population_count", "clz", "iota", "copy",
    "copy_p", "broadcast_in_dim", "concatenate", "pad", "rev", "transpose", "convert_element_type",
    "real", "imag", "conj", "complex", "device_put", "sharding_constraint", "optimization_barrier",
    "lu_pivots_to_permutation", "random_bits", "random_seed", "random_split", "random_fold_in",
    "threefry2x32", "rng_bit_generator", "rng_uniform", "debug_callback", "debug_print",
    "empty", "empty2", "platform_index", "stack", "unstack", "create_token", "after_all",
    "axis_index", "split", "tile",
}  # fmt: skip
_IN_PLACE = {
    "reshape", "squeeze", "expand_dims", "bitcast_convert_type", "stop_gradient", "name",
    "random_wrap", "random_unwrap", "pvary", "oracle_call",
}  # fmt: skip
_SLICES = {"slice", "dynamic_slice", "gather"}


def flops(eqn: Any) -> float | None:
    """FLOPs of one operation of a jaxpr; None if it is not one whose cost is known."""
    name = eqn.primitive.name
    if name in _ARITHMETIC:
        return _entries(eqn.outvars[0].aval) * _weight(name, eqn.outvars[0].aval)
    if name in _REDUCTIONS:
        return _entries(eqn.invars[0].aval) * _weight("add", eqn.invars[0].aval)
    if name in _DENSE:
        real = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.invars)
        return _DENSE[name](eqn) * _weight("dot", eqn.invars[0].aval) if real else 0.0
    if name in _OTHER:
        return _OTHER[name](eqn)
    if name.startswith("scatter"):
        updates = eqn.invars[2].aval
        return 0.0 if name == "scatter" else _entries(updates) * _weight("add", updates)
    known = name in _FREE or name in _IN_PLACE or name in _SLICES or name == "dynamic_update_slice"
    return 0.0 if known else None


def traffic(eqn: Any) -> float:
    """Bytes that one operation of a jaxpr reads and writes."""
    name = eqn.primitive.name
    if name in _IN_PLACE:
        return 0.0
    if name in _SLICES:
        indices = sum(_size(v.aval) for v in eqn.invars[1:])
        return 2 * _size(eqn.outvars[0].aval) + indices
    if name == "dynamic_update_slice":
        return 2 * _size(eqn.invars[1].aval) + sum(_size(v.aval) for v in eqn.invars[2:])
    if name.startswith("scatter"):
        passes = 2 if name == "scatter" else 3  # the others read what they add to
        return _size(eqn.invars[1].aval) + passes * _size(eqn.invars[2].aval)
    return sum(_size(v.aval) for v in (*eqn.invars, *eqn.outvars))


def _size(aval: Any) -> float:
    if not hasattr(aval, "shape"):  # a token
        return 0.0
    return float(math.prod(aval.shape) * aval.dtype.itemsize)


def _entries(aval: Any) -> float:
    """How many real or complex entries; integers and booleans are no floating-point work."""
    return float(math.prod(aval.shape)) if jnp.issubdtype(aval.dtype, jnp.inexact) else 0.0


def _weight(name: str, aval: Any) -> float:
    """Real operations in one of complex numbers: 2 to add, 6 to multiply, 4 times in a product."""
    if not jnp.issubdtype(aval.dtype, jnp.complexfloating):
        return 1.0
    return {"mul": 6.0, "div": 11.0, "dot": 4.0}.get(name, 2.0)


def _dot(eqn: Any) -> float:
    (left, _), _ = eqn.params["dimension_numbers"]
    contracted = math.prod(eqn.invars[0].aval.shape[i] for i in left)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * contracted


def _ragged_dot(eqn: Any) -> float:
    """2 m k n: every row meets the matrix of its own group."""
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * eqn.invars[0].aval.shape[-1]


def _convolution(eqn: Any) -> float:
    """Every output as if its window were whole; padding is not subtracted."""
    kernel = eqn.invars[1].aval.shape
    spec = eqn.params["dimension_numbers"].rhs_spec  # (out features, in features, *window)
    per_output = math.prod(kernel[i] for i in spec[1:])
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output


def _batched(formula: Callable[[int, int], float]) -> Callable[[Any], float]:
    """A formula in the two last axes of the first operand, times the leading ones."""

    def cost(eqn: Any) -> float:
        *batch, m, n = eqn.invars[0].aval.shape
        return math.prod(batch) * formula(m, n)

    return cost


def _triangular_solve(eqn: Any) -> float:
    """n^2 per right-hand side, with the matrix (n, n) and as many sides as the other axis holds."""
    n = eqn.invars[0].aval.shape[-1]
    return float(math.prod(eqn.invars[1].aval.shape) * n)


def _qr_flops(m: int, n: int) -> float:
    k = min(m, n)
    return 4.0 * m * n * k - 2 * (m + n) * k**2 + 4 * k**3 / 3


def _svd(eqn: Any) -> float:
    """Bidiagonalisation, with the singular vectors or without (Golub & Van Loan 8.6.4)."""
    *batch, m, n = eqn.invars[0].aval.shape
    m, n = max(m, n), min(m, n)
    if not eqn.params.get("compute_uv", True):
        return math.prod(batch) * (4.0 * m * n**2 - 4 * n**3 / 3)
    return math.prod(batch) * (4.0 * m * n**2 + 22.0 * n**3)


def _fft(eqn: Any) -> float:
    """5 n log2 n for a complex transform of n points, half of it where one side is real."""
    axes = eqn.params["fft_lengths"]
    points = math.prod(axes)
    sides = [eqn.invars[0].aval, eqn.outvars[0].aval]
    real = any(not jnp.issubdtype(side.dtype, jnp.complexfloating) for side in sides)
    batch = math.prod(sides[0].shape[: len(sides[0].shape) - len(axes)])
    return batch * 5.0 * points * math.log2(max(points, 2)) / (2 if real else 1)


def _sort(eqn: Any) -> float:
    """N log2 n comparisons of the first key, along the sorted axis."""
    shape = eqn.invars[0].aval.shape
    length = shape[eqn.params["dimension"]]
    return math.prod(shape) * math.log2(max(length, 2))


def _window(eqn: Any) -> float:
    """One operation for each entry of each output's window."""
    return float(math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.params["window_dimensions"]))


_DENSE: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "cholesky": _batched(lambda n, _: n**3 / 3),
    "triangular_solve": _triangular_solve,
    "lu": _batched(lambda m, n: m * n * min(m, n) - min(m, n) ** 3 / 3),
    # Householder QR in its two halves: the factorisation and the explicit Q (Golub & Van Loan 5.2)
    "geqrf": _batched(_qr_flops),
    "geqp3": _batched(_qr_flops),
    "householder_product": _batched(_qr_flops),
    "qr": _batched(lambda m, n: 2 * _qr_flops(m, n)),
    # tridiagonalisation, QR iteration and back-transformation (Golub & Van Loan 8.3)
    "eigh": _batched(lambda n, _: 9.0 * n**3),
    "tridiagonal": _batched(lambda n, _: 4 * n**3 / 3),
    "hessenberg": _batched(lambda n, _: 10 * n**3 / 3),
    "schur": _batched(lambda n, _: 25.0 * n**3),
    "eig": _batched(lambda n, _: 25.0 * n**3),
    "svd": _svd,
    "tridiagonal_solve": lambda eqn: 8.0 * math.prod(eqn.invars[3].aval.shape),
}

_OTHER: dict[str, Callable[[Any], float]] = {
    "fft": _fft,
    "sort": _sort,
    "reduce_window": _window,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "select_and_scatter_add": lambda eqn: float(math.prod(eqn.invars[0].aval.shape)),
    "select_and_gather_add": lambda eqn: float(math.prod(eqn.invars[0].aval.shape)),
}
