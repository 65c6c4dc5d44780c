"""The problems of deep learning and physics: each definition against an independent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

import optikit as ok
from optikit.problems import PROBLEMS, TEXTS, epochs, load_text, windows
from optikit.problems.autoencoder import reconstruction
from optikit.problems.batches import shuffled
from optikit.problems.convolutional import convolutional
from optikit.problems.networks import initial_layers, perceptron
from optikit.problems.pinn import (
    cosine_sum,
    differentials,
    heat_operator,
    heat_solution,
    poisson_operator,
    sine_product,
)
from optikit.problems.quantum import (
    configurations,
    energy,
    ground_energy,
    local_energies,
    log_amplitude,
)

# --- physics-informed networks


@pytest.mark.parametrize(("hidden", "dtype"), [([5], "float32"), ([4, 3], "float64")])
def test_derivatives_through_a_network_are_those_of_a_dense_hessian(hidden, dtype, key):
    params = jax.tree.map(lambda x: x.astype(dtype) + 0.1, initial_layers(key, (3, *hidden, 1)))
    points = jax.random.uniform(key, (6, 3), dtype)
    weights = (1.0, 0.5, -2.0)

    def u(x):
        return perceptron(params, x[None])[0, 0]

    value, gradient, second = differentials(params, points, weights)
    diagonal = jax.vmap(lambda x: jnp.diagonal(jax.hessian(u)(x)))(points)
    close = 1e-13 if dtype == "float64" else 1e-5  # a dozen roundings of numbers of order one
    np.testing.assert_allclose(value, jax.vmap(u)(points), atol=close)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(u))(points), atol=close)
    np.testing.assert_allclose(second, diagonal @ np.asarray(weights, dtype), atol=close)
    assert value.dtype == gradient.dtype == second.dtype == dtype


@pytest.mark.parametrize(("solution", "factor"), [(sine_product, 3), (cosine_sum, 1)])
def test_the_stated_solutions_solve_poissons_equation(solution, factor):
    x, h = np.random.default_rng(0).random((20, 3)), 1e-3
    units = h * np.eye(3)
    laplacian = sum(solution(x + e) - 2 * solution(x) + solution(x - e) for e in units) / h**2
    # fourth derivatives of size pi^4, times h^2 / 12 in each direction
    np.testing.assert_allclose(-laplacian, factor * np.pi**2 * solution(x), atol=5e-5)


def test_the_stated_solution_solves_the_heat_equation():
    p, h = np.random.default_rng(0).random((20, 2)), 1e-3
    t, x = h * np.eye(2)
    change = (heat_solution(p + t) - heat_solution(p - t)) / (2 * h)
    bend = (heat_solution(p + x) - 2 * heat_solution(p) + heat_solution(p - x)) / h**2
    np.testing.assert_allclose(change, bend / 4, atol=5e-6)


@pytest.mark.parametrize(("name", "arguments"), [
    ("pinn-poisson", {"interior": 30, "boundary": 10, "hidden": 4}),
    ("pinn-poisson", {"dimension": 5, "interior": 30, "boundary": 10, "hidden": [4, 3]}),
    ("pinn-heat", {"interior": 30, "boundary": 10, "hidden": 4}),
])  # fmt: skip
def test_a_pinn_is_the_mean_square_of_the_equation_plus_that_of_the_boundary(name, arguments, key):
    problem = PROBLEMS[name](**arguments).cast("float64")
    params = problem.start(key)
    (points, inside), targets, _ = problem.args

    def u(x):
        return perceptron(params, x[None])[0, 0]

    def equation(x, f):
        hessian, slope = jax.hessian(u)(x), jax.grad(u)(x)
        if name == "pinn-heat":
            return slope[0] - hessian[1, 1] / 4 - f
        return -jnp.trace(hessian) - f

    misfits = [equation(x, f) for x, f in zip(points[inside], targets[inside], strict=True)]
    edge = jax.vmap(u)(points[~inside]) - targets[~inside]
    expected = (np.mean(np.square(misfits)) + np.mean(np.square(edge))) / 2
    assert problem.objective(params, *problem.args) == pytest.approx(expected, rel=1e-12)
    on_the_edge = (points[~inside] == 0) | (points[~inside] == 1)
    assert on_the_edge.any(axis=1).all()


def test_the_operators_of_a_pinn_tell_the_inside_from_the_boundary(key):
    params = initial_layers(key, (2, 4, 1))
    points = jax.random.uniform(key, (5, 2))
    inside = jnp.asarray([True, False, True, False, False])
    value = perceptron(params, points)[:, 0]
    for operator in (poisson_operator, heat_operator):
        found = operator(params, (points, inside))
        np.testing.assert_allclose(found[~inside], value[~inside], rtol=1e-12)
        assert (jnp.abs(found - value)[inside] > 1e-6).all()


# --- quantum states


def dense_hamiltonian(sites, field):
    """From Pauli matrices and Kronecker products."""
    z, x, one = np.diag([1.0, -1.0]), np.array([[0, 1.0], [1, 0]]), np.eye(2)

    def chain(factors):
        product = np.eye(1)
        for i in reversed(range(sites)):  # bit i of a place is site i
            product = np.kron(product, factors.get(i, one))
        return product

    bonds = sum(chain({i: z, (i + 1) % sites: z}) for i in range(sites))
    return -bonds - field * sum(chain({i: x}) for i in range(sites))


@pytest.mark.parametrize(("sites", "field"), [(3, 1.0), (4, 0.7), (5, 1.0), (6, 1.3)])
def test_the_energy_is_the_rayleigh_quotient_of_the_dense_hamiltonian(sites, field, key):
    hamiltonian = dense_hamiltonian(sites, field)
    assert ground_energy(sites, field) == pytest.approx(np.linalg.eigvalsh(hamiltonian)[0])
    problem = PROBLEMS["neural-quantum-state"](sites=sites, field=field, deviation=0.5)
    params = problem.start(key)
    spins, flipped = map(jnp.asarray, problem.args[0])
    psi = np.exp(log_amplitude(params, spins))
    expected = psi @ hamiltonian @ psi / (psi @ psi)
    assert energy(params, spins, flipped, field) == pytest.approx(expected, rel=1e-12)
    assert problem.objective(params, (spins, flipped)) == pytest.approx(expected, rel=1e-12)
    local = local_energies(jnp.log(psi), spins, flipped, field)
    np.testing.assert_allclose(local, hamiltonian @ psi / psi, rtol=1e-11)


def test_the_critical_energy_is_the_closed_form_and_the_least_eigenvalue():
    for sites in (4, 10, 14):
        closed = -2 / np.sin(np.pi / (2 * sites))
        assert ground_energy(sites) == pytest.approx(closed, rel=1e-13)
    spins, flipped = configurations(10)
    bonds = (spins * np.roll(spins, -1, axis=1)).sum(axis=1)
    operator = scipy.sparse.linalg.LinearOperator(
        (1024, 1024), lambda v: -bonds * v.ravel() - v.ravel()[flipped].sum(axis=1)
    )
    least = scipy.sparse.linalg.eigsh(operator, k=1, which="SA", tol=1e-10)[0][0]
    assert least == pytest.approx(-2 / np.sin(np.pi / 20), rel=1e-10)


def test_the_energys_gradient_is_that_of_variational_monte_carlo(key):
    """2 sum_s p(s) (E_loc(s) - E) d log psi(s), which samplers estimate."""
    problem = PROBLEMS["neural-quantum-state"](sites=4, deviation=0.3)
    params, args = problem.start(key), (*map(jnp.asarray, problem.args[0]), 1.0)
    log_psi = log_amplitude(params, args[0])
    share = jax.nn.softmax(2 * log_psi)
    local = local_energies(log_psi, *args)
    centred = 2 * share * (local - jnp.vdot(share, local))
    expected = jax.vjp(lambda p: log_amplitude(p, args[0]), params)[1](centred)[0]
    found = jax.grad(energy)(params, *args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


# --- networks


def test_an_autoencoder_has_a_linear_code_and_sums_its_pixels(key):
    problem = PROBLEMS["deep-autoencoder"](hidden=[8, 5], code=3).cast("float64")
    params, images = problem.start(key), problem.args[0]
    assert [layer["weights"].shape for layer in params] == [
        (64, 8), (8, 5), (5, 3), (3, 5), (5, 8), (8, 64)
    ]  # fmt: skip
    assert images.min() == 0
    assert images.max() == 1
    hidden = images
    for i, layer in enumerate(params):
        hidden = hidden @ layer["weights"] + layer["bias"][None]
        hidden = hidden if i in (2, 5) else jnp.tanh(hidden)
    np.testing.assert_allclose(reconstruction(params, images), hidden, rtol=1e-12)
    p = jax.nn.sigmoid(hidden)
    entropy = -jnp.mean(jnp.sum(images * jnp.log(p) + (1 - images) * jnp.log(1 - p), axis=1))
    size = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(params))
    assert problem.objective(params, *problem.args) == pytest.approx(entropy + 5e-6 * size)
    metric = problem.metrics["squared error"]
    assert metric.fun(params, *metric.args) == pytest.approx(
        float(jnp.mean(jnp.sum((p - images) ** 2, axis=1)))
    )
    large = jax.tree.leaves(PROBLEMS["deep-autoencoder"]().start(key))[1]
    assert jnp.max(jnp.abs(large)) <= 2 / 8
    assert float(jnp.std(large)) == pytest.approx(0.88 / 8, rel=0.02), "cut off at two deviations"


def test_convolutions_are_sums_over_three_by_three_blocks(key):
    problem = PROBLEMS["conv-classifier"](channels=2, dense=5, batch=None).cast("float64")
    params = jax.tree.map(lambda x: np.asarray(x + 0.05), problem.start(key))
    images = np.asarray(problem.args[0][:3])

    def layer(x, kernel, bias):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h, w = x.shape[1:3]
        summed = sum(
            padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)
        )
        active = np.maximum(summed + bias, 0)
        blocks = [active[:, i::2, j::2] for i in range(2) for j in range(2)]
        return np.max(blocks, axis=0)

    hidden = images
    for one in params["convolutions"]:
        hidden = layer(hidden, np.asarray(one["kernel"]), np.asarray(one["bias"]))
    first, last = params["dense"]
    hidden = np.maximum(hidden.reshape(3, -1) @ first["weights"] + first["bias"], 0)
    expected = hidden @ last["weights"] + last["bias"]
    np.testing.assert_allclose(convolutional(params, images), expected, rtol=1e-11)
    odd = convolutional(problem.start(key), jnp.ones((1, 9, 9, 1)))
    assert odd.shape == (1, 10), "an odd row is dropped"


@pytest.fixture(scope="module")
def tiny_transformer():
    problem = PROBLEMS["char-transformer"](
        layers=2, width=8, heads=2, context=6, batch=3, characters=3000
    ).cast("float64")
    params = jax.tree.map(lambda x: x * 5 + 0.01, problem.start(jax.random.key(0)))
    return problem, params


def test_a_transformer_does_not_look_ahead(tiny_transformer):
    problem, params = tiny_transformer
    tokens = problem.args[0][:2]
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % 10)
    before, after = (problem.objective.fun(params, t) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (jnp.abs(before - after)[:, 4:] > 1e-9).any(axis=(0, 2)).all(), "and it looks back"


def test_a_transformer_begins_at_chance_and_knows_its_next_character(tiny_transformer):
    problem, _ = tiny_transformer
    inputs, targets = problem.args
    np.testing.assert_array_equal(inputs.ravel()[1:], targets.ravel()[:-1])
    held = problem.held_out
    assert problem.judged is held
    assert held[0].shape[1] == 6
    start = problem.start(jax.random.key(1))
    alphabet = start["embedding"].shape[0]
    value = problem.objective(start, *held)
    assert float(value) == pytest.approx(np.log(alphabet), rel=0.01), "nearly uniform logits"
    tied = PROBLEMS["char-transformer"](width=8, heads=2, characters=3000, tied=True)
    params = tied.start(jax.random.key(1))
    assert "head" not in params
    assert tied.objective.fun(params, tied.args[0][:1]).shape[-1] == params["embedding"].shape[0]


def test_more_parameters_than_examples_can_fit_them_all(key):
    problem = PROBLEMS["overparameterized-regression"]("wine", hidden=30).cast("float64")
    sol = ok.minimize(
        problem.objective, problem.start(key), args=problem.args, method="natural-gradient",
        max_steps=60, tol=1e-9,
    )  # fmt: skip
    assert problem.optimum == 0
    assert sol.value < 1e-9
    with pytest.raises(ValueError, match="more hidden units"):
        PROBLEMS["overparameterized-regression"](hidden=2)


# --- batches and texts


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000])
def test_an_epoch_is_a_permutation_and_another_every_time(n):
    places = jnp.arange(n, dtype=jnp.uint32)
    orders = [shuffled(jax.random.key(k), places, n).tolist() for k in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(n))
    if n >= 10:
        assert orders[0] != orders[1]


def test_every_place_is_as_likely_as_any_other():
    """Chi-squared over where 30 examples end up in 3000 epochs, all 900 pairs."""
    keys = jax.random.split(jax.random.key(0), 3000)
    orders = jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(30, dtype=jnp.uint32), 30)))(keys)
    counts = np.zeros((30, 30))
    np.add.at(counts, (np.broadcast_to(np.arange(30), (3000, 30)), np.asarray(orders)), 1)
    statistic = ((counts - 100) ** 2 / 100).sum()
    # (29)^2 degrees of freedom: mean 841, standard deviation 41
    assert abs(statistic - 841) < 4 * 41


def test_batches_go_through_all_examples_and_compile_once():
    data = (jnp.arange(11), {"x": jnp.arange(11.0)})
    draw = jax.jit(lambda k, step: epochs(3)(k, step, data))
    key = jax.random.key(4)
    seen = [draw(key, jnp.asarray(k)) for k in range(6)]
    assert draw._cache_size() == 1
    for rows, also in seen:
        np.testing.assert_array_equal(rows, also["x"])
    for begin in (0, 3):  # three batches an epoch, two examples left over
        epoch = np.concatenate([rows for rows, _ in seen[begin : begin + 3]])
        assert len(set(epoch.tolist())) == 9
    assert seen[0][0].tolist() != seen[3][0].tolist()
    with pytest.raises(ValueError, match="cannot be drawn from 11"):
        epochs(12)(key, jnp.asarray(0), data)
    with pytest.raises(ValueError, match="at least one"):
        windows(0)


def test_windows_are_pieces_of_the_text_with_what_follows():
    text = jnp.arange(41)
    data = (text[:40].reshape(8, 5), text[1:].reshape(8, 5))
    inputs, targets = windows(50)(jax.random.key(0), jnp.asarray(2), data)
    assert (jnp.diff(inputs, axis=1) == 1).all()
    np.testing.assert_array_equal(inputs + 1, targets)
    assert len(set(inputs[:, 0].tolist())) > 15, "at random places, not at the cuts alone"


def test_texts_come_by_name_file_and_function(tmp_path, monkeypatch):
    assert len(load_text("python-manual")) > 100_000
    assert set(TEXTS) == {"python-manual", "tinyshakespeare"}
    (tmp_path / "notes.txt").write_bytes("\ufeffone\r\ntwö".encode())
    monkeypatch.setenv("OPTIKIT_DATA", str(tmp_path))
    assert load_text("file:notes.txt") == "one\ntwö"
    assert load_text(lambda: "mine") == "mine"
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "none.txt").write_bytes(b"")
    for given, said in (
        ("file:bad.txt", "UTF-8"), ("file:none.txt", "empty"), ("shakespeare", "unknown text"),
        ("file:notes.txt#target=x", "known is sha256"), ("file:notes.txt#sha256=00", "sha256"),
        ("openml:x y", "unknown address"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            load_text(given)
    monkeypatch.setenv("OPTIKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPTIKIT_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="tinyshakespeare"):
        load_text("tinyshakespeare")


@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("pinn-poisson", {"truth": "zero"}, "unknown truth"),
    ("pinn-poisson", {"interior": 0}, "at least 1"),
    ("neural-quantum-state", {"sites": 30}, "3 to 20"),
    ("neural-quantum-state", {"field": -1.0}, "positive"),
    ("deep-autoencoder", {"data": "diabetes"}, "grey"),
    ("conv-classifier", {"data": "wine"}, "square images"),
    ("char-transformer", {"width": 10, "heads": 4}, "multiple"),
    ("char-transformer", {"characters": 100}, "too short"),
])  # fmt: skip
def test_impossible_arguments_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        PROBLEMS[name](**arguments)
