"""The drivers as a user calls them: statuses, aux, traces, saddles, and calls that are wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.core import Status
from optikit.problems import logistic_regression


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def status(sol):
    return ok.Status(int(sol.status))


# --- every status can be reached -----------------------------------------------------------------


def test_converged_means_what_it_says():
    sol = ok.minimize(rosenbrock, jnp.array([-1.2, 1.0]), method="bfgs")
    assert status(sol) == Status.CONVERGED
    start = max(1.0, float(jnp.max(jnp.abs(jax.grad(rosenbrock)(jnp.array([-1.2, 1.0]))))))
    assert float(sol.grad_norm) <= 1e-8 * start
    assert "gradient" in sol.message


def test_converged_to_precision_where_the_tolerance_cannot_be_met():
    # the rounding floor of a real problem, with a tolerance that is out of reach
    problem = logistic_regression().cast(jnp.float64)
    sol = ok.minimize(
        problem.objective,
        problem.start(jax.random.key(0)),
        args=problem.args,
        method="newton",
        tol=0.0,
    )
    assert status(sol) == Status.CONVERGED_TO_PRECISION
    assert bool(sol.success)
    assert float(sol.grad_norm) < 1e-13


def test_max_steps():
    sol = ok.minimize(rosenbrock, jnp.zeros(5), method="gradient-descent", max_steps=4)
    assert status(sol) == Status.MAX_STEPS


def test_line_search_failed_on_a_wrong_gradient():
    @jax.custom_jvp
    def uphill(x):
        return jnp.sum(x**2)

    @uphill.defjvp
    def _(primals, tangents):
        return uphill(*primals), -2 * jnp.sum(primals[0] * tangents[0])

    sol = ok.minimize(uphill, jnp.ones(2), method="bfgs")
    assert status(sol) == Status.LINE_SEARCH_FAILED
    assert not bool(sol.success)
    np.testing.assert_array_equal(sol.params, jnp.ones(2))


def test_stalled_when_nothing_moves():
    sol = ok.minimize(rosenbrock, jnp.zeros(2), method=optax.sgd(0.0))
    assert status(sol) == Status.STALLED


def test_not_finite_keeps_the_best_point():
    def cliff(x):
        return jnp.where(x[0] > 0.5, jnp.sum(x**2), jnp.nan)

    sol = ok.minimize(cliff, jnp.array([2.0, 2.0]), method=optax.sgd(0.3))
    assert status(sol) == Status.NOT_FINITE
    assert np.isfinite(float(sol.value))
    assert float(sol.value) == pytest.approx(float(cliff(sol.params)))
    assert float(sol.value) < 8.0


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region", "bfgs", "lbfgs"])
@pytest.mark.parametrize("fall", [lambda x: -jnp.exp(x[0]), lambda x: -jnp.sum(x**2)])
def test_unbounded_is_said(method, fall):
    sol = ok.minimize(fall, jnp.array([0.5, 0.1]), method=method)
    assert status(sol) in (Status.UNBOUNDED, Status.NOT_FINITE)
    assert not bool(sol.success)
    assert np.isfinite(float(sol.value))


def test_every_status_has_a_sentence():
    assert all(len(s.sentence) > 20 for s in Status)
    assert str(ok.minimize(rosenbrock, jnp.zeros(2))).startswith("CONVERGED")


# --- no false success ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region", "bfgs", "lbfgs",
                                    "gradient-descent", "adam", "optax.lbfgs"])  # fmt: skip
def test_an_enormous_first_gradient_does_not_make_a_far_point_look_solved(method):
    def steep(x):  # gradient 1e12 at the start, 1 near the end
        return jnp.sum(jnp.exp(jnp.minimum(x, 30.0)) + (x - 1) ** 2)

    sol = ok.minimize(steep, jnp.full(2, 27.0), method=method, max_steps=300)
    best = ok.minimize(steep, jnp.zeros(2), method="newton")
    if bool(sol.success):
        assert float(sol.value - best.value) < 1e-5 * abs(float(best.value))


def test_a_valley_is_not_mistaken_for_its_end_by_gradient_descent():
    sol = ok.minimize(rosenbrock, jnp.array([1e3, 1e3]), method="gradient-descent")
    assert not bool(sol.success) or float(sol.value) < 1e-6


# --- saddles, flat valleys, singular Hessians ----------------------------------------------------


def double_well(x):
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + jnp.sum(x[1:] ** 2) / 2


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region"])
@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [1e-12, 0.1, 0.0]])
def test_second_order_leaves_a_saddle_even_from_on_top_of_it(method, start):
    sol = ok.minimize(double_well, jnp.asarray(start), method=method)
    assert bool(sol.success)
    assert float(sol.value) == pytest.approx(-0.25, abs=1e-10)
    assert ok.certify(double_well, sol.params).kind == "minimum"


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region", "bfgs", "lbfgs"])
def test_a_flat_valley_is_no_trouble(method):
    def valley(x):
        return (x[0] - x[1]) ** 2 + (x[0] - x[1]) ** 4

    sol = ok.minimize(valley, jnp.array([3.0, -1.0]), method=method)
    assert bool(sol.success)
    assert float(sol.value) < 1e-12
    assert abs(float(sol.params[0] + sol.params[1]) - 2.0) < 1e-3  # no drift along the valley


@pytest.mark.parametrize("method", ["newton", "newton-cg", "trust-region", "lbfgs"])
def test_a_maximum_is_left(method):
    sol = ok.minimize(lambda x: jnp.sum(jnp.cos(x)), jnp.full(3, 1e-3), method=method)
    assert bool(sol.success)
    assert float(sol.value) == pytest.approx(-3.0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("method", ["bfgs", "lbfgs"])
def test_curvature_guards_do_not_depend_on_scale(method, scale):
    """f(x) = q(x / scale): the iterates should be those of q, scaled."""
    weights = jnp.asarray([1.0, 10.0, 100.0])
    sol = ok.minimize(
        lambda x: jnp.sum(weights * (x / scale - 1) ** 2), jnp.zeros(3), method=method, tol=1e-12
    )
    np.testing.assert_allclose(sol.params / scale, 1.0, atol=1e-3)


def test_a_million_parameters():
    n = 1_000_000
    target = jnp.linspace(-1.0, 1.0, n)
    for method in ("lbfgs", "newton-cg", "trust-region"):
        sol = ok.minimize(
            lambda x, t: jnp.sum((x - t) ** 2 + 0.1 * (x - t) ** 4), jnp.zeros(n), args=(target,),
            method=method, max_steps=50,
        )  # fmt: skip
        assert bool(sol.success), str(sol)


# --- aux, data, trace ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "lbfgs", "gradient-descent", "optax.lbfgs", "adam"])
def test_aux_belongs_to_the_point_returned(method):
    def loss(x, t):
        return jnp.sum((x - t) ** 2), {"double": 2 * x}

    sol = ok.minimize(
        loss, jnp.zeros(2), args=(jnp.asarray([1.0, 2.0]),), method=method, has_aux=True
    )
    np.testing.assert_array_equal(sol.aux["double"], 2 * sol.params)


def test_the_trace_is_the_course():
    sol = ok.minimize(rosenbrock, jnp.zeros(3), method="newton", trace=True, max_steps=50)
    n = int(sol.steps)
    assert sol.trace.value.shape == (51,)
    assert float(sol.trace.value[0]) == float(rosenbrock(jnp.zeros(3)))
    assert float(sol.trace.value[n]) == float(sol.value)
    assert np.all(np.isnan(sol.trace.value[n + 1 :]))
    assert int(sol.trace.counts.hessian[n]) == int(sol.counts.hessian) == n
    assert np.all(np.diff(sol.trace.counts.grad) >= 0)
    assert float(sol.trace.grad_norm[n]) == float(sol.grad_norm)


def test_everything_runs_inside_a_users_jit():
    @jax.jit
    def fitted(target):
        return ok.minimize(lambda x, t: jnp.sum((x - t) ** 2), jnp.zeros(2), args=(target,)).params

    np.testing.assert_allclose(fitted(jnp.asarray([3.0, 4.0])), [3.0, 4.0], atol=1e-8)


def test_hyperparameters_may_be_arrays_under_vmap():
    def solve(rate):
        method = ok.optimizers.adam(rate)
        return ok.minimize(lambda x: jnp.sum(x**2), jnp.ones(2), method=method, max_steps=20).value

    rates = jnp.asarray([0.01, 0.1])
    together = jax.vmap(solve)(rates)
    np.testing.assert_allclose(together, [solve(r) for r in rates], rtol=1e-12)
    assert float(together[1]) < float(together[0])


def test_penalty_strength_may_be_swept_by_vmap():
    x, y = jnp.eye(2), jnp.asarray([1.0, 2.0])

    def solve(strength):
        obj = ok.composite(
            lambda w, x: x @ w, ok.losses.squared_error, penalty=ok.losses.l2(strength)
        )
        return ok.minimize(obj, jnp.zeros(2), args=(x, y), method="newton").params

    found = jax.vmap(solve)(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(found, [[1.0, 2.0], [0.5, 1.0]], atol=1e-12)


# --- choosing, naming, optax ---------------------------------------------------------------------


def test_auto_says_what_it_chose_and_why():
    small = ok.minimize(rosenbrock, jnp.zeros(2))
    assert small.method == "newton-bfgs"
    assert "2 parameters" in small.reason
    large = ok.minimize(lambda x: jnp.sum(x**2), jnp.zeros(5000))
    assert large.method == "lbfgs"
    fit = ok.minimize(ok.residuals(lambda x: x - 1), jnp.zeros(3))
    assert fit.method == "levenberg-marquardt"
    linear = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(0.1))
    x = jnp.ones((4, 300))
    glm = ok.minimize(linear, jnp.zeros(300), args=(x, jnp.asarray([0.0, 1.0, 1.0, 1.0])))
    assert glm.method == "newton"
    assert "Gram" in glm.reason


@pytest.mark.parametrize("name", ["newton", "newton-cg", "trust-region", "bfgs", "lbfgs", "adam",
                                  "gradient-descent", "gauss-newton", "levenberg-marquardt",
                                  "Newton_CG", "optax.adamw", "lion", "muon"])  # fmt: skip
def test_the_names_users_expect_resolve(name):
    objective = ok.residuals(lambda x: x - 1.0)
    sol = ok.minimize(objective, jnp.zeros((2, 2)), method=name, max_steps=3)
    assert np.all(np.isfinite(sol.params))


@pytest.mark.parametrize("tx", [optax.adam(0.1), optax.lbfgs(), optax.chain(
    optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)), optax.lbfgs(
        linesearch=optax.scale_by_backtracking_linesearch(15, store_grad=True)), optax.polyak_sgd(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))])  # fmt: skip
def test_any_optax_transformation_enters_unmodified(tx):
    sol = ok.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3), method=tx, max_steps=500)
    np.testing.assert_allclose(sol.params, 1.0, atol=1e-2)


def test_optax_takes_the_same_steps_as_in_its_own_loop():
    tx = optax.adam(0.03)
    x, state = jnp.zeros(3), tx.init(jnp.zeros(3))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(50):
            updates, state = tx.update(jax.grad(rosenbrock)(x), state, x)
            x = optax.apply_updates(x, updates)
    run = ok.fit(rosenbrock, jnp.zeros(3), [()], method=tx, budget=ok.Budget(steps=50))
    np.testing.assert_allclose(run.params, x, rtol=1e-12)


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs", "levenberg-marquardt"])
def test_an_optimizer_leaves_as_an_optax_transformation(method):
    objective = ok.residuals(lambda p, t: p["w"] ** 3 - t)
    tx = ok.as_optax(ok.optimizers.named(method), objective)
    params, target = {"w": jnp.full(2, 2.0)}, jnp.asarray([1.0, 27.0])
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params, target)
        updates, state = tx.update(grads, state, params, value=value, args=(target,))
        return optax.apply_updates(params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    np.testing.assert_allclose(params["w"], [1.0, 3.0], rtol=1e-5)


# --- calls that are wrong: fact, value, remedy ---------------------------------------------------

WRONG = {
    "misspelt": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method="newtn"), ValueError,
                 "unknown method 'newtn': did you mean 'newton'"),
    "nonsense": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method="xyzzy"), ValueError,
                 "unknown method 'xyzzy': choose from"),
    "factory": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method=ok.optimizers.newton),
                TypeError, "method is function 'newton': it is a factory: call it first"),
    "number": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method=7), TypeError,
               "method is int 7: give a name, an Optimizer or an optax transformation"),
    "integer": (lambda: ok.minimize(lambda p: p["w"].sum(), {"w": jnp.arange(3)}), TypeError,
                r"params\['w'\] is int64: parameters must be floating point"),
    "key": (lambda: ok.minimize(lambda p: p["w"].sum(), {"w": jax.random.key(0)}), TypeError,
            r"params\['w'\] is a random key: parameters must be floating point"),
    "complex": (lambda: ok.minimize(lambda x: jnp.abs(x), jnp.asarray(1j)), TypeError,
                "params is complex128: parameters must be real"),
    "text": (lambda: ok.minimize(lambda x: x, {"a": "b"}), TypeError, r"params\['a'\] is str"),
    "nothing": (lambda: ok.minimize(lambda x: 0.0, {}), ValueError, "params holds no arrays"),
    "empty": (lambda: ok.minimize(lambda x: x.sum(), jnp.zeros(0)), ValueError, "no entries"),
    "vector": (lambda: ok.minimize(lambda x: x**2, jnp.zeros(3)), TypeError,
               r"shape \(3,\): an objective must be a scalar; sum or average"),
    "pair": (lambda: ok.minimize(lambda x: (x.sum(), x), jnp.zeros(3)), TypeError,
             "returned a pair: pass has_aux=True"),
    "no-pair": (lambda: ok.minimize(lambda x: x.sum(), jnp.zeros(3), has_aux=True), TypeError,
                "has_aux=True but did not return a pair"),
    "int-value": (lambda: ok.minimize(lambda x: jnp.sum(x > 0), jnp.zeros(3)), TypeError,
                  "returned int64: an objective must be real floating point"),
    "args": (lambda: ok.minimize(lambda x, y: x.sum(), jnp.zeros(3), args=jnp.ones(3)), TypeError,
             r"args must be a tuple .* write args=\(data,\)"),
    "not-callable": (lambda: ok.minimize(3.0, jnp.zeros(3)), TypeError, "must be a function"),
    "budget": (lambda: ok.minimize(rosenbrock, jnp.zeros(3), max_steps=-1), ValueError,
               "max_steps must not be negative"),
    "lm-on-black-box": (lambda: ok.minimize(rosenbrock, jnp.zeros(3), method="levenberg-marquardt"),
                        TypeError, r"needs residuals\(...\)"),
    "ls-on-logistic": (
        lambda: ok.least_squares(ok.composite(lambda w, x: x @ w, ok.losses.logistic), jnp.zeros(2)),
        TypeError, "least_squares needs a sum of squares"),
    "composite-args": (
        lambda: ok.minimize(ok.composite(lambda w, x: x @ w, ok.losses.logistic), jnp.zeros(2)),
        TypeError, r"a composite objective takes args=\(inputs, targets\)"),
    "memory": (lambda: ok.optimizers.lbfgs(memory=0), ValueError, "memory must be at least 1"),
    "line-search": (lambda: ok.optimizers.gradient_descent(line_search="wolff"), ValueError,
                    "line_search must be 'backtracking' or 'wolfe'"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_call_raises_at_once(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


CALLS = {
    "minimize": ok.minimize,
    "minimize_many": lambda f, x, **rest: ok.minimize_many(f, x[None], **rest),
    "multi_start": lambda f, x, **rest: ok.multi_start(f, x[None], **rest),
    "fit": lambda f, x, args=(), key=None: ok.fit(
        f, x, [args], method="adam", budget=ok.Budget(steps=1), key=key
    ),
    "certify": ok.certify,
    "certify_many": lambda f, x, **rest: ok.certify_many(f, x[None], **rest),
    "check_derivatives": ok.check_derivatives,
    "spectrum": ok.spectrum,
    "eigenpairs": lambda f, x, **rest: ok.eigenpairs(f, x, k=1, **rest),
    "trace": ok.trace,
    "diagonal": ok.diagonal,
    "advise": ok.advise,
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_is_no_key_and_what_is_no_data_is_told(name):
    def bowl(x, *args):
        del args
        return jnp.sum(x**2)

    call = CALLS[name]
    for wrong, got in (
        (7, r"got int.*: write key=jax.random.key\("),
        (jnp.zeros(2), "got float64"),
    ):
        with pytest.raises(TypeError, match=f"key must be one random key; {got}"):
            call(bowl, jnp.ones(2), key=wrong)
    for wrong, got in (
        (("mean",), r"args\[0\] is str 'mean'"),
        ((1.0, {"f": abs}), r"args\[1\]\['f'\]"),
    ):
        with pytest.raises(TypeError, match=f"{got}.*: args are arrays and numbers"):
            call(bowl, jnp.ones(2), args=wrong)


def test_keys_of_the_old_style_are_keys():
    sols = [ok.minimize(rosenbrock, jnp.zeros(2), key=key) for key in (
        None, jax.random.key(0), jax.random.PRNGKey(0), np.array([0, 0], np.uint32)
    )]  # fmt: skip
    assert all(float(sol.value) == float(sols[0].value) for sol in sols)


def test_python_numbers_and_weak_types_are_settled():
    sol = ok.minimize(lambda p: (p["x"] - 3) ** 2, {"x": 0.0})
    assert float(sol.params["x"]) == pytest.approx(3.0)
    assert sol.params["x"].dtype == jnp.float64


def test_bfloat16_parameters_run():
    sol = ok.minimize(
        lambda x: jnp.sum((x.astype(jnp.float32) - 1) ** 2),
        jnp.zeros(3, jnp.bfloat16), method="gradient-descent", max_steps=30,
    )  # fmt: skip
    assert sol.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(sol.params, np.float32), 1.0, atol=0.05)


def test_static_parts_can_be_bound_by_partial():
    fun = functools.partial(lambda power, x: jnp.sum(x**power), 4)
    assert float(ok.minimize(fun, jnp.ones(2)).value) < 1e-8


@pytest.mark.parametrize(
    "method",
    ["newton", "newton-cg", "trust-region", "trust-region-exact", "cubic", "dogleg", "bfgs",
     "lbfgs", "sr1", "nonlinear-cg"],
)  # fmt: skip
def test_the_floor_of_a_valley_is_no_minimum(method):
    """The gradient falls by ten orders as the steep side is solved, and the way is as long."""

    def valley(x):
        return 0.5 * (1e10 * x[0] ** 2 + jnp.sqrt(1 + x[1] ** 2))

    sol = ok.minimize(valley, jnp.array([10.0, 1000.0]), method=method)
    assert not bool(sol.success) or float(sol.value) == pytest.approx(0.5, abs=1e-6), str(sol)
