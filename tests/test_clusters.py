"""Ray and SLURM for real, on this machine: nodes and workers die in mid-trial, nothing is lost.

Ray's part needs `ray`. SLURM's needs `submitit`, and `sbatch` on the path or OPTIKIT_SLURM, a folder
into which Debian's packages slurmctld, slurmd, slurm-client, slurm-wlm-basic-plugins, libmunge2,
libhwloc15, libpmix2 and liblua5.1-0 were unpacked (`dpkg -x`): a cluster of two nodes on loopback,
without root's help from the system.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import pytest

from optikit.bench import store
from optikit.bench.executors import ExecutorError, executor_named, options_of
from optikit.bench.plan import plan
from optikit.bench.run import Manner, run_study
from optikit.bench.spec import load_study

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clusters' libraries

LAB = """
import time
import numpy as np
import optikit as ok


def bowl(seconds: float = 0.0):
    time.sleep(seconds)
    return ok.Problem(lambda x: ((x - 1.0) ** 2).sum(), np.zeros(3), (), 0.0)
"""
STUDY = """
name: cluster
problems: {bowl: {use: 'slow_lab:bowl', seconds: SECONDS}}
optimizers: {newton: {use: newton}}
seeds: SEEDS
budget: {steps: 10, seconds: 5.0}
measure: {repeats: 1, flops: false, prices: false, certificates: false}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "slow_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)

    def make(seconds, seeds):
        path = tmp_path / "study.yaml"
        path.write_text(
            STUDY.replace("SECONDS", str(seconds)).replace("SEEDS", str(list(range(seeds))))
        )
        return load_study(path)

    return make


def in_background(study, folder, manner):
    ends: list = []

    def carry_out():
        try:
            ends.append(run_study(study, folder, manner))
        except BaseException as error:
            ends.append(error)
            raise

    thread = threading.Thread(target=carry_out)
    thread.start()
    return thread, ends


def records(folder):
    return {path.stem: path.read_bytes() for path in (folder / "records").glob("[!.]*.parquet")}


def attempts(folder):
    """By job, what each attempt wrote when it began."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (folder / "attempts").glob("*")
    }


def in_work(folder, number, seconds=120):
    """The processes of jobs that were begun and are not recorded, once there are so many records."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done = records(folder)
        now = {
            k: lines[-1]["process"]
            for k, lines in attempts(folder).items()
            if lines and k not in done
        }
        if len(done) >= number and now:
            return now, done
        time.sleep(0.05)
    pytest.fail(f"no job in work after {seconds} s")


def whole(folder, study, known):
    """Every job has its record; what was recorded before was neither rewritten nor run again."""
    jobs = plan(study)
    now = records(folder)
    assert set(now) == {job.id for job in jobs}
    for name, content in known.items():
        assert now[name] == content
        assert len(attempts(folder)[name]) == 1
    for job in jobs:
        facts = store.read(folder, job.id).facts
        assert not facts["error"]
        assert facts["attempt"] == len(attempts(folder)[job.id])


# --- Ray -----------------------------------------------------------------------------------------


@pytest.fixture
def ray_cluster(monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray")
    home = tempfile.mkdtemp(prefix="r", dir="/tmp")  # names of sockets must be short
    monkeypatch.setenv("RAY_TMPDIR", home)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_ray_survives_a_killed_worker_and_a_killed_node(ray_cluster, study, tmp_path):
    cluster, nodes = ray_cluster
    wanted, folder = study(2.0, 7), tmp_path / "results"
    thread, ends = in_background(wanted, folder, Manner(executor="ray"))
    try:
        working, early = in_work(folder, 1)
        os.kill(next(iter(working.values())), signal.SIGKILL)
        _, known = in_work(folder, len(early) + 1)
        cluster.remove_node(nodes[1], allow_graceful=False)
    finally:
        thread.join(timeout=240)
    assert not ends[0].failures
    whole(folder, wanted, early | known)
    assert any(len(lines) > 1 for lines in attempts(folder).values())


@pytest.mark.slow
def test_ray_says_what_it_cannot_give(ray_cluster, study, tmp_path):
    with pytest.raises(ExecutorError, match=r"no node .* has 1 CPUs and 3 GPUs"):
        run_study(study(0.0, 1), tmp_path / "results", Manner(executor="ray", options={"gpus": 3}))


# --- SLURM ---------------------------------------------------------------------------------------


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(process):
    """What a process was started with; empty if it is gone."""
    try:
        words = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(word).partition("=")[::2] for word in words)


def named(process, word):
    return pathlib.Path(f"/proc/{process}/comm").read_text().startswith(word)


def parent(process):
    return int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class Nodes(NamedTuple):
    """The nodes' daemons, and the configuration by which their tasks are told from others."""

    daemons: dict[str, subprocess.Popen]
    conf: pathlib.Path

    def kill(self, node):
        """End a node as a power cut would: its daemon, its tasks and who watches each; tells whom."""
        tasks = {
            int(path.name)
            for path in pathlib.Path("/proc").glob("[0-9]*")
            if (told := environment(path.name)).get("SLURMD_NODENAME") == node
            and told.get("SLURM_CONF") == str(self.conf)
        }
        watchers = {above for task in tasks if named(above := parent(task), "slurmstepd")}
        lost = {self.daemons[node].pid, *watchers, *tasks}
        for process in (self.daemons[node].pid, *watchers, *tasks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return lost


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Two nodes on loopback, of which one can be killed."""
    pytest.importorskip("submitit")
    root = pathlib.Path(os.environ.get("OPTIKIT_SLURM", "/"))
    plugins = next(root.glob("usr/lib/*/slurm-wlm"), None)
    if plugins is None or not (root / "usr/sbin/slurmctld-wlm").exists():
        pytest.skip("needs SLURM's packages, see the head of this file")
    home = tmp_path / "slurm"
    for name in ("state", "n1", "n2"):
        (home / name).mkdir(parents=True)
    host = socket.gethostname()
    (home / "slurm.conf").write_text(f"""
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port()}
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=10
CredType=cred/none
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmdSpoolDir={home}/%n
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port()} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port()} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
""")
    libraries = f"{plugins}:{plugins.parent}"
    monkeypatch.setenv("SLURM_CONF", str(home / "slurm.conf"))
    monkeypatch.setenv("LD_LIBRARY_PATH", libraries)
    monkeypatch.setenv("PATH", f"{root / 'usr/bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    sbin = root / "usr/sbin"
    controller = subprocess.Popen(
        [sbin / "slurmctld-wlm", "-D", "-L", home / "slurmctld.log"], stderr=subprocess.DEVNULL
    )
    nodes = {
        node: subprocess.Popen(
            [sbin / "slurmd-wlm", "-D", "-N", node, "-d", sbin / "slurmstepd-wlm",
             "-L", home / f"{node}.log"],
            stderr=subprocess.DEVNULL,
        )
        for node in ("n1", "n2")
    }  # fmt: skip
    deadline = time.monotonic() + 60
    idle = ""
    while idle.count("idle") < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
        idle = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N %t"], capture_output=True, text=True, check=False
        ).stdout
    try:
        assert idle.count("idle") == 2, (home / "slurmctld.log").read_text()[-2000:]
        yield Nodes(nodes, home / "slurm.conf")
    finally:
        for daemon in (*nodes.values(), controller):
            daemon.terminate()
        for daemon in (*nodes.values(), controller):
            daemon.wait(timeout=30)


@pytest.mark.slow
def test_slurm_carries_out_a_study_though_tasks_are_killed(slurm, study, tmp_path):
    wanted, folder = study(2.0, 4), tmp_path / "results"
    manner = Manner(executor="slurm", options={"poll": 0.5, "retries": 2})
    thread, ends = in_background(wanted, folder, manner)
    try:
        working, known = in_work(folder, 1)
        os.kill(next(iter(working.values())), signal.SIGKILL)
    finally:
        thread.join(timeout=240)
    assert not ends[0].failures
    whole(folder, wanted, known)
    assert any(len(lines) > 1 for lines in attempts(folder).values())


@pytest.mark.slow
def test_slurm_carries_out_a_study_though_a_node_dies(slurm, study, tmp_path):
    """A node goes as when its power fails: its daemon, its tasks and what watches them, at once."""
    wanted, folder = study(3.0, 5), tmp_path / "results"
    manner = Manner(executor="slurm", options={"poll": 0.5, "retries": 2})
    thread, ends = in_background(wanted, folder, manner)
    try:
        working, known = in_work(folder, 1)
        job, process = next(iter(working.items()))
        lost = slurm.kill(environment(process)["SLURMD_NODENAME"])
        assert process in lost
    finally:
        thread.join(timeout=400)
    assert not thread.is_alive()
    assert not ends[0].failures
    whole(folder, wanted, known)
    assert len(attempts(folder)[job]) > 1


@pytest.mark.slow
def test_what_a_gone_run_left_in_the_queue_is_not_run_twice(slurm, study, tmp_path):
    """The run that submitted is killed; its tasks go on, and a second run meets them."""
    wanted, folder = study(1.0, 3), tmp_path / "results"
    code = "import sys\nfrom optikit.cli import main\nmain()"
    command = [sys.executable, "-c", code, "run", str(tmp_path / "study.yaml"), "--out", str(folder), "-q",
               "--executor", "slurm", "--with", "poll=0.5"]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, known = in_work(folder, 0)
    first.kill()
    first.wait()
    outcome = run_study(wanted, folder, Manner(executor="slurm", options={"poll": 0.5}))
    assert not outcome.failures
    whole(folder, wanted, known)
    assert all(len(lines) == 1 for lines in attempts(folder).values())


# --- without a cluster ---------------------------------------------------------------------------


@pytest.mark.slow
def test_submitits_processes_on_this_machine(study, tmp_path):
    pytest.importorskip("submitit")
    wanted, folder = study(0.0, 1), tmp_path / "results"
    options = {"cluster": "local", "poll": 0.2}
    assert not run_study(wanted, folder, Manner(executor="slurm", options=options)).failures
    whole(folder, wanted, {})


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_told_with_its_extra(name, package, study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExecutorError, match=rf"pip install 'optikit\[{name}\]'"):
        run_study(study(0.0, 1), tmp_path / "results", Manner(executor=name))


def test_unknown_executors_and_options_are_told():
    with pytest.raises(ExecutorError, match="is not an executor: inline, process, ray, slurm"):
        executor_named("dask", {})
    with pytest.raises(
        ExecutorError, match=r"'gpu' is no option .* it takes address, cpus, gpus, retries"
    ):
        executor_named("ray", {"gpu": 1})
    with pytest.raises(ExecutorError, match="it takes none"):
        executor_named("process", {"gpus": 1})
    assert executor_named("slurm", {"slurm_partition": "a100"})
    assert options_of(["gpus=0.5", "slurm_partition=a100"]) == {
        "gpus": 0.5,
        "slurm_partition": "a100",
    }
    for text in ("gpus", "=1", "a.b=1", "x=[", "x y=1"):
        with pytest.raises(ExecutorError, match="write it as name=value"):
            options_of([text])
