"""The dogleg: from the steepest descent minimiser to the Newton point, cut off at the radius.

Along the path the length grows and the model falls, so its end inside the region is found by one
quadratic equation. Sums of squares use the Gauss-Newton model, from the Jacobian alone (Powell's
hybrid method); other objectives use the dense Hessian, with |lambda| in place of the eigenvalues
where it is not convex, so that both ends of the path descend and saddles are left.

References: Nocedal & Wright (2006), section 4.1, eq. 4.16; Powell (1970), "A hybrid method for
nonlinear equations".
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Params, Scalar, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.dense import scaled_newton
from optikit.linalg.exact import decomposed, dogleg_step
from optikit.linalg.least_squares import evaluate_residuals, gauss_newton_step
from optikit.linalg.secular import Spectrum
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem


@memoized
def dogleg(*, residuals: bool = False) -> Subproblem:
    """Powell's dogleg as a Subproblem.

    Args:
      residuals: use the Jacobian of a sum of squares, evaluated by one jacobian with each point;
        else the dense curvature matrix, one a step.

    Cost beside that: 2 m n^2 flops (residuals) or 9 n^3; nothing per proposal.
    """
    return Subproblem(_from_jacobian, evaluate_residuals) if residuals else Subproblem(_from_matrix)


def _from_jacobian(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
    del oracle, kind, key
    r, jacobian = at.local
    gradient, unravel = ravel_pytree(at.grad)
    moved = jnp.matmul(jacobian, gradient, precision=HIGHEST)
    cauchy = -_ratio(jnp.vdot(gradient, gradient), jnp.vdot(moved, moved)) * gradient
    newton = gauss_newton_step(jacobian, r)

    def curvature(s: Array) -> Scalar:
        image = jnp.matmul(jacobian, s, precision=HIGHEST)
        return jnp.vdot(image, image, precision=HIGHEST)

    bottom = curvature(newton) / 2
    convex = jnp.asarray(True)
    return _model(at, cauchy, newton, curvature, unravel, convex, bottom, tally(Counts()))


def _from_matrix(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
    op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
    gradient, unravel = ravel_pytree(at.grad)
    matrix = op.dense()
    safe, whole = scaled_newton(matrix, gradient)
    vectors, model = decomposed(matrix, gradient, safe)
    length = jnp.maximum(1, tree.norm(at.params)).astype(gradient.dtype)
    sizes, newton = _ends(model, length)
    newton = jnp.where(safe, jnp.matmul(whole, vectors, precision=HIGHEST), newton)
    slope = jnp.vdot(model.along, model.along)
    cauchy = -_ratio(slope, jnp.vdot(model.along, sizes * model.along)) * model.along

    def lift(coefficients: Array) -> Params:
        return unravel(jnp.matmul(vectors, coefficients, precision=HIGHEST))

    def curvature(c: Array) -> Scalar:
        return jnp.sum(model.values * c**2)

    bottom = jnp.where(safe, -jnp.vdot(gradient, whole), jnp.sum(model.along**2 / sizes)) / 2
    eigen = at._replace(grad=model.along)
    return _model(
        eigen, cauchy, newton, curvature, lift, model.convex, bottom, tally(op.matrix_price)
    )


def _ends(model: Spectrum, length: Scalar) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """|lambda| bounded below, and the Newton point with it, which leaves saddles."""
    largest = jnp.max(jnp.abs(model.values))
    floor = tree.eps(length.dtype) ** (2 / 3) * jnp.where(largest > 0, largest, 1)
    bounded = jnp.where(model.gaps > 0, model.gaps, 1)
    sizes = jnp.where(model.bent, jnp.maximum(jnp.abs(model.values), floor), bounded)
    newton = -model.along / sizes
    # the gradient may have no part along the most negative curvature, on a saddle none at all
    size = jnp.linalg.norm(newton)
    least = 0.1 * jnp.where(size < 1e-3 * length, length, size)
    escape = -jnp.sign(model.pull[0]) * jnp.maximum(jnp.abs(newton[0]), least)
    return sizes, newton.at[0].set(jnp.where(model.bent, escape, newton[0]))


def _model(
    at: Eval,
    cauchy: Array,
    newton: Array,
    curvature: Callable[[Array], Scalar],
    lift: Callable[[Array], Params],
    convex: Bool[Array, ""],
    bottom: Scalar,
    counts: Counts,
) -> Model:
    gradient, dtype = ravel_pytree(at.grad)[0], at.value.dtype

    def propose(radius: Scalar, inner: Inner) -> Direction:
        del inner
        s, cut = dogleg_step(cauchy, newton, radius.astype(gradient.dtype))
        return Direction(
            step=lift(s),
            slope=jnp.vdot(gradient, s, precision=HIGHEST).astype(dtype),
            curvature=curvature(s).astype(dtype),
            at_boundary=cut,
            convex=convex,
            scale=jnp.zeros((), dtype),
            counts=times(0, Counts()),
            bottom=bottom.astype(dtype),
        )

    return Model(propose, counts)


def _ratio(a: Scalar, b: Scalar) -> Scalar:
    return a / jnp.where(b > 0, b, 1)
