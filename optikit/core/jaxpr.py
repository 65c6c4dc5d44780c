"""What every re-interpretation of a jaxpr needs."""

from typing import Any

from jax.extend import core as jex

CALLS = {
    "jit", "pjit", "call", "core_call", "closed_call", "composite", "remat", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call",
}  # fmt: skip
"""Operations that do what their inner program does."""


def called(eqn: Any) -> jex.ClosedJaxpr | None:
    """The body of a call (jit, remat, custom rules), to be read in its place; None of no call."""
    if eqn.primitive.name not in CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        body = eqn.params.get(key)
        if isinstance(body, jex.ClosedJaxpr):
            return body
        if isinstance(body, jex.Jaxpr):
            return jex.ClosedJaxpr(body, ())
    return None


def bind_equation(eqn: Any, values: list) -> list:
    """The outputs of an equation at other values."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]
