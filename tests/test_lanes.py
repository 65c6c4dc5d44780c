"""Hyperparameter lanes: many trials of one method as one program, each as if by itself."""

import contextlib

import jax
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.bench import store, trial
from optikit.bench.attempt import allowance, attempt
from optikit.bench.batches import batched, is_recorded
from optikit.bench.executors.inline import run_inline
from optikit.bench.lanes import Lanes, shareable
from optikit.bench.plan import plan, problem_job
from optikit.bench.record import Record
from optikit.bench.spec import ConfigError

COUNTED = ("step", "rejected", "refined", "count_value", "count_grad", "count_hvp")


def experiment(optimizers, **changes):
    return ok.Experiment(
        "lanes", {"valley": "rosenbrock"}, optimizers,
        budget={"steps": 40, "seconds": 60.0},
        measure={"lanes": True, "prices": False, "certificates": False} | changes.pop("measure", {}),
        tuning={"trials": 3, "axis": "steps", "target": 0.16} | changes.pop("tuning", {}), **changes,
    )  # fmt: skip


DESCENT = {
    "gd": {"use": "gradient-descent", "line_search": "wolfe", "growth": {"uniform": [1.2, 4.0]}}
}
ADAM = {"adam": {"use": "adam", "learning_rate": {"log_uniform": [1e-2, 1.0]}, "eps": 1e-9}}
COUNTING = {"lbfgs": {"use": "lbfgs", "memory": {"choice": [3, 5]}}}


def work(study):
    jobs = plan(study)
    return batched(jobs, {job.id for job in jobs})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return experiment(DESCENT).run(tmp_path_factory.mktemp("lanes"), executor="inline")


@pytest.fixture(scope="module")
def lanes(tuned):
    return [job for job in tuned.jobs if job.role == "tune" and job.kind == "trial"]


# --- what a lane is ------------------------------------------------------------------------------


def same_course(lane, alone, flops):
    """Counts and status are equal; values to rounding, which a valley of condition 2500 amplifies
    over 40 steps. FLOPs differ by what is done to a hyperparameter that is a constant by itself.
    """
    assert lane.facts["status"] == alone.facts["status"]
    assert [[r[k] for k in COUNTED] for r in lane.rows] == [
        [r[k] for k in COUNTED] for r in alone.rows
    ]
    for name in ("value", "grad_norm", "solver_value"):
        found, expected = ([row[name] for row in record.rows] for record in (lane, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    if flops:
        found, expected = (record.rows[-1]["flops"] for record in (lane, alone))
        assert found == pytest.approx(expected, rel=0.03)


def test_a_lane_has_the_record_of_a_run_by_itself(tuned, lanes):
    assert len(lanes) == 3
    for job in lanes[:2]:
        same_course(tuned.records[job.id], trial.run_job(job), flops=True)
    assert any(row["refined"] for job in lanes for row in tuned.records[job.id].rows)


def test_lanes_end_apart_each_with_its_own_status():
    """Of three learning rates one diverges, after steps that the others go on from."""
    wild = ok.Experiment(
        "wild", {"steep": {"use": "quadratic", "n": 3, "condition": 10.0}},
        {"gd": {"use": "optax.sgd", "learning_rate": {"choice": [0.1, 1e30, 1e-3]}}},
        budget={"steps": 12}, dtype="float32",
        measure={"lanes": True, "prices": False, "flops": False, "refine": False},
        tuning={"trials": 8, "axis": "steps"},
    )  # fmt: skip
    (batch,) = [job for job in work(wild.study()) if job.members]
    found = trial.run_lanes(batch)
    ends = {r.job["optimizer_arguments"]["learning_rate"]: r for r in found}
    assert ends[0.1].facts["status"] == ends[1e-3].facts["status"] == "MAX_STEPS"
    assert ends[1e30].facts["status"] in ("NOT_FINITE", "UNBOUNDED")
    assert ends[1e30].rows[-1]["step"] < 12
    for job, record in list(zip(batch.members, found, strict=True))[:2]:
        same_course(record, trial.run_job(job), flops=False)
    total = found[0].facts["lanes"]["seconds"]
    assert sum(r.rows[-1]["warm_seconds"] for r in found) == pytest.approx(total)


# --- what lanes share ----------------------------------------------------------------------------


def test_shares_of_the_seconds_add_up_and_are_on_no_axis_of_time(tuned, lanes):
    records = [tuned.records[job.id] for job in lanes]
    shared = records[0].facts["lanes"]
    assert [r.facts["lanes"] for r in records] == [shared | {"lane": i} for i in range(3)]
    assert sum(r.rows[-1]["warm_seconds"] for r in records) == pytest.approx(shared["seconds"])
    for record in records:
        assert "lanes" in record.facts["invalid"]
        times = [row["warm_seconds"] for row in record.rows]
        assert times == sorted(times)
    (problem,) = tuned.problems
    for curve in problem.tuning:
        assert np.isnan(ok.bench.score.reach(curve, 1e-2, "warm").cost)
        assert not np.isnan(ok.bench.score.reach(curve, 1e-2, "steps").cost)
    reported = [
        r for r in tuned.records.values() if r.job["variant"].endswith(("(tuned)", "(default)"))
    ]
    assert all("lanes" not in r.facts and "lanes" not in r.facts["invalid"] for r in reported)


def test_logical_and_executed_counts_are_apart(tuned, lanes):
    records = [tuned.records[job.id] for job in lanes]
    shared = records[0].facts["lanes"]
    asked, done = shared["logical"], shared["executed"]
    assert asked["calls"]["grad"] == sum(r.rows[-1]["count_grad"] for r in records)
    assert asked["flops"] == pytest.approx(sum(r.rows[-1]["flops"] for r in records))
    # a line search runs until its last lane is done, in all of them
    assert done["calls"]["grad"] > asked["calls"]["grad"]
    assert done["calls"]["grad"] % 3 == 0
    assert done["flops"] > asked["flops"]
    assert all(r.facts["ledger_agrees"] for r in records)


def test_the_choice_and_the_page_say_what_lanes_did(tuned):
    (found,) = tuned.tuning()
    assert found.lanes.startswith("3 of 3 trials as lanes of 1 program, ")
    page = tuned.page().read_text()
    assert found.lanes in page
    assert "ran as one program under vmap" in page
    chosen = [job for job in tuned.jobs if job.variant == "gd (tuned)"]
    assert chosen[0].optimizer_arguments == found.chosen


def test_lanes_cannot_choose_by_the_clock():
    with pytest.raises(ConfigError, match=r"tuning\.axis: lanes share their seconds"):
        experiment(ADAM, tuning={"axis": "warm"}).study()


# --- which trials share --------------------------------------------------------------------------


def test_one_method_on_one_problem_shares_unless_its_arguments_are_no_floats():
    study = experiment(ADAM | COUNTING, tuning={"trials": 4, "seeds": [7, 8]}).study()
    found = [job for job in work(study) if job.members]
    assert [job.title for job in found] == [
        "valley · adam (8 lanes)", "valley · lbfgs (4 lanes)", "valley · lbfgs (4 lanes)",
    ]  # fmt: skip
    assert [{m.optimizer_arguments["memory"] for m in job.members} for job in found[1:]] in (
        [{3}, {5}], [{5}, {3}],
    )  # fmt: skip
    assert all(allowance(job) > allowance(job.members[0]) for job in found)
    off = experiment(ADAM, measure={"lanes": False}).study()
    assert not any(job.members for job in work(off))
    peer = experiment({"b": {"use": "scipy:BFGS", "c1": {"uniform": [1e-4, 1e-2]}}}).study()
    assert not any(job.members or job.measure.lanes for job in work(peer))


def test_a_batch_is_the_same_whatever_is_recorded_of_it():
    jobs = plan(experiment(ADAM).study())
    tune = [job for job in jobs if job.role == "tune"]
    (whole,) = [job for job in work(experiment(ADAM).study()) if job.members]
    assert batched(jobs, {tune[1].id}) == [whole]
    assert batched(jobs, set()) == []
    assert whole.id not in {job.id for job in jobs}
    assert type(whole).model_validate(whole.model_dump(mode="json")) == whole


def test_trials_of_tuning_and_report_know_the_same_reference():
    jobs = plan(experiment(ADAM).study())
    assert {problem_job(job).id for job in jobs} == {jobs[0].id}


def test_hyperparameters_that_python_looks_at_are_not_traced():
    problem, keys = ok.problems.rosenbrock(), [jax.random.key(0)] * 2

    def make(chosen):
        twice = 2 if chosen["other"] > 0.3 else 1  # a branch: its number must be known
        return ok.from_optax(optax.sgd(twice * chosen["rate"]))

    assert shareable(problem, Lanes(make, {"rate": [0.1, 0.2]}, keys)) == []  # no "other" at all
    varied = {"rate": [0.1, 0.2], "other": [0.1, 0.9]}
    assert shareable(problem, Lanes(make, varied, keys)) == ["rate"]


# --- how a batch is carried out ------------------------------------------------------------------


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """A folder, a batch, and a stand-in for its run whose second lane fails the first time."""
    store.prepare(tmp_path)
    (batch,) = [job for job in work(experiment(ADAM).study()) if job.members]
    runs = []

    def run_lanes(job):
        runs.append([m.id for m in job.members])
        errors = [None, "deliberately" if len(runs) == 1 else None, None]
        rows = [{"step": 0, "value": float(len(runs))}]
        return [
            Record({"id": m.id}, {"error": e}, rows)
            for m, e in zip(job.members, errors, strict=True)
        ]

    monkeypatch.setattr(trial, "run_lanes", run_lanes)
    return tmp_path, batch, runs


def test_a_batch_is_run_again_until_all_its_lanes_are_recorded(stubbed):
    folder, batch, runs = stubbed
    assert attempt(batch, folder) == "deliberately"
    assert not is_recorded(folder, batch)
    assert attempt(batch, folder) == ""
    assert attempt(batch, folder) == ""
    assert len(runs) == 2
    values = [store.read(folder, m.id).rows[0]["value"] for m in batch.members]
    assert values == [1.0, 2.0, 1.0]  # what was recorded stays


def test_a_run_hears_of_every_lane_by_itself(stubbed, monkeypatch):
    from optikit.bench import run
    from optikit.bench.live import Lines

    folder, batch, _ = stubbed
    watcher = Lines(folder, only_failures=True)
    with contextlib.suppress(RuntimeError):

        def only_lanes(jobs, *rest):
            lanes = [job for job in jobs if job.members]
            yield from run_inline(lanes, *rest)
            raise RuntimeError

        monkeypatch.setattr(run, "executor_named", lambda name, options: only_lanes)
        run.run_study(experiment(ADAM).study(), folder, watcher=watcher)
    assert (watcher.done - 1, watcher.failed) == (len(batch.members) - 1, 1)
    assert not watcher.running
