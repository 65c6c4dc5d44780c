"""Using the harness: resume, status, query, compact, schema, trackers, the live table."""

import errno
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import jsonschema
import pytest
from calls import called
from rich.console import Console

import optikit as ok
from optikit.bench import QueryError, StoreError, TrackerError, load, progress, query, store
from optikit.bench.live import Lines, Table, watcher
from optikit.bench.plan import plan
from optikit.bench.run import Manner, run_study, study_of
from optikit.bench.schema import study_schema
from optikit.bench.spec import load_study
from optikit.bench.track import RunTracker, tracker_named

SMALL = {"repeats": 1, "prices": False, "flops": False, "certificates": False}
CONFIGS = pathlib.Path(ok.__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("use") / "results"
    ok.Experiment(
        "use", {"well": "double-well"}, {"newton": "newton", "adam": {"use": "adam"}}, seeds=(0, 1),
        measure=SMALL, budget={"steps": 20},
    ).run(folder, executor="inline")  # fmt: skip
    return folder


def cli(*arguments, cwd, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "optikit.cli", *map(str, arguments)], cwd=cwd, capture_output=True,
        text=True, timeout=300, env={**os.environ, "COLUMNS": "140"}, check=False,
    )  # fmt: skip
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


# --- folders -------------------------------------------------------------------------------------


def test_resume_runs_what_is_missing_in_the_manner_of_before(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(
        "name: s\nproblems: {well: {use: double-well}}\noptimizers: {newton: {use: newton}}\n"
        "budget: {steps: 9}\nmeasure: {repeats: 1, flops: false, prices: false, certificates: false}\n"
    )
    cli("run", study, "--out", "r", "--executor", "inline", "-q", cwd=tmp_path)
    folder = tmp_path / "r"
    first = {path.name: path.read_bytes() for path in (folder / "records").glob("*.parquet")}
    victim = sorted(first)[0]
    (folder / "records" / victim).unlink()
    study.unlink()
    resumed = cli("resume", "r", "--json", cwd=tmp_path)
    assert "2 jobs, 1 recorded already" in resumed.stderr
    assert json.loads(resumed.stdout)["rows"]
    now = {path.name: path.read_bytes() for path in (folder / "records").glob("*.parquet")}
    assert set(now) == set(first)
    assert {k: v for k, v in now.items() if k != victim} == {
        k: v for k, v in first.items() if k != victim
    }
    assert json.loads((folder / "run.json").read_text())["executor"] == "inline"
    same = called("compare", "r", "r", cwd=tmp_path)
    assert "regression" not in same.stdout
    assert (
        "is not an executor"
        in called("resume", "r", "--executor", "x", cwd=tmp_path, check=2).stderr
    )
    assert "not a results folder" in called("resume", ".", cwd=tmp_path, check=2).stderr
    assert "2 of 2 recorded, done" in called("status", "r", cwd=tmp_path).stdout
    assert called("query", "r", "SELECT count(*) AS n FROM trials", cwd=tmp_path).stdout == "n\n2\n"
    assert "one SELECT" in called("query", "r", "DROP TABLE trials", cwd=tmp_path, check=2).stderr
    assert "2 records in" in called("compact", "r", cwd=tmp_path).stdout
    assert "2 jobs, 2 recorded already" in cli("resume", "r", cwd=tmp_path).stderr


def test_what_another_version_recorded_is_reported_and_compared_though_run_anew(
    results, monkeypatch
):
    from optikit.bench import plan as planning

    before = load(results)
    monkeypatch.setattr(planning, "_own_sources", lambda: "a later commit")
    assert progress(results).recorded == 0  # as a run would see it
    after = load(results)
    assert {r.job["id"] for r in after.records.values()} == set(before.records)
    assert [c.gaps for c in after.problems[0].curves] == [c.gaps for c in before.problems[0].curves]
    told = called("compare", results, results, "--json", cwd=".", check=0)
    found = json.loads(told.stdout)
    assert {c["variant"] for c in found["changes"]} == {"newton", "adam"}
    assert {c["verdict"] for c in found["changes"]} <= {
        "unchanged",
        "not separable",
        "not comparable",
    }
    said = called("report", results, "--json", cwd=".", check=0)
    assert "recorded by another version of the code" in said.stderr
    told = called("status", results, cwd=".").stdout
    assert "use: 5 of 5 recorded, by another version of the code, not running" in told
    assert "best on well: -0.25" in told


def test_what_an_own_module_ran_is_found_from_elsewhere_and_after_it_has_changed(tmp_path):
    module, steps = tmp_path / "own_solver.py", "def mine():\n    return ok.optimizers.{}()\n"
    module.write_text("import optikit as ok\n" + steps.format("newton"))
    (tmp_path / "s.yaml").write_text(
        "name: s\nproblems: {well: {use: double-well}}\n"
        "optimizers: {bfgs: {use: bfgs}, mine: {use: 'own_solver:mine'}}\nbudget: {steps: 9}\n"
        "measure: {repeats: 1, flops: false, prices: false, certificates: false}\n"
    )
    folder = tmp_path / "r"
    called("run", "s.yaml", "-q", "--executor", "inline", "--out", folder, cwd=tmp_path)
    assert progress(folder).recorded == 3
    assert len(load(folder).records) == 3
    module.write_text("import optikit as ok\n" + steps.format("gradient_descent"))
    found = progress(folder)
    assert (found.recorded, found.earlier) == (2, 1)
    assert {c.variant for c in load(folder).problems[0].curves} == {"bfgs", "mine"}
    told = json.loads(called("compare", folder, folder, "--json", cwd=tmp_path.parent).stdout)
    assert {change["variant"] for change in told["changes"]} == {"bfgs", "mine"}


def test_status_tells_apart_what_this_code_recorded_and_what_another_did(
    results, tmp_path, monkeypatch
):
    from optikit.bench import plan as planning

    both = tmp_path / "both"
    store.prepare(both)
    (both / "study.json").write_bytes((results / "study.json").read_bytes())
    for job in plan(study_of(results)):
        store.path_of(both, job.id).write_bytes(store.path_of(results, job.id).read_bytes())
    monkeypatch.setattr(planning, "_own_sources", lambda: "a later commit")
    job = plan(study_of(both))[0]
    record = store.Record(job.model_dump(mode="json") | {"id": job.id}, {"error": None}, [])
    store.write(both, job.id, record)
    found = progress(both)
    assert (found.jobs, found.recorded, found.earlier) == (5, 1, 4)
    assert "1 of 5 recorded, 4 more by another version of the code, not running" in str(found)


def test_a_compacted_folder_is_read_where_git_has_left_out_its_empty_folders(results, tmp_path):
    whole, clone = tmp_path / "whole", tmp_path / "clone"
    shutil.copytree(results, whole)
    store.compact(whole)
    clone.mkdir()
    for name in ("study.json", "records.parquet"):
        shutil.copy(whole / name, clone / name)
    assert load(clone).summary == load(results).summary
    assert "5 of 5 recorded, done" in called("status", clone, cwd=tmp_path).stdout
    count = called("query", clone, "SELECT count(*) AS n FROM trials", cwd=tmp_path)
    assert count.stdout == "n\n5\n"
    called("compare", whole, clone, cwd=tmp_path)
    assert called("compact", clone, cwd=tmp_path).stdout.startswith("5 records in")
    assert "no page" not in called("report", clone, cwd=tmp_path).stderr
    with pytest.raises(StoreError, match="not a results folder"):
        store.everything(tmp_path)


def test_another_versions_compacted_records_are_reported_without_their_folder(
    results, tmp_path, monkeypatch
):
    from optikit.bench import plan as planning

    shutil.copytree(results, tmp_path / "r")
    store.compact(tmp_path / "r")
    (tmp_path / "r" / "records").rmdir()
    monkeypatch.setattr(planning, "_own_sources", lambda: "a later commit")
    assert len(load(tmp_path / "r").records) == 5


def test_a_folder_that_cannot_be_written_is_read_all_the_same(results, tmp_path, monkeypatch):
    copy = tmp_path / "r"
    shutil.copytree(results, copy, ignore=shutil.ignore_patterns("*.html", "best-known.json"))
    before = sorted(path.name for path in copy.iterdir())

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store.tempfile, "mkstemp", read_only)
    said = called("report", copy, cwd=tmp_path)
    assert "newton" in said.stdout
    assert said.stderr.startswith(f"no page: {copy / 'report.html'} cannot be written (Read-only")
    assert "5 of 5 recorded" in called("status", copy, cwd=tmp_path).stdout
    called("query", copy, "SELECT 1", cwd=tmp_path)
    called("compare", copy, copy, cwd=tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == before


def test_overrides_may_be_options_and_bench_is_run():
    study = "quickstart.yaml"
    plain = called("config", "show", study, "seeds=[5]", cwd=CONFIGS, check=0).stdout
    option = called("config", "show", study, "--set", "seeds=[5]", cwd=CONFIGS, check=0).stdout
    assert plain == option
    assert "seeds:\n- 5\n" in plain
    jobs = called("run", study, "--dry-run", "seeds=[5]", cwd=CONFIGS, check=0).stdout
    same = called("bench", study, "--dry-run", "--set", "seeds=[5]", cwd=CONFIGS, check=0).stdout
    assert jobs == same
    assert "seed 5" in jobs


def test_status_tells_how_far_it_got(results, tmp_path):
    found = progress(results)
    assert (found.jobs, found.recorded, found.failed, found.running) == (5, 5, [], [])
    assert found.seconds_left == 0.0
    assert found.best[0]["problem"] == "well"
    assert found.best[0]["trials"] == 4
    assert found.best[0]["value"] == pytest.approx(-0.25)
    assert "5 of 5 recorded, done" in str(found)
    assert json.loads(found.as_json())["name"] == "use"
    some = tmp_path / "some"
    store.prepare(some)
    (some / "study.json").write_bytes((results / "study.json").read_bytes())
    assert progress(some).seconds_left is None
    for job in plan(study_of(results))[:3]:
        store.path_of(some, job.id).write_bytes(store.path_of(results, job.id).read_bytes())
    part = progress(some)
    assert (part.recorded, part.active) == (3, False)
    assert part.seconds_left > 0
    with store.sole_use(some):
        assert "running" in str(progress(some))


def test_a_folder_is_loaded_as_it_was_collected(results):
    again = load(results)
    assert len(again.records) == 5
    assert {c.variant for p in again.problems for c in p.curves} == {"newton", "adam"}
    with pytest.raises(StoreError, match="not a results folder"):
        load(results / "records")


def test_a_study_of_objects_is_resumed_by_its_script_only(tmp_path):
    bowl = ok.Problem(lambda x: jnp.sum(x**2), jnp.ones(2), (), 0.0)
    ok.Experiment(
        "o", {"bowl": bowl}, {"newton": "newton"}, measure=SMALL, budget={"steps": 3}
    ).run(tmp_path / "o")
    assert "run the script that made it again" in cli("resume", "o", cwd=tmp_path, check=2).stderr


def test_what_a_problem_prints_stays_out_of_the_json(tmp_path):
    (tmp_path / "talking.py").write_text(
        "import optikit as ok\n\n\ndef bowl():\n    print('it is made')\n"
        "    return ok.problems.quadratic(n=2)\n"
    )
    study = tmp_path / "s.yaml"
    study.write_text(
        "name: s\nproblems: {bowl: {use: 'talking:bowl'}}\noptimizers: {newton: {use: newton}}\n"
        "measure: {repeats: 1, flops: false, prices: false, certificates: false}\n"
    )
    done = cli("run", study, "--out", "r", "--executor", "inline", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["rows"]
    assert "it is made" in done.stderr


# --- queries -------------------------------------------------------------------------------------


def test_questions_are_answered_from_trials_and_snapshots(results):
    answer = query(
        results, "SELECT variant, min(value) AS best FROM snapshots GROUP BY 1 ORDER BY 1"
    )
    assert answer.columns == ["variant", "best"]
    assert [row[0] for row in answer.rows] == ["adam", "newton"]
    assert query(results, "SELECT count(*) FROM trials WHERE kind = 'trial'").rows == [(4,)]
    name = query(results, "SELECT DISTINCT facts->>'$.environment.platform' FROM trials").rows
    assert name == [("cpu",)]
    rows = json.loads(query(results, "SELECT step, value FROM snapshots LIMIT 2").as_json())
    assert set(rows[0]) == {"step", "value"}
    assert query(results, "WITH t AS (SELECT 1 AS x) SELECT * FROM t").rows == [(1,)]
    assert str(query(results, "SELECT 'a\tb\nc' AS x, NULL AS y")) == "x\ty\na b c\t"


@pytest.mark.parametrize("arguments", [
    ("query", "{}", "SELECT * FROM range(1)"),  # fits into the buffer of stdout
    ("query", "{}", "SELECT * FROM range(100_000)"),
    ("report", "{}"), ("--help",),
])  # fmt: skip
def test_a_reader_that_leaves_is_no_failure(arguments, results):
    left = subprocess.Popen(
        [sys.executable, "-m", "optikit.cli", *(a.format(results) for a in arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    left.stdout.close()
    assert "Broken" not in left.stderr.read()
    left.stderr.close()
    assert left.wait(timeout=60) == 0


def test_a_reader_that_leaves_does_not_hide_what_was_found(results):
    wrong = subprocess.Popen(
        [sys.executable, "-m", "optikit.cli", "query", results, "DROP TABLE trials"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wrong.stdout.close()
    assert "one SELECT" in wrong.stderr.read()
    wrong.stderr.close()
    assert wrong.wait(timeout=60) == 2


HARM = [
    "DROP TABLE trials", "DELETE FROM trials", "CREATE TABLE t AS SELECT 1", "UPDATE trials SET id = ''",
    "COPY trials TO '{there}'", "COPY (SELECT 1) TO '{there}'", "EXPORT DATABASE '{there}'",
    "ATTACH '{there}'", "INSTALL httpfs", "LOAD httpfs", "SET enable_external_access = true",
    "SET lock_configuration = false", "PRAGMA enable_profiling", "CALL pragma_version()",
    "SELECT * FROM read_csv('{here}')", "SELECT * FROM '{here}'", "SELECT * FROM read_text('{here}')",
    "SELECT * FROM read_parquet('{here}')", "SELECT * FROM glob('/*')", "SELECT * FROM answer",
    "SELECT 1; COPY trials TO '{there}'", "", "SELECT", "nonsense", "SELECT * FROM sniff_csv('{here}')",
    "SELECT getenv('HOME')", "SELECT * FROM read_json('{here}')",
]  # fmt: skip


@pytest.mark.parametrize("sql", HARM)
def test_a_question_changes_nothing_and_reads_nothing_else(sql, results, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(QueryError):
        query(results, sql.format(here=secret, there=tmp_path / "written"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- schema --------------------------------------------------------------------------------------


def test_the_schema_takes_what_a_study_takes():
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted(CONFIGS.glob("*.yaml")):
        validator.validate(load_study(path).model_dump(mode="json", exclude_none=True))
    good = {"name": "x", "problems": {"a": {"use": "quadratic", "n": 5}},
            "optimizers": {"b": {"use": "newton"}, "c": {"use": "my_lab:solver", "any": 1},
                           "d": {"use": "adam", "learning_rate": {"grid": [0.1]}}}}  # fmt: skip
    validator.validate(good)
    for section, entry in (("problems", {"use": "quadratc"}), ("problems", {"use": "quadratic", "m": 5}),
                           ("problems", {"use": "quadratic", "n": "five"}), ("problems", {"n": 5}),
                           ("optimizers", {"use": "newton", "max_trial": 3})):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**good, section: {"a": entry}})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**good, "problems": {"../a": {"use": "quadratic"}}})


def test_the_committed_schema_is_the_one_of_this_code():
    committed = json.loads((CONFIGS / "study.schema.json").read_text())
    assert committed == study_schema(), "optikit config schema > configs/study.schema.json"
    for path in CONFIGS.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=study.schema.json\n"), (
            path
        )


# --- trackers ------------------------------------------------------------------------------------


class Fake(types.ModuleType):
    """A module with wandb's interface, that notes what it is told."""

    def __init__(self, name, *, breaks=False):
        super().__init__(name)
        self.told, self.breaks, self.open = [], breaks, False

    def init(self, **settings):
        assert not self.open
        self.open = True
        self.told.append(settings)
        print("a tracker talks")

    def log(self, numbers, step):
        if self.breaks:
            raise ConnectionError("no network")
        self.told.append((step, numbers))

    def finish(self):
        self.open = False
        self.told.append("finished")


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_a_run_per_trial_with_its_snapshots(name, tmp_path, monkeypatch, capsys):
    module = Fake(name)
    monkeypatch.setitem(sys.modules, name, module)
    experiment = ok.Experiment("told", {"well": "double-well"}, {"newton": "newton"}, measure=SMALL,
                               budget={"steps": 5})  # fmt: skip
    found = experiment.run(tmp_path, executor="inline", track=name)
    trial = next(job for job in found.jobs if job.kind == "trial")
    settings, *rows, end = module.told
    assert (settings["project"], settings["group"], end) == ("told", "well", "finished")
    assert trial.id in settings["name"]
    assert settings["config"]["optimizer_use"] == "newton"
    recorded = found.records[trial.id].rows
    assert [step for step, _ in rows] == [row["step"] for row in recorded]
    assert rows[-1][1]["value"] == recorded[-1]["value"]
    assert capsys.readouterr().out == ""


def test_a_tracker_that_fails_does_not_stop_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb", breaks=True))
    experiment = ok.Experiment("told", {"well": "double-well"}, {"newton": "newton", "bfgs": "bfgs"},
                               measure=SMALL, budget={"steps": 5})  # fmt: skip
    found = experiment.run(tmp_path, executor="inline", track="wandb")
    assert len(found.records) == 3
    assert (
        capsys.readouterr().err.count("the tracker has failed, the study goes on: no network") == 1
    )


def test_a_tracker_that_is_not_there_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    study = study = ok.Experiment("x", {"well": "double-well"}, {"newton": "newton"}).study()
    with pytest.raises(TrackerError, match=r"pip install 'optikit\[wandb\]'"):
        run_study(study, tmp_path, Manner(executor="inline"), tracker=RunTracker("wandb", "wandb"))
    assert not list((tmp_path / "records").iterdir())
    with pytest.raises(TrackerError, match="is not a tracker: trackio, wandb"):
        tracker_named("notes")


def test_trackio_for_real_and_offline(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    code = (
        "import optikit as ok, sys\n"
        "ok.Experiment('offline', {'well': 'double-well'}, {'newton': 'newton'}, budget={'steps': 5},\n"
        "  measure={'repeats': 1, 'prices': False, 'flops': False,\n"
        "  'certificates': False}).run(sys.argv[1], executor='inline',\n"
        "  track='trackio')\n"
    )
    home = tmp_path / "trackio"
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tracker has failed" not in done.stderr
    assert any(path.stat().st_size for path in home.rglob("*offline*"))


# --- how it is shown -----------------------------------------------------------------------------


def test_the_live_table_shows_the_best_so_far_and_the_time_left(results):
    jobs = plan(study_of(results))
    table = Table(results, workers=2, refresh=False)
    table.live = types.SimpleNamespace(refresh=lambda: None, console=Console(file=io.StringIO()))
    table.planned(len(jobs), 0)
    for job in jobs[:3]:
        table.begun(job)
        table.ended(job, "")
    table.begun(jobs[3])
    table.ended(jobs[3], "it [red]broke")
    table.begun(jobs[4])
    screen = Console(file=io.StringIO(), width=120)
    screen.print(table.drawn())
    shown = screen.file.getvalue()
    assert "-0.25" in shown
    assert f"{jobs[4].variant} 0 s" in shown
    assert "4/5, 1 failed, about " in shown
    assert "left" in shown
    assert "it [red]broke" in table.live.console.file.getvalue()


def test_off_a_terminal_there_are_plain_lines(results, capsys):
    jobs = plan(study_of(results))
    for quiet in (False, True):
        with watcher(results, quiet=quiet, workers=1, inline=False) as told:
            assert isinstance(told, Lines)
            told.planned(2, 1)
            told.begun(jobs[0])
            told.ended(jobs[0], "broken")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "2 jobs, 1 recorded already",
        f"[2/2] {jobs[0].title}  failed: broken",
    ]


def test_on_a_terminal_there_is_the_table(tmp_path):
    """Through a pseudo-terminal, as a person sees it."""
    pty = pytest.importorskip("pty")
    (tmp_path / "s.yaml").write_text(
        "name: s\nproblems: {well: {use: double-well}}\noptimizers: {newton: {use: newton}}\n"
        "budget: {steps: 9}\nmeasure: {repeats: 1, flops: false, prices: false, certificates: false}\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "optikit.cli", "run", "s.yaml", "--executor", "inline"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other side is gone
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"best value so far" in seen
    assert b"2/2" in seen
    assert b"On well, " in out
