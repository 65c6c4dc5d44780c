"""What only a GPU can show. On a machine with one: python -m pytest -q -m gpu -n 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import METHODS, PROBLEMS, optimizer, suits

import optikit as ok
from optikit import Status

pytestmark = pytest.mark.gpu


@pytest.fixture
def cpu():
    return jax.devices("cpu")[0]


def as_dtype(tree, dtype):
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x,
        tree,
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_and_the_cpu_reach_the_same_point(method, cpu):
    problem = PROBLEMS["breast-cancer" if suits(method, "breast-cancer") else "diabetes"]

    def solve():
        return ok.minimize(
            problem.objective,
            problem.params,
            args=problem.args,
            method=optimizer(method),
            max_steps=300,
        )

    here = solve()
    with jax.default_device(cpu):
        there = solve()
    assert int(here.status) == int(there.status)
    assert float(here.value) == pytest.approx(float(there.value), rel=1e-8)


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region", "lbfgs", "bfgs"])
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_float32_converges_also_under_tf32(method, precision):
    problem = PROBLEMS["breast-cancer"]
    with jax.default_matmul_precision(precision):
        sol = ok.minimize(
            problem.objective,
            as_dtype(problem.params, jnp.float32),
            args=as_dtype(problem.args, jnp.float32),
            method=method,
        )
    exact = ok.minimize(problem.objective, problem.params, args=problem.args, method="newton")
    assert bool(sol.success), str(sol)
    assert float(sol.value) == pytest.approx(float(exact.value), rel=1e-3)


def test_a_solve_makes_no_transfer():
    problem = PROBLEMS["breast-cancer"]
    params, args = jax.device_put((problem.params, problem.args))
    run = jax.jit(lambda p, a: ok.minimize(problem.objective, p, args=a, method="newton-cg"))
    jax.block_until_ready(run(params, args))
    with jax.transfer_guard("disallow"):
        sol = jax.block_until_ready(run(params, args))
    assert Status(int(sol.status)) == Status.CONVERGED


def test_a_fit_keeps_its_parameters_in_place():
    """A step reuses its buffers: the peak is a few copies of a large model, however many steps."""
    width = 4096
    params = {"w": jnp.zeros((width, width), jnp.float32)}
    x = jnp.ones((8, width), jnp.float32)

    def fun(p, x):
        return jnp.mean((x @ p["w"] - 1.0) ** 2)

    run = ok.fit(fun, params, [(x,)], method=optax.sgd(1e-3), budget=ok.Budget(steps=200))
    assert np.isfinite(float(run.value))
    peak = (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]
    assert peak < 12 * params["w"].nbytes
