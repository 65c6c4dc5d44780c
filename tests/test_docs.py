"""Documentation that runs: every docstring example and the README's tour."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import optikit

SKIPPED = {"optikit.bench.executors.preload"}
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(optikit.__path__, "optikit.") if m.name not in SKIPPED
)
README = pathlib.Path(optikit.__file__).parents[1] / "README.md"


def examples(name):
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs={})
    return [t for t in found if t.examples and t.globs.get("__name__") == name]


@pytest.mark.parametrize("name", [m for m in MODULES if ">>>" in pathlib.Path(
    importlib.util.find_spec(m).origin).read_text()])  # fmt: skip
def test_docstring_examples(name):
    """In a user's setting: float32 by default, promotion as usual."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        for case in examples(name):
            case.globs.update({"jnp": jnp, "jax": jax})
            runner = doctest.DocTestRunner(optionflags=flags)
            runner.run(case)
            assert runner.failures == 0, f"{case.name}: see the output above"


def test_the_readme_tour_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks, "the README has no tour"
    code = "\n".join(blocks)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)


def test_the_page_of_results_is_what_the_results_say():
    page = README.parent / "benchmarks" / "page.py"
    checked = subprocess.run([sys.executable, str(page), "--check"], timeout=60, check=False)
    assert checked.returncode == 0, "run python benchmarks/page.py and commit what it writes"


def test_results_name_no_folder_of_the_machine_they_were_taken_on():
    folders = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|work|mnt|Users)/")
    results = README.parent / "benchmarks" / "results"
    files = [p for p in results.rglob("*") if p.suffix in (".html", ".json", ".jsonl", ".md")]
    assert files
    named = [p for p in files if folders.search(p.read_text(encoding="utf-8"))]
    assert not named
