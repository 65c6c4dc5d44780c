"""Data parallelism for real: eight devices in one process, two processes on one machine.

The same fits on one device in the same process are what they are compared with.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.solve.placement import Placement, placement_over

SCRIPT = pathlib.Path(__file__).with_name("devices.py")


def started(*args, flags=""):
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}"
    return subprocess.Popen([sys.executable, str(SCRIPT), *map(str, args)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def told(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def agree(result, devices):
    """To rounding: sums over rows are taken in another order, and methods amplify that.

    Six steps of Newton type on 72 parameters solve systems of condition up to 1e4, so differences
    of 1e-16 may grow to 1e-11; the parameters themselves moved by more than 1e-3.
    """
    assert result["params"] < 1e-9
    assert result["values"] < 1e-12
    assert result["counts"]
    assert result["devices"] == devices
    assert result["moved"] > 1e-3


def test_eight_devices_equal_one():
    results = told(started(flags="--xla_force_host_platform_device_count=8"))
    assert {"adam", "lbfgs", "newton-cg", "natural-gradient", "adam, spread"} <= set(results)
    for result in results.values():
        agree(result, 8)


def test_two_processes_equal_one_and_resume_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [started(address, 2, number, tmp_path) for number in range(2)]
    for results in [told(process) for process in both]:
        assert results.pop("resumed")
        assert results.pop("timed") > 0  # both end at the same step, else neither ended
        for result in results.values():
            agree(result, 2)


def test_a_mesh_of_one_device_changes_nothing():
    batches = [(np.arange(4.0),), (np.ones(4),)]

    def fit(**options):
        return ok.fit(lambda x, b: jnp.mean((x - b) ** 2), jnp.array(0.5), batches, method="adam",
                      budget=ok.Budget(steps=9), **options)  # fmt: skip

    np.testing.assert_array_equal(fit(mesh=jax.make_mesh((1,), ("x",))).params, fit().params)


def test_rows_must_divide():
    class Pretended(Placement):
        @property
        def rows(self):
            class Rows:
                num_devices = 8

            return Rows()

    mesh = jax.make_mesh((1,), ("x",))
    with pytest.raises(ValueError, match=r"batch\[0\] has 30 rows, which do not divide among 8"):
        Pretended(mesh).batch((np.zeros((30, 2)),))


def test_equal_meshes_are_equal_placements():
    """So that a second fit does not compile again."""
    first, second = (placement_over(jax.make_mesh((1,), ("x",)), spread=False) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
