"""Peers: every registered method solves an easy problem, its calls are those that were made."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call

import optikit as ok
from optikit.bench import peers
from optikit.bench.peers import host
from optikit.bench.peers.catalogue import LIBRARIES, REFUSED
from optikit.bench.plan import plan
from optikit.bench.spec import ConfigError, load_study
from optikit.bench.trial import run_job

QUICK = {"repeats": 1, "prices": False, "flops": False, "refine": False, "certificates": False}
SQUARES = {"lm", "trf", "dogbox", "GaussNewton", "LevenbergMarquardt",
           "IndirectLevenbergMarquardt", "Dogleg"}  # fmt: skip
ARGUMENTS = {"optimistix:GradientDescent": {"learning_rate": 0.08}}
NAMES = [f"{name}:{method}" for name, library in LIBRARIES.items() for method in library.methods]
CLASSIFIERS = ("sklearn:lbfgs", "sklearn:newton-cg", "sklearn:newton-cholesky", "sklearn:sag",
               "sklearn:saga")  # fmt: skip
seen = collections.Counter()


def note(kind):
    jax.debug.callback(lambda: seen.update([kind]))


def forwards(_, t):
    note("forwards")
    return t


def backwards(_, t):
    note("backwards")
    return t


@jax.custom_jvp
def marked(x):
    """The identity, which tells when derivatives go through it."""
    return x


@marked.defjvp
def _(primals, tangents):
    return primals[0], linear_call(forwards, backwards, (), tangents[0])


def watched(x):
    """A convex function of three variables that counts its evaluations as they run."""
    note("value")
    c = jnp.arange(1.0, 4.0).astype(x.dtype)
    return jnp.sum(c * (x - 1) ** 2) + jnp.sum((x - 1) ** 4)


@jax.custom_jvp
def marked_batched(x):
    """The same where products come in batches: it tells of every linearisation instead."""
    return x


@marked_batched.defjvp
def _(primals, tangents):
    note("linearised")
    return primals[0], tangents[0]


def watched_residuals(x):
    note("value")
    return jnp.concatenate([2 * (x - 1), jnp.exp(x[:1]) - jnp.exp(jnp.ones((), x.dtype))])


def linear(loss, targets, l2=1e-2, penalty=None):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    penalty = ok.losses.l2({"w": l2, "b": 0.0}) if penalty is None else penalty
    objective = ok.composite(lambda p, x: x @ p["w"] + p["b"], loss, penalty=penalty)
    signal = inputs @ np.array([1.0, -1.0, 0.5])
    return ok.Problem(objective, {"w": np.zeros(3), "b": np.zeros(())},
                      (inputs, targets(signal, rng)))  # fmt: skip


def problem_for(name):
    method = name.partition(":")[2]
    if name in CLASSIFIERS:
        return linear(ok.losses.logistic, lambda s, r: (s + r.logistic(size=60) > 0).astype(float))
    if name.startswith("sklearn"):
        return linear(ok.losses.squared_error, lambda s, r: s + r.normal(size=60))
    if method in SQUARES:
        return ok.Problem(ok.residuals(watched_residuals), np.zeros(3))
    return ok.Problem(watched, np.zeros(3))


def trial(name, problem, dtype="float64", **measure):
    """The record of a peer on a problem."""
    experiment = ok.Experiment(
        "peers", {"easy": problem}, {"peer": {"use": name, **ARGUMENTS.get(name, {})}},
        budget={"steps": 400 if "sag" in name else 60, "seconds": 20.0}, dtype=dtype,
        measure=QUICK | measure,
    )  # fmt: skip
    return run_job(plan(experiment.study())[-1])


def counts(row):
    return {k.removeprefix("count_"): v for k, v in row.items() if k.startswith("count_") and v}


def needs(name):
    pytest.importorskip(LIBRARIES[name.partition(":")[0]].package)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_ends_where_the_referee_calls_it_solved(name):
    needs(name)
    record = trial(name, problem_for(name))
    assert not record.facts["error"], record.facts["error"]
    first, last = record.rows[0], record.rows[-1]
    assert first["step"] == 0
    assert first["value"] > last["value"]
    assert last["grad_norm"] < 1e-3 * first["grad_norm"]
    assert last["solver_value"] == pytest.approx(last["value"], rel=1e-9)
    steps = [r["step"] for r in record.rows]
    assert steps == sorted(set(steps))
    assert sum(counts(last).values()) > 0
    for column in ("first_seconds", "warm_seconds"):
        times = [r[column] for r in record.rows]
        assert times == sorted(times)
    assert record.facts["peer"]["library"].startswith(
        LIBRARIES[name.partition(":")[0]].distribution
    )
    json.dumps(record.facts["peer"])


@pytest.mark.parametrize("name", ["scipy:L-BFGS-B", "scipy:trust-ncg", "scipy:trf",
                                  "sklearn:newton-cholesky", "jaxopt:LBFGS", "optimistix:BFGS",
                                  "optimistix:LevenbergMarquardt"])  # fmt: skip
def test_in_float32_too(name):
    needs(name)
    record = trial(name, problem_for(name), dtype="float32")
    assert not record.facts["error"], record.facts["error"]
    assert record.rows[-1]["grad_norm"] < 1e-2 * record.rows[0]["grad_norm"]


COMPILED = [n for n in NAMES if n.startswith(("jaxopt", "optimistix"))]


@pytest.mark.parametrize("name", COMPILED)
def test_calls_of_a_compiled_peer_are_those_the_objective_saw(name):
    """The ledger's evaluations and derivatives, against callbacks inside the user's own function."""
    needs(name)
    from optikit.bench.peers.compiled import SUMS_OF_SQUARES, CompiledPeer
    from optikit.bench.peers.flat import flat
    from optikit.bench.peers.taps import Tally
    from optikit.bench.programs import functions

    library, _, method = name.partition(":")
    if method in SUMS_OF_SQUARES:
        objective = ok.residuals(lambda x: watched_residuals(marked_batched(x)))
    else:
        objective = ok.black_box(lambda x: watched(marked(x)))
    problem, key = ok.Problem(objective, np.zeros(3)).cast("float64"), jax.random.key(0)
    peer = CompiledPeer(library, method, ARGUMENTS.get(name, {}))
    entered = flat(problem, key)
    tally = Tally(scalar=method not in SUMS_OF_SQUARES)
    flat_problem = ok.Problem(entered.value, entered.start)
    start, go = functions(flat_problem, peer._optimizer(entered, tally))
    seen.clear()
    begun = jax.block_until_ready(jax.jit(start)(entered.start, (), key))
    jax.block_until_ready(jax.jit(go)(begun, (), jnp.asarray(7, jnp.int32)))
    jax.effects_barrier()
    assert tally.seen["value"] == seen["value"]
    told = tally.counts()
    products = {kind: n for kind, n in told._asdict().items() if n and kind != "value"}
    if method in SUMS_OF_SQUARES:
        # jaxopt linearises anew for every product, optimistix once for all of a step's
        anew = sum(products.values()) if library == "jaxopt" else told.jacobian
        assert anew == seen["linearised"] > 0
    else:
        assert told.value + told.grad == seen["value"]
        assert (told.grad, told.jvp) == (seen["backwards"], seen["forwards"])
        assert told.grad > 0
    assert set(products) <= {"grad", "jvp", "vjp", "jacobian"}  # none takes Hessian products


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("scipy")])
def test_calls_of_a_host_peer_are_those_its_compiled_functions_made(name):
    from optikit.bench.peers.scipy_methods import ScipyPeer
    from optikit.bench.spec import Budget

    taps = collections.Counter()
    problem = problem_for(name).cast("float64")
    session = ScipyPeer(name.removeprefix("scipy:"), {}).session(
        problem, jax.random.key(0), lambda kind: jax.debug.callback(lambda: taps.update([kind]))
    )
    jax.effects_barrier()
    taps.clear()  # of the calls that warmed it up
    stops, _ = session.explore(Budget(steps=6, seconds=20.0), 1.2)
    jax.effects_barrier()
    ledger = {k: v for k, v in session.door.counts._asdict().items() if v}
    assert ledger == {k: v for k, v in taps.items() if v}
    assert all(v >= getattr(stops[-1].counts, k) for k, v in ledger.items())


TAPPED = {"sklearn:newton-cg": "hvp", "sklearn:newton-cholesky": "hessian", "sklearn:lbfgs": "grad"}


@pytest.mark.filterwarnings("ignore")  # of fits that end at their last iteration
@pytest.mark.parametrize(
    ("name", "loss"),
    [(n, x) for n in TAPPED for x in ("logistic", "softmax", "poisson")
     if (n, x) != ("sklearn:newton-cg", "poisson")],  # it has no such solver
)  # fmt: skip
def test_calls_of_scikit_learn_are_those_its_losses_saw(name, loss, monkeypatch):
    """The ledger, against taps a level below its own: the losses per example and the CG solver."""
    from sklearn._loss import loss as losses
    from sklearn.utils import optimize

    from optikit.bench.peers.sklearn_models import SklearnSession, estimator, linear_problem

    solver = name.partition(":")[2]
    problem = {
        "logistic": lambda: problem_for(name),
        "poisson": lambda: linear(ok.losses.poisson, lambda s, r: r.poisson(np.exp(s)) * 1.0),
        "softmax": lambda: ok.problems.softmax_regression("iris", l2=1e-2),
    }[loss]().cast("float64")  # fmt: skip
    start = problem.start(jax.random.key(0))
    model = linear_problem(problem, start)
    session = SklearnSession(problem, start, model, estimator(model, solver, seed=0), solver)
    (stop,) = session.again([7])

    below = collections.Counter()

    def tap(owner, method):
        original = getattr(owner, method)

        def call(*args, **kwargs):
            below[method] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, call)

    for method in ("loss", "loss_gradient", "gradient", "gradient_hessian"):
        tap(losses.BaseLoss, method)
    tap(losses.HalfMultinomialLoss, "gradient_proba")  # instead of the last, with many classes
    inner = optimize._cg

    def conjugate_gradients(product, *args, **kwargs):
        def counted(v):
            below["product"] += 1
            return product(v)

        return inner(counted, *args, **kwargs)

    monkeypatch.setattr(optimize, "_cg", conjugate_gradients)
    session.make(7).fit(*session.data)

    curved = below["gradient_hessian"] + below["gradient_proba"]
    expected = {
        "value": below["loss"],
        "grad": below["loss_gradient"] + below["gradient"] + curved,
        "hvp": below["product"],
        "hessian": curved if solver == "newton-cholesky" else 0,
    }
    assert stop.counts._asdict() == dict.fromkeys(stop.counts._fields, 0) | expected
    assert expected[TAPPED[name]] > 1


@pytest.mark.parametrize("name", ["sklearn:svd", "sklearn:lsqr", "sklearn:saga", "sklearn:lbfgs"])
def test_calls_that_nobody_counted_say_so(name):
    told = trial(name, problem_for(name)).facts["peer"]["calls"]
    assert told.startswith("counted" if name == "sklearn:lbfgs" else "derived from iterations: ")


def test_marks_tell_kinds_of_use_apart():
    from optikit.bench.peers.taps import Tally, tapped

    def residuals(x):
        return jnp.concatenate([x**2, x])

    def seen_by(use, *, scalar):
        tally = Tally(scalar=scalar)
        function = residuals if not scalar else lambda x: jnp.sum(residuals(x))
        jax.block_until_ready(jax.jit(lambda x: use(tapped(function, tally))(x))(jnp.ones(3)))
        return {k: v for k, v in tally.counts()._asdict().items() if v}

    assert seen_by(lambda f: f, scalar=True) == {"value": 1}
    assert seen_by(jax.grad, scalar=True) == {"grad": 1}
    assert seen_by(jax.jacfwd, scalar=False) == {"jacobian": 1}
    assert seen_by(jax.jacrev, scalar=False) == {"jacobian": 1}
    assert seen_by(lambda f: lambda x: jax.jvp(f, (x,), (x,)), scalar=False) == {
        "value": 1,
        "jvp": 1,
    }
    assert seen_by(lambda f: lambda x: jax.vjp(f, x)[1](jnp.ones(6)), scalar=False) == {
        "value": 1, "vjp": 1,
    }  # fmt: skip


def test_first_hits_are_narrowed_for_a_host_peer():
    record = trial("scipy:BFGS", ok.problems.rosenbrock(4), refine=True)
    assert any(r["refined"] for r in record.rows)
    plain = trial("scipy:BFGS", ok.problems.rosenbrock(4))
    values = {r["step"]: r["value"] for r in record.rows}
    assert all(values[r["step"]] == r["value"] for r in plain.rows)


GLMS = {
    "sklearn:lbfgs": [ok.losses.poisson, ok.losses.gamma],
    "sklearn:newton-cholesky": [ok.losses.poisson, ok.losses.gamma],
}


@pytest.mark.parametrize(("name", "loss"), [(n, x) for n, xs in GLMS.items() for x in xs],
                         ids=lambda v: getattr(v, "name", v))  # fmt: skip
def test_generalised_linear_models_are_the_same_objective(name, loss):
    def targets(signal, rng):
        return rng.poisson(np.exp(signal)) * 1.0 if loss.name == "poisson" else np.exp(signal)

    record = trial(name, linear(loss, targets))
    assert not record.facts["error"], record.facts["error"]
    assert record.rows[-1]["grad_norm"] < 1e-6


def test_softmax_in_scikit_learn_is_ours():
    record = trial("sklearn:newton-cg", ok.problems.softmax_regression("iris", l2=1e-2))
    assert not record.facts["error"], record.facts["error"]
    assert record.rows[-1]["grad_norm"] < 1e-8


REFUSALS = {
    "another loss": ("sklearn:lbfgs", linear(ok.losses.huber, lambda s, r: s), "huber"),
    "solver": ("sklearn:svd", problem_for("sklearn:lbfgs"), "svd is not for logistic"),
    "bias": ("sklearn:lbfgs", linear(ok.losses.poisson, lambda s, r: np.exp(s),
                                     penalty=ok.losses.l2(0.1)), "weights alone"),
    "labels": ("sklearn:lbfgs", linear(ok.losses.logistic, lambda s, r: np.full(60, 0.5)), "labels"),
    "black box": ("sklearn:lbfgs", ok.Problem(lambda x: x @ x, np.ones(3)), "black_box"),
    "no squares": ("scipy:lm", ok.Problem(lambda x: x @ x, np.ones(3)), "needs a sum of squares"),
    "no squares, compiled": ("optimistix:Dogleg", ok.Problem(lambda x: x @ x, np.ones(3)),
                             "needs a sum of squares"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_problem_that_a_peer_does_not_minimise_is_a_failed_trial_with_a_sentence(case):
    name, problem, sentence = REFUSALS[case]
    needs(name)
    record = trial(name, problem)
    assert sentence in record.facts["error"]


def test_a_peer_that_throws_is_a_failed_trial():
    def fails(x):
        return jax.pure_callback(
            lambda v: (_ for _ in ()).throw(ValueError("no value")), jax.ShapeDtypeStruct((), x.dtype), x
        )  # fmt: skip

    def objective(x):
        return jnp.sum(x**2) + 0 * fails(jax.lax.stop_gradient(x))

    assert "no value" in trial("scipy:BFGS", ok.Problem(objective, np.ones(2))).facts["error"]


def mistakes(tmp_path, use):
    path = tmp_path / "study.yaml"
    path.write_text(f"name: x\nproblems: {{a: {{use: quadratic}}}}\noptimizers:\n  b: {{{use}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    return str(caught.value).removeprefix(f"{path}:")


def test_mistakes_in_a_study_are_located(tmp_path):
    assert mistakes(tmp_path, "use: 'scipy:trust-exakt'") == (
        "4:12: optimizers.b.use: scipy has no method 'trust-exakt' here: did you mean "
        "'scipy:trust-exact'?"
    )
    assert "did you mean 'maxcor'?" in mistakes(tmp_path, "use: 'scipy:L-BFGS-B', maxcorr: 3")
    assert mistakes(tmp_path, "use: 'scipy:L-BFGS-B', maxcor: x") == (
        "4:38: optimizers.b.maxcor: must be int (got 'x')"
    )
    assert "penalises the intercept" in mistakes(tmp_path, "use: 'sklearn:liblinear'")


def test_a_missing_library_is_a_sentence_that_names_the_extra(tmp_path, monkeypatch):
    gone = LIBRARIES["jaxopt"]._replace(package="not_installed_anywhere")
    monkeypatch.setitem(LIBRARIES, "jaxopt", gone)
    assert "jaxopt is not installed: pip install 'optikit[peers]'" in mistakes(
        tmp_path, "use: 'jaxopt:LBFGS'"
    )
    with pytest.raises(ImportError, match="optikit\\[peers\\]"):
        peers.peer_of("jaxopt:LBFGS", {})


def test_refused_methods_are_no_methods():
    assert not set(REFUSED) & set(NAMES)
    for use in REFUSED:
        with pytest.raises(ValueError, match="refused"):
            peers.peer_of(use, {})


def test_optax_needs_no_peer():
    for use in ("optax.lbfgs", "optax:lbfgs"):
        record = trial(use, ok.Problem(watched, np.zeros(3)))
        assert record.rows[-1]["grad_norm"] < 1e-6
        assert counts(record.rows[-1])["grad"] > 0


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [([9.0, 1.0, 2.0, 9.0, 3.0, 2.0], 1), ([0.1, 3.0, 2.0, 9.0, 1.0, 4.0], None)],
)
def test_a_host_peer_gets_the_number_of_blas_threads_that_suits_it(seconds, chosen):
    """Runs with one thread come first; the first run of either kind does not count."""

    class Fake:
        def again(self, steps):
            return [host.Stop(steps[0], None, None, seconds.pop(0))]

    with host._fastest_blas(Fake()) as threads:
        assert threads == chosen
