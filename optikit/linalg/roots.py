"""Inverse roots of symmetric positive semidefinite matrices, and orthogonal factors, in batches.

Two ways each: by eigendecomposition, exact and slow on an accelerator; by products alone, whose
accuracy is a matter of turns.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from optikit.core import tree
from optikit.core.tree import HIGHEST

RIDGE = 1e-6
"""Relative to the largest eigenvalue: Anil et al. (2020), "Scalable second order optimization"."""

MUON = (3.4445, -4.7750, 2.0315)
"""Steepest at zero, and never settling: singular values end between 0.68 and 1.13. Jordan (2024),
"Muon: an optimizer for hidden layers"."""

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Turn by turn the best quintics for singular values down to 1e-3 of the largest; the last one is
repeated. Amsel, Persson, Musco & Gower (2025), "The Polar Express", Algorithm 1."""

SAFETY = 1.01
"""Room for rounding in the argument of all but the last kind of quintic (Amsel et al., 4.4)."""

Coefficients = Literal["muon", "polar-express"] | Sequence[Sequence[float]]


def inverse_root(
    matrices: Float[Array, "*batch n n"],
    power: float,
    *,
    ridge: float = RIDGE,
    method: Literal["eigh", "newton"] = "eigh",
) -> Float[Array, "*batch n n"]:
    """(A + ridge lambda_max I)^(-1/power) of symmetric positive semidefinite matrices.

    Eigenvalues that rounding made negative count as zero. The root of a matrix of zeros is the
    identity. A matrix with a NaN or infinite entry gives NaN.

    Args:
      power: positive; a positive integer with "newton".
      ridge: relative to the largest eigenvalue (to a bound for it within a factor sqrt(n), with
        "newton").
      method: "eigh", about 9 n^3 flops that an accelerator executes slowly; "newton", the coupled
        Newton iteration, matrix products alone, as many turns as the worst conditioned of the
        batch needs: some 1.4 power log2(1 / ridge) + 5, each of 2 to 4 products.

    Raises:
      ValueError: an unknown method, or a power that is not a positive integer with "newton".

    Reference: Guo & Higham (2006), "A Schur-Newton method for the matrix pth root", section 3.

    Example:
      >>> inverse_root(4 * jnp.eye(2), 2, ridge=0.0)
      Array([[0.5, 0. ],
             [0. , 0.5]], dtype=float32)
    """
    if method == "eigh":
        return _by_eigenvalues(matrices, power, ridge)
    if method != "newton":
        msg = f"method must be 'eigh' or 'newton'; got {method!r}."
        raise ValueError(msg)
    if not isinstance(power, int) or power < 1:
        msg = f"the Newton iteration takes positive integer powers; got {power!r}: use 'eigh'."
        raise ValueError(msg)
    return _by_newton(matrices, power, ridge)


def _by_eigenvalues(matrices: Array, power: float, ridge: float) -> Array:
    finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1))
    values, vectors = jnp.linalg.eigh(jnp.where(finite[..., None, None], matrices, 0))
    largest = values[..., -1:]
    positive = largest > 0
    lifted = jnp.maximum(values, 0) + ridge * jnp.where(positive, largest, 0)
    usable = positive & (lifted > 0)
    otherwise = jnp.where(positive, 0.0, 1.0).astype(values.dtype)
    roots = jnp.where(usable, jnp.where(usable, lifted, 1) ** (-1 / power), otherwise)
    root = _product(vectors * roots[..., None, :], jnp.swapaxes(vectors, -1, -2))
    return jnp.where(finite[..., None, None], root, jnp.nan)


def _by_newton(matrices: Array, power: int, ridge: float) -> Array:
    """M X^power = A^-1 M0 throughout; when M is the identity, X is the root."""
    n, dtype = matrices.shape[-1], matrices.dtype
    eye = jnp.broadcast_to(jnp.eye(n, dtype=dtype), matrices.shape)
    finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1))[..., None, None]
    safe = jnp.where(finite, matrices, 0)
    size = _spectral_bound(safe)[..., None, None]
    zero = size == 0
    lifted = jnp.where(zero, eye, safe / jnp.where(zero, 1, size) + ridge * eye)
    # of the scaled matrix all eigenvalues are in (0, 1 + ridge], inside the region of convergence
    z = (1 + power) / (2 * (1 + ridge))
    enough = 10 * n * tree.eps(dtype)

    def distance(m: Array) -> Array:
        return jnp.max(jnp.abs(m - eye), axis=(-2, -1))

    def running(c: tuple) -> Bool[Array, ""]:
        turn, _, _, error, better = c
        return (turn < 200) & jnp.any(better & (error > enough))

    def body(c: tuple) -> tuple:
        turn, x, m, error, better = c
        t = ((1 + power) * eye - m) / power
        new_x, new_m = _product(x, t), _product(_power(t, power), m)
        new = distance(new_m)
        # at the floor of rounding the error grows again: keep the best
        closer = better & ((new < error) | (error > 0.1))
        kept = closer[..., None, None]
        error = jnp.where(closer, new, error)
        return turn + 1, jnp.where(kept, new_x, x), jnp.where(kept, new_m, m), error, closer

    root, m = z ** (1 / power) * eye, z * lifted
    better = jnp.ones(matrices.shape[:-2], bool)
    start = (jnp.asarray(0, jnp.int32), root, m, distance(m), better)
    x = lax.while_loop(running, body, start)[1]
    scaled = x * jnp.where(zero, 1, size) ** (-1 / power)
    return jnp.where(finite, jnp.where(zero, eye, scaled), jnp.nan)


def _spectral_bound(a: Array) -> Array:
    """At least the largest eigenvalue, at most sqrt(n) times it."""
    frobenius = jnp.sqrt(jnp.sum(a * a, axis=(-2, -1)))
    return jnp.minimum(frobenius, jnp.max(jnp.sum(jnp.abs(a), axis=-1), axis=-1))


def _power(t: Array, power: int) -> Array:
    """t^power by repeated squaring."""
    result = None
    while power:
        if power % 2:
            result = t if result is None else _product(result, t)
        power //= 2
        if power:
            t = _product(t, t)
    assert result is not None
    return result


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)


def orthogonalize(
    matrices: Float[Array, "*batch m n"],
    *,
    steps: int = 5,
    coefficients: Coefficients = "muon",
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*batch m n"]:
    """The nearest matrices with orthonormal columns (or rows), roughly, by Newton-Schulz turns.

    X <- a X + (b X X^T + c (X X^T)^2) X, which leaves singular vectors as they are and brings the
    singular values, first scaled to at most 1, towards 1. In the dtype of the matrices: give them
    in bfloat16 for speed. A matrix of zeros stays zero.

    Args:
      steps: turns, each of 4 m n min(m, n) + 2 min(m, n)^3 flops.
      coefficients: "muon" (five turns bring singular values from 0.01 up into [0.68, 1.13]),
        "polar-express" (converges to 1), or a triple (a, b, c) for each turn.
      precision: of the products.

    Raises:
      ValueError: unknown coefficients, or fewer triples than steps.

    Reference: Jordan (2024), "Muon"; Amsel et al. (2025), "The Polar Express".

    Example:
      >>> q = orthogonalize(jnp.diag(jnp.array([3.0, 0.1])), steps=8, coefficients="polar-express")
      >>> bool(jnp.allclose(q, jnp.eye(2), atol=1e-5))
      True
    """
    turns = _turns(coefficients, steps)
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else jnp.swapaxes(matrices, -1, -2)
    # the norm in float32: a sum of squares has no digits in bfloat16
    wider = x.astype(tree.inner_dtype(x))
    size = jnp.sqrt(jnp.sum(wider * wider, axis=(-2, -1), keepdims=True))
    room = SAFETY if coefficients == "polar-express" else 1.0
    x = (wider / jnp.where(size > 0, room * size, 1)).astype(matrices.dtype)
    for a, b, c in turns:
        gram = jnp.matmul(x, jnp.swapaxes(x, -1, -2), precision=precision)
        mixed = b * gram + c * jnp.matmul(gram, gram, precision=precision)
        x = a * x + jnp.matmul(mixed, x, precision=precision)
    return x if wide else jnp.swapaxes(x, -1, -2)


def _turns(coefficients: Coefficients, steps: int) -> Sequence[Sequence[float]]:
    if coefficients == "muon":
        return [MUON] * steps
    if coefficients == "polar-express":
        last = len(POLAR_EXPRESS) - 1
        return [
            POLAR_EXPRESS[last] if i >= last else _with_room(*POLAR_EXPRESS[i])
            for i in range(steps)
        ]
    if isinstance(coefficients, str):
        msg = f"coefficients must be 'muon', 'polar-express' or triples; got {coefficients!r}."
        raise ValueError(msg)  # noqa: TRY004
    if len(coefficients) < steps:
        msg = f"{steps} steps need as many triples of coefficients; got {len(coefficients)}."
        raise ValueError(msg)
    return coefficients[:steps]


def _with_room(a: float, b: float, c: float) -> tuple[float, float, float]:
    return a / SAFETY, b / SAFETY**3, c / SAFETY**5
