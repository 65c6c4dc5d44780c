"""Minibatches under the harness: the same data for every method, the same judge, honest books."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.bench.execute import measure
from optikit.bench.programs import functions
from optikit.bench.referee import appraiser, referee
from optikit.bench.replay import costs_along
from optikit.bench.spec import Budget, Measure
from optikit.problems import Metric, epochs

LEAN = {"repeats": 1, "refine": False}


def residual_of(w, rows, targets):
    return jnp.mean((rows @ w - targets) ** 2)


def regression(**changes):
    """Forty examples in batches of ten; eight more are held out."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(48, 3))
    targets = rows @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=48)
    given = {
        "args": (rows[:40], targets[:40]),
        "held_out": (rows[40:], targets[40:]),
        "batches": epochs(10),
        "metrics": {"worst": Metric(lambda w, x, y: jnp.max(jnp.abs(x @ w - y)),
                                    (rows[40:], targets[40:]))},
    } | changes  # fmt: skip
    return ok.Problem(
        ok.composite(lambda w, x: x @ w, ok.losses.squared_error), np.zeros(3), **given
    )


@pytest.fixture(scope="module")
def results():
    experiment = ok.Experiment(
        "batches",
        {"regression": regression()},
        {"sgd": optax.sgd(0.05), "twice": optax.sgd(0.05), "natural": ok.optimizers.natural_gradient()},
        budget={"steps": 30}, measure={"repeats": 1}, targets=[0.5, 0.1],
    )  # fmt: skip
    return experiment.run()


def reference_run(steps, key, problem, rate=0.05):
    """Gradient descent by hand over the batches of a run: parameters before each step."""
    start, run = jax.random.split(key)
    order = jax.random.fold_in(run, 0xFFFFFFFF)
    cast = problem.cast("float64")
    params = [cast.start(start)]
    for k in range(steps):
        batch = cast.batches(order, jnp.asarray(k), cast.args)
        params.append(params[-1] - rate * jax.grad(cast.objective)(params[-1], *batch))
    return params


def test_a_run_is_the_method_on_the_documented_batches():
    problem, key = regression().cast("float64"), jax.random.key(3)
    run = measure(
        problem, ok.from_optax(optax.sgd(0.05)), key,
        budget=Budget(steps=9), how=Measure(**LEAN), judge=referee(problem),
    )  # fmt: skip
    by_hand = reference_run(9, key, problem)
    for snapshot in run.snapshots:
        np.testing.assert_allclose(snapshot.params, by_hand[snapshot.step], rtol=1e-13)
        value = problem.objective(snapshot.params, *problem.held_out)
        assert snapshot.judged[0] == pytest.approx(float(value), rel=1e-13)
        assert snapshot.counts.grad == snapshot.step + 1, "one gradient a step, and the start's"


def test_rivals_see_the_same_batches_in_the_same_order():
    """Methods that do nothing but remember what they were given."""
    seen = {}

    def remembering(name, rate):
        plain = ok.from_optax(optax.sgd(rate))

        def step(oracle, at, state, key):
            jax.debug.callback(
                lambda rows: seen.setdefault(name, []).append(np.asarray(rows)), oracle.args[0],
                ordered=True,
            )  # fmt: skip
            return plain.step(oracle, at, state, key)

        return plain._replace(step=step, name=name)

    problem, key = regression().cast("float64"), jax.random.key(1)
    start, run = jax.random.split(key)
    for name, rate in (("slow", 1e-3), ("fast", 1e-1)):
        begin, go = functions(problem, remembering(name, rate))
        progress = jax.jit(begin)(problem.start(start), problem.args, run)
        for limit in (3, 8):
            progress = jax.jit(go)(progress, problem.args, jnp.asarray(limit))
        jax.block_until_ready(progress)
        jax.effects_barrier()
    assert len(seen["slow"]) == len(seen["fast"]) == 8
    for ours, theirs in zip(seen["slow"], seen["fast"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    epoch = np.concatenate(seen["slow"][:4])
    assert len({row.tobytes() for row in epoch}) == 40, "an epoch holds every example once"
    assert not np.array_equal(seen["slow"][0], seen["slow"][4])


def test_chunks_do_not_change_a_run_and_other_seeds_do():
    problem = regression().cast("float64")
    begin, go = map(jax.jit, functions(problem, ok.from_optax(optax.adam(0.1))))

    def end(key, limits):
        start, run = jax.random.split(key)
        progress = begin(problem.start(start), problem.args, run)
        for limit in limits:
            progress = go(progress, problem.args, jnp.asarray(limit))
        return progress.best.params

    whole, parts = end(jax.random.key(0), [12]), end(jax.random.key(0), [1, 2, 5, 12])
    np.testing.assert_array_equal(whole, parts)
    assert go._cache_size() == 1, "one executable serves every chunk"
    assert not np.array_equal(whole, end(jax.random.key(1), [12]))


def test_books_axes_and_metrics_of_a_study(results):
    assert not results.summary.failures
    problem = results.problems[0]
    curves = {c.variant: c for c in problem.curves}
    steps = curves["sgd"].costs["steps"]
    assert curves["sgd"].costs["epochs"] == pytest.approx([k / 4 for k in steps])
    assert curves["sgd"].counts["grad"] == 31
    for curve in curves.values():
        assert curve.facts["ledger_agrees"], "calls at the door are those reported"
        assert all(a <= b for a, b in itertools.pairwise(curve.costs["flops"]))
        assert len(curve.metrics["worst"]) == len(steps)
        assert curve.facts["certificate"] is None
    assert curves["sgd"].gaps == curves["twice"].gaps, "one solver entered twice must tie"
    assert curves["natural"].counts["jacobian"] == 31
    assert problem.facts["reference"]["source"] == "the start, without a solve"
    assert (
        min(c.gaps[-1] for c in problem.curves) == 0
        or min(min(c.gaps) for c in problem.curves) == 0
    )
    row = results.summary.rows[0]
    assert row["metrics"]["worst"] == pytest.approx(curves["sgd"].metrics["worst"][-1], rel=0.5)


def test_prices_are_those_of_a_batch(results):
    """A gradient on ten of a million examples must not be priced as one on them all."""
    problem = regression().cast("float64")
    rows, targets = problem.step_args(jax.random.key(0))
    assert rows.shape == (10, 3)
    assert targets.shape == (10,)
    assert regression(batches=None).step_args(jax.random.key(0))[0].shape == (40, 3)
    assert set(results.problems[0].facts["prices"]) >= {"value", "grad", "hvp"}


def test_metrics_are_judged_in_float64():
    problem = regression()
    point = jnp.asarray([1.0, -2.0, 0.5], jnp.float32)
    rows, targets = problem.held_out
    expected = np.abs(rows @ np.asarray(point, np.float64) - targets).max()
    assert appraiser(problem)(point)["worst"] == pytest.approx(expected, rel=1e-14)


def test_a_run_that_leaves_the_numbers_keeps_its_last_point():
    problem = regression().cast("float64")
    run = measure(
        problem, ok.from_optax(optax.sgd(1e200)), jax.random.key(0),
        budget=Budget(steps=20), how=Measure(**LEAN), judge=referee(problem),
    )  # fmt: skip
    assert run.status == ok.Status.NOT_FINITE
    assert np.isfinite(run.snapshots[-1].params).all()


def test_an_average_of_iterates_is_what_is_judged():
    plain = ok.from_optax(optax.sgd(0.05))
    doubled = plain._replace(readout=lambda params, state: 2 * params)
    problem, key = regression().cast("float64"), jax.random.key(0)
    how = {"budget": Budget(steps=4), "how": Measure(**LEAN), "judge": referee(problem)}
    once, twice = (measure(problem, o, key, **how).snapshots[-1].params for o in (plain, doubled))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-15)


def test_the_ledger_is_the_doors_for_a_search_on_batches():
    problem, key = regression().cast("float64"), jax.random.key(0)
    found = costs_along(problem, ok.optimizers.lbfgs(), key, [0, 1, 4])
    assert found.ledger_agrees
    assert int(found.costs[0].calls.grad) == 1


def test_libraries_that_want_the_whole_data_are_refused_in_a_sentence():
    experiment = ok.Experiment(
        "peers", {"regression": regression()}, {"scipy": {"use": "scipy:L-BFGS-B"}},
        budget={"steps": 3}, measure={"repeats": 1, "prices": False},
    )  # fmt: skip
    results = experiment.run()
    assert "comes in batches" in results.summary.failures[0][1]


def test_full_data_is_judged_where_nothing_is_held_out():
    problem = regression(held_out=None)
    value, slope = referee(problem)(np.ones(3))
    exact = problem.cast("float64")
    assert value == pytest.approx(float(exact.objective(jnp.ones(3), *exact.args)), rel=1e-14)
    assert slope > 0


def test_parameters_that_leave_the_precision_asked_for_are_marked():
    """On batches a method answers with what it reads out of its state, in whatever precision."""
    plain = ok.from_optax(optax.sgd(0.05))
    coarse = plain._replace(
        readout=lambda params, state: params.astype(jnp.bfloat16),
        name="coarse",
    )
    results = ok.Experiment(
        "precision", {"regression": regression()}, {"plain": plain, "coarse": coarse},
        dtype="float32", budget={"steps": 5}, targets=[0.5],
        measure={"repeats": 1, "flops": False, "prices": False},
    ).run()  # fmt: skip
    marks = {c.variant: c.facts["marks"] for c in results.problems[0].curves}
    assert "mismatched" in marks["coarse"]
    assert "mismatched" not in marks["plain"]
