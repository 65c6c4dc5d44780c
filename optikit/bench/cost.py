"""Model FLOPs of a program as it actually ran: loops by their trips, branches by the one taken.

XLA's own cost analysis counts a loop's body once, adds both branches of a conditional and misses
factorisations. Here a program's jaxpr is re-interpreted with a counter beside its values: every
operation adds a number known from its shapes; a `while` carries the counter through its trips, a
`cond` adds the branch it took. The counted program is itself compiled, so replaying a long run
costs about as much as the run. It is used off the clock.

What is counted: 2 m n k for a product, one for each arithmetic or transcendental operation on an
entry, n^3/3 for a Cholesky factorisation, 2 n^2 (m - n/3) for QR, and so on (`_DENSE`); moving,
comparing and selecting cost nothing. FLOPs are those of the algorithm, before any compiler's
simplification.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

_ARITHMETIC = {
    "add", "sub", "mul", "div", "rem", "neg", "max", "min", "abs", "sign", "square", "pow",
    "integer_pow", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "sin", "cos",
    "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "logistic", "erf", "erfc", "erf_inv", "lgamma", "digamma", "floor", "ceil", "round", "clamp",
    "nextafter", "add_any", "igamma", "igammac", "bessel_i0e", "bessel_i1e",
    "regularized_incomplete_beta",
}  # fmt: skip
_REDUCTIONS = {
    "reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "argmax", "argmin", "cumsum",
    "cumprod", "cummax", "cummin", "cumlogsumexp", "reduce_precision",
}  # fmt: skip


def count_flops(function: Callable[..., Any]) -> Callable[..., tuple[Any, jax.Array]]:
    """A function that returns (function(*args), FLOPs of that call as a () float).

    The result can be jitted. The counter is float64 where x64 is enabled (as it should be for
    totals above 2^24), float32 otherwise.

    Example:
      >>> flops = count_flops(lambda a, b: a @ b)(jnp.ones((2, 3)), jnp.ones((3, 5)))[1]
      >>> float(flops)
      60.0
    """

    def counted(*args: Any) -> tuple[Any, jax.Array]:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outs, total = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outs), total

    return counted


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.result_type(float))


def _run(jaxpr, consts, args) -> tuple[list, jax.Array]:
    """Evaluate a jaxpr and count; everything whose cost is static is added up in Python."""
    env: dict = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    fixed, varying = 0.0, _zero()

    def value(v):
        return v.val if isinstance(v, jex.Literal) else env[v]

    for eqn in jaxpr.eqns:
        ins = [value(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _CONTROL:
            outs, more = _CONTROL[name](eqn, ins)
            varying = varying + more
        elif (inner := _inner(eqn)) is not None:
            outs, more = _run(inner.jaxpr, inner.consts, ins)
            varying = varying + more
        else:
            outs = _bind(eqn, ins)
            fixed += _flops(eqn)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars], varying + fixed


def _inner(eqn) -> jex.ClosedJaxpr | None:
    """The body of a call (jit, remat, custom rules), to be counted in its place."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(key)
        if isinstance(body, jex.ClosedJaxpr):
            return body
        if isinstance(body, jex.Jaxpr):
            return jex.ClosedJaxpr(body, ())
    return None


def _bind(eqn, values) -> list:
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _while(eqn, ins) -> tuple[list, jax.Array]:
    p = eqn.params
    split = p["cond_nconsts"]
    cond_consts, rest = ins[:split], ins[split:]
    body_consts, carry = rest[: p["body_nconsts"]], rest[p["body_nconsts"] :]

    def test(state):
        outs, cost = _run(p["cond_jaxpr"].jaxpr, p["cond_jaxpr"].consts, [*cond_consts, *state])
        return outs[0], cost

    def running(c):
        return test(c[0])[0]

    def body(c):
        state, total = c
        outs, cost = _run(p["body_jaxpr"].jaxpr, p["body_jaxpr"].consts, [*body_consts, *state])
        return outs, total + cost + test(state)[1]

    out, total = lax.while_loop(running, body, (list(carry), _zero()))
    return list(out), total + test(out)[1]


def _cond(eqn, ins) -> tuple[list, jax.Array]:
    index, *operands = ins

    def branch(closed):
        def run(*args):
            outs, cost = _run(closed.jaxpr, closed.consts, list(args))
            return tuple(outs), cost

        return run

    outs, cost = lax.switch(index, [branch(b) for b in eqn.params["branches"]], *operands)
    return list(outs), cost


def _scan(eqn, ins) -> tuple[list, jax.Array]:
    p = eqn.params
    consts, carry = ins[: p["num_consts"]], ins[p["num_consts"] :][: p["num_carry"]]
    xs = ins[p["num_consts"] + p["num_carry"] :]

    def body(c, x):
        state, total = c
        outs, cost = _run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*consts, *state, *x])
        return (outs[: p["num_carry"]], total + cost), outs[p["num_carry"] :]

    (carry, total), ys = lax.scan(
        body, (list(carry), _zero()), list(xs), p["length"], p["reverse"], p["unroll"]
    )
    return [*carry, *ys], total


def _linear_solve(eqn, ins) -> tuple[list, jax.Array]:
    """A solve with a rule for its derivative: count the solve that runs."""
    lengths, closed = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    begin = lengths.matvec + lengths.vecmat
    consts = ins[begin : begin + lengths.solve]
    sides = ins[sum(lengths) :]
    return _run(closed.jaxpr, closed.consts, [*consts, *sides])


_CONTROL = {
    "while": _while,
    "cond": _cond,
    "scan": _scan,
    "custom_linear_solve": _linear_solve,
}


def _flops(eqn) -> float:
    name = eqn.primitive.name
    if name in _ARITHMETIC:
        out = eqn.outvars[0].aval
        return float(math.prod(out.shape)) if _is_real(out) else 0.0
    if name in _REDUCTIONS:
        return float(math.prod(eqn.invars[0].aval.shape))
    if name in _DENSE:
        return _DENSE[name](eqn)
    if name.startswith("scatter") and name != "scatter":
        return float(math.prod(eqn.invars[2].aval.shape))
    return 0.0


def _is_real(aval) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def _dot(eqn) -> float:
    (left, _), (batch, _) = eqn.params["dimension_numbers"]
    del batch
    contracted = math.prod(eqn.invars[0].aval.shape[i] for i in left)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * contracted


def _convolution(eqn) -> float:
    kernel = eqn.invars[1].aval.shape
    spec = eqn.params["dimension_numbers"].rhs_spec  # (out features, in features, *window)
    per_output = math.prod(kernel[i] for i in spec[1:])
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output


def _batched(formula: Callable[[int, int], float]) -> Callable[[Any], float]:
    """A formula in the two last axes of the first operand, times the leading ones."""

    def flops(eqn) -> float:
        *batch, m, n = eqn.invars[0].aval.shape
        return math.prod(batch) * formula(m, n)

    return flops


def _triangular_solve(eqn) -> float:
    """n^2 per right-hand side, with the matrix (n, n) and as many sides as the other axis holds."""
    n = eqn.invars[0].aval.shape[-1]
    return float(math.prod(eqn.invars[1].aval.shape) * n)


def _qr_flops(m: int, n: int) -> float:
    k = min(m, n)
    return 4.0 * m * n * k - 2 * (m + n) * k**2 + 4 * k**3 / 3


_DENSE: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
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
    "svd": _batched(lambda m, n: 4.0 * max(m, n) * min(m, n) ** 2 + 22.0 * min(m, n) ** 3),
    "eig": _batched(lambda n, _: 25.0 * n**3),
    "tridiagonal_solve": _batched(lambda m, n: 8.0 * m * n),
}
