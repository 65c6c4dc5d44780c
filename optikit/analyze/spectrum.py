"""The spectrum of a curvature matrix: its density, its ends, and what follows from them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.analyze.instruments import as_subject, plain
from optikit.analyze.operator import Look, flat_operator, require_factorizable
from optikit.calculus.derivatives import Fun
from optikit.calculus.oracle import CurvatureKind
from optikit.calculus.validate import as_key
from optikit.core import Counts, Key, LinearOperator, Params, Scalar, tally, times, tree
from optikit.core.compiled import jit, under_transformation
from optikit.linalg.eigenpairs import eigenpairs
from optikit.linalg.quadrature import Quadrature, lanczos_quadrature

DENSE_UP_TO = 1000
"""Parameters up to which all eigenvalues are computed."""

BAND = 1.96
"""Standard errors of a band: 95 % of a normal distribution."""


class Density(NamedTuple):
    """Eigenvalues per unit length, as a share of all, on a grid: mean and a 95 % band."""

    points: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What is known of the eigenvalues of a symmetric matrix.

    Attributes:
      nodes, weights: (probes, k), the quadrature of the density, a row for each random vector and
        each summing to 1; with `exact`, one row of all eigenvalues.
      largest, smallest: (k,), the ends, outermost first.
      largest_errors, smallest_errors: a true eigenvalue lies within these distances.
      counts: oracle calls.
      size: the number of eigenvalues.
      exact: whether they were all computed.
    """

    nodes: Float[Array, "p k"]
    weights: Float[Array, "p k"]
    largest: Float[Array, " k"]
    largest_errors: Float[Array, " k"]
    smallest: Float[Array, " k"]
    smallest_errors: Float[Array, " k"]
    counts: Counts
    size: int = dataclasses.field(metadata={"static": True})
    exact: bool = dataclasses.field(metadata={"static": True})

    def integral(self, function: Callable[[Array], Array]) -> tuple[Scalar, Scalar]:
        """(the sum of a function over all eigenvalues, its standard error over the probes)."""
        value, error = Quadrature(self.nodes, self.weights, self.size).trace(function)
        return value, jnp.zeros_like(value) if self.exact else error

    @property
    def trace(self) -> tuple[Scalar, Scalar]:
        """(the sum of the eigenvalues, its standard error)."""
        return self.integral(lambda x: x)

    @property
    def frobenius(self) -> tuple[Scalar, Scalar]:
        """(the root of the sum of squares, its standard error by the delta method)."""
        largest = jnp.max(jnp.abs(self.nodes))
        unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        square, error = self.integral(lambda x: (x / unit) ** 2)  # of sizes that do not overflow
        root = jnp.sqrt(square)
        return unit * root, unit * error / jnp.where(root > 0, 2 * root, 1)

    def log_determinant(self, shift: float = 0.0) -> tuple[Scalar, Scalar]:
        """(log det(A + shift I), its standard error); NaN where an eigenvalue is not above -shift.

        Nodes near zero make its error heavy-tailed: a shift of the rounding level is prudent.
        """
        return self.integral(lambda x: jnp.log(x + shift))

    def effective_dimension(self, ridge: float) -> tuple[Scalar, Scalar]:
        """(the sum of a / (a + ridge) over eigenvalues a > 0, its standard error).

        Reference: MacKay (1992), "Bayesian interpolation", eq. 3.19.
        """
        return self.integral(lambda x: jnp.where(x > 0, x / (jnp.where(x > 0, x, 1) + ridge), 0))

    def share_below(self, bound: float) -> tuple[Scalar, Scalar]:
        """(the share of eigenvalues below a bound, its standard error).

        To within the resolution of the quadrature: its nodes next to the bound.
        """
        count, error = self.integral(lambda x: (x < bound).astype(x.dtype))
        return count / self.size, error / self.size

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """The density, each node widened to a normal distribution.

        Args:
          width: its standard deviation; by default 1 % of the range.
        """
        nodes = np.asarray(self.nodes, np.float64)
        weights = np.asarray(self.weights, np.float64)
        low, high = float(self.smallest[0]), float(self.largest[0])
        low, high = min(low, float(nodes.min())), max(high, float(nodes.max()))
        spread = high - low if high > low else abs(high) or 1.0
        width = 0.01 * spread if width is None else width
        grid = np.linspace(low - 4 * width, high + 4 * width, points)
        each = np.zeros((len(nodes), points))
        for row, (x, w) in enumerate(zip(nodes, weights, strict=True)):
            z = (grid[:, None] - x[None, :]) / width
            each[row] = np.exp(-(z**2) / 2) @ w / (width * math.sqrt(2 * math.pi))
        mean = each.mean(axis=0)
        error = each.std(axis=0, ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.zeros(points)
        return Density(grid, mean, np.maximum(mean - BAND * error, 0), mean + BAND * error, width)

    def __str__(self) -> str:
        def both(pair: tuple[Any, Any]) -> str:
            value, error = float(pair[0]), float(pair[1])
            return f"{value:.4g}" if error == 0 else f"{value:.4g} +- {error:.2g}"

        def ends(values: Array, errors: Array) -> str:
            shown = [f"{float(v):.4g}" for v in values[:5]]
            worst = float(jnp.max(errors[:5]))
            return f"{', '.join(shown)} (each within {worst:.1g})"

        source = "all eigenvalues" if self.exact else f"{self.nodes.shape[0]} probes"
        top, bottom = float(self.largest[0]), float(self.smallest[0])
        condition = (
            f"condition number {top / bottom:.3g}" if bottom > 0 else "not positive definite"
        )
        return "\n".join(
            [
                f"{self.size} eigenvalues ({source}); {condition}",
                f"  largest   {ends(self.largest, self.largest_errors)}",
                f"  smallest  {ends(self.smallest, self.smallest_errors)}",
                f"  trace     {both(self.trace)}",
                f"  Frobenius {both(self.frobenius)}",
                f"  negative  {both(self.share_below(0.0))} of them",
            ]
        )


def spectrum(
    fun: Fun | LinearOperator,
    params: Params,
    args: tuple = (),
    *,
    k: int = 10,
    num_probes: int = 8,
    num_products: int = 50,
    curvature: CurvatureKind = "hessian",
    basis: int | None = None,
    tol: float | None = None,
    batch_size: int | None = None,
    leaves: str | None = None,
    scaling: Params | None = None,
    dense: bool | None = None,
    has_aux: bool = False,
    key: Key | None = None,
) -> Spectrum:
    """The eigenvalues of a curvature matrix: k at each end, and the density of all.

    Up to 1000 parameters by the dense matrix. Beyond, the density by stochastic Lanczos quadrature
    (`num_probes` random vectors, `num_products` products each, three vectors of memory), and the
    ends by thick-restart Lanczos (2 k vectors and 17 more). Print it for a summary.

    Args:
      k: at most half of the parameters where the matrix is not built; 0 for no ends: they are then
        the outermost nodes of the density, with their spread between probes as errors (NaN for a
        single probe), and memory is that of a few vectors.
      curvature, basis, tol, batch_size, leaves, scaling: as for `ok.eigenpairs`.
      dense: whether to build the matrix; by default by size.

    Raises:
      ValueError, TypeError: as `ok.eigenpairs` does.

    Reference: Ghorbani, Krishnan & Xiao (2019), "An investigation into neural net optimization via
    Hessian eigenvalue density"; and those of `optikit.linalg.quadrature`.

    Example:
      >>> found = spectrum(lambda x: jnp.sum(jnp.arange(1.0, 5.0) * x**2), jnp.zeros(4))
      >>> [float(v) for v in found.largest], float(found.trace[0])
      ([8.0, 6.0, 4.0, 2.0], 20.0)
    """
    subject, params, args = as_subject(fun, params, args, has_aux)
    look = Look(curvature, batch_size, leaves)
    run = plain(_spectrum) if under_transformation() else _spectrum
    return run(
        params, args, scaling, as_key(key), subject=subject, look=look, k=k, num_probes=num_probes,
        num_products=num_products, basis=basis, tol=tol, dense=dense,
    )  # fmt: skip


STATIC = ("subject", "look", "k", "num_probes", "num_products", "basis", "tol", "dense")


@functools.partial(jit, static_argnames=STATIC)
def _spectrum(
    params, args, scaling, key, *, subject, look, k, num_probes, num_products, basis, tol, dense
) -> Spectrum:
    flat = flat_operator(subject, params, args, look, scaling)
    n = flat.size
    if dense if dense is not None else n <= DENSE_UP_TO:
        require_factorizable(flat)
        matrix = flat.dense()
        finite = jnp.all(jnp.isfinite(matrix))
        values = jnp.linalg.eigvalsh(jnp.where(finite, matrix, 0), symmetrize_input=True)
        values = jnp.where(finite, values, jnp.nan)
        errors = jnp.full_like(values, n * tree.eps(values.dtype) * jnp.max(jnp.abs(values)))
        k = min(max(k, 1), n)
        return Spectrum(
            values[None], jnp.full_like(values, 1 / n)[None], values[::-1][:k], errors[:k],
            values[:k], errors[:k], flat.dense_price, n, exact=True,
        )  # fmt: skip
    probe_key, end_key = jax.random.split(key)
    found = lanczos_quadrature(
        flat.apply, flat.like, probe_key, num_probes=num_probes, num_products=num_products
    )
    products = num_probes * found.nodes.shape[1]
    k = min(k, n // 2)
    if k:
        require_factorizable(flat)
        pairs = eigenpairs(
            flat.product, n, 2 * k, end_key, dtype=flat.dtype, which="ends",
            basis=2 * k + 17 if basis is None else basis, tol=tol,
        )  # fmt: skip
        ends, errors = pairs.values.reshape(k, 2).T, pairs.residuals.reshape(k, 2).T
        products = products + pairs.products
    else:
        outer = jnp.stack([found.nodes[:, -1], found.nodes[:, 0]])
        ends = jnp.stack([jnp.max(outer[0]), jnp.min(outer[1])])[:, None]
        errors = (jnp.max(outer, axis=1) - jnp.min(outer, axis=1))[:, None]
        errors = errors if num_probes > 1 else jnp.full_like(errors, jnp.nan)
    return Spectrum(
        found.nodes, found.weights, ends[0], errors[0], ends[1], errors[1],
        tally(flat.setup, times(products, flat.price)), n, exact=False,
    )  # fmt: skip
