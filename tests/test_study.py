"""Studies as data: located errors, overrides, signatures without importing, identities."""

import pathlib

import pytest

import optikit as ok
from optikit.bench import yaml_source
from optikit.bench.plan import plan
from optikit.bench.signature import module_file, registry, signature
from optikit.bench.spec import ConfigError, load_study, variants

GOOD = """
name: good
problems:
  digits: {use: softmax-regression, data: digits, l2: 1e-4}
  bowl: {use: quadratic, n: 5}
optimizers:
  newton: {use: newton}
  adam: {use: adam, learning_rate: {grid: [0.01, 1e-1]}}
  lion: {use: lion, problems: [bowl]}
seeds: [0, 1]
"""


def errors(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_study(path, list(overrides))
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_a_good_study_is_planned_in_full(write):
    study = load_study(write(GOOD))
    jobs = plan(study)
    trials = [j for j in jobs if j.kind == "trial"]
    assert len(trials) == 2 * (3 + 4)  # seeds x (digits: newton, adam x 2; bowl: and lion)
    assert [j.kind for j in jobs[:2]] == ["problem", "problem"]
    assert len({j.id for j in jobs}) == len(jobs)
    assert {j.variant for j in trials} == {"newton", "adam (learning_rate=0.01)",
                                           "adam (learning_rate=0.1)", "lion"}  # fmt: skip
    assert study.optimizers["adam"].arguments["learning_rate"] == {"grid": [0.01, 0.1]}
    assert variants(study.optimizers["newton"]) == [{}]


def test_three_mistakes_are_three_located_errors(write):
    path = write("""\
        name: three
        problems:
          digits: {use: softmax-regresion}
        optimizers:
          newton: {use: newton, max_trial: 5}
        budget: {steps: many}
        """)
    assert errors(path) == [
        "3:17: problems.digits.use: unknown name 'softmax-regresion': did you mean "
        "'softmax-regression'?",
        "5:25: optimizers.newton.max_trial: unknown argument: did you mean 'max_trials'?",
        "6:17: budget.steps: Input should be a valid integer (got 'many')",
    ]


MISTAKES = {
    "unknown key": ("name: x\nsede: [1]\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}",
                    "2:1: sede: unknown key: did you mean 'seeds'?"),
    "missing": ("name: x\nproblems: {a: {use: quadratic}}", "1:1: optimizers: this key is required"),
    "no problems": ("name: x\nproblems: {}\noptimizers: {b: {use: newton}}", "2:1: problems: Dictionary should have at least 1 item"),
    "duplicate": ("name: x\nname: y\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}",
                  "2:1: 'name' was already given at line 1"),
    "type": ("name: x\nproblems: {a: {use: quadratic, n: five}}\noptimizers: {b: {use: newton}}",
             "2:35: problems.a.n: must be int (got 'five')"),
    "grid type": ("name: x\nproblems: {a: {use: quadratic}}\n"
                  "optimizers: {b: {use: adam, learning_rate: {grid: [0.1, fast]}}}",
                  "3:57: optimizers.b.learning_rate: must be float (got 'fast')"),
    "data": ("name: x\nproblems: {a: {use: logistic-regression, data: brest_cancer}}\n"
             "optimizers: {b: {use: newton}}",
             "2:48: problems.a.data: unknown data 'brest_cancer': did you mean 'breast_cancer'?"),
    "choice": ("name: x\nproblems: {a: {use: quadratic}}\n"
               "optimizers: {b: {use: gradient-descent, line_search: wolff}}",
               "must be one of 'backtracking', 'wolfe', 'hager-zhang' (got 'wolff')"),
    "restricted to nothing": ("name: x\nproblems: {a: {use: quadratic}}\n"
                              "optimizers: {b: {use: newton, problems: [c]}}", "no problem 'c'"),
    "restricted to none": ("name: x\nproblems: {a: {use: quadratic}}\n"
                           "optimizers: {b: {use: newton, problems: []}}",
                           "3:31: optimizers.b.problems: List should have at least 1 item"),
    "negative": ("name: x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}\n"
                 "budget: {seconds: -1}", "4:19: budget.seconds: Input should be greater than 0"),
    "bad yaml": ("name: [x\nproblems: {", "not YAML"),
    "tag": ("name: !!python/object/apply:os.system ['true']\nproblems: {a: {use: quadratic}}\n"
            "optimizers: {b: {use: newton}}", "name"),
    "empty": ("", "1:1: the file is empty"),
    "list": ("- a\n- b", "1:1: the file: Input should be a valid dictionary"),
    "import path": ("name: x\nproblems: {a: {use: 'my_lab:'}}\noptimizers: {b: {use: newton}}",
                    "an import path is written module:function"),
    "no module": ("name: x\nproblems: {a: {use: 'no_lab:net'}}\noptimizers: {b: {use: newton}}",
                  "2:21: problems.a.use: no module 'no_lab' beside the study, in the current folder"),
    "no function": ("name: x\nproblems: {a: {use: 'optikit.problems.functions:rosenbrok'}}\n"
                    "optimizers: {b: {use: newton}}",
                    "2:21: problems.a.use: optikit.problems.functions has no 'rosenbrok': did you mean 'rosenbrock'?"),
    "merge key": ("name: x\nproblems: {a: &a {use: quadratic}, c: {<<: *a, n: 3}}\n"
                  "optimizers: {b: {use: newton}}",
                  "2:40: YAML 1.2 merges no mappings by '<<': write the keys out"),
    "label": ("name: ../x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}",
              "1:7: name: String should match pattern"),
    "target": ("name: x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}\n"
               "targets: [2.0]", "4:11: targets.0: Input should be less than 1"),
    "target twice": ("name: x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}\n"
                     "targets: [0.01, 1e-2]", "4:17: targets: 0.01 is there twice"),
    "address": ("name: x\nproblems: {a: {use: logistic-regression, data: 'ftp://x'}}\n"
                "optimizers: {b: {use: newton}}",
                "2:48: problems.a.data: unknown address 'ftp://x': begin with file:, http:, https:, "
                "openml:, or give module:function"),
    "address of a text": ("name: x\nproblems: {a: {use: char-transformer, text: 'openml: x'}}\n"
                          "optimizers: {b: {use: adam}}",
                          "problems.a.text: unknown address 'openml: x': begin with file:, http:, https:,"),
    "large seed": ("name: x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}\n"
                   "seeds: [4294967296]", "4:9: seeds.0: Input should be less than 4294967296"),
    "many steps": ("name: x\nproblems: {a: {use: quadratic}}\noptimizers: {b: {use: newton}}\n"
                   "budget: {steps: 2147483648}",
                   "4:17: budget.steps: Input should be less than 2147483648"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistakes_are_located(name, write):
    text, expected = MISTAKES[name]
    assert any(expected in line for line in errors(write(text))), errors(write(text))


def test_an_unreadable_file_is_an_error_not_a_traceback(tmp_path):
    assert "cannot be read" in errors(tmp_path / "nowhere.yaml")[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in errors(tmp_path / "binary.yaml")[0]


def test_overrides_replace_and_are_checked(write):
    path = write(GOOD)
    study = load_study(path, ["budget.steps=7", "seeds=[3]", "optimizers.adam.learning_rate=0.5"])
    assert (study.budget.steps, study.seeds) == (7, [3])
    assert study.optimizers["adam"].arguments == {"learning_rate": 0.5}
    assert errors(path, "budget.stps=3") == [
        "override: budget.stps: unknown key: did you mean 'steps'?"
    ]
    assert "write it as a.b=value" in errors(path, "budget")[0]
    assert "budget.steps" in errors(path, "budget.steps=x")[0]
    (wrong,) = errors(path, "seeds=[0.5]")  # not where the file has its own seeds
    assert wrong.startswith("override: seeds.0: Input should be a valid integer")


def test_yaml_scalars_follow_version_1_2():
    source, problems = yaml_source.parse(
        "a: 1e-3\nb: no\nc: 0x10\nd: 2026-01-01\ne: true\nf: 1_0", "t"
    )
    assert not problems
    assert source.data == {
        "a": 1e-3,
        "b": "no",
        "c": "0x10",
        "d": "2026-01-01",
        "e": True,
        "f": "1_0",
    }


def test_the_largest_seed_and_budget_make_a_trial(tmp_path):
    most = ok.Experiment(
        "most", {"bowl": {"use": "quadratic", "n": 3}}, {"newton": "newton"}, seeds=[2**32 - 1],
        budget={"steps": 2**31 - 1}, measure={"repeats": 1, "prices": False},
    ).run(tmp_path)  # fmt: skip
    assert not most.summary.failures
    assert most.summary.rows[0]["seed"] == 2**32 - 1


def test_addresses_of_every_kind_pass_the_check(write):
    for data in (
        "digits",
        "file:rows.csv",
        "https://host/x.csv",
        "openml:credit-g@1",
        "lab.data:rows",
    ):
        text = f"name: x\nproblems: {{a: {{use: logistic-regression, data: '{data}'}}}}\n"
        assert load_study(write(text + "optimizers: {b: {use: newton}}"))


def test_an_identity_changes_with_whatever_matters(write):
    base = plan(load_study(write(GOOD)))[-1].id
    for change in ("seeds=[5]", "budget.steps=3", "dtype=float32", "optimizers.lion.b1=0.8",
                   "problems.bowl.n=6", "matmul_precision=high"):  # fmt: skip
        assert plan(load_study(write(GOOD), [change]))[-1].id != base
    assert plan(load_study(write(GOOD), ["targets=[0.5]"]))[-1].id == base  # judged afterwards


def test_signatures_are_read_without_importing():
    assert registry("optikit.problems", "PROBLEMS")["rosenbrock"] == "optikit.problems:rosenbrock"
    found = signature("optikit.problems:rosenbrock")
    assert [(p.name, p.types, p.required) for p in found.parameters] == [("n", (int,), False)]
    assert "Rosenbrock valley" in found.summary
    rate = next(p for p in signature("optax:adamw").parameters if p.name == "learning_rate")
    assert rate.required
    assert signature("optikit.problems:nothing") is None
    assert module_file("no_such_module_anywhere") is None


def test_python_objects_are_validated_like_yaml():
    bowl = ok.Problem(lambda x: (x**2).sum(), [1.0])
    with pytest.raises(ConfigError, match="unknown name 'newtn'"):
        ok.Experiment("x", {"bowl": bowl}, {"a": "newtn"}).study()
    with pytest.raises(ConfigError, match=r"budget\.steps"):
        ok.Experiment("x", {"bowl": bowl}, {"a": "newton"}, budget={"steps": 0}).study()
    with pytest.raises(ValueError, match="Python objects run inline"):
        ok.Experiment("x", {"bowl": bowl}, {"a": "newton"}).run(executor="process")


@pytest.mark.parametrize("path", sorted((pathlib.Path(ok.__file__).parents[1] / "configs").glob("*.yaml")),
                         ids=lambda p: p.name)  # fmt: skip
def test_the_studies_we_ship_are_valid(path):
    assert plan(load_study(path))
