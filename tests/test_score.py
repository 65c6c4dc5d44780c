"""The statistics of the harness: closed forms, invariances, and intervals that cover."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optikit.bench import store
from optikit.bench.axes import AXES
from optikit.bench.job import Job
from optikit.bench.report.overall import stability
from optikit.bench.rounds import lost, moved
from optikit.bench.score import (
    BestKnown,
    Curve,
    Interval,
    ProblemScore,
    bootstrap,
    break_even,
    cost_ratio,
    cost_table,
    crossover,
    data_profile,
    ecdf,
    expected_running_time,
    exponents,
    fit_exponent,
    front,
    identity,
    leave_one_solver_out,
    median_cost,
    merged,
    off_every_front,
    on_front,
    on_one_machine,
    outcomes,
    pairwise,
    par2,
    performance_profile,
    placement,
    portfolio,
    probability_cheapest,
    rank_changes,
    ranking,
    rating_table,
    ratings,
    reach,
    reaches,
    read_known,
    sceptical,
    score,
    standings,
    success_rate,
    sweeps,
    trade_offs,
    tunes,
    verdict,
    verdicts,
    wilson,
    with_portfolio,
    write_known,
)
from optikit.bench.score.breakeven import solves
from optikit.bench.score.intervals import mean, median
from optikit.bench.score.known import improved
from optikit.bench.score.repeats import merged_repeats
from optikit.bench.store import Record
from optikit.bench.tuning import charged

QUICK = settings(max_examples=40, deadline=None)
COSTS = st.floats(1.0, 1e6)


def curve(
    variant, cost, *, problem="p", seed=0, second=False, machine="m", target=1e-6, spread=0.0
):
    """A trial that meets a target at a cost known exactly, the same on every axis, or never (inf)."""
    met = math.isfinite(cost)
    at = cost if met else 1e7
    gaps = [1.0, 10 * target, target if met else 2 * target]
    costs = {axis: [0.0, at, at] for axis in AXES} | {"steps": [0, 1, 2]}
    if met:
        costs["steps"] = [0, int(at) - 1, int(at)] if at >= 2 else [0, 0, 1]
    bars = [(c * (1 - spread), c * (1 + spread)) for c in costs["warm"]]
    return Curve(problem, variant, seed, gaps, [1.0] * 3, costs, bars, second, {}, {}, variant, {}, machine, {})  # fmt: skip


def problem(label, curves, *, n=4, group="", swept=None):
    curves = [c._replace(problem=label) for c in curves]
    best = BestKnown(0.0, "known in closed form")
    facts = {"parameters": n, "prices": {}}
    return ProblemScore(label, facts, 0.0, curves, [], group or label, swept or {}, label, best)


def study(costs, **changes):
    """Problems by label from {problem: {variant: [cost per seed]}}."""
    return [
        problem(label, [curve(v, c, seed=s) for v, cs in row.items() for s, c in enumerate(cs)], **changes)
        for label, row in costs.items()
    ]  # fmt: skip


# --- intervals -----------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_is_an_interval_and_symmetric(successes, trials):
    successes = min(successes, trials)
    found, mirror = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low == pytest.approx(1 - mirror.high, abs=1e-12)
    # the defining equation: at its ends the score test is just significant
    for end in {found.low, found.high} - {0.0, 1.0}:
        z = abs(found.estimate - end) / math.sqrt(end * (1 - end) / trials)
        assert z == pytest.approx(1.959964, abs=1e-5)


@QUICK
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.integers(0, 5))
def test_bootstrap_statistics_are_the_plain_ones(values, seed):
    x = np.array(values)
    w = np.random.default_rng(seed).integers(0, 4, size=(5, x.size))
    w[:, 0] += 1  # no empty resample
    for row, m, h in zip(w, mean(x, w), median(x, w), strict=True):
        drawn = np.repeat(x, row)
        assert m == pytest.approx(np.mean(drawn), abs=1e-9)
        assert h == pytest.approx(np.median(drawn), abs=1e-9)


@QUICK
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=10), st.floats(-5, 5), st.floats(0.1, 9))
def test_bootstrap_moves_with_its_data_and_holds_its_estimate(values, shift, scale):
    found = bootstrap(mean, values)
    moved = bootstrap(mean, [shift + scale * v for v in values])
    assert found.low <= found.estimate + 1e-9
    assert found.high >= found.estimate - 1e-9
    for a, b in zip(found[:3], moved[:3], strict=True):
        assert b == pytest.approx(shift + scale * a, abs=1e-6)


@pytest.mark.parametrize("count", [2, 4, 12, 40])
def test_intervals_cover_as_often_as_they_say(count):
    rng = np.random.default_rng(count)
    samples = rng.normal(size=(400, count))
    hits = 0
    for sample in samples:
        found = bootstrap(mean, sample, resamples=400, student=True)
        hits += found.low <= 0 <= found.high
    assert hits / len(samples) > 0.92  # 0.95 less three standard errors


def test_resampling_families_sees_what_resampling_problems_does_not():
    rng = np.random.default_rng(0)
    families = np.repeat(rng.normal(size=8), 10)  # ten copies of each are no ten problems
    alone = bootstrap(mean, families)
    grouped = bootstrap(mean, families, groups=np.repeat(np.arange(8), 10).tolist())
    assert grouped.units == 8
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_no_claim_rests_on_one_unit():
    assert not Interval(2.0, 1.9, 2.1, 1).excludes(1.0)
    one = cost_ratio(
        [reach(curve("a", 9.0), 1e-6, "calls")], [reach(curve("b", 90.0), 1e-6, "calls")]
    )
    assert one.interval.estimate == pytest.approx(0.1)
    assert (one.unit, one.separable) == ("none", False)


# --- time to target ------------------------------------------------------------------------------


def test_a_first_hit_is_known_within_its_snapshots_and_the_clock():
    one = curve("a", 8.0, spread=0.25)._replace(gaps=[1.0, 1e-3, 1e-9])
    one.costs.update(steps=[0, 4, 9], warm=[0.0, 4.0, 8.0], calls=[0, 5, 10])
    one = one._replace(warm_spread=[(0.0, 0.0), (3.0, 5.0), (6.0, 10.0)])
    # cost, lower, upper, fastest, slowest, spent
    assert reach(one, 1e-6, "steps")[-6:] == (9, 5, 9, 4, 9, 9)  # not at 4, so at 5 or later
    assert reach(one, 1e-6, "calls")[-6:] == (10, 5, 10, 5, 10, 10)
    assert reach(one, 1e-6, "warm")[-6:] == (8.0, 4.0, 8.0, 3.0, 10.0, 8.0)
    missed = reach(one, 1e-12, "warm")
    assert not missed.reached
    assert missed[-6:] == (math.inf, 8.0, math.inf, 6.0, math.inf, 8.0)
    one.costs.update(steps=[0, 4, 5])  # consecutive steps: the hit is exact
    assert reach(one, 1e-6, "calls")[-6:] == (10, 10, 10, 10, 10, 10)
    throttled = one._replace(facts={"invalid": ["throttled"]})
    assert math.isnan(reach(throttled, 1e-6, "warm").cost)
    assert reach(throttled, 1e-6, "calls").cost == 10
    # one trial is known to within the spread of its clock, which says nothing of other runs
    lone = median_cost([reach(one, 1e-6, "warm")])
    assert lone == Interval(8.0, 6.0, 10.0, 1)


def test_success_rates_medians_and_ert_have_their_closed_forms():
    (p,) = study({"p": {"a": [10.0, 20.0, 30.0, math.inf]}})
    trials = reaches([p], 1e-6, "calls", "a")
    assert success_rate(trials)[:2] == wilson(3, 4)[:2]
    assert median_cost(trials).estimate == 25.0
    assert expected_running_time(trials).estimate == pytest.approx((10 + 20 + 30 + 1e7) / 3)
    (none,) = study({"p": {"a": [math.inf, math.inf]}})
    assert expected_running_time(reaches([none], 1e-6, "calls")).estimate == math.inf
    assert median_cost(reaches([none], 1e-6, "calls")).estimate == math.inf


def test_ert_is_the_mean_cost_of_restarting_until_success():
    """A solver that succeeds with probability p at cost 1 and fails at cost 3: 1 + 3 (1 - p) / p."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        met = rng.random(40) < 0.5
        trials = [
            reach(curve("a", 10.0 if m else math.inf, seed=i), 1e-6, "calls")
            for i, m in enumerate(met)
        ]
        trials = [t._replace(spent=30.0, lower=30.0) if not t.reached else t for t in trials]
        found = expected_running_time(trials)
        covered += found.low <= 40.0 <= found.high
    assert covered >= 52  # 57 expected


@QUICK
@given(st.lists(st.tuples(COSTS, COSTS), min_size=2, max_size=8), st.floats(0.01, 100))
def test_paired_ratios_scale_and_invert(pairs, factor):
    def trials(name, costs):
        (p,) = study({"p": {name: costs}})
        return [t._replace(lower=t.cost) for t in reaches([p], 1e-6, "calls")]

    first, second = trials("a", [a for a, _ in pairs]), trials("b", [b for _, b in pairs])
    there, back = cost_ratio(first, second), cost_ratio(second, first)
    assert there.interval.estimate == pytest.approx(1 / back.interval.estimate)
    assert there.interval.low == pytest.approx(1 / back.interval.high, rel=0.2)  # one resampling
    geometric = math.exp(np.mean([math.log(a / b) for a, b in pairs]))
    assert there.interval.estimate == pytest.approx(geometric)
    own = cost_ratio(first, first)  # A/A
    assert own.interval[:3] == (1.0, 1.0, 1.0)
    assert not own.separable
    bigger = [t._replace(cost=t.cost * factor, lower=t.cost * factor, upper=t.cost * factor) for t in first]  # fmt: skip
    if factor * min(t.cost for t in first) >= 1:
        again = cost_ratio(bigger, second).interval.estimate
        assert again == pytest.approx(factor * there.interval.estimate)


def test_two_names_of_one_noisy_solver_tie_and_a_slowed_one_is_found_out():
    """A/A at most as often apart as the interval allows; half again as slow always is."""
    rng = np.random.default_rng(3)

    def trials(name, factor=1.0):
        costs = (100 * factor * np.exp(0.1 * rng.normal(size=8))).tolist()
        return [
            t._replace(lower=t.cost) for t in reaches(study({"p": {name: costs}}), 1e-6, "warm")
        ]

    apart = sum(cost_ratio(trials("a"), trials("again")).separable for _ in range(100))
    assert apart <= 11  # 5 expected
    slowed = [cost_ratio(trials("slow", 1.5), trials("a")) for _ in range(100)]
    assert all(r.separable for r in slowed)
    assert sum(r.interval.low <= 1.5 <= r.interval.high for r in slowed) >= 89


def test_ratios_resample_the_widest_unit_there_is():
    def ratio(problems):
        return cost_ratio(*(reaches(problems, 1e-6, "calls", v) for v in "ab"))

    table = {f"p{i}": {"a": [10.0, 11.0], "b": [30.0, 31.0, 5.0]} for i in range(4)}
    assert ratio(study(table)).unit == "group"
    assert ratio(study(table, group="one family")).unit == "problem"
    lone = ratio(study({"p": table["p0"]}))
    assert (lone.unit, lone.joint) == ("seed", 2)
    half = ratio(study({"p": {"a": [10.0, math.inf, 7.0], "b": [30.0, 31.0, math.inf]}}))
    assert half[2:] == (1, 1, 1, 0)


def test_machines_share_no_clock():
    mixed = problem(
        "p", [curve("a", 5.0), curve("a", 6.0, seed=1), curve("b", 7.0, machine="other")]
    )
    with pytest.raises(ValueError, match="2 machines, which share no 'warm'"):
        reaches([mixed], 1e-6, "warm")
    assert len(reaches([mixed], 1e-6, "calls")) == 3
    (kept,), note = on_one_machine([mixed])
    assert [c.variant for c in kept.curves] == ["a", "a"]
    assert "1 trials of 1 other machine are left out" in note
    assert verdicts([mixed], 1e-6)[-1] == note


# --- profiles ------------------------------------------------------------------------------------


TABLES = st.integers(1, 6).flatmap(
    lambda rows: st.lists(
        st.lists(COSTS | st.just(math.inf), min_size=rows, max_size=rows), min_size=2, max_size=4
    )
)


def tabled(columns):
    rows = {
        f"p{i}": {f"s{j}": [c[i]] for j, c in enumerate(columns)} for i in range(len(columns[0]))
    }
    return cost_table(study(rows), 1e-6, "calls")


@QUICK
@given(TABLES)
def test_performance_profiles_are_what_dolan_and_more_say(columns):
    table = tabled(columns)
    values = np.array(columns).T
    best = values.min(axis=1)
    for j, steps in enumerate(performance_profile(table)):
        assert all(a < b for a, b in itertools.pairwise(steps.x))
        assert all(a < b for a, b in itertools.pairwise(steps.share))
        solved = np.isfinite(values[:, j])
        assert steps.at(1.0) == pytest.approx(np.mean(solved & (values[:, j] == best)))
        assert steps.at(math.inf) == pytest.approx(np.mean(solved))
        assert steps.at(3.0) == pytest.approx(np.mean(solved & (values[:, j] <= 3.0 * best)))
    # the unit of cost does not matter
    scaled = performance_profile(table._replace(values=table.values * 8.0))
    assert scaled == performance_profile(table)
    assert all(
        pair.wins + pair.losses + pair.ties == len(table.problems) for pair in pairwise(table)
    )


def test_data_profiles_and_ecdfs_do_not_mix_sizes():
    small = problem("s", [curve("a", 12.0), curve("b", math.inf)], n=3)
    large = problem("l", [curve("a", 1100.0), curve("b", 44.0)], n=10)
    table = cost_table([small, large], 1e-6, "gradients")
    first, second = data_profile(table)
    assert (first.x, first.share) == ([3.0, 100.0], [0.5, 1.0])  # 12 / 4, 1100 / 11
    assert (second.x, second.share) == ([4.0], [0.5])
    by_size = ecdf([small, large], [1e-6, 1e-5], "calls")
    assert list(by_size) == [3, 10]
    assert by_size[3][0].at(12.0) == 1.0
    assert by_size[3][1].at(math.inf) == 0.5  # 1e-5 is met at the snapshot before
    assert by_size[10][0].at(100.0) == 0.0


def test_a_solver_that_was_not_run_everywhere_is_left_out_and_named():
    problems = study({"p": {"a": [1.0], "b": [2.0]}, "q": {"a": [3.0]}})
    table = cost_table(problems, 1e-6, "calls")
    assert table.solvers == ["a"]
    assert table.left_out == [("b", "not run on q")]


def test_rankings_by_profile_can_turn_on_who_else_is_there():
    """A third solver puts the second problem out of reach of the first: the others change places."""
    table = tabled([[1.0, 1000.0], [40.0, 20.0], [80.0, 1.0]])
    order = [name for name, _ in ranking(table)]
    assert order.index("s0") < order.index("s1")
    (found,) = leave_one_solver_out(table)
    assert (found.solver, found.swapped) == ("s2", [("s0", "s1")])
    assert [name for name, _ in ranking(table.only(["s0", "s1"]))] == ["s1", "s0"]
    same = tabled([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
    assert leave_one_solver_out(same) == []
    assert ranking(same)[0] == ("s0", 1.0)


def test_whose_absence_changes_the_ranking_is_told_in_words():
    def said(columns):
        rows = {f"p{i}": {f"s{j}": [c[i]] for j, c in enumerate(columns)} for i in range(2)}
        return stability(study(rows), 1e-6, "calls")

    told = said([[1.0, 1000.0], [40.0, 20.0], [80.0, 1.0]])
    assert "It changes without s2, s1 ahead of s0; without any one of the other 2 nothing" in told
    assert "the others keep their order" in said([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
    assert said([[1.0, 2.0], [2.0, 4.0]]) == ""  # of two, one has no company


# --- penalised costs and portfolios --------------------------------------------------------------


def test_par2_counts_a_miss_as_twice_the_budget():
    found = study(
        {"p": {"a": [10.0, math.inf], "b": [30.0, 50.0]}, "q": {"a": [20.0], "b": [40.0]}}
    )
    a, b = par2(found, 1e-6, "calls", 100.0)
    assert (a.variant, a.score.estimate) == ("b", 40.0)  # all solved: the mean cost
    assert (b.variant, b.solved, b.trials) == ("a", 2, 3)
    assert b.score.estimate == pytest.approx(((10 + 200) / 2 + 20) / 2)
    assert b.score.units == 2
    # a trial that failed is a trial that missed
    lost_one = par2(found[:1], 1e-6, "calls", 100.0, {("p", "b"): 1})
    missed = study({"p": {"a": [10.0, math.inf], "b": [30.0, 50.0, math.inf]}})
    assert lost_one == par2(missed, 1e-6, "calls", 100.0)
    assert lost_one[0].score.estimate == pytest.approx((30 + 50 + 200) / 3)
    (alone,) = par2(found[:1], 1e-6, "calls", 100.0, {("p", "c"): 2})[2:]
    assert (alone.variant, alone.solved, alone.trials) == ("c", 0, 2)
    assert alone.score.estimate == 200.0
    # no cost counts more than a miss, and who was not run everywhere is in no mean
    assert {p.score.estimate for p in par2(found, 1e-6, "calls", 1.0)} == {2.0}
    part = study({"p": {"a": [1.0], "b": [1.0]}, "q": {"a": [1.0]}})
    assert [p.variant for p in par2(part, 1e-6, "calls", 9.0)] == ["a"]


@QUICK
@given(TABLES, st.floats(1e6, 1e9), st.floats(1.0, 9.0))
def test_par2_grows_with_the_budget_only_by_the_misses(columns, budget, factor):
    rows = {
        f"p{i}": {f"s{j}": [c[i]] for j, c in enumerate(columns)} for i in range(len(columns[0]))
    }
    small = {p.variant: p for p in par2(study(rows), 1e-6, "calls", budget)}
    large = {p.variant: p for p in par2(study(rows), 1e-6, "calls", budget * factor)}
    for name, one in small.items():
        missed = one.trials - one.solved
        grown = 2 * one.budget * (factor - 1) * missed / one.trials
        assert large[name].score.estimate == pytest.approx(one.score.estimate + grown)


@QUICK
@given(TABLES)
def test_a_portfolio_of_defaults_is_the_least_and_the_sum_and_moves_nobody(columns):
    table, rows = tabled(columns), {
        f"p{i}": {f"s{j}": [c[i]] for j, c in enumerate(columns)} for i in range(len(columns[0]))
    }  # fmt: skip
    problems = study(rows)
    joined = with_portfolio(table, problems)
    k = len(columns)
    assert joined.solvers[k:] == [
        f"portfolio of defaults: the best of {k} alone", f"portfolio of defaults: all {k} tried",
    ]  # fmt: skip
    for i, values in enumerate(table.values):
        alone, total = joined.values[i, k:]
        assert alone == values.min()
        spent = np.where(np.isfinite(values), values, 1e7).sum()  # a miss spends its budget
        assert total == (pytest.approx(spent) if np.isfinite(alone) else math.inf)
    assert performance_profile(joined)[:k] == performance_profile(table)


def test_a_portfolio_holds_no_tuned_and_no_swept_setting():
    (found,) = study(
        {"p": {"a (default)": [30.0], "a (tuned)": [5.0], "b": [20.0], "c (lr=1)": [9.0]}}
    )
    owners = {"a (default)": "a", "a (tuned)": "a", "b": "b", "c (lr=1)": "c"}
    found = found._replace(curves=[c._replace(optimizer=owners[c.variant]) for c in found.curves])
    told = portfolio(found, 1e-6, "calls")
    assert (told.tried, told.best, told.alone, told.total) == (
        ["a (default)", "b"],
        "b",
        20.0,
        50.0,
    )
    assert portfolio(found, 1e-6, "memory").total == 30.0  # one after the other: the greatest
    assert tunes([found])
    assert not tunes(study({"p": {"a": [1.0]}}))


# --- compilation against warm gains --------------------------------------------------------------

SECONDS = st.integers(1, 1000)


@QUICK
@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_break_even_is_where_the_sums_of_cold_and_warm_seconds_cross(cold, warm, base, base_warm):
    def behind(n):
        return cold + (n - 1) * warm > base + (n - 1) * base_warm

    first, last = solves(cold, warm, base, base_warm)
    if math.isinf(first):
        assert all(behind(n) for n in (1, 2, 10**9))
        return
    assert not behind(first)
    assert first == 1 or behind(first - 1)
    if math.isinf(last):
        assert not behind(10**9)
    else:
        assert not behind(last)
        assert behind(last + 1)


def timed(variant, cold, warm, seed=0):
    one = curve(variant, 10.0, seed=seed)
    one.costs.update(warm=[0.0, warm, warm], cold=[0.0, cold, cold], steps=[0, 1, 10])
    return one._replace(gaps=[1.0, 1e-9, 1e-9] if math.isfinite(warm) else [1.0, 1.0, 1.0],
                        warm_spread=[(0.9 * w, 1.1 * w) for w in one.costs["warm"]])  # fmt: skip


def test_each_method_is_held_against_the_reference_of_its_problem():
    rows = [("base", 2.0, 2.0), ("slow to compile", 5.0, 1.0), ("interpreted", 1.0, 3.0),
            ("worse", 5.0, 4.0), ("better", 1.0, 1.0), ("lost", 9.0, math.inf)]  # fmt: skip
    found = break_even([problem("p", [timed(*row) for row in rows])], 1e-6)
    told = {b.variant: (b.first, b.last) for b in found}
    assert told == {
        "slow to compile": (4, math.inf), "interpreted": (1, 2), "worse": (math.inf, math.inf),
        "better": (1, math.inf), "lost": (math.inf, math.inf),
    }  # fmt: skip
    assert {b.reference for b in found} == {"base"}
    assert all(b.certain for b in found)
    level = problem("p", [timed("base", 2.0, 2.0), timed("level", 5.0, 1.9)])
    (doubted,) = break_even([level], 1e-6)
    assert (doubted.first, doubted.certain) == (31, False)  # the clock leaves it open
    with pytest.raises(ValueError, match="no reference"):
        break_even([level], 1e-6, "nobody")
    # the first solve pays for tuning: 9 cold seconds more, repaid a warm second at a time
    tuned = timed("tuned", 5.0, 1.0)._replace(variant="tuned (tuned)", optimizer="tuned")
    trial = timed("tuned", 9.0, 7.0)
    bill = problem("p", [timed("base", 2.0, 2.0), tuned])._replace(tuning=[trial])
    (paid,) = break_even([charged(bill)], 1e-6)
    assert paid.first == 1 + (9 + 3) / 1
    # no step takes some time too, by a clock with a spread
    late = [c._replace(warm_spread=[(0.01, 0.03), *c.warm_spread[1:]]) for c in level.curves]
    for one in late:
        one.costs["warm"][0] = 0.02
    assert [b.first for b in break_even([level._replace(curves=late)], 1e-6)] == [31]
    throttled = level._replace(curves=[c._replace(facts={"invalid": ["x"]}) for c in level.curves])
    assert break_even([throttled], 1e-6) == []


# --- rates -----------------------------------------------------------------------------------------


def test_rates_are_counts_over_warm_seconds():
    one = curve("a", 4.0)
    one.costs.update(flops=[0.0, 1e9, 6e9], bytes=[0.0, 1e9, 3e9], warm=[0.0, 1.0, 2.0])
    found = placement(one)
    assert found == (2.0, 3.0, 1.5)
    assert found.gflops == pytest.approx(found.intensity * found.gigabytes)
    tuned = one._replace(variant="a (tuned)", optimizer="a")
    (paid,) = charged(problem("p", [tuned])._replace(tuning=[tuned])).curves
    assert paid.costs["flops"][0] > 0
    assert placement(paid) == found  # what tuning cost is none of the run's rate
    throttled = placement(one._replace(facts={"invalid": ["throttled"]}))
    assert throttled.intensity == 2.0
    assert math.isnan(throttled.gflops)
    one.costs.update(bytes=[math.nan] * 3)
    assert math.isnan(placement(one).intensity)


# --- results to look at twice ----------------------------------------------------------------------


def doubted(curves):
    return [(d.variant, d.reason) for d in sceptical([problem("p", curves)], 1e-6)]


def test_a_default_that_beats_its_tuned_setting_is_in_doubt():
    def pair(default, tuned):
        return [curve(f"a ({kind})", cost, seed=s)._replace(optimizer="a")
                for kind, costs in (("default", default), ("tuned", tuned))
                for s, cost in enumerate(costs)]  # fmt: skip

    ((name, said),) = doubted(pair([10.0, 11.0, 12.0], [30.0, 33.0, 36.0]))
    assert name == "a (default)"
    assert "0.333 (95% interval" in said
    assert doubted(pair([30.0, 33.0, 36.0], [10.0, 11.0, 12.0])) == []
    assert doubted(pair([10.0, 31.0, 12.0], [30.0, 11.0, 12.5])) == []  # not beyond the interval
    ((_, said),) = doubted(pair([10.0, 31.0], [10.0, math.inf]))
    assert said == "met 1e-06 in 2 of 2 trials, the tuned setting in 1 of 2"
    paid = pair([10.0, 11.0, 12.0], [30.0, 33.0, 36.0])
    for one in paid[3:]:
        one.costs["steps"][0] = 20  # tuning is charged
    assert doubted(paid) == []


def test_a_method_quicker_than_its_namesake_elsewhere_is_in_doubt():
    own = curve("lbfgs", 10.0, spread=0.1)._replace(facts={"method": "lbfgs"})
    facts = {"method": "jaxopt:LBFGS", "peer": {"package": "jaxopt"}}
    peer = curve("theirs", 40.0, spread=0.1)._replace(facts=facts)
    ((name, said),) = doubted([own, peer])
    assert name == "lbfgs"
    assert said.startswith("0.25 (one run each) of the warm seconds of theirs")
    assert doubted([own, peer._replace(facts=facts | {"method": "jaxopt:BFGS"})]) == []
    assert doubted([own, curve("theirs", 11.0, spread=0.1)._replace(facts=facts)]) == []


def test_a_success_that_ends_at_no_minimum_is_in_doubt():
    facts = {"status": "CONVERGED_TO_PRECISION", "certificate": {"kind": "saddle"}}
    ended = [curve("a", 10.0 + s, seed=s)._replace(facts=facts) for s in range(2)]
    assert doubted(ended) == [
        ("a", "2 trials say that they converged, and end at a point certified saddle")
    ]
    for fine in ({"status": "MAX_STEPS"}, {"certificate": {"kind": "minimum"}}):
        assert doubted([c._replace(facts=facts | fine) for c in ended]) == []


def in_rounds(factor, shift=0.0):
    """Two rounds of one trial, the second slower by a factor and at another value."""
    jobs, records = recorded([1.5])
    again = jobs[1].model_copy(update={"round": 1})
    first = records[jobs[1].id]
    rows = [row | {k: factor * row[k] for k in ("warm_seconds", "warm_low", "warm_high")}
            | {"value": row["value"] + shift} for row in first.rows]  # fmt: skip
    return [*jobs, again], records | {again.id: first._replace(rows=rows)}


def test_rounds_that_disagree_are_in_doubt():
    (found,) = moved(*in_rounds(2.0))
    assert (found.seconds, found.value) == (2.0, 0.0)
    assert moved(*in_rounds(1.0)) == []
    assert moved(*in_rounds(1.0, shift=1e-12)) == []
    (found,) = moved(*in_rounds(1.0, shift=0.1))
    assert (found.seconds, found.value) == (1.0, pytest.approx(0.1 / 1.6))
    jobs, records = in_rounds(2.0)
    (told,) = sceptical([], 1e-6, jobs, records)
    assert told.reason == (
        "rounds of 1 trials disagree beyond their intervals: warm seconds up to 2x apart"
    )
    first = records[jobs[1].id]
    invalid = {jobs[1].id: first._replace(facts=first.facts | {"invalid": ["throttled"]})}
    assert moved(jobs, records | invalid) == []


def test_a_trial_is_lost_when_no_round_of_it_came_through():
    jobs, records = in_rounds(1.0)
    gone = {job.id: "killed" for job in jobs if job.kind == "trial"}
    kept = {k: r for k, r in records.items() if k not in gone}
    assert lost(jobs, kept, gone) == {("bowl", "o0"): 1}
    half = {jobs[1].id: "killed"}
    assert lost(jobs, {k: r for k, r in records.items() if k not in half}, half) == {}


# --- fronts and orders ---------------------------------------------------------------------------


@QUICK
@given(
    st.lists(
        st.lists(st.tuples(COSTS, st.floats(0, 1)), min_size=1, max_size=6), min_size=1, max_size=4
    )
)
def test_no_point_beats_a_point_of_the_front(courses):
    curves = []
    for i, course in enumerate(courses):
        one = curve(f"s{i}", 5.0)._replace(gaps=[g for _, g in course])
        one.costs["calls"] = [c for c, _ in course]
        curves.append(one)
    p = problem("p", curves)
    points = [pair for course in courses for pair in course]
    found = front(p, "calls")
    assert found
    for point in found:
        assert not any(c <= point.cost and g < point.gap for c, g in points)
    for c, g in points:
        assert any(f.cost <= c and f.gap <= g for f in found)


def test_orders_that_change_with_the_axis_are_told():
    def pair(a_warm, b_warm, a_calls, b_calls):
        made = []
        for s in range(6):
            for name, warm, calls in (("a", a_warm, a_calls), ("b", b_warm, b_calls)):
                one = curve(name, 50.0, seed=s)
                one.costs.update(warm=[0, warm + s, warm + s], calls=[0, calls, calls])
                made.append(one._replace(warm_spread=[(c, c) for c in one.costs["warm"]]))
        return problem("p", made)

    (change,) = rank_changes(pair(10.0, 90.0, 70.0, 20.0), 1e-6, ["warm", "calls"])
    assert (change.ahead, change.behind, change.certain) == ("a", "b", True)
    assert change.on_axis.interval.high < 1 < change.on_other.interval.low
    assert rank_changes(pair(10.0, 90.0, 20.0, 70.0), 1e-6, ["warm", "calls"]) == []
    places = [(s.variant, s.place) for s in standings(pair(10.0, 90.0, 7.0, 7.0), 1e-6, "calls")]
    assert places == [("a", 1), ("b", 1)]  # not separable: one place
    assert off_every_front(pair(10.0, 90.0, 20.0, 70.0), ["warm", "calls"]) == ["b"]
    # the six seeds change nothing, which makes them one run
    assert trade_offs(pair(10.0, 90.0, 70.0, 20.0), 1e-6, ["warm", "calls"]) == (
        "In one run each, the order changes with the axis: a is ahead of b in warm seconds, behind "
        "it in oracle calls."
    )
    assert trade_offs(pair(10.0, 90.0, 20.0, 70.0), 1e-6, ["warm", "calls"]) == (
        "No two methods change order from axis to axis by more than is in doubt. "
        "On the front of no axis: b."
    )
    same = pair(10.0, 10.0, 20.0, 20.0)
    assert off_every_front(same, ["warm", "calls"]) == []  # who came to the same point shares it
    assert on_front(front(same, "calls")) == ["a", "b"]
    (alone,) = study({"p": {"a": [3.0], "b": [5.0]}})
    assert trade_offs(alone._replace(curves=alone.curves[:1]), 1e-6, ["warm"]) == ""


def test_the_share_of_resamples_in_which_a_method_is_the_cheapest():
    (found,) = study({"p": {"a": [10.0, 40.0], "b": [20.0, 22.0], "c": [90.0, 95.0]}})
    best = probability_cheapest(found, 1e-6, "calls")
    # of (2, 0), (1, 1), (0, 2) draws of the seeds the first alone has a ahead
    assert best["a"] == pytest.approx(0.25, abs=0.03)  # three standard errors of 2000 resamples
    assert best["c"] == 0.0
    assert sum(best.values()) == pytest.approx(1.0)
    assert outcomes(found, 1e-6, "calls")[0].best == best["a"]
    (tied,) = study({"p": {"a": [10.0, 20.0], "b": [10.0, 20.0], "lost": [math.inf, math.inf]}})
    assert probability_cheapest(tied, 1e-6, "calls") == {"a": 0.5, "b": 0.5, "lost": 0.0}
    (repeats,) = study({"p": {"a": [10.0] * 3, "b": [20.0] * 3}})
    assert probability_cheapest(repeats, 1e-6, "calls") == {}
    (partly,) = study({"p": {"a": [10.0, 20.0], "b": [5.0]}})
    assert probability_cheapest(partly, 1e-6, "calls") == {}
    # where every median is a miss nobody is the best
    (missed,) = study({"p": {"a": [10.0, math.inf], "b": [math.inf, math.inf]}})
    rare = probability_cheapest(missed, 1e-6, "calls")
    assert rare == {"a": pytest.approx(0.25, abs=0.03), "b": 0.0}


def test_a_change_of_order_is_told_where_it_is_beyond_doubt():
    (found,) = study({"p": {"a": [30.0, 33.0, 36.0], "b": [60.0, 66.0, 72.0]}})
    for one in found.curves:
        calls = {"a": 9.0, "b": 3.0}[one.variant] + one.seed / 10
        one.costs.update(calls=[0, calls, calls])
    said = trade_offs(found, 1e-6, ["warm", "calls"])
    assert said.startswith("The order changes with the axis: a is ahead of b in warm seconds")
    # a clock that leaves open who was sooner makes no order
    lone = found._replace(curves=[c._replace(warm_spread=[(1.0, 99.0)] * 3)
                                  for c in found.curves if c.seed == 0])  # fmt: skip
    said = trade_offs(lone, 1e-6, ["warm", "calls"])
    assert said.startswith("No two methods change order")


def test_outcomes_are_the_rate_the_median_and_the_expected_time():
    (found,) = study({"p": {"a": [10.0, 20.0, 30.0, math.inf], "b": [math.inf] * 4}})
    a, b = outcomes(found, 1e-6, "calls")
    trials = reaches([found], 1e-6, "calls", "a")
    assert (a.variant, a.reached, a.trials) == ("a", 3, 4)
    assert (a.success, a.median) == (success_rate(trials), median_cost(trials))
    assert a.expected == expected_running_time(trials)
    assert (b.reached, b.success.low, b.expected.estimate) == (0, 0.0, math.inf)
    assert b.plain()["expected"] == [None, None, None]
    # seeds that repeat one run are one trial: five of five would claim too much
    (repeats,) = study({"p": {"a": [10.0] * 5}})
    (one,) = outcomes(repeats, 1e-6, "calls")
    assert (one.reached, one.trials) == (1, 1)
    assert one.success.low == pytest.approx(wilson(1, 1).low)


def test_repeats_of_one_run_are_compared_whichever_took_the_median_time():
    """Of each method another seed may be in the middle: the pair is one all the same."""
    made = []
    for variant, seconds in (("a", [1.0, 2.0, 3.0]), ("b", [40.0, 60.0, 50.0])):
        for seed, warm in enumerate(seconds):
            one = curve(variant, 10.0, seed=seed, second=variant == "a")
            one.costs.update(warm=[0.0, warm, warm])
            made.append(one._replace(warm_spread=[(c, c) for c in one.costs["warm"]]))
    merged, repeats = merged_repeats(problem("p", made))
    assert repeats == 3
    ratio = cost_ratio(*(reaches([merged], 1e-6, "warm", v) for v in "ab"))
    assert (ratio.joint, ratio.interval.estimate) == (1, pytest.approx(2 / 50))
    told = verdict(problem("p", made), 1e-6)
    assert "one seed, so a measurement and no claim" in told
    assert "The 3 seeds repeat one run" in told


def test_memory_is_a_number_of_a_trial_and_of_its_machine():
    axis = AXES["memory"]
    assert axis.whole
    assert axis.of({}, {"memory_bytes": 3 * 2**20}, {}) == 3.0
    for facts in ({}, {"memory_bytes": None}, {"memory_bytes": 2**20, "lanes": {"number": 4}}):
        assert math.isnan(axis.of({}, facts, {}))
    made = []
    for name, mib, gap in (("lean", 1.0, 1e-3), ("good", 8.0, 1e-9), ("worse", 9.0, 1e-8)):
        one = curve(name, 10.0)
        one.costs.update(memory=[mib] * 3)
        made.append(one._replace(gaps=[1.0, 0.5, gap], facts={"invalid": ["shared"]}))
    found = problem("p", made)
    assert on_front(front(found, "memory")) == ["lean", "good"]
    # an invalid clock says nothing against it, another machine does
    (reached,) = reaches([found], 1e-6, "memory", "good")
    assert (reached.lower, reached.cost, reached.upper) == (8.0, 8.0, 8.0)
    order = [(s.variant, s.cost) for s in standings(found, 1e-6, "memory")]
    assert order == [("good", 8.0), ("worse", 9.0), ("lean", math.inf)]
    elsewhere = [made[0], made[1]._replace(machine="other")]
    with pytest.raises(ValueError, match="2 machines"):
        reaches([problem("p", elsewhere)], 1e-6, "memory")


# --- ratings -------------------------------------------------------------------------------------


@QUICK
@given(TABLES, st.lists(COSTS | st.just(math.inf), min_size=6, max_size=6))
def test_a_rival_moves_nobodys_rating(columns, rival):
    rows = {
        f"p{i}": {f"s{j}": [c[i]] for j, c in enumerate(columns)} for i in range(len(columns[0]))
    }
    before = rating_table(study(rows), [1e-6], "calls", "s0")
    joined = {name: row | {"rival": [rival[i]]} for i, (name, row) in enumerate(rows.items())}
    after = rating_table(study(joined), [1e-6], "calls", "s0")
    own = {r.solver: r.score for r in ratings(before)}
    assert {r.solver: r.score for r in ratings(after) if r.solver != "rival"} == own
    assert own["s0"].estimate == 0.0


def test_ratings_are_mean_log_ratios_to_the_reference():
    rows = {f"p{i}": {"base": [100.0], "half": [50.0], "lost": [math.inf]} for i in range(5)}
    rows["p4"]["half"] = [25.0]
    half, base, lost = ratings(rating_table(study(rows), [1e-6], "calls"))
    assert (half.solver, base.solver, lost.solver) == ("half", "base", "lost")
    assert half.score.estimate == pytest.approx((4 * 1 + 2) / 5)
    assert (half.low, half.high) == (pytest.approx(1.0), pytest.approx(1.25))
    assert (half.best, base.best) == (1.0, 0.0)
    assert lost.score.estimate == pytest.approx(-math.log2(100))
    assert half.places == (1, 1)
    with pytest.raises(ValueError, match="no reference 'nobody' among base, half, lost"):
        rating_table(study(rows), [1e-6], "calls", "nobody")


# --- scaling -------------------------------------------------------------------------------------


@QUICK
@given(st.floats(-1, 3), st.floats(1e-6, 1e3), st.floats(0.01, 100))
def test_a_power_law_gives_back_its_exponent(power, factor, unit):
    found = fit_exponent({unit * n: factor * n**power for n in (1, 4, 10, 30, 100)})
    assert found.estimate == pytest.approx(power, abs=1e-9)
    assert found.high - found.low < 1e-6


def test_intervals_of_exponents_cover():
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.arange(1, 6)
    covered = 0
    for _ in range(200):
        costs = sizes**1.5 * np.exp(0.3 * rng.normal(size=sizes.size))
        found = fit_exponent(dict(zip(sizes, costs, strict=True)))
        covered += found.low <= 1.5 <= found.high
    assert covered >= 176  # 190 expected
    assert fit_exponent({1.0: 1.0, 2.0: 2.0, 4.0: 5.0}).low == -math.inf


def scaled(seeds=4, **variants):
    """A sweep over n in which a variant's cost is variants[name](n), varied a little by seed."""
    problems = []
    for n in (10, 100, 1000, 10000):
        curves = [
            curve(name, cost(n) * (1 + 0.01 * s), seed=s, second=name == "newton")
            for name, cost in variants.items()
            for s in range(seeds)
        ]
        problems.append(problem(f"quad (n={n})", curves, n=n, group="quad", swept={"n": n}))
    return problems


def test_sweeps_find_exponents_and_where_second_order_stops_paying():
    problems = scaled(newton=lambda n: 2.0 * n**2, lbfgs=lambda n: 300.0 * n)
    (sweep,) = sweeps(problems)
    assert (sweep.label, sweep.name, sweep.sizes) == ("quad", "n", [10, 100, 1000, 10000])
    newton, lbfgs = exponents(sweep, 1e-6, "warm")
    assert newton.power.estimate == pytest.approx(2.0, abs=1e-6)
    assert lbfgs.power.estimate == pytest.approx(1.0, abs=1e-6)
    turn = crossover(sweep, "newton", "lbfgs", 1e-6, "warm")
    assert turn.leads == ["first", "first", "second", "second"]
    assert turn.between == [(100, 1000, "second")]
    told = next(v for v in verdicts(problems, 1e-6) if "exponent" in v)
    assert "lbfgs takes the lead between n = 100 and 1000" in told
    assert "2 (2 to 2) for newton" in told


def test_one_seed_makes_no_claim_along_a_sweep_either():
    problems = scaled(seeds=1, newton=lambda n: 2.0 * n**2, lbfgs=lambda n: 300.0 * n)
    told = verdicts(problems, 1e-6)
    assert any("one seed, so no claim where it pays" in v for v in told)
    assert not any("second order pays" in v or "does not pay" in v for v in told)


def test_a_grid_over_two_arguments_is_swept_along_each():
    problems = [
        problem(f"q (n={n}, condition={c:g})", [curve("a", n * c)], swept={"n": n, "condition": c})
        for n in (2, 4) for c in (1e2, 1e4)
    ]  # fmt: skip
    assert [(s.label, s.name) for s in sweeps(problems)] == [
        ("q (condition=100)", "n"), ("q (n=2)", "condition"), ("q (condition=10000)", "n"), ("q (n=4)", "condition"),
    ]  # fmt: skip


# --- verdicts ------------------------------------------------------------------------------------


def rivals(newton, lbfgs, seeds=5, spread=0.0):
    return problem("digits", [
        curve(name, cost * (1 + 0.01 * s) / 1e3 if math.isfinite(cost) else cost, seed=s, second=name == "newton", spread=spread)
        for name, cost in (("newton", newton), ("lbfgs", lbfgs)) for s in range(seeds)
    ])  # fmt: skip


def test_verdicts_name_factor_interval_and_seeds():
    told = verdict(rivals(2.0, 10.0), 1e-6)
    assert told.startswith(
        "On digits, second order pays: newton reached 1e-06 of the optimum 5x sooner"
    )
    assert "95% interval 5 to 5, 5 seeds" in told
    assert "second order does not pay: lbfgs reached" in verdict(rivals(10.0, 2.0), 1e-6)
    noise = {s: 1 + 0.2 * (-1) ** s for s in range(5)}
    p = rivals(2.0, 2.1)
    shaken = [c._replace(costs=c.costs | {"warm": [x * noise[c.seed] for x in c.costs["warm"]]})
              if c.variant == "newton" else c for c in p.curves]  # fmt: skip
    level = verdict(p._replace(curves=shaken), 1e-6)
    assert "second order is not separable from first" in level
    assert "Not separable from lbfgs: newton" in level


def test_one_seed_is_a_measurement_and_no_claim():
    told = verdict(rivals(2.0, 10.0, seeds=1), 1e-6)
    assert "one seed, so a measurement and no claim" in told
    assert "pays" not in told


def test_seeds_that_repeat_one_run_are_one_seed():
    alike = rivals(2e4, 1e5)
    same = [
        c._replace(costs=next(o for o in alike.curves if o.variant == c.variant).costs)
        for c in alike.curves
    ]
    clock = {s: 1 + 0.01 * s for s in range(5)}
    timed = [
        c._replace(costs=c.costs | {"warm": [x * clock[c.seed] for x in c.costs["warm"]]})
        for c in same
    ]
    told = verdict(alike._replace(curves=timed), 1e-6)
    assert "one seed, so a measurement and no claim" in told
    assert "The 5 seeds repeat one run" in told
    # also where the median times of two methods are those of different seeds
    clock = {(s, second): 1 + 0.01 * ((s + 2 * second) % 5) for s in range(5) for second in (0, 1)}
    apart = [
        c._replace(
            costs=c.costs | {"warm": [x * clock[c.seed, c.second_order] for x in c.costs["warm"]]}
        )
        for c in same
    ]
    told = verdict(alike._replace(curves=apart), 1e-6)
    assert "one seed, so a measurement and no claim" in told
    assert "nan" not in told
    # a single method that the seed does change makes them seeds
    moved = [c._replace(grad_norms=[c.seed + 1.0] * 3) if c.second_order else c for c in timed]
    assert "second order pays" in verdict(alike._replace(curves=moved), 1e-6)


def test_a_problem_that_starts_at_its_optimum_is_no_race():
    p = rivals(2.0, 10.0)
    there = p._replace(curves=[c._replace(gaps=[0.0] * len(c.gaps)) for c in p.curves])
    told = verdict(there, 1e-6)
    assert told == (
        f"On {p.label}, every trial starts at the best known value and none found a lower one: "
        "nothing to compare."
    )
    one = p._replace(curves=[there.curves[0], *p.curves[1:]])
    assert "nothing to compare" not in verdict(one, 1e-6)


def test_without_a_good_clock_verdicts_speak_of_counted_costs():
    p = rivals(2.0, 10.0)
    throttled = p._replace(curves=[c._replace(facts={"invalid": ["throttled"]}) for c in p.curves])
    told = verdict(throttled, 1e-6)
    assert "5x cheaper than lbfgs in gradient equivalents" in told
    assert "seconds" not in told


def test_verdicts_count_the_seeds_that_missed():
    p = rivals(2.0, 10.0)
    lost = [
        c if c.seed else curve(c.variant, math.inf, problem="digits", second=c.second_order)
        for c in p.curves
    ]
    assert "Not within the budget: newton (1 of 5 seeds) and lbfgs (1 of 5 seeds)" in verdict(
        p._replace(curves=lost), 1e-6
    )


# --- best known values ---------------------------------------------------------------------------


def recorded(values, *, known_by_reference=1.0, label="bowl", arguments=None, start=10.0):
    """Jobs and records of a problem and trials that end at some values."""
    common = {"problem": label, "problem_use": "quadratic", "problem_arguments": arguments or {}}
    jobs = [Job(kind="problem", **common)]
    facts = {"reference": {"value": known_by_reference, "source": "newton in float64"},
             "prices": {}, "checksum": "abc", "start_value": start, "parameters": 3}  # fmt: skip
    records = {jobs[0].id: Record({}, facts, [])}
    for i, value in enumerate(values):
        job = Job(kind="trial", optimizer=f"o{i}", optimizer_use="bfgs", variant=f"o{i}", **common)
        rows = [
            {"step": k, "value": v, "grad_norm": 0.0, "warm_seconds": k, "warm_low": k, "warm_high": k,
             "first_seconds": k, "flops": None} | {f"count_{kind}": k for kind in
             ("value", "grad", "jvp", "vjp", "hvp", "ggnvp", "hessian", "jacobian")}
            for k, v in enumerate([start, value])
        ]  # fmt: skip
        seconds = {"trace": 0.0, "lower": 0.0, "compile": 0.0}
        records[job.id] = Record({}, {"seconds": seconds, "status": "CONVERGED"}, rows)
        jobs.append(job)
    return jobs, records


def test_a_lower_value_raises_the_version_and_says_who_found_it(tmp_path):
    path = tmp_path / "best-known.json"
    assert read_known(path) == {}
    (first,) = score(*recorded([1.5]))
    assert first.best[:3] == (1.0, "newton in float64", 1)
    write_known(path, {first.identity: first.best})
    (second,) = score(*recorded([0.5]), read_known(path))
    assert second.best[:3] == (0.5, "o0, seed 0", 2)
    assert second.best.history == ((1, 1.0, "newton in float64"),)
    assert second.optimum_source == "o0, seed 0, version 2"
    write_known(path, {second.identity: second.best})
    (third,) = score(*recorded([1.5]), read_known(path))  # remembered where it is not found again
    assert third.best == second.best
    assert third.curves[0].gaps[-1] == pytest.approx((1.5 - 0.5) / (10 - 0.5))
    (rounding,) = score(*recorded([0.5 - 1e-15]), read_known(path))
    assert rounding.best.version == 2
    assert rounding.curves[0].gaps[-1] == 0.0


def test_a_best_value_belongs_to_the_problem_not_to_its_label():
    def name(**changes):
        jobs, records = recorded([], **changes)
        return identity(jobs[0], records[jobs[0].id].facts)

    assert name() == name(label="another label")
    assert name() != name(arguments={"n": 7})
    assert name() != name(start=10.1)  # another objective on the same data
    assert name() == name(start=10.0 * (1 + 1e-15))


@QUICK
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6))
def test_versions_only_ever_rise_and_values_only_ever_fall(values):
    best = None
    for value in values:
        known, best = best, improved(best, BestKnown(value, "x"), 20.0)
        if known is not None:
            assert best.value <= known.value
            assert best.version == known.version + (best.value < known.value)


@QUICK
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-5, 5), st.integers(1, 4)), max_size=6))
def test_merging_files_keeps_the_lower_value_under_a_later_version(entries):
    files = [{name: BestKnown(value, "x", version)} for name, value, version in entries]
    for name, best in merged(*files).items():
        others = [f[name] for f in files if name in f]
        assert best.value == min(o.value for o in others)
        assert all(best.version > o.version for o in others if o.value > best.value)
        assert all(best.version >= o.version for o in others)


def test_a_damaged_file_of_best_values_is_an_error_in_words(tmp_path):
    path = tmp_path / "best-known.json"
    for text in (
        "{",
        "[]",
        '{"problems": 3}',
        '{"problems": {"a": {"nonsense": 1}}}',
        '{"problems": {"a": 1}}',
    ):
        path.write_text(text)
        with pytest.raises(store.StoreError, match="is no file of best known values"):
            read_known(path)
