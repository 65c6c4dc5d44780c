"""What it costs to get where the reference ended: the rule, the page, the schedule of the baseline."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_results import made_results

import optikit as ok
from optikit.bench.report import write_page
from optikit.bench.score import matched
from optikit.optimizers.scheduled import cosine


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Method k halves the gap k + 1 times a step, give or take by seed."""
    return made_results(tmp_path_factory.mktemp("made"), problems=1, methods=3, seeds=3)


def test_the_goal_is_the_median_end_of_the_reference(results):
    problem = results.problems[0]
    found = {m.variant: m for m in matched([problem], "steps", "method 1")}
    own = [c for c in problem.curves if c.variant == "method 1"]
    goal = np.median([min(c.gaps) for c in own])
    for name, match in found.items():
        curves = [c for c in problem.curves if c.variant == name]
        firsts = [
            next(
                (k for k, gap in zip(c.costs["steps"], c.gaps, strict=True) if gap <= goal), np.inf
            )
            for c in curves
        ]
        assert match.cost == np.median(firsts)
        assert match.reached == np.isfinite(firsts).sum()
        assert match.trials == 3
    base = found["method 1"]
    assert base.reached >= 2, "half of the reference's own trials get to their median"
    assert base.ratio == 1
    assert found["method 0"].ratio < 1, "the one with the larger rate is there sooner"
    assert found["method 2"].cost > base.cost


def test_a_reference_that_was_not_run_is_named(results):
    with pytest.raises(ValueError, match="no reference 'sgd'"):
        matched(results.problems, "steps", "sgd")


def test_the_page_says_it_where_the_study_names_a_reference(results, tmp_path):
    for reference, said in (("method 1", True), (None, False), ("nobody", False)):
        study = results.study.model_copy(update={"reference": reference})
        page = tmp_path / f"{reference}.html"
        write_page(page, study, results.jobs, results.records, results.problems, results.summary)
        assert ("To where method 1 ended" in page.read_text(encoding="utf-8")) == said
    told = (tmp_path / "method 1.html").read_text(encoding="utf-8")
    for axis in ("warm", "cold"):
        for match in matched(results.problems, axis, "method 1"):
            shown = [f"{x:.3g}" if np.isfinite(x) else "-" for x in (match.cost, match.ratio)]
            assert f"<td class=n>{shown[0]}</td><td class=n>{shown[1]}</td>" in told, axis


def test_a_cosine_rises_and_falls_to_nothing():
    """By gradient descent on a line, whose every step is its rate."""
    descent = cosine("sgd", learning_rate=0.5, horizon=40, warmup=0.25)
    sol = ok.minimize(lambda x: -x, jnp.asarray(0.0), method=descent, max_steps=50, trace=True)
    rates = np.asarray(sol.trace.step_norm)[1:]
    schedule = optax.warmup_cosine_decay_schedule(0.05, 0.5, 10, 40)
    np.testing.assert_allclose(rates[:40], [schedule(k) for k in range(40)], rtol=1e-6)
    assert rates.argmax() == 10
    assert rates[0] > 0
    assert (rates[40:] == 0).all()
    for wrong in ({"horizon": 1}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match="horizon must be"):
            cosine("sgd", **wrong)
    with pytest.raises(ValueError, match="did you mean"):
        cosine("adamm")
