"""What a study survives: kills at any moment, full and read-only disks, damage, rivals, odd clocks.

Most of it runs with a stand-in for the measured trial, of some milliseconds and without JAX: what is
tested is everything around it.
"""

import contextlib
import errno
import inspect
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types

import psutil
import pytest

from optikit.bench import store
from optikit.bench.attempt import attempt, main, write_spec
from optikit.bench.lock import Busy, is_held, locked
from optikit.bench.plan import plan
from optikit.bench.record import Record, decode
from optikit.bench.run import Manner, run_study
from optikit.bench.spec import Study
from optikit.bench.status import progress
from optikit.bench.store import StoreError

STUDY = Study.model_validate({
    "name": "storm",
    "problems": {"bowl": {"use": "quadratic"}, "well": {"use": "double-well"}},
    "optimizers": {"newton": {"use": "newton"}, "adam": {"use": "adam"}},
    "seeds": list(range(12)),
})  # fmt: skip


def stand_in(job):
    """A record that depends on the job alone, but for its timings."""
    chance = random.Random(job.id)
    time.sleep(chance.uniform(0.0, 0.03))
    rows = [
        {"step": i, "value": chance.random() / (i + 1), "warm_seconds": time.perf_counter()}
        for i in range(40)
    ]
    facts = {"error": None, "status": "CONVERGED", "wall_seconds": 0.01, "started": time.time()}
    return Record(job.model_dump(mode="json") | {"id": job.id}, facts, rows)


LAB = f"""
import pathlib, random, sys, time, types
import pyarrow.parquet
from optikit.bench.executors import process
from optikit.bench.record import Record
from optikit.bench.run import Manner, run_study
from optikit.bench.spec import Study
from optikit.bench.store import StoreError

{inspect.getsource(stand_in)}

process.PRELOADED = ["storm_lab"]  # in place of JAX
trial = types.ModuleType("optikit.bench.trial")
trial.run_job = stand_in
sys.modules["optikit.bench.trial"] = trial

def go(folder):
    study = Study.model_validate_json({STUDY.model_dump_json()!r})
    try:
        outcome = run_study(study, pathlib.Path(folder), Manner(workers=2))
    except StoreError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(bool(outcome.failures))
"""


@pytest.fixture
def home():
    """A folder in memory where there is one: these tests kill processes, not disks."""
    shared = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield pathlib.Path(folder)


@pytest.fixture
def script(tmp_path):
    """A program that carries out the study with the stand-in, in a process pool."""
    (tmp_path / "storm_lab.py").write_text(LAB)
    path = tmp_path / "storm.py"
    path.write_text(
        "import sys\nif __name__ == '__main__':\n    import storm_lab\n    storm_lab.go(sys.argv[1])"
    )
    return path


@pytest.fixture
def fake_trial(monkeypatch):
    """The stand-in, in this process; may be replaced by setting `run_job`."""
    module = types.ModuleType("optikit.bench.trial")
    module.run_job = stand_in
    monkeypatch.setitem(sys.modules, "optikit.bench.trial", module)
    return module


def start(script, folder, *, prefix=()):
    path = os.pathsep.join([str(script.parent), *sys.path])
    return subprocess.Popen(
        [*prefix, sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def finish(process):
    try:
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def records(folder):
    return {path.name: path.read_bytes() for path in (folder / "records").glob("[!.]*.parquet")}


def untimed(record):
    rows = [{k: v for k, v in row.items() if k != "warm_seconds"} for row in record.rows]
    return record.job, record.facts["status"], rows


# --- kills ---------------------------------------------------------------------------------------


def storm(script, home, kills, seed):
    """Kill a run, one of its workers or all of it, again and again, while it carries out studies."""
    chance = random.Random(seed)
    jobs = {f"{job.id}.parquet": job for job in plan(STUDY)}
    done = hits = finished = 0
    while done < kills or finished == 0:
        folder = home / f"study{finished}"
        known: dict[str, bytes] = {}
        while True:
            process = start(script, folder)
            deadline = time.monotonic() + chance.uniform(0.4, 2.4)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            died = False
            if process.poll() is None and done < kills:
                done += 1
                died = strike(process, chance)
                hits += died
            code, _, err = finish(process)
            # a fork server that lost its run in the middle of a message says so as it ends
            ours = not died or "optikit" in err or "storm" in err
            assert not ("Traceback" in err and ours), err
            now = records(folder)
            for name, content in known.items():
                assert now.get(name) == content, "a recorded trial was lost or rewritten"
            for name, content in now.items():
                if name not in known:
                    assert decode(content).job["id"] == jobs[name].id  # whole
            known = now
            if code == 0:
                break
        assert set(known) == set(jobs)
        for name, job in jobs.items():
            assert untimed(decode(known[name])) == untimed(stand_in(job))
        finished += 1
    assert hits > kills / 3


def strike(process, chance):
    """SIGKILL something; returns whether the run itself died of it."""
    kind = chance.choice(["all", "run", "worker"])
    try:
        workers = psutil.Process(process.pid).children(recursive=True)
        if kind == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif kind == "run":
            process.kill()
        elif workers:
            chance.choice(workers).kill()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return kind != "worker"


def test_kills_at_random_moments_lose_nothing(script, home):
    storm(script, home, kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_hundred_kills_lose_nothing(script, home, seed):
    storm(script, home, kills=50, seed=seed)


def test_workers_end_with_their_run(script, home):
    process = start(script, home / "orphans")
    deadline = time.monotonic() + 60
    while not records(home / "orphans") and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    finish(process)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


# --- attempts ------------------------------------------------------------------------------------


def test_a_trial_is_one_idempotent_command(tmp_path, fake_trial, capsys):
    store.prepare(tmp_path)
    job = plan(STUDY)[0]
    spec = write_spec(job, tmp_path)
    assert main([str(spec)]) == 0
    path = store.path_of(tmp_path, job.id)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert main([str(spec)]) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert main([]) == 2
    assert main([str(tmp_path / "no.json")]) == 2
    (tmp_path / "odd.json").write_text("[]")
    assert main([str(tmp_path / "odd.json")]) == 2
    assert "not the spec of a trial" in capsys.readouterr().err
    path.write_bytes(b"damage")
    assert main([str(spec)]) == 3
    assert path.read_bytes() == b"damage"


def test_a_job_in_work_is_waited_for_and_not_run_again(tmp_path, fake_trial):
    store.prepare(tmp_path)
    job, runs = plan(STUDY)[0], []

    def slow(job):
        runs.append(threading.get_ident())
        time.sleep(0.3)
        return stand_in(job)

    fake_trial.run_job = slow
    rivals = [threading.Thread(target=attempt, args=(job, tmp_path)) for _ in range(4)]
    for rival in rivals:
        rival.start()
    time.sleep(0.1)
    store.write_atomically(tmp_path / "study.json", STUDY.model_dump_json().encode())
    assert [r["title"] for r in progress(tmp_path).running] == [job.title]
    for rival in rivals:
        rival.join()
    assert len(runs) == 1
    assert store.read(tmp_path, job.id).facts["attempt"] == 1


def test_attempts_are_counted_and_a_failed_one_is_tried_again(tmp_path, fake_trial):
    def failing(job):
        record = stand_in(job)
        return record._replace(facts={**record.facts, "error": "deliberately"})

    store.prepare(tmp_path)
    job = plan(STUDY)[2]
    fake_trial.run_job = failing
    assert attempt(job, tmp_path) == "deliberately"
    fake_trial.run_job = stand_in
    assert attempt(job, tmp_path) == ""
    record = store.read(tmp_path, job.id)
    assert (record.facts["attempt"], record.facts["host"]) == (2, os.uname().nodename)
    assert attempt(job, tmp_path) == ""
    assert store.read(tmp_path, job.id) == record


@pytest.mark.parametrize("stops", [1, 5])
def test_an_attempt_that_was_stopped_is_made_again(stops, tmp_path, fake_trial):
    store.prepare(tmp_path)
    job, runs = plan(STUDY)[1], []

    def stopped(job):
        runs.append(job)
        if len(runs) <= stops:
            os.kill(os.getpid(), signal.SIGCONT)  # what a stopped process sees when it goes on
        return stand_in(job)

    fake_trial.run_job = stopped
    assert attempt(job, tmp_path) == ""
    facts = store.read(tmp_path, job.id).facts
    assert len(runs) == (2 if stops == 1 else 3)
    assert ("interrupted" in facts.get("invalid", [])) is (stops == 5)  # no time is taken from it


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 300 kB, where one can be mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)],
                          capture_output=True, check=False)  # fmt: skip
    if made.returncode:
        pytest.skip("needs the right to mount")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(script, small_disk):
    folder = small_disk / "results"
    code, _, err = finish(start(script, folder))
    assert code == 2
    assert "No space left on device" in err
    assert "what is recorded is kept" in err
    assert "Traceback" not in err
    whole = records(folder)
    assert whole
    for content in whole.values():
        decode(content)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    code, _, err = finish(start(script, folder))
    assert (code, err) == (0, "")
    assert {name: records(folder)[name] for name in whole} == whole


def test_a_limit_on_file_size_is_told(script, tmp_path):
    limited = ("/bin/sh", "-c", 'ulimit -f 1; exec "$@"', "sh")  # 512 bytes
    code, _, err = finish(start(script, tmp_path / "results", prefix=limited))
    assert code == 2
    assert "cannot be written (File too large)" in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_whatever_the_disk_says_is_passed_on(number, tmp_path, fake_trial, monkeypatch):
    def failing(handle):
        raise OSError(number, os.strerror(number))

    store.prepare(tmp_path)
    job = plan(STUDY)[0]
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match=os.strerror(number)):
        attempt(job, tmp_path)
    monkeypatch.undo()
    assert store.read(tmp_path, job.id) is None
    assert not list((tmp_path / "records").iterdir())


def test_a_read_only_folder_is_told_and_can_still_be_read(tmp_path, fake_trial):
    folder = tmp_path / "results"
    outcome = run_study(STUDY, folder, Manner(executor="inline"))
    assert not outcome.failures
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", str(folder), str(folder)],
                             capture_output=True, check=False)  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\)"):
            run_study(STUDY, folder, Manner(executor="inline"))
        assert progress(folder).recorded == len(plan(STUDY))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- damage --------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, fake_trial):
    small = STUDY.model_copy(update={"seeds": [0, 1]})
    run_study(small, tmp_path, Manner(executor="inline"))
    return small, tmp_path


def test_any_damage_to_a_record_is_named(finished):
    study, folder = finished
    victim = next((folder / "records").glob("*.parquet"))
    good, chance = victim.read_bytes(), random.Random(0)
    cuts = [good[:n] for n in (0, 1, 4, len(good) // 2, len(good) - 1)]
    noise = [bytes(chance.randrange(256) for _ in range(500)), b"PAR1" + b"\0" * 40 + b"PAR1"]
    for content in [*cuts, *noise]:
        victim.write_bytes(content)
        with pytest.raises(StoreError, match=rf"{victim.name} is damaged .*: delete it"):
            run_study(study, folder, Manner(executor="inline"))
    for _ in range(200):  # a flipped bit anywhere: told, or harmless, never another exception
        at = chance.randrange(len(good))
        victim.write_bytes(
            good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
        )
        with contextlib.suppress(StoreError):
            store.read(folder, victim.stem)
    victim.unlink()
    assert not run_study(study, folder, Manner(executor="inline")).failures
    assert untimed(store.read(folder, victim.stem)) == untimed(decode(good))


def test_a_record_under_another_jobs_name_is_refused(finished):
    study, folder = finished
    first, second = sorted((folder / "records").glob("*.parquet"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match="holds the record of another job"):
        run_study(study, folder, Manner(executor="inline"))


def test_compaction_keeps_everything_and_survives_kills(finished, monkeypatch):
    study, folder = finished
    before = store.everything(folder)
    odd = "0123456789abcdef"
    store.write(
        folder,
        odd,
        Record({"id": odd}, {"error": None}, [{"step": 1, "value": math.inf, "new": 2.5}]),
    )
    before[odd] = store.read(folder, odd)

    def killed(path, missing_ok=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        store.compact(folder)
    monkeypatch.undo()
    assert store.everything(folder) == before
    assert store.compact(folder) == len(before)
    assert not list((folder / "records").iterdir())
    assert store.everything(folder) == before
    assert store.compact(folder) == len(before)  # again
    seen = []
    watcher = types.SimpleNamespace(
        planned=lambda total, done: seen.append((total, done)), begun=seen.append, ended=seen.append
    )
    run_study(study, folder, Manner(executor="inline"), watcher=watcher)
    assert seen == [(len(plan(study)), len(plan(study)))]
    (folder / "records.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"records.parquet is damaged .*: restore it"):
        run_study(study, folder, Manner(executor="inline"))


def test_records_that_do_not_fit_one_table_stay_as_they_are(finished):
    _, folder = finished
    before = store.everything(folder)
    store.write(folder, "f" * 16, Record({"id": "f" * 16}, {"error": None}, [{"step": "one"}]))
    with pytest.raises(StoreError, match="cannot be put into one table"):
        store.compact(folder)
    assert store.everything(folder).items() >= before.items()


def test_damaged_configurations_of_a_folder_are_told(finished):
    _, folder = finished
    (folder / "run.json").write_text("{")
    assert progress(folder).recorded  # how it was run is a default, not a necessity
    (folder / "study.json").write_text('{"name": "x"')
    with pytest.raises(StoreError, match=r"study\.json is damaged"):
        progress(folder)


# --- rivals and clocks ---------------------------------------------------------------------------


def test_two_runs_on_one_folder_are_refused(script, home):
    first, second = (start(script, home / "shared") for _ in range(2))
    ends = [finish(first), finish(second)]
    assert sorted(code for code, _, _ in ends) in ([0, 2], [0, 0])  # or one after the other
    for code, _, err in ends:
        if code == 2:
            assert "is being run by process" in err
            assert "Traceback" not in err
    assert len(records(home / "shared")) == len(plan(STUDY))


def test_a_lock_dies_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time, pathlib\nfrom optikit.bench.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), wait=False):\n print('held', flush=True)\n time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert is_held(path)
    with pytest.raises(Busy), locked(path, wait=False):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not is_held(path)
    with locked(path, wait=False):
        assert is_held(path)


def test_where_there_are_no_locks_work_goes_on(tmp_path, fake_trial, monkeypatch):
    import fcntl

    def unsupported(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    outcome = run_study(
        STUDY.model_copy(update={"seeds": [0]}), tmp_path, Manner(executor="inline")
    )
    assert not outcome.failures


def test_a_clock_set_back_changes_no_result(tmp_path, fake_trial, monkeypatch):
    small = STUDY.model_copy(update={"seeds": [0, 1]})
    run_study(small, tmp_path / "straight", Manner(executor="inline"))
    real = time.time()
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real - 86_400.0 * next(ticks))
    run_study(small, tmp_path / "back", Manner(executor="inline"))
    os.utime(tmp_path / "back" / "study.json", (0, 0))
    found = progress(tmp_path / "back")
    assert found.recorded == found.jobs
    assert found.seconds_left == 0.0
    json.loads(found.as_json())
    for job in plan(small):
        a, b = (store.read(tmp_path / name, job.id) for name in ("straight", "back"))
        assert untimed(a) == untimed(b)
