"""Two results folders side by side: what may be compared, and what may be claimed."""

import dataclasses

import numpy as np
import pytest

from optikit.bench.compare import compare
from optikit.bench.job import Job
from optikit.bench.store import Record

KINDS = ("value", "grad", "jvp", "vjp", "hvp", "ggnvp", "hessian", "jacobian")
HERE = {"device": "cpu", "processor": "one", "cores": 2, "machine": "m1", "commit": "a",
        "versions": {"jax": "0.10"}}  # fmt: skip


@dataclasses.dataclass
class Side:
    jobs: list
    records: dict


def side(costs, *, environment=HERE, checksum="data", prices=None, **settings):
    """A results folder from {(problem, variant): [cost per seed]}; inf is a miss."""
    jobs, records = [], {}
    for label in dict.fromkeys(problem for problem, _ in costs):
        job = Job(kind="problem", problem=label, problem_use="quadratic", problem_arguments={})
        facts = {"reference": {"value": 0.0, "source": "known"}, "prices": prices or {"value": 1.0, "grad": 2.0},
                 "checksum": checksum, "start_value": 1.0, "parameters": 3, "environment": environment}  # fmt: skip
        jobs.append(job)
        records[job.id] = Record({}, facts, [])
    for (label, variant), per_seed in costs.items():
        for seed, cost in enumerate(per_seed):
            job = Job(kind="trial", problem=label, problem_use="quadratic", problem_arguments={}, optimizer=variant,
                      optimizer_use="bfgs", variant=variant, seed=seed, **settings)  # fmt: skip
            met = np.isfinite(cost)
            steps = [0, int(cost) - 1, int(cost)] if met else [0, 500, 501]
            rows = [
                {"step": k, "value": value, "grad_norm": 0.0, "flops": float(k), "first_seconds": k / 1e3,
                 **dict.fromkeys(("warm_seconds", "warm_low", "warm_high"), k / 1e3),
                 **{f"count_{kind}": k if kind == "grad" else 0 for kind in KINDS}}
                for k, value in zip(steps, (1.0, 1e-3, 1e-9 if met else 1e-4), strict=True)
            ]  # fmt: skip
            facts = {
                "seconds": {"trace": 0.0, "lower": 0.0, "compile": 0.0},
                "environment": environment,
            }
            jobs.append(job)
            records[job.id] = Record({}, facts, rows)
    return Side(jobs, records)


def verdicts(before, after, **kwargs):
    found = compare(before, after, 1e-6, **kwargs)
    return {(c.variant, c.axis): c.verdict for c in found.changes}


def noisy(rng, level, seeds=10):
    return np.round(level * np.exp(0.05 * rng.normal(size=seeds))).tolist()


def test_a_folder_beside_itself_is_unchanged():
    one = side({("p", "a"): [100, 105, 98], ("p", "b"): [np.inf, 7, 8]})
    found = compare(one, one, 1e-6)
    assert {c.verdict for c in found.changes} == {"unchanged"}
    assert found.notes == found.only_before == found.only_after == []
    assert "unchanged" in found.as_text()


def test_regressions_and_improvements_are_found_and_ties_are_not():
    rng = np.random.default_rng(0)
    before = side({("p", v): noisy(rng, 400) for v in ("slower", "faster", "same")})
    after = side(
        {
            ("p", "slower"): noisy(rng, 520),
            ("p", "faster"): noisy(rng, 300),
            ("p", "same"): noisy(rng, 400),
        }
    )
    found = compare(before, after, 1e-6)
    by = {(c.variant, c.axis): c for c in found.changes}
    for axis in ("steps", "calls", "gradients", "flops", "warm", "cold"):
        assert by["slower", axis].verdict == "regression"
        assert by["slower", axis].ratio.low < 1.3 < by["slower", axis].ratio.high
        assert by["slower", axis].p < 0.002
        assert by["faster", axis].verdict == "improvement"
        assert by["same", axis].verdict in ("unchanged", "not separable")
    assert by["same", "success"].verdict == "unchanged"
    assert found.as_text().splitlines()[0].startswith("regression: p, slower, steps 1.")


def test_false_alarms_are_rare():
    rng = np.random.default_rng(1)
    names = [f"s{i}" for i in range(40)]
    sides = [side({("p", v): noisy(rng, 400, seeds=8) for v in names}) for _ in range(2)]
    found = compare(*sides, 1e-6, axes=["steps"])
    assert sum(c.verdict in ("regression", "improvement") for c in found.changes) <= 1


def test_a_certain_change_that_does_not_matter_is_none():
    before, after = side({("p", "a"): [1000] * 5}), side({("p", "a"): [1010] * 5})
    assert verdicts(before, after)["a", "steps"] == "unchanged"


def test_one_seed_makes_no_claim():
    before, after = side({("p", "a"): [100]}), side({("p", "a"): [200]})
    found = {c.axis: c for c in compare(before, after, 1e-6).changes}
    assert found["steps"].verdict == "not separable"
    assert found["steps"].reason == "one seed"
    assert found["steps"].ratio.estimate == 2.0


def test_losing_the_target_is_a_regression_where_seeds_agree():
    good, bad = [100] * 4, [np.inf] * 4
    assert (
        verdicts(side({("p", "a"): good}), side({("p", "a"): bad}))["a", "success"] == "regression"
    )
    assert (
        verdicts(side({("p", "a"): bad}), side({("p", "a"): good}))["a", "success"] == "improvement"
    )
    some = [100, 100, 100, np.inf]
    assert (
        verdicts(side({("p", "a"): good}), side({("p", "a"): some}))["a", "success"]
        == "not separable"
    )


def test_clocks_of_different_machines_are_not_compared():
    there = HERE | {"processor": "another", "machine": "m2"}
    before, after = (
        side({("p", "a"): [100] * 3}),
        side({("p", "a"): [200] * 3}, environment=there, prices={"grad": 9.0}),
    )
    found = compare(before, after, 1e-6)
    by = {c.axis: c for c in found.changes}
    assert by["warm"].verdict == by["cold"].verdict == "not comparable"
    assert "different machines" in by["warm"].reason
    assert by["steps"].verdict == by["gradients"].verdict == "regression"  # common prices
    assert by["gradients"].ratio.estimate == pytest.approx(2.0)
    assert "processor: one before, another after" in found.notes


def test_commits_and_versions_may_differ_and_are_told():
    later = HERE | {"commit": "b", "versions": {"jax": "0.11"}, "machine": "m3"}
    found = compare(
        side({("p", "a"): [100] * 3}), side({("p", "a"): [100] * 3}, environment=later), 1e-6
    )
    assert {c.verdict for c in found.changes} == {"unchanged"}
    assert found.notes == ["commit: a before, b after", "jax: 0.10 before, 0.11 after"]


def test_what_is_not_the_same_trial_is_not_compared():
    base = side({("p", "a"): [100] * 3})
    for changed, reason in (
        (side({("p", "a"): [100] * 3}, checksum="other"), "another problem under the same label"),
        (side({("p", "a"): [100] * 3}, dtype="float32"), "dtype differs"),
        (
            side({("p", "a"): [100] * 3}, optimizer_arguments={"x": 1}),
            "optimizer_arguments differs",
        ),
    ):
        (change,) = compare(base, changed, 1e-6).changes
        assert change.verdict == "not comparable"
        assert reason in change.reason
    found = compare(base, side({("p", "b"): [100]}), 1e-6)
    assert (found.only_before, found.only_after) == ([("p", "a")], [("p", "b")])
    assert "nothing matched" in found.as_text()


def test_both_sides_are_judged_by_the_better_optimum():
    before, after = (
        side({("p", "a"): [100] * 3}),
        side({("p", "a"): [100] * 3, ("p", "deeper"): [50] * 3}),
    )
    for record in after.records.values():
        if record.rows and record.rows[-1]["step"] == 50:
            record.rows[-1]["value"] = -1.0
    found = {c.axis: c for c in compare(before, after, 1e-6).changes}
    assert set(found) == {"success"}  # nobody but the new rival meets the target now
    assert found["success"].verdict == "unchanged"
