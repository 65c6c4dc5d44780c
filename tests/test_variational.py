"""Energies of quantum states: estimates, the metric, MinSR and SPRING against dense definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.rows import curvature_rows
from optikit.core import tree

SPINS = jnp.asarray(1.0 - 2.0 * ((np.arange(8)[:, None] >> np.arange(3)) & 1))


def hermitian(complex_):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(8, 8)) + (1j * rng.normal(size=(8, 8)) if complex_ else 0)
    return jnp.asarray(a + a.conj().T)


def log_psi(p, spins, *, complex_):
    real = jnp.tanh(spins @ p["w"]) @ p["v"]
    return jax.lax.complex(real, jnp.sin(spins @ p["u"])) if complex_ else real


def place(spins):
    return ((1 - spins) / 2 @ jnp.array([1.0, 2.0, 4.0])).astype(int)


def local(p, spins, *, hamiltonian, amplitude):
    psi = jnp.exp(amplitude(p, SPINS))
    return (hamiltonian @ psi / psi)[place(spins)]


def start(complex_, width=4):
    keys = jax.random.split(jax.random.key(2), 3)
    p = {"w": jax.random.normal(keys[0], (3, width)), "v": jax.random.normal(keys[1], (width,))}
    return p | ({"u": jax.random.normal(keys[2], (3,))} if complex_ else {})


@functools.cache
def made(complex_):
    h = hermitian(complex_)
    amplitude = functools.partial(log_psi, complex_=complex_)
    energies = functools.partial(local, hamiltonian=h, amplitude=amplitude)
    return ok.variational(amplitude, energies), amplitude, h


def rayleigh(p, complex_):
    _, amplitude, h = made(complex_)
    psi = jnp.exp(amplitude(p, SPINS))
    return jnp.real(jnp.vdot(psi, h @ psi) / jnp.vdot(psi, psi))


def metric(p, complex_):
    """(2 Re Cov(o), 2 Re Cov(o, e), p): dense, from the Jacobian of log psi."""
    _, amplitude, h = made(complex_)

    def parts(v):
        found = amplitude(unravel(v), SPINS)
        return jnp.stack([jnp.real(found), jnp.imag(found)])

    flat, unravel = jax.flatten_util.ravel_pytree(p)
    re, im = np.asarray(jax.jacobian(parts)(flat))
    o, psi = re + 1j * im, np.exp(np.asarray(amplitude(p, SPINS)))
    share = np.abs(psi) ** 2 / np.sum(np.abs(psi) ** 2)
    centred, e = o - share @ o, np.asarray(h) @ psi / psi
    weighted = centred.conj().T * share
    return 2 * (weighted @ centred).real, 2 * (weighted @ (e - share @ e)).real, share


@pytest.mark.parametrize("complex_", [False, True])
def test_all_configurations_give_the_rayleigh_quotient_and_its_gradient(complex_):
    objective, p = made(complex_)[0], start(complex_)
    value, gradient = ok.value_and_grad(objective, p, args=(SPINS,))
    expected, slope = jax.value_and_grad(rayleigh)(p, complex_)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(tree.ravel(gradient), tree.ravel(slope), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
def test_rows_make_up_metric_and_gradient(complex_):
    objective, p = made(complex_)[0], start(complex_)
    rows, w, q, extra = curvature_rows(bind(objective, (SPINS,)), p, "ggn")
    twice, slope, _ = metric(p, complex_)
    np.testing.assert_allclose(rows.T @ rows, twice, atol=1e-13)
    np.testing.assert_allclose(w @ rows, slope, atol=1e-12)
    gradient = tree.ravel(ok.grad(objective, p, args=(SPINS,)))
    np.testing.assert_allclose(w @ rows, gradient, atol=1e-12)
    assert not q.any()
    assert not extra.any()


@pytest.mark.parametrize("complex_", [False, True])
def test_a_sample_is_weighed_by_the_density_it_was_drawn_with(complex_):
    """All configurations, each drawn as often as 1, 2, ..., 8: the weights undo it."""
    objective, amplitude, _ = made(complex_)
    p = start(complex_)
    drawn = jnp.repeat(jnp.arange(8), jnp.arange(1, 9))
    density = jnp.asarray(np.log(1.0 + np.asarray(drawn))) + 3.0  # up to a factor
    value, gradient = ok.value_and_grad(objective, p, args=(SPINS[drawn], density))
    expected, slope = jax.value_and_grad(rayleigh)(p, complex_)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(tree.ravel(gradient), tree.ravel(slope), rtol=1e-10, atol=1e-12)
    at_the_sampling = 2 * jnp.real(amplitude(p, SPINS[:5]))
    plain = ok.value_and_grad(objective, p, args=(SPINS[:5], at_the_sampling))[0]
    energies = objective.local(p, SPINS[:5])
    np.testing.assert_allclose(plain, jnp.mean(jnp.real(energies)), rtol=1e-12)


def test_a_sampled_energy_has_no_hessian():
    objective, p = made(False)[0], start(False)
    with pytest.raises(TypeError, match="sampled energy has no Hessian"):
        ok.hessian(objective, p, args=(SPINS, jnp.zeros(8)))
    dense = ok.hessian(objective, p, args=(SPINS,)).dense()
    flat, unravel = jax.flatten_util.ravel_pytree(p)
    exact = jax.hessian(lambda v: rayleigh(unravel(v), False))(flat)
    np.testing.assert_allclose(dense, exact, rtol=1e-8, atol=1e-10)


def one_step(method, args, p, complex_=False, state=None):
    oracle = bind(made(complex_)[0], args)
    at = method.evaluate(oracle, p)[0]
    return method.step(oracle, at, method.init(at) if state is None else state, jax.random.key(0))


@pytest.mark.parametrize("complex_", [False, True])
def test_minsr_is_stochastic_reconfiguration_in_the_larger_space(complex_):
    """More parameters than configurations: (m, m) systems (Chen & Heyl), against the (n, n) one."""
    p = start(complex_, width=5)
    method = ok.optimizers.natural_gradient(0.1, damping=0.3)
    new = one_step(method, (SPINS,), p, complex_)[0]
    twice, slope, _ = metric(p, complex_)
    rows = 8 * (1 + complex_)
    assert rows < len(twice) or complex_
    level = 0.3 * np.trace(twice) / min(rows, len(twice))
    exact = tree.ravel(p) - 0.1 * np.linalg.solve(twice + level * np.eye(len(twice)), slope)
    np.testing.assert_allclose(tree.ravel(new), exact, rtol=1e-9, atol=1e-11)


def test_spring_is_its_definition():
    """phi = argmin |R phi + w|^2 + lambda |phi - mu phi_last|^2, and min(eta, sqrt(C) / |phi|)."""
    p, mu, eta, c = start(False, width=5), 0.9, 0.3, 1e-2
    method = ok.optimizers.natural_gradient(
        lambda step: eta / (1 + step), damping=1e-2, momentum=mu, norm_constraint=c
    )
    state, phi = None, np.zeros(tree.size(p))
    for k in range(4):
        twice, slope, _ = metric(p, False)
        level = 1e-2 * np.trace(twice) / 8
        matrix = twice + level * np.eye(len(twice))
        phi = np.linalg.solve(matrix, level * mu * phi - slope)
        rate = min(eta / (1 + k), np.sqrt(c) / np.linalg.norm(phi))
        exact = tree.ravel(p) + rate * phi
        p, _, state, info = one_step(method, (SPINS,), p, state=state)
        np.testing.assert_allclose(state.direction, phi, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(tree.ravel(p), exact, rtol=1e-8, atol=1e-10)
        assert float(info.step_norm) <= np.sqrt(c) * (1 + 1e-12)


def test_rows_in_blocks_are_the_same_step():
    """8 rows of 20 numbers; 40 hold a block of one row, 32 fill 1280."""
    p = start(False, width=5)
    for momentum in (0.0, 0.9):
        whole, blocked = (
            ok.optimizers.natural_gradient(0.2, damping=1e-2, momentum=momentum, memory=memory)
            for memory in (2**28, 150)
        )
        a, b = (one_step(m, (SPINS,), p) for m in (whole, blocked))
        np.testing.assert_allclose(tree.ravel(a[0]), tree.ravel(b[0]), rtol=1e-10)
        np.testing.assert_allclose(a[3].predicted, b[3].predicted, rtol=1e-9)


def test_the_ground_state_of_a_chain():
    from optikit.problems import PROBLEMS

    problem = PROBLEMS["neural-quantum-state"](sites=6)
    params = problem.start(jax.random.key(0))
    sol = ok.minimize(problem.objective, params, args=problem.args, max_steps=60)
    assert sol.method == "natural-gradient"  # chosen for an energy
    metric = problem.metrics["relative energy error"]
    assert abs(float(metric.fun(sol.params, *metric.args))) < 1e-6
    assert int(sol.counts.jacobian) <= 61


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((), TypeError, "got 0"),
        ((SPINS[:0],), ValueError, "at least one configuration"),
        ((SPINS, jnp.zeros(8), jnp.zeros(8)), TypeError, "got 3"),
    ],
)
def test_arguments_that_do_not_fit(args, error, match):
    with pytest.raises(error, match=match):
        made(False)[0](start(False), *args)


def test_only_a_variational_objective_has_local_energies():
    from optikit.calculus.objective import local_energy_of

    with pytest.raises(TypeError, match="needs an Objective from variational"):
        local_energy_of(ok.black_box(jnp.sum))
