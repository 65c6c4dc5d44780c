"""Model FLOPs and bytes against arithmetic, and against XLA's own count where that is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.core.cost import count_cost, mark

N = 64
A = jnp.asarray(np.random.default_rng(0).normal(size=(N, N)))
SPD = A @ A.T + N * jnp.eye(N)


def flops(function, *args):
    unknown = set()
    out, cost = jax.jit(count_cost(function, unknown))(*args)
    np.testing.assert_allclose(*map(first_leaf, (out, function(*args))), rtol=1e-12)
    assert not unknown
    return float(cost.flops)


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
    total = float(jax.jit(count_cost(function))(SPD)[1].flops)
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
    assert float(jax.jit(count_cost(function))(A)[1].flops) == pytest.approx(theirs, rel=0.05)


def test_counting_changes_no_result_and_sees_a_whole_solve():
    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def solve(x):
        sol = ok.minimize(rosenbrock, x, method="newton-cg")
        return sol.params, sol.counts

    (params, counts), cost = jax.jit(count_cost(solve))(jnp.zeros(6))
    expected, expected_counts = solve(jnp.zeros(6))
    np.testing.assert_allclose(params, expected, rtol=1e-9)
    assert jax.tree.map(int, counts) == jax.tree.map(int, expected_counts)
    per_grad = float(jax.jit(count_cost(jax.grad(rosenbrock)))(jnp.zeros(6))[1].flops)
    assert cost.flops > per_grad * int(counts.grad)


def test_custom_rules_remat_and_jit_are_counted_through():
    def inner(a):
        return jnp.tanh(a @ a)

    plain = flops(inner, A)
    assert flops(lambda a: jax.jit(inner)(a), A) == plain
    assert flops(lambda a: jax.checkpoint(inner)(a), A) == plain
    assert flops(lambda a: jax.nn.softplus(a), A) > 3 * N**2


def test_wholes_that_are_not_products():
    assert flops(lambda a: jnp.fft.fft(a[0]).real, A) == pytest.approx(5 * N * np.log2(N))
    assert flops(jnp.sort, A) == pytest.approx(N * N * np.log2(N))
    assert flops(lambda a: jnp.linalg.svd(a, compute_uv=False), A) == pytest.approx(
        8 / 3 * N**3, rel=0.05
    )
    assert flops(lambda a: a[jnp.asarray([3, 1])], A) == 0
    assert flops(lambda a: a.at[jnp.asarray([3, 1])].add(1.0), A) == 2 * N
    complex_product = flops(lambda a: jnp.abs(a.astype(complex) @ a.astype(complex)), A)
    assert complex_product == pytest.approx(4 * 2 * N**3, rel=0.05)
    index = jnp.arange(N)
    assert flops(lambda i, a: a[i * 2 % N] * 1.0, index, A) == N * N  # integers are no FLOPs


def test_an_operation_without_a_formula_is_named():
    def asks_the_host(a):
        shape = jax.ShapeDtypeStruct(a.shape, a.dtype)
        return jax.lax.scan(
            lambda c, _: (jax.pure_callback(np.sin, shape, c), None), a, None, length=2
        )[0]

    unknown = set()
    jax.eval_shape(count_cost(asks_the_host, unknown), A)
    assert unknown == {"pure_callback"}


# --- bytes -----------------------------------------------------------------------------------


def traffic(function, *args):
    return float(jax.jit(count_cost(function))(*args)[1].bytes)


def test_bytes_are_operands_read_and_results_written():
    word = 8
    assert traffic(lambda a: a @ a, A) == 3 * N * N * word
    assert traffic(lambda a: a + a, A.astype(jnp.float32)) == 3 * N * N * 4
    loop = traffic(lambda a: jax.lax.fori_loop(0, 10, lambda i, x: x @ a, a), A)
    assert loop == pytest.approx(10 * 3 * N * N * word, rel=0.01)


def test_a_row_written_in_a_loop_costs_a_row():
    def history(a):
        return jax.lax.fori_loop(0, N, lambda i, m: m.at[i].set(a[0]), jnp.zeros((N, N)))

    assert traffic(history, A) < 6 * N * N * 8  # not N^3


@pytest.mark.parametrize("function", [
    lambda a: a @ a,
    lambda a: jnp.tanh(a @ a) * a,
    lambda a: jnp.sum(jnp.sin(a) * a, axis=0),
    lambda a: jax.lax.conv(a[None, None], a[None, None, :5, :5], (1, 1), "VALID"),
])  # fmt: skip
def test_bytes_agree_with_xla_before_fusion_and_bound_it_after(function):
    lowered = jax.jit(function).lower(A)
    found = traffic(function, A)
    assert found == pytest.approx(lowered.cost_analysis()["bytes accessed"], rel=0.05)
    assert found >= 0.99 * lowered.compile().cost_analysis()["bytes accessed"]


# --- batches ---------------------------------------------------------------------------------


def test_logical_and_executed_counts_of_a_batch_differ():
    def lane(n, a):
        def body(c):
            i, x = c
            mark("grad")
            return i + 1, x @ a / N

        return jax.lax.while_loop(lambda c: c[0] < n, body, (0, a))[1]

    trips = jnp.asarray([1, 5, 50])
    once = 2 * N**3 + N**2
    batch = jnp.stack([A] * 3)
    logical = jax.jit(jax.vmap(count_cost(lane)))(trips, batch)[1]
    np.testing.assert_allclose(logical.flops, [1 * once, 5 * once, 50 * once])
    np.testing.assert_allclose(logical.calls.grad, trips)
    executed = jax.jit(count_cost(jax.vmap(lane)))(trips, batch)[1]
    assert float(executed.flops) == pytest.approx(3 * 50 * once)
    assert float(executed.calls.grad) == 50  # sweeps, each of three lanes
