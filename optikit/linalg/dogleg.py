"""The dogleg: from the steepest descent minimiser to the Newton point, cut off at the radius.

Along the path the length grows and the model falls, so its end inside the region is found by one
quadratic equation. The double dogleg turns to the Newton direction before it gets to the Newton
point, and so leans toward it sooner. Sums of squares use the Gauss-Newton model, from the Jacobian
alone (Powell's hybrid method); other objectives use the dense Hessian, with |lambda| in place of
the eigenvalues where it is not convex, so that both ends of the path descend and saddles are left.

References: Nocedal & Wright (2006), section 4.1, eq. 4.16; Powell (1970), "A hybrid method for
nonlinear equations"; Dennis & Mei (1979), "Two new unconstrained optimization algorithms which use
function and gradient values", for the double one.
"""

import functools
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

LEAN = 0.8
"""Weight of gamma in the double dogleg's eta = LEAN gamma + 1 - LEAN."""


@memoized
def dogleg(*, residuals: bool = False, double: bool = False) -> Subproblem:
    """Powell's dogleg as a Subproblem.

    Args:
      residuals: use the Jacobian of a sum of squares, evaluated by one jacobian with each point;
        else the dense curvature matrix, one a step.
      double: Dennis and Mei's path.

    Cost beside that: 2 m n^2 flops (residuals) or 9 n^3; nothing per proposal.
    """
    if residuals:
        return Subproblem(functools.partial(_from_jacobian, double), evaluate_residuals)
    return Subproblem(functools.partial(_from_matrix, double))


def double_dogleg_step(
    gradient: Float[Array, " n"],
    first: Float[Array, " n"],
    last: Float[Array, " n"],
    radius: Scalar,
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The last point within the radius of the path 0 - first - eta last - last; whether it was cut.

    eta = 0.8 gamma + 0.2 with gamma = <g, first> / <g, last>. For a convex model with the steepest
    descent minimiser as `first` and its own as `last`, gamma <= 1 and |first| <= gamma |last|.

    Reference: Dennis & Schnabel (1983), section 6.4.2.

    Example:
      >>> g, c, n = jnp.array([-1.0, -1.0]), jnp.array([0.4, 0.4]), jnp.array([1.0, 0.25])
      >>> step, cut = double_dogleg_step(g, c, n, jnp.array(1.0))  # on the last, straight part
      >>> [round(float(v), 4) for v in step], bool(cut)
      ([0.9701, 0.2425], True)
    """
    along = jnp.vdot(gradient, last, precision=HIGHEST)
    gamma = jnp.vdot(gradient, first, precision=HIGHEST) / jnp.where(along != 0, along, 1)
    eta = LEAN * jnp.clip(gamma, 0, 1) + (1 - LEAN)
    size = jnp.linalg.norm(last)
    straight = radius / jnp.where(size > 0, size, 1) * last
    bent, short = dogleg_step(first, eta * last, radius)
    cut = size > radius
    return jnp.where(cut, jnp.where(short, bent, straight), last), cut


def _from_jacobian(double: bool, oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
    del oracle, kind, key
    r, jacobian = at.local
    gradient, unravel = ravel_pytree(at.grad)
    size = tree.norm(gradient)
    steepest = _ratio(gradient, size)  # a square of the gradient might under- or overflow
    moved = tree.norm(jnp.matmul(jacobian, steepest, precision=HIGHEST))
    cauchy = -_ratio(_ratio(size, moved), moved) * steepest
    newton = gauss_newton_step(jacobian, r)

    def curvature(s: Array) -> Scalar:
        image = jnp.matmul(jacobian, s, precision=HIGHEST)
        return jnp.vdot(image, image, precision=HIGHEST)

    bottom = curvature(newton) / 2
    convex = jnp.asarray(True)
    free = tally(Counts())
    return _model(at, cauchy, newton, curvature, unravel, convex, bottom, free, double)


def _from_matrix(double: bool, oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
    op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
    gradient, unravel = ravel_pytree(at.grad)
    matrix = op.dense()
    safe, whole = scaled_newton(matrix, gradient)
    vectors, model = decomposed(matrix, gradient, safe)
    length = jnp.maximum(1, tree.norm(at.params)).astype(gradient.dtype)
    sizes, newton = _ends(model, length)
    newton = jnp.where(safe, jnp.matmul(whole, vectors, precision=HIGHEST), newton)
    size = tree.norm(model.along)
    steepest = _ratio(model.along, size)
    cauchy = -_ratio(size, jnp.vdot(steepest, sizes * steepest)) * steepest

    def lift(coefficients: Array) -> Params:
        return unravel(jnp.matmul(vectors, coefficients, precision=HIGHEST))

    def curvature(c: Array) -> Scalar:
        return jnp.sum(model.values * c**2)

    bottom = 0.5 * jnp.where(
        safe, -jnp.vdot(gradient, whole), jnp.sum(model.along * (model.along / sizes))
    )
    eigen = at._replace(grad=model.along)
    return _model(
        eigen, cauchy, newton, curvature, lift, model.convex, bottom, tally(op.matrix_price), double
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
    double: bool,
) -> Model:
    gradient, dtype = ravel_pytree(at.grad)[0], at.value.dtype

    def propose(radius: Scalar, inner: Inner) -> Direction:
        del inner
        reach = radius.astype(gradient.dtype)
        if double:
            s, cut = double_dogleg_step(gradient, cauchy, newton, reach)
        else:
            s, cut = dogleg_step(cauchy, newton, reach)
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


def _ratio(a: Array, b: Scalar) -> Array:
    return a / jnp.where(b > 0, b, 1)
