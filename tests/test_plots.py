"""Pictures by what they show: curves, bands and marks, on axes given or new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.analyze import plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def valley(x):
    return (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2


def rotated(x):
    turned = x - 2 * jnp.sum(x) / x.size  # a reflection, so that probes differ
    return jnp.sum(jnp.linspace(-1.0, 9.0, x.size) * turned**2) / 2


def test_a_spectrum_shows_density_band_and_ends(tmp_path):
    found = ok.spectrum(rotated, jnp.zeros(50), k=2, dense=False, num_probes=4, num_products=12)
    ax = plots.spectrum(found)
    density, ends = ax.lines
    np.testing.assert_allclose(
        np.sort(np.unique(ends.get_xdata())), [-1, -1 + 10 / 49, 9 - 10 / 49, 9], atol=1e-6
    )
    shown = found.density()
    assert (density.get_ydata() >= shown.mean - 1e-12).all()
    assert len(ax.collections) == 1  # the band
    assert ax.get_yscale() == "log"
    ax.figure.savefig(tmp_path / "spectrum.png")
    assert (tmp_path / "spectrum.png").stat().st_size > 5000


def test_a_slice_shows_function_tangent_and_parabola():
    from matplotlib.figure import Figure

    given = Figure().add_subplot()
    x, d = jnp.array([0.5, -0.3]), jnp.array([1.0, 2.0])
    ax = plots.slice(valley, x, d, ax=given, points=5)
    assert ax is given
    curve, tangent, parabola, _ = ax.lines
    t = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(curve.get_ydata(), [valley(x + s * d) for s in t], rtol=1e-12)
    g, h = jax.grad(valley)(x), jax.hessian(valley)(x)
    line = valley(x) + t * (g @ d)
    np.testing.assert_allclose(tangent.get_ydata(), line, rtol=1e-12)
    np.testing.assert_allclose(parabola.get_ydata(), line + t**2 * (d @ h @ d) / 2, rtol=1e-12)


def test_a_surface_projects_its_path():
    ax = plots.surface(
        valley, jnp.ones(2), (jnp.array([3.0, 0.0]), jnp.array([1.0, 1.0])), points=5, reach=2.0,
        path=[jnp.array([0.0, 0.0]), jnp.ones(2)],
    )  # fmt: skip
    trail = np.transpose(ax.lines[0].get_data())
    np.testing.assert_allclose(trail, [[-1, -1], [0, 0]], atol=1e-12)
    with pytest.raises(ValueError, match="parallel"):
        plots.surface(valley, jnp.ones(2), (jnp.ones(2), 2 * jnp.ones(2)))


def test_convergence_marks_the_kind_of_the_end():
    sol = ok.minimize(valley, jnp.zeros(2), method="newton", trace=True)
    cert = ok.certify(valley, sol.params)
    ax = plots.convergence({"newton": sol}, optimum=0.0, certificates={"newton": cert})
    curve, mark = ax.lines
    assert curve.get_ydata()[0] == pytest.approx(1.0)
    assert mark.get_marker() == plots.MARKS["minimum"]
    assert "newton: minimum" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(ValueError, match="trace=True"):
        plots.convergence({"newton": ok.minimize(valley, jnp.zeros(2), method="newton")})
