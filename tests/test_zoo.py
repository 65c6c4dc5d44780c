"""Fifty points whose kind is known: each is told right, or not told; none is told wrong.

All functions are branches of one, so that a precision compiles once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optikit as ok

RNG = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
# a least-squares problem whose residuals are small differences of large numbers
TALL = RNG.normal(size=(30, 4)) + 10
SOLUTION = np.array([1.0, -2.0, 0.5, 3.0])


class Known(NamedTuple):
    """A point of a function, the kinds that may be stated of it, and what more is known."""

    function: object
    point: tuple
    kinds: str  # besides cannot-tell, unless there is a "!": then it must be told
    negative: int | None = None
    flat: int | None = None
    better: bool | None = None  # whether one must be found; None: it may


def like(x, values):
    return jnp.asarray(values, x.dtype)


def quadratic(*eigenvalues):
    return lambda x: jnp.sum(like(x, eigenvalues) * x**2) / 2


def rotated(*eigenvalues):
    matrix = ROTATION @ np.diag(eigenvalues) @ ROTATION.T
    return lambda x: jnp.vdot(x, jnp.dot(like(x, matrix), x, precision="highest")) / 2


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rest(x, held):
    return jnp.sum(x[held:] ** 2)


def cancelling(x):
    tall = like(x, TALL)
    return jnp.mean((jnp.dot(tall, x, precision="highest") - like(x, TALL @ SOLUTION)) ** 2)


def half_line(x):
    return jnp.where(x[0] >= 0, jnp.sum(x**2), jnp.nan)


ZERO, ONE = (0.0,) * 4, (1.0,) * 4
PI = float(np.pi)
MIN, MAX, SAD, DEG, KINK = "minimum", "maximum", "saddle", "degenerate", "non-smooth"

KNOWN = {
    # strict minima
    "bowl": Known(quadratic(1, 1, 1, 1), ZERO, MIN + "!", 0, 0, False),
    "ill-conditioned": Known(quadratic(1, 10, 1e3, 1e4), ZERO, MIN + "!", 0, 0, False),
    "rotated-bowl": Known(rotated(1, 2, 3, 4), ZERO, MIN + "!", 0, 0, False),
    "rosenbrock": Known(rosenbrock, ONE, MIN + "!", 0, 0, False),
    "offset": Known(lambda x: 1e3 + jnp.sum((x - 1) ** 2), ONE, MIN + "!", 0, 0, False),
    "tiny": Known(lambda x: 1e-12 * jnp.sum(x**2), ZERO, MIN + "!", 0, 0, False),
    "cosine-valley": Known(lambda x: jnp.sum(jnp.cos(x)), (PI,) * 4, MIN + "!", 0, 0, False),
    "exp-minus-x": Known(lambda x: jnp.sum(jnp.exp(x) - x), ZERO, MIN + "!", 0, 0, False),
    "softplus-pair": Known(
        lambda x: jnp.sum(jax.nn.softplus(5 * x) + jax.nn.softplus(-5 * x)), ZERO, MIN + "!", 0, 0
    ),
    "log-cosh": Known(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), ZERO, MIN + "!", 0, 0, False),
    "double-well": Known(lambda x: jnp.sum((x**2 - 1) ** 2), (1.0, -1.0, 1.0, -1.0), MIN + "!"),
    "near-a-minimum": Known(lambda x: jnp.sum((x - 1) ** 4 + (x - 1) ** 2), (1 + 1e-6,) * 4, MIN),
    # saddles of every index, maxima
    "index-1": Known(quadratic(-1, 1, 2, 3), ZERO, SAD + "!", 1, 0, True),
    "index-2": Known(rotated(-1, -2, 2, 3), ZERO, SAD + "!", 2, 0, True),
    "index-3": Known(quadratic(-1, -2, -3, 1e-2), ZERO, SAD + "!", 3, 0, True),
    "product": Known(lambda x: x[0] * x[1] + x[2] * x[3], ZERO, SAD + "!", 2, 0, True),
    "cosine-saddle": Known(lambda x: jnp.sum(jnp.cos(x)), (0.0, PI, PI, PI), SAD + "!", 1, 0, True),
    "saddle-and-valley": Known(quadratic(-1, 0, 0, 1), ZERO, SAD + "!", 1, 2, True),
    "well-between": Known(
        lambda x: jnp.sum((x**2 - 1) ** 2), (0.0, 1, 1, 1), SAD + "!", 1, 0, True
    ),
    "hill": Known(quadratic(-1, -2, -3, -4), ZERO, MAX + "!", 4, 0, True),
    "gauss": Known(lambda x: jnp.exp(-jnp.sum(x**2)), ZERO, MAX + "!", 4, 0, True),
    # no curvature somewhere
    "monkey-saddle": Known(
        lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2 + rest(x, 2), ZERO, DEG + "!", 0, 2, True
    ),
    "bare-monkey": Known(
        lambda x: x[1] ** 3 - 3 * x[1] * x[0] ** 2 + 0 * x[2], ZERO, DEG + "!", 0, 4, True
    ),
    "mixed-cubic": Known(lambda x: x[0] * x[1] ** 2 + rest(x, 2), ZERO, DEG + "!", 0, 2, True),
    "inflection": Known(lambda x: x[0] ** 3 + rest(x, 1), ZERO, DEG + "!", 0, 1, True),
    "fifth-power": Known(lambda x: x[0] ** 5 + rest(x, 1), ZERO, DEG + "!", 0, 1, True),
    "valley": Known(
        lambda x: (x[0] - x[1]) ** 2 + rest(x, 2), (*ONE[:2], 0.0, 0.0), DEG + "!", 0, 1
    ),
    "bent-valley": Known(lambda x: (x[0] * x[1] - 1) ** 2 + rest(x, 2), (2, 0.5, 0, 0), DEG, 0, 1),
    "deep-valley": Known(lambda x: (jnp.prod(x) - 1) ** 2, ONE, DEG + "!", 0, 3, False),
    "bottle": Known(lambda x: (jnp.sum(x**2) - 1) ** 2, (1, 0, 0, 0), DEG + "!", 0, 3, False),
    "quartic": Known(lambda x: jnp.sum(x**4), ZERO, DEG + "!", 0, 4, False),
    "quartic-in-one": Known(lambda x: x[0] ** 4 + rest(x, 1), ZERO, DEG + "!", 0, 1, False),
    "quartic-hill": Known(lambda x: -(x[0] ** 4) + rest(x, 1), ZERO, DEG + "!", 0, 1, True),
    "ridge": Known(lambda x: -((x[0] + x[1]) ** 2), ZERO, DEG + "!", 1, 3, True),
    "plateau": Known(lambda x: 0 * jnp.sum(x) + 7, ONE, DEG + "!", 0, 4, False),
    "saturated": Known(lambda x: jnp.sum(jnp.maximum(x, 0) ** 2), (-1.0,) * 4, DEG + "!", 0, 4),
    # kinks, and functions that end
    "absolute": Known(lambda x: jnp.sum(jnp.abs(x)), ZERO, KINK + "!", better=False),
    "one-kink": Known(lambda x: jnp.abs(x[0] - 1) + rest(x, 1), (1.0, 0, 0, 0), KINK + "!"),
    "lasso": Known(
        lambda x: jnp.sum((x - 0.3) ** 2) + jnp.sum(jnp.abs(x)), ZERO, KINK + "!", better=False
    ),
    "tent": Known(lambda x: -jnp.sum(jnp.abs(x)), ZERO, KINK + "!", better=True),
    "hinge": Known(lambda x: jnp.maximum(x[0], 0) + rest(x, 1), ZERO, KINK + "!"),
    "crease": Known(lambda x: jnp.abs(x[0] - x[1]) + jnp.sum(x**2), ZERO, KINK + "!"),
    "largest-of": Known(lambda x: jnp.max(jnp.abs(x - 1)), ONE, KINK),
    # the gradient is smooth enough, the curvature is of one side alone
    "signed-square": Known(lambda x: x[0] * jnp.abs(x[0]) + rest(x, 1), (1e-9, 0, 0, 0), "", None),
    "end-of-domain": Known(half_line, ZERO, "", None),
    # an inflection a little way off, to which the Newton step says a minimum, maximum or saddle is
    # half as near
    "above-a-cubic": Known(lambda x: x[0] ** 3 + rest(x, 1), (1e-5, 0, 0, 0), "", better=True),
    "below-a-cubic": Known(lambda x: x[0] ** 3 + rest(x, 1), (-1e-5, 0, 0, 0), "", better=True),
    "bare-cubic": Known(lambda x: jnp.sum(x**3), (1e-5,) * 4, "", better=True),
    "bare-cubic-below": Known(lambda x: jnp.sum(x**3), (-1e-5,) * 4, "", better=True),
    "near-a-monkey": Known(
        lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2 + rest(x, 2), (1e-5, 0, 0, 0), "", better=True
    ),
    "near-a-tiny-minimum": Known(
        lambda x: jnp.sum(x**3 + 1e-2 * x**2), (1e-7,) * 4, MIN + "!", 0, 0, False
    ),
    # the Hessian jumps: autodiff gives it from one side, or as no side has it
    "half-parabola": Known(lambda x: jnp.sum(jnp.maximum(x, 0) ** 2), ZERO, "", better=False),
    "signed-square-at-zero": Known(lambda x: x[0] * jnp.abs(x[0]) + rest(x, 1), ZERO, ""),
    "two-parabolas": Known(
        lambda x: jnp.maximum(jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)), ZERO, KINK + "!"
    ),
    # units: what is flat beside nothing but 1, and what is near beside nothing but 1
    "tiny-slope": Known(lambda x: 1e-12 * jnp.sum(x), ZERO, "not-stationary!", better=True),
    "slope-on-offset": Known(
        lambda x: 1e3 + 0.1 * jnp.sum(x), ZERO, "not-stationary!", better=True
    ),
    "tiny-parameters": Known(lambda x: jnp.sum((1e10 * x - 1) ** 2), ZERO, "not-stationary"),
    "one-tiny-parameter": Known(
        lambda x: (1e5 * x[0] - 1) ** 2 + (1e-5 * x[1] - 1) ** 2 + rest(x, 2),
        (0, 1e5, 0, 0),
        "not-stationary",
    ),
    # nowhere near
    "slope": Known(lambda x: jnp.sum(x), ZERO, "not-stationary!", better=True),
    "tail": Known(lambda x: jnp.sum(jnp.exp(-x)), (20.0,) * 4, "not-stationary!", better=True),
    "off-centre": Known(rosenbrock, ZERO, "not-stationary!", better=True),
    # rounding: in float32 the gradient here is nothing but noise
    "cancelling": Known(cancelling, tuple(SOLUTION), MIN, better=False),
    # 0 * x: the compiler would cancel constants
    "shifted": Known(lambda x: jnp.sum(((x + (1e4 + 0 * x)) - 10001) ** 2), (1.00002,) * 4, MIN),
    "large-offset": Known(lambda x: 1e6 + jnp.sum((x - 1) ** 2), (1.0001,) * 4, MIN),
}
NAMES = list(KNOWN)


def zoo(x, which):
    branches = [lambda x, f=known.function: jnp.asarray(f(x), x.dtype) for known in KNOWN.values()]
    return lax.switch(which, branches, x)


@pytest.mark.parametrize("name", NAMES)
def test_known_points(name, dtype):
    known = KNOWN[name]
    x = jnp.asarray(known.point, dtype)
    cert = ok.certify(zoo, x, (NAMES.index(name),))
    said, must = known.kinds.removesuffix("!"), known.kinds.endswith("!")
    assert cert.kind in ([said] if must else [said, "cannot-tell"]), str(cert)
    assert (cert.kind == "cannot-tell") == bool(cert.reason)
    if known.negative is not None:
        assert (cert.num_negative, cert.num_flat) == (known.negative, known.flat or 0)
        basis = np.asarray(cert.flat_basis)
        assert len(basis) == cert.num_flat
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)
    if known.better is not None:
        assert (cert.better is not None) == known.better, str(cert)
    if cert.better is not None:
        lower = float(zoo(cert.better, NAMES.index(name)))
        assert lower < cert.value
        # the same value from another program: to the rounding of both
        assert cert.value - lower == pytest.approx(cert.gain, rel=1e-4, abs=1e-6 * abs(cert.value))


# --- on a box: the point, the bounds, the kinds that may be stated -------------------------------


def tilted(x):
    return (x[0] + 1) ** 2 / 2 - x[1] ** 2 + x[1] * x[0] + jnp.sum((x[2:] - 1) ** 2)


INF = np.inf
UPPER = (INF,) * 4
BOUNDED = {
    # x0 and x1 are pushed against their bounds; the negative curvature of x1 is held with it
    "held-negative": (tilted, (0, 1, 1, 1), (0, -INF, -INF, -INF), (INF, 1, INF, INF), MIN + "!", 2),
    "free-negative": (tilted, (0, 0, 1, 1), (0, -1, -1, -1), UPPER, SAD + "!", 1),
    "wrong-sign": (rosenbrock, (0.5, 0.25, 0.0625, 0), (-1, -1, -1, 0), UPPER, "not-stationary!", 0),
    "vertex": (lambda x: jnp.sum(x) - jnp.sum(x**2), ZERO, (0,) * 4, (2,) * 4, MIN + "!", 4),
    "fixed": (quadratic(-1, 1, 2, 3), ZERO, (0, -1, -1, -1), (0, 1, 1, 1), MIN + "!", 1),
    "inside": (quadratic(1, 1, 2, 3), ZERO, (-1,) * 4, (1,) * 4, MIN + "!", 0),
    "weak-minimum": (quadratic(1, 1, 2, 3), ZERO, (0, -1, -1, -1), UPPER, MIN + "!", 0),
    "weak-negative": (quadratic(-1, 1, 2, 3), ZERO, (0, -1, -1, -1), UPPER, "", 0),
    # nothing pushes against the bound but what is left of x0
    "gone-negative": (lambda x: x[0] * (x[0] + x[1]) - x[1] ** 2 + rest(x, 2), (1e-6, 0, 0, 0),
                      (-INF, 0, -INF, -INF), UPPER, "", 0),
    "gone-positive": (lambda x: x[0] * (x[0] + x[1]) + x[1] ** 2 + rest(x, 2), (1e-6, 0, 0, 0),
                      (-INF, 0, -INF, -INF), UPPER, MIN + "!", 0),
    "small-push": (lambda x: x[0] ** 2 + 1e-3 * x[1] - x[1] ** 2 + rest(x, 2), (1e-6, 0, 0, 0),
                   (-INF, 0, -INF, -INF), UPPER, MIN + "!", 1),
    "free-flat": (lambda x: x[0] + rest(x, 2), ZERO, (0, -1, -1, -1), UPPER, DEG + "!", 1),
    "at-the-bottom": (lambda x: (x[0] - 1) ** 2 + rest(x, 1), (0.5, 0, 0, 0), (-1,) * 4,
                      (0.5, 1, 1, 1), MIN + "!", 1),
    "domain-ends": (lambda x: jnp.sum(jnp.sqrt(x)) + rest(x, 0), (0.25,) * 4, (0.25, 0.25, 0.25, 0.25),
                    UPPER, MIN + "!", 4),
}  # fmt: skip
BOUNDED_NAMES = list(BOUNDED)


def boxed(x, which):
    branches = [lambda x, f=case[0]: jnp.asarray(f(x), x.dtype) for case in BOUNDED.values()]
    return lax.switch(which, branches, x)


@pytest.mark.parametrize("name", BOUNDED_NAMES)
def test_points_on_a_box(name, dtype):
    _, point, lower, upper, kinds, held = BOUNDED[name]
    which = (BOUNDED_NAMES.index(name),)
    bounds = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
    cert = ok.certify(boxed, jnp.asarray(point, dtype), which, bounds=bounds)
    expected = kinds.removesuffix("!") or "cannot-tell"
    assert cert.kind == expected, str(cert)
    assert cert.num_held == held
    assert (cert.better is None) == (expected in (MIN, DEG)), str(cert)
    if cert.better is not None:
        assert bool(jnp.all((bounds[0] <= cert.better) & (cert.better <= bounds[1])))
        assert float(boxed(cert.better, *which)) < cert.value


def test_a_point_outside_of_its_box_is_an_error():
    with pytest.raises(ValueError, match="below its lower"):
        ok.certify(zoo, -jnp.ones(4), (0,), bounds=(0.0, None))


def test_many_points_on_boxes_under_vmap():
    points = jnp.asarray([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    certs = ok.certify_many(lambda x: jnp.sum(x) - x[0] ** 2, points, bounds=(0.0, 1.0))
    assert certs.kind.tolist() == ["minimum", "not-stationary", "not-stationary"]
    assert certs.num_held.tolist() == [2, 1, 0]
