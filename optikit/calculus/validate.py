"""Static checks of what a user passes: raised at once, with the fact, the value and the remedy."""

import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus.objective import Objective, abstract, black_box, fingerprint
from optikit.core import Key, Params


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
      TypeError: args is a lone array or other non-sequence, or holds what is no array; it is named
        by its path.
    """
    if not isinstance(args, (tuple, list)):
        kind = type(args).__name__
        msg = f"args must be a tuple of the arguments after params; got {kind}: write args=(data,)."
        raise TypeError(msg)
    if not all(map(_is_data, jax.tree.leaves(args))):
        path, leaf = next(
            (path, leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]
            if not _is_data(leaf)
        )
        msg = (
            f"args{jax.tree_util.keystr(path)} is {type(leaf).__name__} {reprlib.repr(leaf)}: args "
            "are arrays and numbers; what else fun needs, it closes over."
        )
        raise TypeError(msg)
    return tuple(args)


def _is_data(leaf: Any) -> bool:
    """Whether a compiled program can be given it: an array, a number, a random key."""
    if isinstance(leaf, (jax.Array, float, int, complex)) or hasattr(leaf, "__jax_array__"):
        return True
    return hasattr(leaf, "dtype") and getattr(leaf.dtype, "kind", "") not in tuple("OSTU")


def as_key(key: Any) -> Key:
    """A random key; None is the key of seed 0.

    Raises:
      TypeError: it is not one key.
    """
    if key is None:
        return jax.random.key(0)
    array = isinstance(key, (jax.Array, np.ndarray))
    if array and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return jnp.asarray(key)
    if array and key.dtype == np.uint32 and key.shape in ((2,), (4,)):  # of jax.random.PRNGKey
        return jax.random.wrap_key_data(jnp.asarray(key))
    got = f"{key.dtype}{list(key.shape)}" if array else f"{type(key).__name__} {reprlib.repr(key)}"
    seed = int(key) if isinstance(key, (int, np.integer)) else 0
    msg = f"key must be one random key; got {got}: write key=jax.random.key({seed})."
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
