"""Static checks of what a user passes: raised at once, with the fact, the value and the remedy."""

from typing import Any

import jax
import jax.numpy as jnp

from optikit.calculus.objective import Objective, abstract, black_box, fingerprint
from optikit.core import Params


def as_objective(fun: Any, *, has_aux: bool = False) -> Objective:
    """An Objective, or a plain function taken as a black box.

    Raises:
      TypeError: fun is neither.
    """
    if isinstance(fun, Objective):
        return fun
    if not callable(fun):
        msg = f"fun must be a function (params, *args) -> scalar or an Objective; got {fun!r}."
        raise TypeError(msg)
    return black_box(fun, has_aux=has_aux)


def as_args(args: Any) -> tuple:
    """The data arguments as a tuple.

    Raises:
      TypeError: args is a lone array or other non-sequence.
    """
    if isinstance(args, (tuple, list)):
        return tuple(args)
    kind = type(args).__name__
    msg = f"args must be a tuple of the arguments after params; got {kind}: write args=(data,)."
    raise TypeError(msg)


def as_params(params: Params) -> Params:
    """Parameters as arrays of a settled dtype (Python floats lose their weak type).

    Raises:
      TypeError: a leaf is not a real floating-point array; it is named by its path.
      ValueError: there is nothing to optimise.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    if not paths:
        msg = f"params holds no arrays: got {params!r}; there is nothing to optimise."
        raise ValueError(msg)
    leaves = [_as_parameter(f"params{jax.tree_util.keystr(path)}", leaf) for path, leaf in paths]
    if sum(leaf.size for leaf in leaves) == 0:
        msg = "params has no entries: every leaf is an empty array; there is nothing to optimise."
        raise ValueError(msg)
    return jax.tree.unflatten(structure, leaves)


def _as_parameter(name: str, leaf: Any) -> jax.Array:
    is_array = isinstance(leaf, jax.Array)
    if is_array and getattr(leaf.dtype, "kind", "") == "f" and not leaf.weak_type:
        return leaf  # as it should be: what follows costs as much as a small solve's dispatch
    if is_array and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        msg = f"{name} is a random key: parameters must be floating point; pass it in args."
        raise TypeError(msg)
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        msg = f"{name} is {type(leaf).__name__}: parameters must be floating-point arrays."
        raise TypeError(msg) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        msg = (
            f"{name} is {array.dtype.name}: parameters must be real; optimise the real and "
            "imaginary parts as two leaves."
        )
        raise TypeError(msg)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = (
            f"{name} is {array.dtype.name}: parameters must be floating point; convert it with "
            f"jnp.asarray({name}, float), or pass it in args."
        )
        raise TypeError(msg)
    return jax.lax.convert_element_type(array, array.dtype)  # drops a weak type


def check_scalar(objective: Objective, params: Params, args: tuple) -> jax.ShapeDtypeStruct:
    """The objective's value, abstractly.

    Raises:
      TypeError: it is not one real floating-point number.
    """
    name = fingerprint(objective)
    try:
        value, _ = abstract(objective, params, args)
    except (TypeError, ValueError) as error:
        if objective.has_aux and "unpack" in str(error):
            msg = f"{name} has_aux=True but did not return a pair (value, aux)."
            raise TypeError(msg) from error
        raise
    hint = "sum or average it into one number"
    if isinstance(value, tuple) and len(value) == 2:
        msg = f"{name} returned a pair: pass has_aux=True if the second is auxiliary output."
        raise TypeError(msg)
    if not isinstance(value, jax.ShapeDtypeStruct):
        msg = f"{name} returned {type(value).__name__}, not a scalar: {hint}."
        raise TypeError(msg)
    if value.shape != ():
        msg = (
            f"{name} returned an array of shape {value.shape}: an objective must be a scalar; "
            f"{hint}, or minimise its squares with least_squares(...)."
        )
        raise TypeError(msg)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        msg = f"{name} returned {value.dtype.name}: an objective must be real floating point."
        raise TypeError(msg)
    return value
