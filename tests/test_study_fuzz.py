"""Whatever stands in a study file: a study, or located errors. Never a traceback, never harm."""

import copy
import math
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optikit.bench import yaml_source
from optikit.bench.limits import MAX_TRIALS
from optikit.bench.plan import plan
from optikit.bench.spec import ConfigError, Study, load_study

GOOD = """
name: good
problems:
  digits: {use: softmax-regression, data: digits, l2: 1e-4}
  bowl: {use: quadratic, n: 5}
optimizers:
  newton: {use: newton}
  adam: {use: adam, learning_rate: {grid: [0.01, 1e-1]}}
  tuned: {use: adam, learning_rate: {log_uniform: [1e-3, 1.0]}}
  lion: {use: lion, problems: [bowl]}
seeds: [0, 1]
budget: {steps: 50, seconds: 2.5}
targets: [1e-2, 1e-6]
measure: {repeats: 1}
tuning: {trials: 4, seeds: [10000]}
reference: newton
"""
WORDS = ["best_known", "reference", "a\0b", "name", "problems", "optimizers", "use", "grid", "seeds", "budget", "steps", "newton", "adam",
         "quadratic", "n", "data", "learning_rate", "log_uniform", "choice", "when", "tuning", "best_known", "reference", "../x", "/x", "a:b",
         "os:system", "object x", "", "=", "[key]"]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from(WORDS),
    st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in nested data, the root first."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutants(draw):
    """The good study with a few values replaced, keys renamed, entries added or taken out."""
    data = copy.deepcopy(yaml_source.parse(GOOD, "good")[0].data)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in places(data) if p] or [("name",)]))
        home = data
        for key in path[:-1]:
            home = home[key]
        action = draw(st.sampled_from(["replace", "rename", "remove", "add"]))
        if action == "replace":
            home[path[-1]] = draw(VALUES)
        elif action == "remove":
            del home[path[-1]]
        elif isinstance(home, list):
            home.append(draw(VALUES))
        else:
            key = draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)))
            home[key] = draw(VALUES) if action == "add" else home.pop(path[-1])
    return yaml.safe_dump(
        data, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans())
    )


@st.composite
def scribbles(draw):
    """The good study's text with a piece cut out and something else put in."""
    start = draw(st.integers(0, len(GOOD)))
    end = min(len(GOOD), start + draw(st.integers(0, 20)))
    marks = st.text("[]{}:,-&*!|>'\"#%@\n\t 0123456789aeE.\0\ufeff\u2028", max_size=12)
    return GOOD[:start] + draw(st.one_of(marks, st.text(max_size=12))) + GOOD[end:]


FILES = st.one_of(mutants(), mutants(), scribbles(), st.text(max_size=60))


def holds(text, overrides, path):
    """The contract: all or nothing, and every complaint with its place."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        study = load_study(path, overrides)
    except ConfigError as error:
        located(error, text, path)
        return
    jobs = plan(study)
    assert len(jobs) <= 2 * MAX_TRIALS
    again = Study.model_validate_json(study.model_dump_json())
    assert [job.id for job in plan(again)] == [job.id for job in jobs]  # what `resume` reads
    assert len({job.id for job in jobs}) == len(jobs)


def located(error, text, path):
    assert error.problems
    for mark, complaint in error.problems:
        assert complaint.strip()
        assert 0 <= mark.line <= len(text.splitlines()) + 1
        assert mark.column >= (mark.line > 0)
    for line in str(error).split("\n"):
        assert re.match(rf"{re.escape(str(path))}:\d+:\d+: .|override: .", line), line


def fuzz(examples, *, fixed):
    def test(tmp_path_factory):
        path = tmp_path_factory.mktemp("fuzz") / "study.yaml"

        @settings(max_examples=examples, deadline=None, database=None, derandomize=fixed,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(FILES, st.lists(st.one_of(st.text(max_size=10), st.builds(
            "{}={}".format, st.sampled_from(["budget.steps", "seeds", "problems.bowl.n", "optimizers.lion",
                                             "name.x", "..", "targets.0"]), VALUES)), max_size=1))  # fmt: skip
        def run(text, overrides):
            holds(text, overrides, path)

        run()

    return test


test_anything_in_a_file_is_a_study_or_located_errors = fuzz(2000, fixed=True)
test_the_same_at_length = pytest.mark.slow(fuzz(10_000, fixed=False))  # others each time


# --- hostile files -------------------------------------------------------------------------------


def complaints(text, path):
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    return str(caught.value)


def test_aliases_do_not_multiply(tmp_path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert f"more than {yaml_source.MAX_VALUES} values" in complaints(bomb, tmp_path / "bomb.yaml")


def test_depth_is_bounded(tmp_path):
    for deep in ("[" * 100_000, "a: " + "{b: " * 5000 + "1" + "}" * 5000):
        assert "1:1: nested too deeply" in complaints(deep, tmp_path / "deep.yaml")


def test_a_slip_in_a_grid_is_told(tmp_path):
    grids = "".join(f", b{i}: {{grid: {list(range(100))}}}" for i in range(4))
    text = GOOD.replace("{use: newton}", f"{{use: 'collections:OrderedDict'{grids}}}").replace(
        "reference: newton", ""
    )
    assert "about 400,000,016 trials" in complaints(text, tmp_path / "slip.yaml")


def test_the_same_trial_cannot_be_asked_for_twice(tmp_path):
    path = tmp_path / "twice.yaml"
    assert "11:12: seeds: 0 is there twice" in complaints(GOOD.replace("[0, 1]", "[0, 0]"), path)
    assert "0.1 is there twice" in complaints(GOOD.replace("0.01", "0.1"), path)
    assert "grid takes a list of values" in complaints(GOOD.replace("[0.01, 1e-1]", "[]"), path)


def test_what_is_not_finite_survives_the_results_folder(tmp_path):
    path = tmp_path / "infinite.yaml"
    path.write_text(
        GOOD.replace("{use: newton}", "{use: 'collections:OrderedDict', radius: .inf, x: .nan}")
    )
    study = load_study(path)
    again = Study.model_validate_json(study.model_dump_json())
    assert again.optimizers["newton"].arguments["radius"] == math.inf
    assert math.isnan(again.optimizers["newton"].arguments["x"])
    assert "finite" in complaints(GOOD.replace("seconds: 2.5", "seconds: .inf"), path)


@pytest.mark.parametrize(
    "use", ["os.path/../x:y", "/etc/passwd:x", "a b:c", "..:x", "my_lab:", ":f", "a:b c"]
)
def test_an_import_path_names_a_module_and_nothing_else(use, tmp_path):
    text = GOOD.replace("{use: newton}", f"{{use: '{use}'}}")
    assert "an import path is written module:function" in complaints(text, tmp_path / "path.yaml")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch harm']", "!!python/name:os.system",
                                 "!unknown x", "!!binary aGk=", "!!set {a, b}"])  # fmt: skip
def test_only_plain_data_is_built(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaints(GOOD.replace("digits, l2", f"{tag}, l2"), tmp_path / "tag.yaml")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", ".", "..", "", "a\\nb", "x" * 65, "~"])
def test_names_cannot_leave_the_results_folder(name, tmp_path):
    for text in (
        GOOD.replace("name: good", f'name: "{name}"'),
        GOOD.replace("bowl:", f'"{name}":'),
    ):
        assert complaints(text, tmp_path / "name.yaml")
