"""Strict numerics for every test: float64 on, no implicit promotion of ranks or dtypes.

Nearly all of the suite's time is compilation, so LLVM optimises nothing here unless XLA_FLAGS is
set: the tests are about what is computed, never about how fast.
"""

import gc
import itertools
import os
import pathlib
import textwrap

QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


SIBLINGS = {"ekfac", "foof"}
"""They share all but their factors with kfac, whose contracts run every time."""


def pytest_collection_modifyitems(items):
    for item in items:
        method = getattr(item, "callspec", None) and item.callspec.params.get("method")
        if item.path.name == "test_contract.py" and method in SIBLINGS:
            item.add_marker(pytest.mark.slow)
    if jax.default_backend() == "gpu":
        return
    no_gpu = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


MOST_MAPPINGS = 40_000
"""Memory mappings of a process, of which Linux allows 65,530: a compiled program takes several."""

_tests = itertools.count()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Forget compiled programs before there are more than a process can hold."""
    maps = pathlib.Path("/proc/self/maps")
    if nextitem is None or next(_tests) % 20 or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def write(tmp_path):
    """Writes a study's text to a file, and gives its path."""

    def write(text, name="study.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write
