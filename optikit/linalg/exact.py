"""Exact minimisers of dense models: in a ball (trust region), or under a cubic term.

One eigendecomposition per step serves every radius or weight that the step tries; saddles, the hard
case and singular matrices need no case distinction there (see `optikit.linalg.secular`). Parameters
are measured in units of their own, those that an equilibration of the matrix asks for, which may
grow by a fifth a step: a ball in the user's units would hold back those with large ones, and
small eigenvalues are only right to rounding of the largest. Units that could only shrink would
measure a valley by the steepest wall ever met.

Reference for the units: Moré (1978), "The Levenberg-Marquardt algorithm: implementation and
theory", section 4.
"""

from typing import Literal

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Scalar, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.dense import equilibration
from optikit.linalg.secular import Spectrum, in_ball, spectrum, under_cubic
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem

Region = Literal["ball", "cubic"]

RELAXED = 1.2
"""How much larger a parameter's unit may be than at the step before."""


@memoized
def exact(*, region: Region = "ball", scaled: bool = True) -> Subproblem:
    """The global minimiser of the dense model, as a Subproblem.

    Args:
      region: "ball" for |s| <= radius; "cubic" to add sigma |s|^3 / 3, where sigma is passed in
        place of the radius. Without a radius (a line search), a model that is not convex is
        minimised within max(1, |params|).
      scaled: measure |s| in the scaled parameters, else in the user's.

    Cost: one dense curvature matrix and 10 n^3 flops; each proposal costs O(n^2).

    Reference: Conn, Gould & Toint (2000), section 7.3.

    Example:
      >>> import optikit as ok
      >>> from optikit.globalize import trust_region
      >>> method = ok.second_order(solve=exact(), globalize=trust_region())
      >>> sol = ok.minimize(lambda x: jnp.sum(jnp.cos(x)), jnp.zeros(2), method=method)
      >>> round(float(sol.value), 4)  # from the maximum, where the gradient is zero
      -2.0
    """

    def prepare(
        oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key, memory: Array | None = None
    ) -> Model:
        op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
        matrix = op.dense()
        gradient, unravel = ravel_pytree(at.grad)
        units, d = measured_in(matrix, memory) if scaled else (memory, jnp.ones_like(gradient))
        slopes = d * gradient
        vectors, model = decomposed(d[:, None] * matrix * d[None, :], slopes)
        length = jnp.maximum(1, tree.norm(at.params)).astype(matrix.dtype)
        dtype = at.value.dtype

        def propose(bound: Scalar, inner: Inner) -> Direction:
            del inner
            found, _ = proposal(model, bound.astype(matrix.dtype), region, length, vectors.T, dtype)
            u = found.step
            s = d * u
            image = jnp.matmul(matrix, s, precision=HIGHEST)
            return found._replace(
                step=unravel(s),
                slope=jnp.vdot(gradient, s, precision=HIGHEST).astype(dtype),
                curvature=jnp.vdot(s, image, precision=HIGHEST).astype(dtype),
                length=jnp.linalg.norm(u).astype(dtype),
                resolved=model.exact,
            )

        return Model(propose, tally(op.matrix_price), None, units if scaled else ())

    def init(at: Eval) -> Array:
        gradient = ravel_pytree(at.grad)[0]
        return jnp.full_like(gradient, jnp.inf)

    return Subproblem(prepare, init=init if scaled else None)


def measured_in(
    matrix: Float[Array, "n n"], earlier: Float[Array, " n"] | None
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The units of the parameters, and the same with a geometric mean of 1.

    So that the region stays a ball where all curvatures are alike. A parameter without curvature
    has no unit yet.

    Args:
      earlier: those of the last step, infinite where there was none; they grow by a fifth at most.

    Example:
      >>> _, scale = measured_in(jnp.diag(jnp.array([4.0, 1.0])), None)
      >>> [round(float(v), 4) for v in scale]
      [0.7071, 1.4142]
    """
    units = jnp.where(jnp.any(matrix != 0, axis=0), equilibration(matrix), jnp.inf)
    units = units if earlier is None else jnp.minimum(RELAXED * earlier, units)
    logs = jnp.where(jnp.isfinite(units), jnp.log(units), 0)
    return units, jnp.exp(logs - jnp.mean(logs))


def decomposed(
    matrix: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    safe: Bool[Array, ""] | None = None,
) -> tuple[Float[Array, "n n"], Spectrum]:
    """Eigenvectors as columns, and the model; all NaN where the matrix is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, 0), symmetrize_input=False)
    values = jnp.where(finite, values, jnp.nan)
    return vectors, spectrum(values, jnp.matmul(gradient, vectors, precision=HIGHEST), safe)


def proposal(
    model: Spectrum,
    bound: Scalar,
    region: Region,
    length: Scalar,
    basis: Float[Array, "k n"],
    dtype: jnp.dtype,
) -> tuple[Direction, Scalar]:
    """The minimiser of a model in its eigenbasis, with the eigenvectors as rows of `basis`.

    Also the decrease down to the model's minimum. The step is flat, and nothing is counted. Without
    a radius, a bent model is minimised within `length`.
    """
    if region == "cubic":
        found = under_cubic(model, bound)
    else:
        open_end = jnp.isinf(bound) & model.bent
        found = in_ball(model, jnp.where(open_end, length, bound))
    c = found.coefficients
    slope, curvature = jnp.sum(model.along * c), jnp.sum(model.values * c**2)
    # what the quadratic alone would still give, however near the bound is
    bottom = jnp.sum(model.along * (model.along / jnp.where(model.gaps > 0, model.gaps, 1))) / 2
    bottom = jnp.where(model.bent, -(slope + curvature / 2), bottom)
    direction = Direction(
        step=jnp.matmul(c, basis, precision=HIGHEST),
        slope=slope.astype(dtype),
        curvature=curvature.astype(dtype),
        at_boundary=(found.nu > 0) | model.bent,
        convex=model.convex,
        scale=jnp.max(jnp.abs(model.values)).astype(dtype),
        counts=times(0, Counts()),
        bottom=bottom.astype(dtype),
    )
    return direction, bottom


def dogleg_step(
    first: Float[Array, " n"], last: Float[Array, " n"], radius: Scalar
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The last point within the radius of the path 0 - first - last; whether it was cut off.

    Reference: Nocedal & Wright (2006), eq. 4.16.

    Example:
      >>> step, cut = dogleg_step(jnp.array([1.0, 0.0]), jnp.array([1.0, 2.0]), jnp.array(1.0))
      >>> step.tolist(), bool(cut)
      ([1.0, 0.0], True)
    """
    far = tree.norm(last)
    unit = jnp.where(far > 0, far, 1)
    cut = far > radius
    # in units of the whole path no square overflows
    inner, bounded = first / unit, jnp.where(jnp.isfinite(radius), radius, 0) / unit
    near = jnp.linalg.norm(inner)
    leg = last / unit - inner
    # the positive root of |first + t leg| = radius, in the form that does not cancel
    a, b, c = jnp.vdot(leg, leg), jnp.vdot(inner, leg), bounded**2 - near**2
    root = jnp.sqrt(jnp.maximum(b**2 + a * c, 0))
    below = jnp.where(b > 0, root + b, a)
    t = jnp.where(b > 0, c, root - b) / jnp.where(below > 0, below, 1)
    bent = inner + jnp.clip(t, 0, 1) * leg
    short = bounded / jnp.where(near > 0, near, 1) * inner
    return jnp.where(cut, unit * jnp.where(near >= bounded, short, bent), last), cut
