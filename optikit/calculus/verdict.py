"""What `check_derivatives` reports: where derivatives disagree, in words, and what to do."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.core import Params


@dataclasses.dataclass(frozen=True)
class DerivativeReport:
    """What `check_derivatives` found; true in a boolean context if both derivatives agree.

    The orders are 2 or more for right derivatives and 1 for wrong ones: gradient_order of the
    gradient against values, hessian_order of the Hessian against gradients; infinity where the
    remainder is below the rounding noise at every step, as for a quadratic's Hessian.
    For a failure, `leaf` and `index` name the entry that disagrees most, `claimed` is what
    autodiff says there (a gradient entry, or one of H d) and `observed` what differences say.
    `problem` is "" or what is wrong: "gradient", "hessian", "kink", "not-finite", "float32" (a
    narrower type inside a float64 function), "precision" (values that lose digits) or
    "non-deterministic"; the message says what to do.
    """

    ok: bool
    gradient_order: float
    hessian_order: float
    noise: float
    leaf: str | None
    index: tuple[int, ...] | None
    claimed: float | None
    observed: float | None
    message: str
    problem: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.message


def locate(params: Params, entry: int) -> tuple[str, tuple[int, ...]]:
    """The path of the leaf and the index in it of a ravelled entry."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if entry < leaf.size:
            index = tuple(int(i) for i in np.unravel_index(entry, leaf.shape))
            return f"params{jax.tree_util.keystr(path)}", index
        entry -= leaf.size
    raise IndexError(entry)


def entry_name(leaf: str, index: tuple[int, ...]) -> str:
    """As it would be written in code."""
    return leaf + (f"[{', '.join(map(str, index))}]" if index else "")


def agreeing(orders: tuple[float, float], noise: float, rough: bool) -> DerivativeReport:
    """Both derivatives stand; `rough` where an order is low and something else explains it."""
    message = (
        f"gradient and Hessian agree with the function: observed orders {orders[0]:.2f} and "
        f"{orders[1]:.2f} (2 expected, 1 if wrong), rounding noise {noise:.1e}."
    )
    if rough:
        message += (
            " A kink or steep change near by makes an order low; the gradient still integrates to "
            "the values across it, and shorter differences agree with the Hessian."
        )
    return DerivativeReport(True, *orders, noise, None, None, None, None, message)


def contradicted(
    what: str,
    params: Any,
    entry: int,
    claimed: float,
    observed: float,
    orders: tuple[float, float],
    noise: float,
) -> DerivativeReport:
    """Autodiff says one thing at an entry, differences another."""
    leaf, index = locate(params, entry)
    name = entry_name(leaf, index)
    wrong = orders[0 if what == "gradient" else 1]
    quantity = "" if what == "gradient" else " of H d"
    message = (
        f"the {what} does not belong to the function: the Taylor remainder has order {wrong:.2f} "
        f"(2 expected). Worst entry{quantity}: {name}, where autodiff says {claimed:.6g} and "
        f"differences say {observed:.6g}. Look for a custom derivative rule, a stop_gradient, "
        "rounding or an integer on the way, or a kink near by; take the rule out to see whether "
        "it is the cause."
    )
    problem = what.lower()
    return DerivativeReport(False, *orders, noise, leaf, index, claimed, observed, message, problem)


def finding(
    problem: str, message: str, leaf: str | None, index: tuple[int, ...] | None, **more: float
) -> DerivativeReport:
    """A report of what was found before any order was measured."""
    nan = float("nan")
    noise, claimed, observed = (more.get(k) for k in ("noise", "claimed", "observed"))
    return DerivativeReport(
        False, nan, nan, nan if noise is None else noise, leaf, index, claimed, observed, message,
        problem,
    )  # fmt: skip


def not_finite(params: Params, base: float, g: jax.Array) -> DerivativeReport:
    """A gradient that is not finite where the value is; an error where that is not either."""
    if not np.isfinite(base):
        msg = f"the function is {base} at params: derivatives cannot be checked there."
        raise FloatingPointError(msg)
    entry = int(jnp.argmin(jnp.isfinite(g)))
    leaf, index = locate(params, entry)
    message = (
        f"the function is finite ({base:.6g}) but its gradient is {float(g[entry])} at "
        f"{entry_name(leaf, index)}. Look for sqrt, log, norm or a division at 0 behind "
        "jnp.where: its untaken branch is differentiated too; make its argument safe with a "
        "second where."
    )
    return finding("not-finite", message, leaf, index, claimed=float(g[entry]))


def changing(params: Params, base: float, g, value: float, grad) -> DerivativeReport:
    """Two calls that answered differently."""
    entry = int(jnp.argmax(jnp.nan_to_num(jnp.abs(g - grad), nan=jnp.inf)))
    leaf, index = locate(params, entry)
    first, second = float(g[entry]), float(grad[entry])
    message = (
        f"the function is not deterministic: two calls at the same params gave {base:.9g} and "
        f"{value:.9g}, and {first:.6g} and {second:.6g} for the gradient at "
        f"{entry_name(leaf, index)}. Make randomness an argument (a fixed key in args), keep "
        "callbacks free of state, and on a GPU set XLA_FLAGS=--xla_gpu_deterministic_ops=true."
    )
    return finding("non-deterministic", message, leaf, index, claimed=first, observed=second)


def narrow_inside(params: Params, narrow: list[tuple[int, str]]) -> DerivativeReport:
    """Leaves that pass through a narrower type."""
    names = [
        f"params{jax.tree_util.keystr(p)}" for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    kind = narrow[0][1]
    which = ", ".join(names[i] for i, _ in narrow)
    message = (
        f"{which}: float64 outside, {kind} inside the function, so that its values carry the "
        f"rounding of {kind} and no difference in float64 means anything. Look for an .astype, a "
        f"dtype=jnp.{kind} or an array of {kind} made before x64 was enabled; or pass {kind} "
        "parameters if it is meant."
    )
    return finding(
        "float32" if kind == "float32" else "precision", message, names[narrow[0][0]], ()
    )


def kinked(params: Params, kink: tuple[int, float, float], claimed: float) -> DerivativeReport:
    """A gradient that jumps at an entry."""
    entry, left, right = kink
    leaf, index = locate(params, entry)
    message = (
        f"the function has a kink at {entry_name(leaf, index)}: its slope is {left:.6g} from the "
        f"left and {right:.6g} from the right; autodiff says {claimed:.6g}. Test at another point, "
        "or make it smooth (softplus for relu, sqrt(x^2 + c^2) for abs, logsumexp for max), as "
        "second-order methods need."
    )
    return finding("kink", message, leaf, index, claimed=claimed)
