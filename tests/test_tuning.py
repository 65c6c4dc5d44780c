"""The tuning protocol and sweeps: declared spaces, equal trials, two stages, flags."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optikit as ok
from optikit.bench import store
from optikit.bench.plan import outlook, plan
from optikit.bench.score import BestKnown, identity, read_known, write_known
from optikit.bench.spaces import Space, spaces
from optikit.bench.spec import ConfigError, OptimizerUse, Study, Tuning, load_study
from optikit.bench.store import Record
from optikit.bench.tuning import best_of_k, sample, tuning_report

QUICK = settings(max_examples=60, deadline=None)

TUNED = """
name: tuned
problems:
  quad: {use: quadratic, n: {grid: [5, 20]}, condition: 100.0}
  valley: {use: rosenbrock}
optimizers:
  adam: {use: adam, learning_rate: {log_uniform: [1e-3, 1.0]}}
  gd:
    use: gradient-descent
    line_search: {choice: [backtracking, wolfe]}
    problems: [quad]
  newton: {use: newton}
seeds: [0, 1]
tuning: {trials: 4, seeds: [7, 8], axis: steps}
"""


# --- search spaces -------------------------------------------------------------------------------


@QUICK
@given(
    st.sampled_from(
        [("log_uniform", [1e-5, 10.0]), ("uniform", [-2.0, 3.0]), ("int_uniform", [2, 5])]
    ),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_spaces_map_the_unit_interval_onto_their_range_in_order(declared, u, v):
    space = Space("x", *declared, {})
    low, high = space.values
    a, b = sorted((u, v))
    assert low <= space.at(a) <= space.at(b) <= high * (1 + 1e-12)
    assert space.edge(low) == "low"
    assert space.edge(high) == "high"
    assert space.edge(space.at(0.5)) == ""


def test_every_choice_and_every_integer_comes_equally_often():
    points = (np.arange(12) + 0.5) / 12
    ints = [Space("x", "int_uniform", [2, 5], {}).at(u) for u in points]
    assert ints == sorted([2, 3, 4, 5] * 3)
    choices = [Space("x", "choice", ["a", "b", "c"], {}).at(u) for u in points]
    assert choices == sorted(["a", "b", "c"] * 4)


@pytest.mark.parametrize("sampler", ["sobol", "halton"])
def test_trials_are_repeatable_nested_and_spread(sampler):
    use = OptimizerUse(use="adam", b1=0.8, learning_rate={"log_uniform": [1e-4, 1.0]},
                       b2={"uniform": [0.9, 1.0]})  # fmt: skip
    tuning = Tuning(trials=16, sampler=sampler)
    found = sample(use, tuning)
    assert found == sample(use, tuning)
    assert found[:5] == sample(use, Tuning(trials=5, sampler=sampler))
    assert found != sample(use, Tuning(trials=16, sampler=sampler, seed=1))
    assert all(s["b1"] == 0.8 and set(s) == {"b1", "learning_rate", "b2"} for s in found)
    decades = {math.floor(math.log10(s["learning_rate"])) for s in found}
    assert decades == {-4, -3, -2, -1}


def test_conditional_arguments_are_given_only_where_they_apply():
    use = OptimizerUse(
        use="gradient-descent",
        line_search={"choice": ["backtracking", "wolfe"]},
        shrink={"uniform": [0.1, 0.9], "when": {"line_search": "backtracking"}},
    )
    assert [s.name for s in spaces(use.arguments)] == ["line_search", "shrink"]
    found = sample(use, Tuning(trials=8))
    assert {s["line_search"] for s in found} == {"backtracking", "wolfe"}
    assert all(("shrink" in s) == (s["line_search"] == "backtracking") for s in found)


HEAD = "name: x\nproblems: {a: {use: quadratic}}\n"
MISTAKES = {
    "typo": ("optimizers: {b: {use: newton, max_trials: {int_unifrm: [2, 9]}}}",
             "3:44: optimizers.b.max_trials: unknown search space 'int_unifrm': did you mean 'int_uniform'?"),
    "order": ("optimizers: {b: {use: adam, learning_rate: {log_uniform: [1.0, 0.1]}}}",
              "3:45: optimizers.b.learning_rate: low must be below high (got [1.0, 0.1])"),
    "positive": ("optimizers: {b: {use: adam, learning_rate: {log_uniform: [0, 1]}}}",
                 "log_uniform needs positive ends"),
    "not a pair": ("optimizers: {b: {use: adam, learning_rate: {uniform: 3}}}",
                   "uniform takes [low, high], two numbers (got 3)"),
    "infinite": ("optimizers: {b: {use: adam, learning_rate: {uniform: [0, .inf]}}}", "two numbers"),
    "integers": ("optimizers: {b: {use: lbfgs, memory: {int_uniform: [1, 2.5]}}}", "two integers"),
    "ends have the argument's type": ("optimizers: {b: {use: lbfgs, memory: {uniform: [1.5, 9.0]}}}",
                                      "optimizers.b.memory: must be int (got 1.5)"),
    "choices have it too": ("optimizers: {b: {use: gradient-descent, line_search: {choice: [wolfe, wolff]}}}",
                            "3:71: optimizers.b.line_search: must be one of"),
    "one choice": ("optimizers: {b: {use: lbfgs, memory: {choice: [5]}}}", "at least two values"),
    "two kinds": ("optimizers: {b: {use: adam, b1: {uniform: [0, 1], choice: [1, 2]}}}", "only"),
    "extra key": ("optimizers: {b: {use: adam, b1: {uniform: [0, 1], wen: {b2: 1}}}}",
                  "unknown key 'wen': did you mean 'when'?"),
    "when below": ("optimizers: {b: {use: adam, b1: {uniform: [0, 1], when: {b2: 1}}, b2: {choice: [1.0, 0.5]}}}",
                   "'b2' is not searched: it must be a search space above it"),
    "when never": ("optimizers: {b: {use: gradient-descent, line_search: {choice: [wolfe, backtracking]}, "
                   "max_trials: {int_uniform: [2, 9], when: {line_search: hager-zhang}}}}",
                   "'line_search' is never 'hager-zhang'"),
    "grid and space": ("optimizers: {b: {use: adam, b1: {grid: [0.5]}, b2: {uniform: [0, 1]}}}",
                       "exclude each other"),
    "empty grid": ("optimizers: {b: {use: adam, learning_rate: {grid: []}}}", "grid takes a list"),
    "grid twice": ("optimizers: {b: {use: adam, learning_rate: {grid: [0.1, 0.1]}}}", "is there twice"),
    "problem space": ("optimizers: {b: {use: newton}}\nproblems_: 1", "unknown key: did you mean 'problems'?"),
    "shared seeds": ("optimizers: {b: {use: adam, learning_rate: {uniform: [0, 1]}}}\n"
                     "seeds: [1, 2]\ntuning: {seeds: [5, 2]}",
                     "5:21: tuning.seeds: seed 2 serves tuning and the report"),
    "tuning key": ("optimizers: {b: {use: newton}}\ntuning: {trial: 3}",
                   "4:10: tuning.trial: unknown key: did you mean 'trials'?"),
    "reference": ("optimizers: {newton: {use: newton}}\nreference: newtn",
                  "4:12: reference: no optimizer 'newtn': did you mean 'newton'?"),
    "reference grid": ("optimizers: {b: {use: adam, learning_rate: {grid: [0.1]}}}\nreference: b",
                       "must be one variant"),
    "best known": ("optimizers: {b: {use: newton}}\nbest_known: nowhere.json", "4:13: best_known: no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistakes_in_the_protocol_are_located(name, write):
    text, expected = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        load_study(write(HEAD + text))
    assert expected in str(caught.value)


def test_problems_are_swept_not_searched(write):
    text = "name: x\nproblems: {a: {use: quadratic, n: {int_uniform: [2, 9]}}}\noptimizers: {b: {use: newton}}"
    with pytest.raises(ConfigError, match=r"2:32: problems\.a\.n: a problem is swept by"):
        load_study(write(text))
    with pytest.raises(ConfigError, match=r"2:46: problems\.a\.n: must be int \(got 'x'\)"):
        load_study(write(text.replace("{int_uniform: [2, 9]}", "{grid: [2, x]}")))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["grid", "when", "choice", "uniform", "log_uniform", "int_uniform", "b1"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(ANYTHING, ANYTHING, ANYTHING)
def test_no_argument_makes_the_validation_itself_fail(problem, one, tuning):
    from optikit.bench.spec import validate
    from optikit.bench.yaml_source import Source

    data = {
        "name": "x",
        "problems": {"a": {"use": "quadratic", "n": problem}},
        "optimizers": {"b": {"use": "adam", "learning_rate": one, "b2": problem}},
        "tuning": tuning,
        "reference": one,
    }
    study, found = validate(Source("x", data, {}))
    if not found and study is not None:
        assert plan(study)


# --- the plan ------------------------------------------------------------------------------------


def done(jobs):
    """Records that say nothing but that their jobs failed."""
    return {job.id: Record({}, {"error": "it failed"}, []) for job in jobs}


def test_sweeps_over_problem_arguments_make_a_problem_for_each_value(write):
    jobs = plan(load_study(write(TUNED)))
    problems = [j for j in jobs if j.kind == "problem"]
    assert [(j.problem, j.group, j.swept) for j in problems] == [
        ("quad (n=5)", "quad", {"n": 5}), ("quad (n=20)", "quad", {"n": 20}), ("valley", "valley", {}),
    ]  # fmt: skip
    assert problems[0].problem_arguments == {"n": 5, "condition": 100.0}


def test_tuning_trials_come_first_equal_in_number_and_on_seeds_of_their_own(write):
    study = load_study(write(TUNED))
    jobs = plan(study)
    tuned = [j for j in jobs if j.role == "tune"]
    assert {j.kind for j in jobs if j not in tuned} == {"problem"}  # the report waits
    per_method = {}
    for job in tuned:
        per_method.setdefault((job.problem, job.optimizer), []).append(job)
    assert set(per_method) == {(p, "adam") for p in ("quad (n=5)", "quad (n=20)", "valley")} | {
        (p, "gd") for p in ("quad (n=5)", "quad (n=20)")
    }
    for trials in per_method.values():
        assert len(trials) == 4 * 2
        assert {j.seed for j in trials} == {7, 8}
        assert {j.measure.repeats for j in trials} == {1}
    assert len({j.id for j in jobs}) == len(jobs)


def test_the_report_follows_once_every_tuning_trial_has_a_record(write):
    study = load_study(write(TUNED))
    first = plan(study)
    assert plan(study, done(first[:-1])) == first
    everything = plan(study, done(first))
    assert everything[: len(first)] == first
    report = everything[len(first) :]
    assert {j.variant for j in report} == {"adam (default)", "gd (default)", "newton"}
    assert {j.seed for j in report} == {0, 1}
    assert plan(study, done(first[:-1]), settle=True) == everything
    now, later = outlook(study)
    assert now == len(first)
    assert later == len(report) + 2 * (3 + 2)  # had they not failed: tuned ones, for each seed


def test_a_method_whose_searched_argument_has_no_default_shows_none(write):
    study = load_study(write(HEAD + """\
optimizers:
  theirs: {use: "optax:noisy_sgd", seed: {int_uniform: [1, 9]}, learning_rate: {uniform: [0.1, 1.0]}}
"""))  # fmt: skip
    first = plan(study)
    variants = {j.variant for j in plan(study, done(first)) if j.role == "report" and j.variant}
    assert variants <= {"theirs (default)"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A small study, run for real: tuned, default, and a rival without a search space."""
    experiment = ok.Experiment(
        "tuned",
        {"quad": {"use": "quadratic", "n": 6, "condition": 10.0}},
        {
            "adam": {"use": "adam", "learning_rate": {"log_uniform": [1e-3, 1.0]}},
            "newton": "newton",
        },
        seeds=[0, 1],
        budget={"steps": 120},
        measure={"repeats": 1, "prices": False, "flops": False, "certificates": False},
        tuning={"trials": 4, "axis": "steps"},
        targets=[1e-3],
    )
    folder = tmp_path_factory.mktemp("tuned")
    return experiment, folder, experiment.run(folder, executor="inline")


def test_the_best_setting_is_run_with_the_seeds_of_the_report(tuned):
    _, _, results = tuned
    (report,) = results.tuning()
    costs = dict(zip(report.costs, (c.arguments for c in results.problems[0].tuning), strict=True))
    assert report.chosen == costs[min(report.costs)]
    variants = {(c.variant, c.seed): c for c in results.problems[0].curves}
    assert set(variants) == {
        (v, s) for v in ("adam (default)", "adam (tuned)", "newton") for s in (0, 1)
    }
    assert variants["adam (tuned)", 0].arguments == report.chosen
    assert variants["adam (default)", 0].arguments == {}
    assert [b.k for b in report.curve] == [1, 2, 3, 4]
    assert report.curve[-1].expected == min(report.costs)
    assert {c.seed for c in results.problems[0].tuning} == {10_000}
    assert any("adam (tuned)" in v for v in results.summary.verdicts)


def test_running_again_runs_nothing_and_chooses_the_same(tuned):
    experiment, folder, results = tuned
    again = experiment.run(folder, executor="inline", watcher=Nobody())
    assert [j.id for j in again.jobs] == [j.id for j in results.jobs]
    assert [c.gaps for c in again.problems[0].curves] == [
        c.gaps for c in results.problems[0].curves
    ]
    assert again.problems[0].best == results.problems[0].best


class Nobody:
    """A watcher who allows nothing to be run."""

    def planned(self, total, done):
        """Nothing to see: `begun` would tell."""

    def begun(self, job):
        raise AssertionError(job.title)

    def ended(self, job, failure):
        raise AssertionError(job.title)


def test_tuning_can_be_charged(tuned):
    from optikit.bench.tuning import charged

    _, _, results = tuned
    (problem,) = results.problems
    (report,) = results.tuning()
    paid = {c.variant: c for c in charged(problem).curves}
    plain = {c.variant: c for c in problem.curves}
    assert report.charge["steps"] == sum(c.costs["steps"][-1] for c in problem.tuning)
    for axis in ("steps", "calls", "warm"):
        first = plain["adam (tuned)"].costs[axis][0]
        assert paid["adam (tuned)"].costs[axis][0] == pytest.approx(first + report.charge[axis])
        assert paid["newton"].costs[axis] == plain["newton"].costs[axis]
    # the bill says nothing against the setting
    (charged_report,) = tuning_report(results.study, [charged(problem)])
    assert charged_report.flags == report.flags


def test_best_values_are_kept_with_the_records_and_shared_ones_are_heeded(tuned, tmp_path):
    experiment, folder, results = tuned
    (known,) = read_known(folder / "best-known.json").values()
    assert known.version == 1
    name = results.problems[0].identity
    job = results.jobs[0]
    assert name == identity(job, results.records[job.id].facts)
    shared = tmp_path / "shared.json"
    write_known(shared, {name: BestKnown(-0.5, "an oracle", 4)})
    import dataclasses

    with_shared = dataclasses.replace(experiment, best_known=str(shared))
    (problem,) = with_shared.run(folder, executor="inline").problems
    assert (problem.optimum, problem.best.version) == (-0.5, 4)
    assert read_known(folder / "best-known.json")[name].value == -0.5


# --- best of k -----------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.floats(0.1, 1e3) | st.just(math.inf), min_size=1, max_size=7))
def test_best_of_k_is_the_mean_over_all_draws(costs):
    from itertools import combinations

    for k in range(1, len(costs) + 1):
        found = best_of_k(costs, k)
        bests = [min(draw) for draw in combinations(costs, k)]
        met = [b for b in bests if math.isfinite(b)]
        assert found.reached == pytest.approx(len(met) / len(bests))
        assert found.expected == (pytest.approx(np.mean(met)) if met else math.inf)
        assert np.mean([b <= found.median for b in bests]) >= 0.5 - 1e-9
    assert best_of_k(costs, len(costs)).expected == min(costs)


def test_best_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="k must be 1 to 2"):
        best_of_k([1.0, 2.0], 3)


def test_flags_tell_edges_and_too_few_trials(tuned):
    _, _, results = tuned
    problem = results.problems[0]
    study = results.study
    best, *rest = sorted(problem.tuning, key=lambda c: min(c.gaps))

    def flags(curves, shown=problem.curves, trials=4):
        changed = study.model_copy(
            update={"tuning": study.tuning.model_copy(update={"trials": trials})}
        )
        (found,) = tuning_report(changed, [problem._replace(tuning=curves, curves=shown)])
        return found.flags

    at_edge = best._replace(arguments={"learning_rate": 0.99}, gaps=[0.0] * len(best.gaps))
    assert "learning_rate = 0.99 is at the high end of its range" in flags([at_edge, *rest])
    assert any("2 of 6 trials left no result" in f for f in flags([best, *rest], trials=6))
    hopeless = [c._replace(gaps=[1.0] * len(c.gaps)) for c in problem.tuning]
    assert "under-tuned: no trial met the target" in flags(hopeless)
    lucky = [c._replace(gaps=[1.0] * len(c.gaps)) for c in rest]
    assert any(f.startswith("under-tuned: the best of 2 trials") for f in flags([best, *lucky]))
    swapped = {"adam (tuned)": "adam (default)", "adam (default)": "adam (tuned)"}
    shown = [c._replace(variant=swapped.get(c.variant, c.variant)) for c in problem.curves]
    assert "under-tuned: the default settings do better" in flags([best, *rest], shown)


def test_a_lone_failed_trial_loses_and_the_rest_decide(tuned):
    from optikit.bench.tuning import choose

    _, _, results = tuned
    trials = [j for j in results.jobs if j.kind == "problem" or j.role == "tune"]
    chosen = choose(results.study, trials, results.records)["quad", "adam"]
    winner = next(j for j in trials if j.optimizer_arguments == chosen)
    lost = {k: v for k, v in results.records.items() if k != winner.id}
    second = choose(results.study, trials, lost)["quad", "adam"]
    assert second != chosen
    assert isinstance(results.study, Study)
    assert store.read(results.folder, winner.id) is not None
