"""The harness end to end: what it measures, what it keeps, and what it survives."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from calls import called

import optikit as ok
from optikit.bench import progress, query, store
from optikit.bench.axes import AXES
from optikit.bench.live import Lines
from optikit.bench.plan import plan
from optikit.bench.score import cost_ratio, hit, main_target, reaches, verdict
from optikit.bench.spec import load_study

SMALL = {"repeats": 1, "prices": False, "flops": False, "certificates": False}


def bowl(n=4):
    scales = jnp.linspace(1.0, 30.0, n)
    return ok.Problem(
        lambda x, c: jnp.sum(c * (x - 1 / 3) ** 2), np.zeros(n), (scales,), 0.0, "a bowl"
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    experiment = ok.Experiment(
        "bowls",
        {"bowl": bowl(), "valley": "rosenbrock"},
        {"newton": "newton", "newton-cg": ok.optimizers.newton_cg(), "adam": optax.adam(0.1),
         "lbfgs": {"use": "lbfgs", "memory": 5}},
        budget={"steps": 120, "seconds": 20.0},
        measure={"repeats": 2},
    )  # fmt: skip
    return experiment.run(tmp_path_factory.mktemp("bowls"))


def curve(results, problem, variant):
    score = next(p for p in results.problems if p.label == problem)
    return next(c for c in score.curves if c.variant == variant)


def test_python_objects_and_names_make_one_study(results):
    assert {p.label for p in results.problems} == {"bowl", "valley"}
    assert all(len(p.curves) == 4 for p in results.problems)
    assert not results.summary.failures
    newton = curve(results, "bowl", "newton")
    assert newton.second_order
    assert not curve(results, "bowl", "adam").second_order
    assert hit(newton, 1e-8).cost["steps"] == 1


def test_every_axis_is_cumulative_and_known(results):
    for problem in results.problems:
        for one in problem.curves:
            for key in AXES:
                column = one.costs[key]
                if key in ("joules", "epochs"):  # no device here counts joules, no problem batches
                    assert all(math.isnan(x) for x in column)
                    continue
                assert all(math.isfinite(x) for x in column), (one.variant, key)
                assert all(a <= b for a, b in itertools.pairwise(column))
            assert one.costs["steps"][0] == 0
            assert one.costs["cold"][0] > one.costs["warm"][0]


def test_counts_and_flops_of_a_run_are_those_of_minimize(results):
    one = curve(results, "valley", "newton-cg")
    sol = ok.minimize(
        ok.problems.rosenbrock().objective, jnp.asarray([-1.2, 1.0]), method="newton-cg", tol=0.0
    )
    counts = {k: int(v) for k, v in sol.counts._asdict().items()}
    assert one.counts == counts
    per_call = [
        (b - a) for a, b in zip(one.costs["flops"][:-1], one.costs["flops"][1:], strict=True)
    ]
    assert min(per_call) > 10  # a gradient of two variables costs about that


def test_the_referee_judges_float32_runs_in_float64():
    experiment = ok.Experiment(
        "single", {"bowl": bowl()}, {"lbfgs": "lbfgs"}, dtype="float32", measure=SMALL,
        budget={"steps": 60},
    )  # fmt: skip
    found = experiment.run()
    record = next(r for r in found.records.values() if r.job["kind"] == "trial")
    last = record.rows[-1]
    assert last["value"] != last["solver_value"] or last["value"] == 0
    assert found.problems[0].optimum == 0.0
    assert 0 < min(found.problems[0].curves[0].gaps) < 1e-10


def test_the_grid_of_snapshots_is_geometric_and_the_budget_kept():
    experiment = ok.Experiment(
        "grid", {"valley": {"use": "rosenbrock", "n": 6}}, {"sgd": optax.sgd(1e-4)},
        budget={"steps": 77}, measure=SMALL,
    )  # fmt: skip
    steps = experiment.run().problems[0].curves[0].costs["steps"]
    assert steps[0] == 0
    assert steps[-1] == 77
    assert all(b <= max(a + 1, 1.2 * a) for a, b in itertools.pairwise(steps))


def test_a_budget_of_seconds_ends_a_trial():
    def slow(x):
        def body(_, v):
            return jnp.sin(v @ v.T) / 200

        # next to nothing, so that the reference solve is over in a step
        return 1e-12 * jnp.sum(jax.lax.fori_loop(0, 20, body, x[0] * jnp.eye(200))) + x @ x

    experiment = ok.Experiment(
        "slow", {"slow": ok.Problem(slow, np.ones(2))}, {"sgd": optax.sgd(1e-6)},
        budget={"steps": 100_000, "seconds": 0.3}, measure=SMALL,
    )  # fmt: skip
    curve = experiment.run().problems[0].curves[0]
    assert curve.facts["status"] == "OUT_OF_BUDGET"
    assert curve.facts["seconds"]["begin"] + curve.costs["warm"][-1] * 3 >= 0.3


def test_a_slowed_solver_is_reported_slower_by_about_its_factor():
    """Four gradients where one would do: four times the seconds on a problem that is all gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4000, 200)))
    problem = ok.Problem(
        ok.composite(lambda w, x: x @ w, ok.losses.logistic), np.zeros(200),
        (x, jnp.asarray((rng.random(4000) < 0.5) * 1.0)),
    )  # fmt: skip
    plain = ok.from_optax(optax.sgd(0.5))

    def wasteful(oracle, at, state, key):
        extra = [
            oracle.value_and_grad(jax.tree.map(lambda p, k=k: p + k * 1e-3, at.params))
            for k in range(3)
        ]
        nothing = sum(e.value * 0 for e in extra) + sum(jnp.sum(e.grad) * 0 for e in extra)
        params, known, state, info = plain.step(oracle, at, state, key)
        counts = info.counts._replace(grad=info.counts.grad + 3)
        return params + nothing, known, state, info._replace(counts=counts)

    experiment = ok.Experiment(
        "slowed", {"logistic": problem},
        {"plain": plain, "again": plain._replace(name="again"), "slow": plain._replace(step=wasteful)},
        budget={"steps": 150}, targets=[1e-4],
        measure={**SMALL, "repeats": 3, "rounds": 3, "prices": True},
    )  # fmt: skip
    (scored,) = experiment.run().problems
    curves = {c.variant: c for c in scored.curves}
    assert curves["slow"].gaps == pytest.approx(curves["plain"].gaps)
    assert curves["slow"].counts["grad"] - 1 == 4 * (curves["plain"].counts["grad"] - 1)
    gradients = [curves[k].costs["gradients"][-1] for k in ("slow", "plain")]
    assert gradients[0] / gradients[1] == pytest.approx(4, rel=0.02)
    target = 1e-4
    (steps,) = {t.cost for t in reaches([scored], target, "steps")}
    assert steps > 30

    def ratio(axis, first):
        trials = (reaches([scored], target, axis, name) for name in (first, "plain"))
        return cost_ratio(*trials).interval

    # the start takes one gradient of either: the factor is known, and so is every call
    exact = (1 + 4 * steps) / (1 + steps)
    for axis in ("count_grad", "calls", "gradients"):
        assert ratio(axis, "slow")[:3] == pytest.approx((exact, exact, exact), rel=1e-9)
        assert ratio(axis, "again")[:3] == (1.0, 1.0, 1.0)
    # about, in seconds: a second pass over the same matrix may find some of it in a cache
    low, high = ratio("warm", "slow")[1:3]
    assert low < 4.5
    assert high > 3
    assert high / low < 10
    low, high = ratio("warm", "again")[1:3]
    assert low <= 1.1
    assert high >= 1 / 1.1


def test_verdicts_say_who_won_by_how_much_and_who_did_not_arrive(results):
    sentences = {p.label: verdict(p, 1e-6) for p in results.problems}
    assert sentences["bowl"].startswith("On bowl, ")
    assert "1e-06 of the optimum" in sentences["bowl"]
    assert "Not within the budget: adam" in sentences["valley"]
    assert main_target([1e-2, 1e-6]) == 1e-6
    assert main_target([1e-1, 1e-2, 1e-3]) == 1e-2


def test_verdicts_where_only_one_order_or_nobody_arrives(results):
    problem = next(p for p in results.problems if p.label == "valley")
    lone = problem._replace(curves=[c for c in problem.curves if c.variant in ("adam", "newton")])
    assert "only second-order methods reached" in verdict(lone, 1e-6)
    nobody = problem._replace(curves=[c for c in problem.curves if c.variant == "adam"])
    assert "no method reached 1e-06" in verdict(nobody, 1e-6)
    assert "adam came closest" in verdict(nobody, 1e-6)


# --- nothing lost --------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_a_changed_study_only_what_changed(tmp_path):
    begun = []

    class Watcher:
        def planned(self, total, done):
            self.counts = (total, done)

        def begun(self, job):
            begun.append(job.title)

        def ended(self, job, failure):
            assert not failure

    def run(**changes):
        begun.clear()
        watcher = Watcher()
        ok.Experiment(
            "again", {"bowl": "double-well"}, {"newton": "newton", "bfgs": "bfgs"} | changes,
            measure=SMALL, budget={"steps": 20},
        ).run(tmp_path, executor="inline", watcher=watcher)  # fmt: skip
        return watcher.counts, list(begun)

    assert run() == ((3, 0), ["bowl · reference", "bowl · newton · seed 0", "bowl · bfgs · seed 0"])
    assert run() == ((3, 3), [])
    assert run(bfgs={"use": "lbfgs"}) == ((3, 2), ["bowl · bfgs · seed 0"])


def test_a_failing_trial_is_recorded_told_and_tried_again(tmp_path):
    def broken(x):
        raise ValueError("deliberately")

    experiment = ok.Experiment(
        "broken", {"fine": bowl(), "broken": ok.Problem(broken, np.zeros(2))}, {"newton": "newton"},
        measure=SMALL, budget={"steps": 5},
    )  # fmt: skip
    found = experiment.run(tmp_path)
    assert [t for t, _ in found.summary.failures] == [
        "broken · reference",
        "broken · newton · seed 0",
    ]
    assert "deliberately" in found.summary.failures[0][1]
    assert [p.label for p in found.problems] == ["fine"]
    assert found.page().exists()


def test_a_factory_that_returns_no_optimizer_is_told_what_to_return(tmp_path, monkeypatch):
    (tmp_path / "seven_returned.py").write_text("def seven():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = ok.Experiment(
        "seven", {"bowl": "double-well"}, {"seven": {"use": "seven_returned:seven"}, "n": "newton"},
        measure=SMALL, budget={"steps": 5},
    ).run(tmp_path / "r", executor="inline")  # fmt: skip
    assert [reason for _, reason in found.summary.failures] == [
        "TypeError: seven_returned:seven returned int 7: an optimizer factory returns an Optimizer or "
        "an optax transformation."
    ]


def test_what_a_message_holds_beyond_text_does_not_reach_the_terminal(tmp_path, capsys):
    said = "\x1b[31m red\r [/x] :boom:\nand a line more"

    def broken(x):
        raise RuntimeError(said)

    found = ok.Experiment(
        "broken", {"broken": ok.Problem(broken, np.zeros(2))}, {"newton": "newton"}, measure=SMALL,
        budget={"steps": 5},
    ).run(tmp_path, watcher=Lines(tmp_path))  # fmt: skip
    found.summary.print()
    print(progress(tmp_path))
    print(query(tmp_path, "SELECT error FROM trials"))
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert r"\x1b[31m red\r [/x] :boom:" in text
    assert f"RuntimeError: {said}" in {
        r.facts["error"] for r in found.records.values()
    }  # kept whole


def test_a_solver_that_diverges_is_a_result():
    found = ok.Experiment(
        "lost", {"bowl": bowl()}, {"wild": optax.sgd(10.0), "newton": "newton"}, measure=SMALL,
        budget={"steps": 400},
    ).run()  # fmt: skip
    wild = next(c for c in found.problems[0].curves if c.variant == "wild")
    assert wild.facts["status"] == "NOT_FINITE"
    assert min(wild.gaps) == 1.0


def test_a_damaged_record_is_named_with_its_remedy(tmp_path):
    experiment = ok.Experiment(
        "damage", {"bowl": "double-well"}, {"newton": "newton"}, measure=SMALL, budget={"steps": 5}
    )
    experiment.run(tmp_path, executor="inline")
    victim = next((tmp_path / "records").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(store.StoreError, match=r"damaged .*: delete it and run the study again"):
        experiment.run(tmp_path, executor="inline")
    victim.unlink()
    assert not experiment.run(tmp_path, executor="inline").summary.failures


def test_records_are_whole_or_absent(tmp_path):
    """A writer that dies before the rename leaves nothing under the final name."""
    store.prepare(tmp_path)
    (tmp_path / "records" / ".0123.parquet.x.tmp").write_bytes(b"half")
    assert store.read(tmp_path, "0123") is None
    record = store.Record({"id": "0123"}, {"error": None}, [{"step": 0, "value": math.inf}])
    store.write(tmp_path, "0123", record)
    assert store.read(tmp_path, "0123") == record


def test_an_unwritable_folder_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(store.StoreError, match=r"cannot be written .* choose another"):
        ok.Experiment("x", {"b": "double-well"}, {"n": "newton"}).run(tmp_path / "file")


# --- the command line ----------------------------------------------------------------------------


LAB = """
import jax.numpy as jnp
import numpy as np
import optax
import optikit as ok


def survey():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    return x, x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=60)


def wide_net(width: int = 4):
    def predict(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    x, y = survey()
    rng = np.random.default_rng(1)
    params = {"a": rng.normal(size=(3, width)), "b": rng.normal(size=width)}
    return ok.Problem(ok.composite(predict, ok.losses.huber), params, (x, y))


def my_solver(rate: float = 0.1):
    return optax.chain(optax.clip(1.0), optax.sgd(rate))
"""

LAB_STUDY = """
name: lab
problems:
  net: {use: 'my_lab.models:wide_net', width: 5}
  survey: {use: linear-regression, data: 'my_lab.models:survey'}
optimizers:
  mine: {use: 'my_lab.models:my_solver', rate: {grid: [0.05, 0.2]}}
  newton: {use: newton}
budget: {steps: 40}
measure: {repeats: 1, flops: false, prices: false, certificates: false}
"""


@pytest.fixture
def lab(tmp_path):
    """A folder outside the package with a user's own module and study."""
    package = tmp_path / "my_lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(LAB)
    (tmp_path / "lab.yaml").write_text(LAB_STUDY)
    return tmp_path


def optikit(*arguments, cwd, check=None):
    done = subprocess.run(
        [sys.executable, "-m", "optikit.cli", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "140"},
    )  # fmt: skip
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def test_a_users_own_model_data_and_optimizer_enter_by_import_path(lab):
    done = optikit("run", "lab.yaml", cwd=lab, check=0)
    assert "On net, " in done.stdout
    assert "On survey, " in done.stdout
    assert "mine (rate=0.2)" in done.stdout
    assert "[8/8]" in done.stderr  # progress on stderr, data on stdout
    assert "[8/8]" not in done.stdout
    assert (lab / "results" / "lab" / "report.html").stat().st_size > 1_000_000
    again = optikit("run", "lab.yaml", "--json", cwd=lab, check=0)
    assert "8 recorded already" in again.stderr
    rows = json.loads(again.stdout)["rows"]
    assert {r["optimizer"] for r in rows} == {"mine (rate=0.05)", "mine (rate=0.2)", "newton"}
    report = called("report", "results/lab", cwd=lab, check=0)
    assert "On net, " in report.stdout
    # a change in the user's module makes its trials new; the mistake in it is reported, not fatal
    (lab / "my_lab" / "models.py").write_text(LAB.replace("optax.clip(1.0)", "optax.clp(1.0)"))
    broken = optikit("run", "lab.yaml", "-q", cwd=lab, check=1)
    assert "failed: net · mine (rate=0.05)" in broken.stdout
    assert "clp" in broken.stdout
    assert broken.stderr == ""


def test_wrong_calls_end_with_two_and_a_line(lab, tmp_path):
    (lab / "bad.yaml").write_text(
        LAB_STUDY.replace("steps: 40", "steps: -4").replace("width", "widht")
    )
    done = optikit("config", "check", "bad.yaml", cwd=lab, check=2)
    assert done.stderr.splitlines() == [
        "bad.yaml:4:40: problems.net.widht: unknown argument: did you mean 'width'?",
        "bad.yaml:9:17: budget.steps: Input should be greater than or equal to 1 (got -4)",
    ]
    assert "Traceback" not in done.stderr
    # as the installed command, which has no folder of its own on its path: the study's counts
    elsewhere = subprocess.run(
        [sys.executable, "-P", "-m", "optikit.cli", "config", "check", "../bad.yaml"],
        cwd=lab / "my_lab", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert elsewhere.stderr == done.stderr.replace("bad.yaml", "../bad.yaml")
    assert called("run", "nowhere.yaml", cwd=lab, check=2).stderr.startswith("nowhere.yaml:1:1:")
    assert "not a results folder" in called("report", "my_lab", cwd=lab, check=2).stderr
    assert (
        "is not an executor"
        in called("run", "lab.yaml", "--executor", "x", cwd=lab, check=2).stderr
    )
    (lab / "taken").write_text("")
    assert (
        "cannot be written"
        in called("run", "lab.yaml", "--out", "taken/x", cwd=lab, check=2).stderr
    )


def test_config_check_show_list_and_dry_run(lab):
    assert (
        "6 trials on 2 problems" in called("config", "check", "lab.yaml", cwd=lab, check=0).stdout
    )
    shown = called("config", "show", "lab.yaml", "seeds=[7]", cwd=lab, check=0).stdout
    (lab / "again.yaml").write_text(shown)
    assert load_study(lab / "again.yaml").seeds == [7]
    listing = called("run", "lab.yaml", "--dry-run", cwd=lab, check=0).stdout.splitlines()
    assert len(listing) == 8
    assert not (lab / "results").exists()
    # two settings are tried, and their best is shown beside the defaults
    tuned = ("optimizers.mine.rate={uniform: [0.1, 0.3]}", "tuning.trials=2")
    told = called("config", "check", "lab.yaml", *tuned, cwd=lab, check=0).stdout
    assert "10 trials (4 of them to tune) on 2 problems" in told
    dry = called("run", "lab.yaml", "--dry-run", *tuned, cwd=lab, check=0)
    assert len(dry.stdout.splitlines()) == 6
    assert dry.stderr == "then 6 trials, default and as tuning chooses\n"
    for what, name in (("optimizers", "newton-cg"), ("problems", "rosenbrock"), ("losses", "huber"),
                       ("data", "digits")):  # fmt: skip
        assert name in called("list", what, cwd=lab, check=0).stdout
    called("list", "wishes", cwd=lab, check=2)


@pytest.mark.slow  # with real trials; tests/test_robustness.py has many more kills of quick ones
def test_kill_nine_in_mid_study_loses_nothing(lab):
    """Killed at random moments until it is done; then compared with a run left in peace."""
    rng = np.random.default_rng(0)
    command = [sys.executable, "-m", "optikit.cli", "run", "lab.yaml", "--out", "killed", "-q"]
    recorded: dict[str, bytes] = {}
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            command, cwd=lab, stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + rng.uniform(2.0, 9.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        finished = process.poll() is not None
        if not finished:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        files = {p.name: p.read_bytes() for p in (lab / "killed" / "records").glob("*.parquet")}
        assert all(files[name] == content for name, content in recorded.items())  # never rewritten
        recorded = files
        if finished:
            break
    assert finished
    assert kills >= 1
    jobs = plan(load_study(lab / "lab.yaml"))
    assert set(recorded) == {f"{job.id}.parquet" for job in jobs} or len(recorded) == 8
    optikit("run", "lab.yaml", "--out", "peace", "-q", cwd=lab, check=0)
    for path in (lab / "killed" / "records").glob("*.parquet"):
        a, b = (store.read(lab / name, path.stem) for name in ("killed", "peace"))
        assert untimed(a) == untimed(b)


def untimed(record):
    rows = [
        {k: v for k, v in row.items() if "seconds" not in k and "warm" not in k}
        for row in record.rows
    ]
    return record.job, record.facts.get("status"), rows


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to-the-run", "from-the-terminal"])
def test_interrupt_ends_with_130(lab, send):
    # a process that was started in the background ignores interrupts, and so do its own
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('optikit.cli', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "run", "lab.yaml"], cwd=lab, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert any("[1/8]" in line for line in process.stderr)  # one trial is over, others are not
        send(process.pid, signal.SIGINT)
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert "finished trials are kept" in stderr
    assert "Traceback" not in stderr


# --- the page ------------------------------------------------------------------------------------


def test_the_page_stands_alone(results):
    page = results.page().read_text()
    head = page.split("<script>")[0]
    assert "http" not in head.replace("http-equiv", "")
    assert "src=" not in head
    assert "seconds, with compilation" in page
    for problem in results.problems:
        assert problem.label in page


def test_names_from_a_study_cannot_break_the_page(tmp_path):
    nasty = "a <b>.+ - x"
    with pytest.raises(ok.bench.ConfigError, match="String should match pattern"):
        ok.Experiment(nasty, {"bowl": bowl()}, {"newton": "newton"}).study()
    evil = ok.Problem(
        lambda x: jnp.sum(x**2), np.ones(2), (), 0.0, "</script><script>alert(1)</script>"
    )
    found = ok.Experiment("evil", {"bowl": evil}, {"newton": "newton"}, measure=SMALL).run(tmp_path)
    assert "<script>alert" not in found.page().read_text()
