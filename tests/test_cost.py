"""Model FLOPs against arithmetic, and against XLA's own count where that is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.bench.cost import count_flops

N = 64
A = jnp.asarray(np.random.default_rng(0).normal(size=(N, N)))
SPD = A @ A.T + N * jnp.eye(N)


def flops(function, *args):
    out, total = jax.jit(count_flops(function))(*args)
    np.testing.assert_allclose(*map(first_leaf, (out, function(*args))), rtol=1e-12)
    return float(total)


def first_leaf(tree):
    return jax.tree.leaves(tree)[0]


def test_loops_count_their_trips():
    def product_loop(a):
        return jax.lax.fori_loop(0, 10, lambda i, x: x @ a / N, a)

    assert flops(product_loop, A) == pytest.approx(10 * (2 * N**3 + N**2))
    assert flops(
        lambda a: jax.lax.scan(lambda c, x: (c @ a, x), a, jnp.zeros(7))[0], A
    ) == pytest.approx(7 * 2 * N**3)

    def data_dependent(n, a):
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ a / N), (0, a))[1]

    for n in (0, 3, 11):
        assert flops(data_dependent, n, A) == pytest.approx(n * (2 * N**3 + N**2))


def test_branches_count_the_one_taken():
    def branch(yes, a):
        return jax.lax.cond(yes, lambda: a @ a, lambda: a + a)

    assert flops(branch, True, A) == 2 * N**3
    assert flops(branch, False, A) == N**2


@pytest.mark.parametrize(("function", "expected"), [
    (lambda a: jax.lax.linalg.cholesky(a, symmetrize_input=False), N**3 / 3),
    (lambda a: jnp.linalg.qr(a)[1], 8 / 3 * N**3),  # R and the explicit Q
    (lambda a: jax.scipy.linalg.solve_triangular(a, a[0], lower=True), N**2),
    (lambda a: jax.lax.linalg.eigh(a, symmetrize_input=False)[1], 9 * N**3),
    (lambda a: jnp.linalg.solve(a, a[0]), 2 / 3 * N**3 + 2 * N**2),
])  # fmt: skip
def test_factorisations_within_five_percent_of_arithmetic(function, expected):
    total = float(jax.jit(count_flops(function))(SPD)[1])
    assert total == pytest.approx(expected, rel=0.05)


def test_a_cg_solve_within_five_percent_of_arithmetic():
    iterations = 12

    def cg(a, b):
        def body(_, state):
            x, r, p, rr = state
            ap = a @ p
            alpha = rr / (p @ ap)
            x, r = x + alpha * p, r - alpha * ap
            new = r @ r
            return x, r, r + new / rr * p, new

        return jax.lax.fori_loop(0, iterations, body, (b * 0, b, b, b @ b))[0]

    assert flops(cg, SPD, A[0]) == pytest.approx(iterations * (2 * N**2 + 10 * N), rel=0.05)


@pytest.mark.parametrize("function", [
    lambda a: jnp.tanh(a @ a.T) @ a[0],
    lambda a: jnp.sum((a @ a - 1.0) ** 2 * a),
    lambda a: jax.grad(lambda x: jnp.sum(jnp.sin(x @ a)))(a),
    lambda a: jax.lax.conv(a[None, None], a[None, None, :5, :5], (1, 1), "VALID"),
])  # fmt: skip
def test_agrees_with_xla_on_programs_without_loops(function):
    analysis = jax.jit(function).lower(A).compile().cost_analysis()
    theirs = analysis["flops"] + analysis.get("transcendentals", 0.0)
    assert float(jax.jit(count_flops(function))(A)[1]) == pytest.approx(theirs, rel=0.05)


def test_counting_changes_no_result_and_sees_a_whole_solve():
    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def solve(x):
        sol = ok.minimize(rosenbrock, x, method="newton-cg")
        return sol.params, sol.counts

    (params, counts), total = jax.jit(count_flops(solve))(jnp.zeros(6))
    expected, expected_counts = solve(jnp.zeros(6))
    np.testing.assert_allclose(params, expected, rtol=1e-9)
    assert jax.tree.map(int, counts) == jax.tree.map(int, expected_counts)
    per_grad = float(jax.jit(count_flops(jax.grad(rosenbrock)))(jnp.zeros(6))[1])
    assert total > per_grad * int(counts.grad)


def test_custom_rules_remat_and_jit_are_counted_through():
    def inner(a):
        return jnp.tanh(a @ a)

    plain = flops(inner, A)
    assert flops(lambda a: jax.jit(inner)(a), A) == plain
    assert flops(lambda a: jax.checkpoint(inner)(a), A) == plain
    assert flops(lambda a: jax.nn.softplus(a), A) > 3 * N**2
