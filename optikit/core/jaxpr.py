"""What every re-interpretation of a jaxpr needs."""

from typing import Any


def bind_equation(eqn: Any, values: list) -> list:
    """The outputs of an equation at other values."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]
