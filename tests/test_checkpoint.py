"""Checkpoints: what they hold, what they forgive and refuse, and that nothing is lost with them."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from test_fit_recovery import Averaged, amortised, averaging

import optikit as ok
from optikit.core import Status
from optikit.solve import archive, sharded_archive

FORMATS = ["safetensors", pytest.param("orbax", marks=pytest.mark.skipif(
    importlib.util.find_spec("orbax") is None, reason="needs the extra `orbax`"))]  # fmt: skip
BATCHES = [(jnp.full(4, t),) for t in (1.0, 3.0, 2.0)]


def bowl(x, b):
    return jnp.mean((x - b) ** 2)


def fit(steps, **options):
    options = {"method": "adam", "batches": BATCHES, **options}
    return ok.fit(bowl, jnp.array(0.5), budget=ok.Budget(steps=steps), **options)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_fit_killed_at_random_moments_ends_bit_by_bit_as_if_it_had_not_been(tmp_path, kills):
    script = pathlib.Path(__file__).with_name("killed.py")
    root = str(script.parents[1])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills)], timeout=120, check=False,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["equal"], told
    assert 0 < told["killed at"][0] < 60


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["adam", "averaging", "amortised", "natural-gradient"])
def test_going_on_is_as_if_there_had_been_no_end(tmp_path, name, form):
    """Also a fit that had ended, with a larger budget; and the curve of validation."""
    made = {"averaging": averaging, "amortised": amortised}.get(name, lambda: name)()
    fun = ok.residuals(lambda x, b: x - b) if name == "natural-gradient" else bowl

    def run(steps, **options):
        return ok.fit(fun, jnp.array(0.5), BATCHES, method=made, evaluate=(BATCHES, 4),
                      budget=ok.Budget(steps=steps), key=jax.random.key(5), **options)  # fmt: skip

    whole, files = run(150), ok.Checkpoint(tmp_path, format=form)
    for steps in (7, 130, 150):
        parts = run(steps, checkpoint=files)
    same(whole, parts)
    again = run(150, checkpoint=files)
    same(whole, again)
    assert again.trace.value.shape == (150,)


def test_a_fit_that_has_ended_reads_one_batch_and_returns(tmp_path):
    ended = fit(5, batches=iter(BATCHES), checkpoint=tmp_path)
    assert Status(int(ended.status)) == Status.OUT_OF_DATA
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    stream = iter(BATCHES)
    again = fit(5, batches=stream, checkpoint=tmp_path)
    same(ended, again)
    assert len(list(stream)) == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == written


def test_the_newest_files_stay_and_others_can_read_them(tmp_path):
    run = fit(9, checkpoint=ok.Checkpoint(tmp_path, every_steps=2, keep=2))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"step-{k:012d}.safetensors" for k in (8, 9)]
    arrays = load_file(tmp_path / names[-1])
    np.testing.assert_array_equal(arrays["params"], run.params)
    np.testing.assert_array_equal(arrays["page.measures"][:, 0], run.trace.value)


def test_a_damaged_file_falls_back_to_the_one_before(tmp_path):
    files = ok.Checkpoint(tmp_path, every_steps=4)
    whole = fit(20)
    fit(11, checkpoint=files)
    torn, flipped = (
        tmp_path / "step-000000000011.safetensors",
        tmp_path / "step-000000000008.safetensors",
    )
    torn.write_bytes(torn.read_bytes()[:-5])
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    (tmp_path / ".step-000000000012.safetensors.x.tmp").write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match="damaged") as warned:
        same(whole, fit(20, checkpoint=files))
    assert len(warned) == 2
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="empty the folder"):
        fit(20, checkpoint=files)


def test_either_format_goes_on_from_the_other_and_a_damaged_folder_falls_back(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    plain = ok.Checkpoint(tmp_path, every_steps=2)
    split = ok.Checkpoint(tmp_path, every_steps=2, keep=2, format="orbax")
    whole = fit(12)
    for steps, files in ((2, plain), (4, split), (6, plain), (10, split)):
        fit(steps, checkpoint=files)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"step-000000000008.orbax", "step-000000000010.orbax"}
    (tmp_path / "step-000000000010.orbax" / "header" / "metadata").write_text("{")
    shutil.rmtree(tmp_path / "step-000000000008.orbax" / "header")
    with (
        pytest.warns(RuntimeWarning, match="damaged") as warned,
        pytest.raises(ValueError, match="empty"),
    ):
        fit(12, checkpoint=split)
    assert len(warned) == 2
    assert not list(tmp_path.glob("*.orbax"))
    same(whole, fit(12, checkpoint=split))


def test_another_fit_is_refused_by_the_first_difference(tmp_path):
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}

    def run(params, method):
        return ok.fit(lambda p, b: sum(jnp.sum(x.astype(float) ** 2) for x in jax.tree.leaves(p)) * b, params,
                      [(1.0,)], method=method, budget=ok.Budget(steps=2), checkpoint=tmp_path)  # fmt: skip

    run(params, "adam")
    with pytest.raises(ValueError, match="written by method 'adam', and this fit runs 'sgd'"):
        run(params, "sgd")
    with pytest.raises(ValueError, match=r"params\['a'\] is float64\[3\] there, and float32\[3\]"):
        run({**params, "a": jnp.ones(3, jnp.float32)}, "adam")
    with pytest.raises(ValueError, match=r"params\['c'\] is nothing there, and float64\[1\]"):
        run({**params, "c": jnp.ones(1)}, "adam")
    with pytest.raises(ValueError, match=r"params\['b'\] is float64\[2, 2\] there, and nothing"):
        run({"a": params["a"]}, "adam")


def test_recoveries_may_change_on_the_way(tmp_path):
    whole = fit(9)
    for steps, recoveries in ((3, 5), (6, 0), (9, 2)):
        run = fit(steps, recoveries=recoveries, checkpoint=tmp_path)
    np.testing.assert_array_equal(whole.params, run.params)


def test_a_method_chosen_by_measuring_is_chosen_once(tmp_path):
    first = fit(3, method="auto", checkpoint=tmp_path)
    more = fit(6, method="auto", checkpoint=tmp_path)
    assert (more.method, more.reason) == (first.method, first.reason)
    assert int(more.steps) == 6


def test_an_interrupt_writes_where_it_stands(tmp_path):
    def interrupt(steps, row):
        if steps >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(20, checkpoint=tmp_path, on_look=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000002.safetensors"]
    same(fit(20, checkpoint=tmp_path), fit(20))


class Contents(NamedTuple):
    half: jax.Array
    double: jax.Array
    keys: jax.Array
    rbg: jax.Array
    none: None
    nested: dict
    average: Averaged


@pytest.mark.parametrize("form", FORMATS)
def test_every_kind_of_leaf_comes_back(tmp_path, form):
    files = archive if form == "safetensors" else sharded_archive
    contents = Contents(
        jnp.asarray([1.5, -2.25], jnp.bfloat16), jnp.asarray(np.pi), jax.random.split(jax.random.key(1), 3),
        jax.random.key(2, impl="rbg"), None, {"8": jnp.ones((2, 1), jnp.float8_e4m3fn), "b": jnp.array(True)},
        Averaged(jnp.zeros((0, 3)), jnp.asarray(2**31 - 1, jnp.int32)),
    )  # fmt: skip
    path = tmp_path / f"file.{form}"
    files.write(archive.packed(contents, {"a": 1}), path)
    found = files.read(path)
    back = archive.unpacked(found, contents, where="it")
    assert jax.tree.structure(back) == jax.tree.structure(contents)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(contents), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert found.meta == {"a": 1}


def test_wrong_periods_raise():
    with pytest.raises(ValueError, match="every_steps must be positive"):
        ok.Checkpoint("x", every_steps=0)
    with pytest.raises(ValueError, match="format must be 'safetensors' or 'orbax'; got 'npz'"):
        ok.Checkpoint("x", format="npz")


def test_a_stream_that_says_where_it_is_goes_on_from_there(tmp_path):
    class Counting:
        def __init__(self):
            self.k, self.loaded = 0, None

        def __iter__(self):
            return self

        def __next__(self):
            self.k += 1
            return (jnp.full(4, float(self.k % 5)),)

        def state_dict(self):
            return {"k": self.k, "raw": b"\x00\xff", "array": np.arange(2), "pair": (1, [None])}

        def load_state_dict(self, state):
            self.k, self.loaded = state["k"], state

    fit(6, batches=Counting(), checkpoint=tmp_path)
    stream = Counting()
    same(fit(12, batches=stream, checkpoint=tmp_path), fit(12, batches=Counting()))
    assert stream.loaded["k"] == 6  # of the batch used, not of one read ahead
    assert (stream.loaded["raw"], stream.loaded["pair"]) == (b"\x00\xff", (1, [None]))
    stream.state_dict = lambda: {"rng": object()}
    with pytest.raises(TypeError, match="holds object"):
        fit(15, batches=stream, checkpoint=tmp_path)


def test_the_method_of_optax_may_hold_keys(tmp_path):
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    whole = fit(8, method=noisy)
    fit(5, method=noisy, checkpoint=tmp_path)
    same(whole, fit(8, method=noisy, checkpoint=tmp_path))
