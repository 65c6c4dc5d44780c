"""What the page and the figures show: by the page's own content, and by what a browser draws."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from made_results import made_results

import optikit as ok
from optikit.bench import store
from optikit.bench.axes import AXES
from optikit.bench.report import figures, summarise
from optikit.bench.report.content import all_fronts, axes_of, content, floor
from optikit.bench.report.figures import course
from optikit.bench.report.page import _script_safe
from optikit.bench.report.thin import kept, share, short
from optikit.bench.score import wilson
from optikit.bench.spectra import spectra
from optikit.problems import quadratic

METHODS, PROBLEMS, SEEDS = 3, 2, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_results(tmp_path_factory.mktemp("made"), tune=4)


def shown(results):
    return content(
        results.problems, results.study.targets, results.summary.target, results.tuning(),
        all_fronts(results.problems),
    )  # fmt: skip


# --- thinning


def test_a_thinned_curve_keeps_its_ends_and_the_first_hits():
    steps = list(range(5000))
    gaps = [math.exp(-step / 200) for step in steps]
    at = kept(steps, gaps, [1e-2, 1e-6], 40)
    assert len(at) <= 45
    assert at == sorted(set(at))
    assert {0, 4999} <= set(at)
    for target in (1e-2, 1e-6):
        first = next(i for i, gap in enumerate(gaps) if gap <= target)
        assert {first - 1, first} <= set(at)
    assert kept(steps[:30], gaps[:30], [], 40) == list(range(30))


def test_thousands_of_curves_share_a_budget():
    assert share(10) == 120
    assert share(2000) == 25
    assert share(10**6) == 16


def test_short_numbers_say_what_is_missing():
    assert short(math.nan) is None
    assert short(math.inf) is None
    assert short(12.0) == 12
    assert isinstance(short(12.0), int)
    assert short(0.123456789) == 0.1235


# --- content


def test_the_content_is_the_results(made):
    found = shown(made)
    assert [a["key"] for a in found["axes"]] == [a.key for a in axes_of(made.problems)]
    assert len(found["trials"]["rows"]) == PROBLEMS * (METHODS + 1) * SEEDS + PROBLEMS * 4
    names = [v["name"] for v in found["variants"]]
    for problem, scored in zip(found["problems"], made.problems, strict=True):
        assert len(problem["curves"]) == len(scored.curves)
        for drawn, curve in zip(problem["curves"], scored.curves, strict=True):
            assert names[drawn["v"]] == curve.variant
            assert drawn["gap"][-1] == pytest.approx(max(curve.gaps[-1], floor(scored)), rel=1e-3)
            assert all(len(cost) == len(drawn["gap"]) for cost in drawn["cost"].values())
    assert {t["optimizer"] for t in found["tuning"]} == {"method 0"}
    json.dumps(found, allow_nan=False)


def test_a_gap_of_zero_is_drawn_just_below_the_others(made):
    """It is that of the best trial, where nobody knows a better value."""
    problem = made.problems[0]
    zero, *others = (c._replace(gaps=[*c.gaps[:-1], 0.0]) for c in problem.curves[:3])
    least = min(g for c in (zero, *others) for g in c.gaps if g > 0)
    assert floor(problem._replace(curves=[zero, *others])) == least / 2
    assert floor(problem._replace(curves=[zero._replace(gaps=[0.0])])) > 0


def test_times_of_another_machine_are_on_no_shared_axis(made):
    first = made.problems[0]
    elsewhere = first.curves[0]._replace(machine="m2")
    moved = [first._replace(curves=[elsewhere, *first.curves[1:]]), *made.problems[1:]]
    found = content(moved, made.study.targets, 1e-6, [], all_fronts(moved))
    drawn = found["problems"][0]["curves"]
    assert "warm" not in drawn[0]["cost"]
    assert "cold" not in drawn[0]["cost"]
    assert "steps" in drawn[0]["cost"]
    assert "warm" in drawn[1]["cost"]


def test_a_throttled_trial_is_on_no_axis_of_time(made):
    first = made.problems[0]
    marked = first.curves[0]._replace(facts=first.curves[0].facts | {"invalid": "throttled"})
    moved = [first._replace(curves=[marked, *first.curves[1:]]), *made.problems[1:]]
    found = content(moved, made.study.targets, 1e-6, [], all_fronts(moved))
    assert "warm" not in found["problems"][0]["curves"][0]["cost"]


def test_an_axis_that_one_method_lacks_is_left_out_for_it_alone(made, tmp_path):
    nowhere = [math.nan] * 100

    def without(curve):
        costs = curve.costs | {axis: nowhere[: len(curve.gaps)] for axis in ("warm", "gradients")}
        return curve._replace(costs=costs) if curve.variant == "method 1" else curve

    problems = [p._replace(curves=[without(c) for c in p.curves]) for p in made.problems]
    results = type(made)(made.study, tmp_path, made.jobs, made.records, problems, made.summary)
    found = shown(results)
    assert found["profiles"]["left"]["warm"] == ["method 1: warm unknown on p0"]
    assert "method 1" in results.page().read_text()


def test_peaks_of_memory_and_marks_stand_in_the_table_of_trials(made):
    columns = shown(made)["trials"]["columns"]
    at = columns.index("program MiB")
    assert columns[at : at + 3] == ["program MiB", "process MiB", "device MiB"]
    peaks = {"program_bytes": 3 * 2**20, "process_peak_bytes": 2**29, "device_peak_bytes": None}
    first = made.problems[0]
    held_against = {"marks": ["shared"], "peer": {"calls": "derived from iterations: so"}}
    told = {"memory": peaks, **held_against}
    curves = [c._replace(facts=c.facts | told) for c in first.curves]
    problems = [first._replace(curves=curves, tuning=[])]
    found = content(problems, made.study.targets, 1e-6, [], all_fronts(problems))
    rows = found["trials"]["rows"]
    assert {tuple(row[at : at + 3]) for row in rows} == {(3, 512, None)}
    assert {row[-1] for row in rows} == {"shared, calls derived"}
    assert {row[-1] for row in shown(made)["trials"]["rows"]} == {""}
    with pytest.raises(ValueError, match="no curves on an axis 'memory'"):
        figures(made, "nowhere", axes=["memory"])


def test_success_rates_and_running_times_stand_in_page_and_json(made):
    told = json.loads(made.summary.as_json())
    (found,) = (o for o in told["outcomes"] if (o["problem"], o["variant"]) == ("p0", "method 1"))
    assert (found["reached"], found["trials"], found["axis"]) == (SEEDS, SEEDS, "warm")
    assert found["success"] == pytest.approx(wilson(SEEDS, SEEDS)[:3])
    low, high = found["expected"][1:]
    assert low <= found["expected"][0] <= high
    assert set(told["trade_offs"]) == {"p0", "p1"}
    page = made.page().read_text()
    assert f"{SEEDS} of {SEEDS} (44 to 100 %)" in page
    assert "expected, seconds, warm" in page
    assert all(sentence in page for sentence in told["trade_offs"].values())
    assert {tuple(row["memory_bytes"]) for row in told["rows"]} == {
        ("program", "process", "device")
    }


def test_what_repays_compilation_stands_in_page_and_json(made):
    told = json.loads(made.summary.as_json())["break_even"]
    assert len(told) == PROBLEMS * METHODS
    assert {b["reference"] for b in told} == {"method 0 (tuned)"}
    first = {b["variant"]: (b["first"], b["last"]) for b in told if b["problem"] == "p0"}
    assert first["method 0 (default)"] == (1, None)  # the same run: level from the first solve on
    assert first["method 1"] == first["method 2"] == (None, None)  # half and a quarter of the rate
    page = made.page().read_text()
    assert "<th>solves to pay against method 0 (tuned)</th>" in page
    assert "<td class=n>(from 1)</td>" in page
    assert "<td class=n>never</td>" in page


def test_penalised_costs_and_the_portfolio_stand_in_page_and_json(made):
    told = json.loads(made.summary.as_json())
    assert {p["axis"]: p["budget"] for p in told["par2"]} == {
        "warm": made.study.budget.seconds, "steps": made.study.budget.steps,
    }  # fmt: skip
    best = {p["axis"]: p for p in reversed(told["par2"])}["steps"]
    curves = [c for p in made.problems for c in p.curves if c.variant == best["variant"]]
    assert (best["solved"], best["trials"]) == (len(curves), len(curves))
    steps = [
        next(s for s, g in zip(c.costs["steps"], c.gaps, strict=True) if g <= 1e-6) for c in curves
    ]
    assert best["score"][0] == pytest.approx(np.mean(steps))
    tried = {tuple(p["tried"]) for p in told["portfolios"]}
    assert tried == {("method 0 (default)", "method 1", "method 2")}
    page = made.page().read_text()
    assert "PAR-2 to 1e-06" in page
    assert "the others keep their order" in page
    names = ["portfolio of defaults: the best of 3 alone", "portfolio of defaults: all 3 tried"]
    assert all(f"<i>{name}</i>" in page for name in names)
    found = shown(made)
    assert [v["name"] for v in found["variants"]][-2:] == names
    last = len(found["variants"])
    assert [s["v"] for s in found["profiles"]["performance"]["steps"]["1e-06"]] == list(range(last))
    untuned = made_results(made.folder, problems=1, methods=2, seeds=1)
    assert "portfolio" not in untuned.summary.as_json().replace('"portfolios": []', "")
    assert "<i>portfolio" not in untuned.page(made.folder / "untuned.html").read_text()


def test_rates_stand_in_the_table_of_trials_and_in_a_figure(made):
    found = shown(made)
    at = found["trials"]["columns"].index("FLOPs per byte")
    assert found["trials"]["columns"][at : at + 3] == ["FLOPs per byte", "GFLOP/s", "GB/s"]
    # 100 FLOPs and 800 bytes a step of a millisecond
    assert {tuple(row[at : at + 3]) for row in found["trials"]["rows"]} == {(0.125, 1e-4, 8e-4)}
    assert len(found["roofline"]) == PROBLEMS * (METHODS + 1) * SEEDS
    assert {(p["x"], p["y"], p["moved"]) for p in found["roofline"]} == {(0.125, 1e-4, 8e-4)}


def test_results_in_doubt_stand_in_one_place(made, tmp_path):
    page = made.page(tmp_path / "fine.html").read_text()
    assert "Results to look at twice" in page
    assert "<p>None was found.</p>" in page
    first = made.problems[0]
    wrong = {"status": "CONVERGED", "certificate": {"kind": "saddle", "message": "<b>"}}
    curves = [
        c._replace(facts=c.facts | wrong) if c.variant == "method 1" else c for c in first.curves
    ]
    problems = [first._replace(curves=curves), *made.problems[1:]]
    results = type(made)(made.study, tmp_path, made.jobs, made.records, problems, made.summary)
    told = f"<td>{SEEDS} trials say that they converged, and end at a point certified saddle</td>"
    assert told in results.page().read_text()


def test_json_cannot_end_its_script_element():
    text = _script_safe({"x": "</script><!--\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"x": "</script><!--\u2028"}


def test_the_page_needs_nothing_from_elsewhere(made):
    page = made.page().read_text()
    for outside in ('src="http', "src='http", 'href="http', "@import", "<link"):
        assert outside not in page.split("<script>")[0]
    assert page.count("<script>") == 2
    assert "default-src 'none'" in page
    for sentence in made.summary.verdicts:
        assert sentence.split(",")[0] in page
    assert "Tuning" in page
    assert "smallest curvature 1.0" in page


# --- figures


def test_spectra_are_those_of_the_problem():
    problem = quadratic(n=5, condition=100.0)
    matrix = np.asarray(
        ok.hessian(problem.objective, problem.start(jax.random.key(0)), problem.args).dense()
    )
    values = np.linalg.eigvalsh(matrix)
    end = np.zeros(5, np.float32)
    start, solution = spectra(problem, jax.random.key(0), end)
    assert (start["where"], solution["where"]) == ("the start", "the reference solution")
    for seen in (start, solution):
        np.testing.assert_allclose(
            sorted(seen["largest"]), values, rtol=1e-5
        )  # six digits are kept
        assert seen["exact"]
        # a trapezoid rule over a smooth density that ends four of its widths beyond the last value
        assert np.trapezoid(seen["mean"], seen["x"]) == pytest.approx(1, abs=1e-3)
    assert [s["where"] for s in spectra(problem, jax.random.key(0))] == ["the start"]


def test_figures_are_files_with_the_labels_as_text(made, tmp_path):
    paths = figures(made, tmp_path, "svg", axes=("steps", "warm"))
    names = {p.name for p in paths}
    assert {"convergence-p0.svg", "convergence-p1.svg", "performance-profile.svg",
            "data-profile.svg", "tuning.svg", "spectrum-p0.svg", "roofline.svg"} <= names  # fmt: skip
    for name, word in (("roofline", "model FLOPs per model byte"),
                       ("performance-profile", "portfolio of defaults: all 3 tried")):  # fmt: skip
        assert word in (tmp_path / f"{name}.svg").read_text()
    text = (tmp_path / "convergence-p0.svg").read_text()
    for word in ("method 1", "p0", AXES["warm"].label, AXES["steps"].label):
        assert word in text
    again = figures(made, tmp_path / "again", "pdf", axes=("steps",))
    assert all(p.read_bytes()[:5] == b"%PDF-" for p in again)
    for wrong in ({"format": "bmp"}, {"format": "pdf", "axes": ["stpes"]}):
        with pytest.raises(ValueError, match="choose from"):
            figures(made, tmp_path, **wrong)


def test_a_course_is_the_median_of_step_functions(made):
    curves = [c for c in made.problems[0].curves if c.variant == "method 1"]
    costs, low, middle, high = course(curves, "steps")
    assert np.all(low <= middle)
    assert np.all(middle <= high)
    at = costs.tolist().index(10.0) if 10.0 in costs else len(costs) // 2
    reached = []
    for c in curves:
        i = max(k for k, step in enumerate(c.costs["steps"]) if step <= costs[at])
        reached.append(max(c.gaps[i], 1e-17))
    assert middle[at] == pytest.approx(sorted(reached)[1])


def test_the_command_writes_page_and_figures(tmp_path):
    results = made_results(tmp_path, problems=1, methods=2, seeds=1)
    store.prepare(tmp_path)
    for job_id, record in results.records.items():
        store.write(tmp_path, job_id, record)
    (tmp_path / "study.json").write_text(results.study.model_dump_json())
    code = "import sys; from optikit.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "report", str(tmp_path), "--figures", "png"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "figures" / "convergence-p0.png").read_bytes()[:4] == b"\x89PNG"
    wrong = subprocess.run(
        [sys.executable, "-c", code, "report", str(tmp_path), "--figures", "gif"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "choose from pdf, png, svg" in wrong.stderr


def test_figures_that_cannot_be_written_are_an_error_in_words(made, tmp_path):
    place = tmp_path / "figures"
    place.touch()
    with pytest.raises(store.StoreError, match=r"figures cannot be written \(File exists\)"):
        figures(made, place, "png")
    place.unlink()
    (place / "convergence-p0.svg").mkdir(parents=True)
    with pytest.raises(store.StoreError, match=r"convergence-p0\.svg cannot be written"):
        figures(made, place, "svg")
    assert [path.name for path in place.iterdir()] == ["convergence-p0.svg"]  # no half figure


# --- in a browser


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            if (pathlib.Path(folder) / name).exists():
                return name
    return None


in_browser = pytest.mark.skipif(chromium() is None, reason="needs headless Chromium")

WATCH = """<script>
window.wrong = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, e => wrong.push(kind + ": " + (e.message ?? e.reason ?? e.violatedDirective)), true);
for (const level of ["error", "warn"]) console[level] = (...said) => wrong.push(level + ": " + said.join(" "));
const pause = () => new Promise(done => setTimeout(done, 150));
const choose = async (id, value) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event(control.type === "search" ? "input" : "change"));
  await pause();
};
const lines = of => [...document.querySelectorAll(of + " .chart")].map(chart => ({
  label: chart.dataset.problem ?? chart.dataset.tuned ?? chart.dataset.spectrum ?? chart.id,
  traces: chart.data?.map(t => t.name) ?? [], drawn: chart.querySelectorAll(".scatterlayer .trace path.js-line").length,
  ticks: ["x", "y"].map(axis => chart.querySelectorAll(`.${axis}tick text`).length),
  x: chart.querySelector(".xtitle")?.textContent, y: chart.querySelector(".ytitle")?.textContent,
}));
</script>"""


def walked(page, walk, tmp_path):
    """What a script on the page wrote down after it had been shown."""
    probe = tmp_path / "probe.html"
    end = f"""<script>(async () => {{ const seen = {{}}; await pause();
      try {{ {walk} }} catch (e) {{ wrong.push("walk: " + e); }}
      seen.wrong = wrong;
      const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
      document.body.append(out); }})();</script></body>"""
    text = page.read_text().replace("<head>", f"<head>{WATCH}", 1)
    probe.write_text(end.join(text.rsplit("</body>", 1)))
    dom = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=1400,6000", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=30000", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    ).stdout  # fmt: skip
    assert '<pre id="seen">' in dom, dom[-2000:]
    found = dom.split('<pre id="seen">')[1].split("</pre>")[0]
    for code, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        found = found.replace(code, character)
    seen = json.loads(found)
    assert seen.pop("wrong") == []
    return seen


@pytest.mark.browser
@in_browser
def test_a_browser_draws_every_curve_on_every_axis(made, tmp_path):
    seen = walked(made.page(), """
      seen.axes = {};
      for (const key of [...document.getElementById("axis").options].map(o => o.value)) {
        await choose("axis", key);
        seen.axes[key] = lines("#charts");
      }
      await choose("axis", "warm");
      seen.profiles = lines("#profiles"); seen.tuning = lines("#tuning");
      seen.spectra = lines("#spectra"); seen.rates = lines("#placed");
      await choose("seeds", "each"); seen.each = lines("#charts");
      await choose("progress", "grad"); seen.grad = lines("#charts");
      await choose("xscale", "linear"); await choose("yscale", "linear"); seen.linear = lines("#charts");
      document.querySelector("#legend button").click(); await pause(); seen.hidden = lines("#charts");
    """, tmp_path)  # fmt: skip
    assert set(seen["axes"]) == {axis.key for axis in axes_of(made.problems)}
    variants = METHODS + 1  # method 0 is shown tuned and with its defaults
    for key, charts in seen["axes"].items():
        assert [c["label"] for c in charts] == [p.label for p in made.problems]
        for chart in charts:
            assert chart["x"] == AXES[key].label
            if AXES[key].whole:
                assert chart["drawn"] == 1, "the front: a method is points without a line"
                assert len(chart["traces"]) == 1 + variants
                continue
            ended = key != "count_hessian" or "ended at" in chart["traces"]
            assert len(chart["traces"]) == 1 + 3 * variants + ended, "the front; band, band, median"
            # a method that never calls an oracle has no course along its calls
            if key != "count_hessian":
                assert chart["drawn"] == 1 + 3 * variants, key
            assert chart["y"].startswith("suboptimality")
    assert [c["label"] for c in seen["profiles"]] == ["performance", "data-profile", "ecdf"]
    # the portfolio of defaults in two lines, of what it costs alone and in all
    assert [c["drawn"] for c in seen["profiles"]] == [variants + 2, variants + 2, variants]
    assert [len(c["traces"]) for c in seen["rates"]] == [variants]
    assert [c["label"] for c in seen["tuning"]] == ["p0", "p1"]
    # a line for all eigenvalues; a line and a band of two for those from random vectors
    assert [(c["label"], c["drawn"]) for c in seen["spectra"]] == [("p0", 4)]
    assert all(c["drawn"] == 1 for c in seen["tuning"])
    assert all(c["drawn"] == 1 + variants * SEEDS for c in seen["each"])
    charts = [
        *seen["axes"].values(),
        *(seen[k] for k in ("profiles", "tuning", "spectra", "rates")),
    ]
    assert all(min(chart["ticks"]) for row in charts for chart in row), "numbers on every axis"
    for charts in (seen["grad"], seen["linear"]):
        assert all(c["y"] == "max |gradient|" for c in charts)
        assert all(c["drawn"] == variants * SEEDS for c in charts)
    assert all(c["drawn"] == (variants - 1) * SEEDS for c in seen["hidden"])


@pytest.mark.browser
@in_browser
def test_an_axis_of_less_than_a_decade_has_numbers(made, tmp_path):
    page = tmp_path / "narrow.html"
    narrow = '"expected":[14.5,13.2,12.6,12.1]'  # neither a 1 nor a 2 nor a 5 between them
    page.write_text(re.sub(r'"expected":\[[^]]*\]', narrow, made.page().read_text()))
    seen = walked(page, 'seen.tuning = lines("#tuning");', tmp_path)
    assert all(min(chart["ticks"]) > 1 for chart in seen["tuning"])


@pytest.mark.browser
@in_browser
def test_the_table_of_trials_sorts_and_filters(made, tmp_path):
    seen = walked(made.page(), """
      const column = i => [...document.querySelectorAll("#trials tbody tr")].map(r => r.cells[i].textContent);
      const heads = [...document.querySelectorAll("#trials th")].map(h => h.textContent);
      const gap = heads.indexOf("best gap");
      seen.heads = heads; seen.all = column(gap).length; seen.more = document.getElementById("more").offsetWidth;
      document.querySelectorAll("#trials th button")[gap].click(); seen.up = column(gap).map(Number);
      document.querySelectorAll("#trials th button")[gap].click(); seen.down = column(gap).map(Number);
      await choose("filter", "p1 METHOD"); seen.filtered = column(0); seen.counted = document.getElementById("counted").textContent;
    """, tmp_path)  # fmt: skip
    rows = len(shown(made)["trials"]["rows"])
    assert seen["all"] == rows
    assert seen["more"] == 0, "no button where all is shown"
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["up"], reverse=True)
    assert set(seen["filtered"]) == {"p1"}
    assert seen["counted"].endswith(f"({rows} in all)")


@pytest.mark.browser
@in_browser
def test_hostile_names_stay_text(made, tmp_path):
    bad = '<img src=x onerror="wrong.push(1)">&lt;b&gt;</script><script>wrong.push(2)</script><!--DATA-->'
    first = made.problems[0]
    curves = [c._replace(variant=bad) if c.variant == "method 1" else c for c in first.curves]
    facts = first.facts | {
        "description": bad,
        "reference": first.facts["reference"] | {"certificate": bad},
    }
    problem = first._replace(
        label=bad, curves=[c._replace(problem=bad) for c in curves], facts=facts
    )
    summary = made.summary._replace(verdicts=[bad], failures=[(bad, bad)])
    hostile = type(made)(made.study, tmp_path, made.jobs, made.records, [problem], summary)
    seen = walked(hostile.page(), """
      seen.legend = [...document.querySelectorAll("#legend button")].map(b => b.textContent);
      seen.title = document.querySelector("#charts .gtitle").textContent;
      seen.images = document.querySelectorAll("img").length; seen.bold = document.querySelectorAll(".chart b").length;
    """, tmp_path)  # fmt: skip
    assert bad in seen["legend"]
    assert seen["title"] == bad
    assert seen["images"] == seen["bold"] == 0
    drawn = figures(hostile, tmp_path / "figures", "png", axes=("steps",))
    assert all(p.parent == tmp_path / "figures" and "<" not in p.name for p in drawn)


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize("problems", ["none", "no trials"])
def test_a_study_that_has_just_begun_has_a_page_too(problems, made, tmp_path):
    begun = [] if problems == "none" else [p._replace(curves=[], tuning=[]) for p in made.problems]
    summary = summarise(begun, made.study.targets, [])
    early = type(made)(made.study, tmp_path, made.jobs, {}, begun, summary)
    seen = walked(early.page(), "seen.charts = lines('#charts').length", tmp_path)
    assert seen["charts"] == len(begun)


@pytest.mark.slow
@pytest.mark.browser
@in_browser
def test_two_thousand_trials_open_soon(tmp_path):
    """In the browser's own clock: from navigation to every visible chart drawn."""
    results = made_results(tmp_path, problems=10, methods=20, seeds=10, snapshots=45)
    assert sum(job.kind == "trial" for job in results.jobs) == 2000
    page = results.page()
    assert page.stat().st_size < 10e6
    seen = walked(page, """
      seen.ready = performance.now(); seen.charts = lines("#charts").filter(c => c.drawn).length;
    """, tmp_path)  # fmt: skip
    assert seen["charts"] == 10
    assert seen["ready"] < 15_000
