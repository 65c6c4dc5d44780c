"""Every registered problem: a finite start, right derivatives, a true optimum, both precisions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optikit as ok
from optikit.bench.signature import registry, signature
from optikit.problems import PROBLEMS
from optikit.problems.mgh import FUNCTIONS, PUBLISHED, mgh
from optikit.problems.synthetic import design

FAMILIES = ["linear", "huber", "quantile", "smooth-quantile", "logistic", "softmax", "poisson",
            "gamma"]  # fmt: skip
SMALL = {  # small enough to be quick; several entries where an argument chooses the function
    "char-transformer": [{"layers": 1, "width": 4, "heads": 2, "context": 5, "characters": 900}],
    "conv-classifier": [{"channels": 2, "dense": 5, "examples": 70}],
    "deep-autoencoder": [{"hidden": [4], "code": 2}],
    "double-well": [{"offset": 0.1, "wells": 2}],
    "exponential-decay": [{"m": 20, "noise": 0.0}],
    "exponential-sum": [{"terms": 2, "m": 20}],
    "damped-oscillation": [{"m": 30, "noise": 0.0}],
    "gaussian-peaks": [{"peaks": 2, "m": 40, "noise": 0.0}],
    "logistic-growth": [{"m": 20, "noise": 0.0}],
    "michaelis-menten": [{"m": 20, "noise": 0.0}],
    "matrix-factorization": [
        {"rows": 6, "columns": 5, "rank": 2},
        {"rows": 6, "columns": 5, "rank": 2, "noise": 0.1},
        {"rows": 6, "columns": 5, "rank": 2, "observed": 0.7},
    ],
    "mlp-classification": [{"data": "iris", "hidden": 4}],
    "mlp-regression": [{"hidden": 4, "depth": 2}],
    "nesterov": [{"n": 12}],
    "neural-quantum-state": [{"sites": 4}],
    "overparameterized-regression": [{"hidden": 20}],
    "phase-retrieval": [{"n": 4}],
    "pinn-heat": [{"hidden": 4, "interior": 20, "boundary": 8}],
    "pinn-poisson": [{"hidden": 4, "interior": 20, "boundary": 8}],
    "quadratic": [
        {"n": 9, "spectrum": s, "rotated": r}
        for s, r in [("log", True), ("linear", False), ("clusters", False), ("outlier", True)]
    ],
    "softmax-regression": [{"data": "iris"}],
    "synthetic-glm": [
        {"family": f, "examples": 60, "features": 4, "correlation": 0.5} for f in FAMILIES
    ],
}
KINKED = {"quantile-regression", "synthetic-glm quantile"}  # not smooth, and say so
CASES = [
    (name, arguments)
    for name in sorted(PROBLEMS)
    if name != "cutest"
    for arguments in SMALL.get(name, [{}])
]


def title(case):
    name, arguments = case if isinstance(case, tuple) else (case, {})
    return f"{name} {arguments.get('family') or arguments.get('spectrum') or ''}".strip()


def value_and_grad(problem, params, args):
    value, grad = jax.value_and_grad(problem.objective)(params, *args)
    return float(value), max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grad))


@pytest.mark.parametrize("case", CASES, ids=title)
def test_starts_finite_in_both_precisions_and_the_same_for_a_seed(case, key):
    name, arguments = case
    problem, again = PROBLEMS[name](**arguments), PROBLEMS[name](**arguments)
    assert problem.description
    values = {}
    for dtype in ("float32", "float64"):
        cast = problem.cast(jnp.dtype(dtype))
        start = cast.start(key)
        assert {x.dtype.name for x in jax.tree.leaves(start)} == {dtype}
        value = cast.objective(start, *cast.args)
        assert value.dtype == dtype
        assert jnp.isfinite(value)
        values[dtype] = float(value)
    assert values["float32"] == pytest.approx(values["float64"], rel=1e-4, abs=1e-5)
    second = again.cast(jnp.float64)
    assert float(second.objective(second.start(key), *second.args)) == values["float64"]
    assert again.objective == problem.objective, "built twice, a problem must be found compiled"


KNOWN = [c for c in CASES if PROBLEMS[c[0]](**c[1]).solution is not None]


@pytest.mark.parametrize("case", KNOWN, ids=title)
def test_the_known_optimum_is_attained_stationary_and_below_the_start(case, key):
    problem = PROBLEMS[case[0]](**case[1])
    cast = problem.cast(jnp.float64)
    value, slope = value_and_grad(cast, cast.solution, cast.args)
    begin, steep = value_and_grad(cast, cast.start(key), cast.args)
    assert value == pytest.approx(problem.optimum, rel=1e-12, abs=1e-14)
    assert slope <= 1e-9 * max(1, steep)
    assert value < begin


# one of each kind of code; the rest is the same model or residual with other data
CHECKED = [
    c for c in CASES
    if c[0] in {"phase-retrieval", "matrix-factorization", "mlp-regression", "monkey-saddle",
                "gaussian-peaks", "exponential-sum", "damped-oscillation", "product-saddle"}
    or c[1].get("spectrum") == "outlier" or c[1].get("family") in {"softmax", "gamma"}
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKED, ids=title)
def test_derivatives_belong_to_the_function(case, key):
    cast = PROBLEMS[case[0]](**case[1]).cast(jnp.float64)
    start = jax.tree.map(lambda x: x + 0.01, cast.start(key))
    report = ok.check_derivatives(cast.objective, start, cast.args)
    assert report, report.message


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES + [("mgh", {"function": f}) for f in FUNCTIONS], ids=title)
def test_derivatives_of_all(case, key):
    name, arguments = case
    cast = PROBLEMS[name](**arguments).cast(jnp.float64)
    start = jax.tree.map(lambda x: x + 0.01, cast.start(key))
    if arguments.get("function") == "brown-badly-scaled":
        return  # second differences of 1e12 say nothing
    report = ok.check_derivatives(cast.objective, start, cast.args)
    assert report or title(case) in KINKED, report.message


# --- Moré, Garbow & Hillstrom


def minpack(residuals, start, data):
    """The least sum of squares by MINPACK, whose authors' collection this is."""
    both = jax.jit(lambda x: (residuals(x, *data), jax.jacfwd(residuals)(x, *data)))
    found = scipy.optimize.least_squares(
        lambda x: np.asarray(both(x)[0]), start, lambda x: np.asarray(both(x)[1]),
        method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000,
    )  # fmt: skip
    return 2 * found.cost


NEAR = {  # where the standard start leads to a local minimum, start nearer the global one
    "gulf": np.array([40.0, 20, 1.2]),
    "freudenstein-roth": np.array([4.0, 5.0]),
    "biggs": np.array([1.1, 9.0, 1.1, 4.8, 4.2, 3.1]),
    "trigonometric": np.full(10, 0.01),
}
SIZES = sorted({(f, FUNCTIONS[f].n) for f in FUNCTIONS} | set(PUBLISHED))


@pytest.mark.parametrize(("function", "n"), SIZES)
def test_least_values_are_the_papers(function, n):
    problem = mgh(function, n=n)
    start = NEAR.get(function, problem.params)
    least = minpack(problem.objective.fun, start, problem.args)
    if problem.optimum is None:
        published = PUBLISHED[function, n]
        assert least == pytest.approx(published, rel=2e-5), "the paper prints six digits"
    else:
        assert least == pytest.approx(2 * problem.optimum, rel=1e-9, abs=1e-14)
    if problem.solution is not None:
        at = problem.objective.fun(problem.solution, *problem.args)
        assert float(at @ at) == pytest.approx(2 * problem.optimum, rel=1e-12, abs=1e-14)


def test_there_are_all_thirty_five_by_number_and_choice():
    assert sorted(f.number for f in FUNCTIONS.values()) == list(range(1, 36))
    choices = mgh.__annotations__["function"].__args__
    assert set(choices) == set(FUNCTIONS)
    assert all(mgh(f, n=f_n).params.size == f_n for f, f_n in SIZES)


def test_sizes_and_starts_of_the_collection():
    assert mgh("extended-rosenbrock", n=1000).params.size == 1000
    assert mgh("jennrich-sampson", m=20).args[0].size == 20
    np.testing.assert_array_equal(mgh("beale", distance=10.0).params, [10, 10])
    np.testing.assert_array_equal(mgh("watson", distance=10.0).params, np.full(6, 10))
    for wrong, said in (
        ({"function": "beal"}, "unknown function"),
        ({"function": "beale", "n": 3}, "2 unknowns"),
        ({"function": "extended-powell-singular", "n": 6}, "multiple of 4"),
        ({"function": "beale", "m": 5}, "not free"),
        ({"function": "linear-rank-1", "m": 5}, "m >= n"),
        ({"function": "gulf", "m": 200}, "at most 100"),
    ):
        with pytest.raises(ValueError, match=said):
            mgh(**wrong)


# --- chosen spectra, drawn data, structure


@pytest.mark.parametrize("spectrum", ["log", "linear", "clusters", "outlier"])
@pytest.mark.parametrize("rotated", [False, True])
def test_quadratics_have_the_condition_they_are_asked_for(spectrum, rotated):
    problem = PROBLEMS["quadratic"](n=7, condition=50.0, spectrum=spectrum, rotated=rotated)
    values = np.linalg.eigvalsh(jax.hessian(problem.objective)(jnp.zeros(7), *problem.args))
    assert values[-1] == pytest.approx(1, rel=1e-9)
    assert values[-1] / values[0] == pytest.approx(50, rel=1e-9)


def test_nesterov_hides_the_next_unknown():
    problem = PROBLEMS["nesterov"](n=6)
    x = jnp.asarray([1.0, 0.3, 0, 0, 0, 0])
    assert np.flatnonzero(jax.grad(problem.objective)(x)).tolist() == [0, 1, 2]


def test_drawn_features_have_the_variances_and_correlation_asked_for():
    rows = design(np.random.default_rng(0), 200_000, 4, 100.0, 0.6)
    assert np.allclose(rows.var(axis=0), np.geomspace(1, 0.01, 4), rtol=0.02)
    wanted = 0.6 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert np.allclose(np.corrcoef(rows.T), wanted, atol=0.01)


def test_ridge_is_scikit_learns():
    from sklearn.linear_model import Ridge

    problem = PROBLEMS["ridge-regression"](l2=0.02)
    inputs, targets = problem.args
    sol = ok.minimize(problem.objective, problem.params, method="newton", args=problem.args)
    theirs = Ridge(alpha=0.02 * len(targets) / 2).fit(inputs, targets)
    np.testing.assert_allclose(sol.params["weights"], theirs.coef_, rtol=1e-8)


def test_the_smoothed_quantile_is_within_its_width_of_the_exact():
    exact = PROBLEMS["quantile-regression"](q=0.8)
    smooth = PROBLEMS["smooth-quantile-regression"](q=0.8, width=0.05)
    at = {"weights": np.linspace(-1, 1, 10), "bias": np.asarray(0.1)}
    gap = float(smooth.objective(at, *smooth.args) - exact.objective(at, *exact.args))
    assert 0 < gap <= 0.05 * np.log(2)


@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("quadratic", {"condition": 0.5}, "at least 1"),
    ("quadratic", {"spectrum": "flat"}, "unknown spectrum"),
    ("double-well", {"wells": 9}, "wells must be"),
    ("product-saddle", {"n": 1}, "n must be at least 2"),
    ("deep-autoencoder", {"hidden": [8, 0]}, "hidden must be at least 1"),
    ("matrix-factorization", {"rank": 50}, "rank must be"),
    ("matrix-factorization", {"observed": 0.0}, "share"),
    ("quantile-regression", {"q": 1.0}, "between 0 and 1"),
    ("gamma-regression", {"data": "digits"}, "positive"),
    ("logistic-regression", {"data": "wine"}, "two classes"),
    ("mlp-classification", {"data": "diabetes"}, "mlp-regression"),
    ("synthetic-glm", {"family": "cauchy"}, "unknown family"),
    ("synthetic-glm", {"correlation": 1.0}, "out of range"),
])  # fmt: skip
def test_impossible_arguments_are_refused(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        PROBLEMS[name](**arguments)


# --- CUTEst, where sif2jax is installed

CUTEST = """
import sys, jax
from optikit.problems import cutest
problem = cutest("ROSENBR")
assert not jax.config.jax_enable_x64, "the process must keep its precision"
assert not [m for m in sys.modules if m.startswith("sif2jax")]
assert cutest("ROSENBR").objective == problem.objective
single = problem.cast("float32")
assert single.objective(single.start(None)).dtype == "float32"
with jax.enable_x64(True):
    double = problem.cast("float64")
    assert float(double.objective(double.start(None))) == 24.199999999999996
    assert cutest("ARWHEAD", n=10).start(None).size == 10
for wrong in ({"name": "NOSUCH"}, {"name": "ROSENBR", "n": 5}, {"name": "ROSENBR", "start": 7}):
    try:
        cutest(**wrong)
    except ValueError as error:
        print(error)
"""


NAMED_SIZES = [
    (name, parameter.name)
    for name, target in sorted(registry("optikit.problems", "PROBLEMS").items())
    for parameter in signature(target).parameters
    if int in parameter.types and not {"seed", "start"} & {parameter.name}
]


@pytest.mark.parametrize(("name", "size"), NAMED_SIZES)
def test_impossible_sizes_are_named(name, size):
    needed = {"name": "ROSENBR"} if name == "cutest" else {}
    with pytest.raises(ValueError, match=rf"\b{size}\b.*-3"):
        PROBLEMS[name](**needed, **{size: -3})


def test_cutest_problems_come_alone():
    pytest.importorskip("equinox")
    if __import__("importlib.util").util.find_spec("sif2jax") is None:
        pytest.skip("needs sif2jax")
    ran = subprocess.run([sys.executable, "-c", CUTEST], capture_output=True, text=True,
                         check=False, timeout=120)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for said in ("no unconstrained problem 'NOSUCH'", "one size", "starts [0]"):
        assert said in ran.stdout
