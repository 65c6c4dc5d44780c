"""Losses against float64 references, against autodiff of themselves, and against their own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from optikit import losses
from optikit.losses import LOSSES

ELEMENTWISE = [name for name, loss in LOSSES.items() if loss.event_ndim == 0]
LOGITS = ["logistic", "focal", "squared_hinge", "smoothed_hinge"]
EXPONENTIAL = ["poisson", "gamma"]  # overflow where exp does, whatever is done


def reference(name, o, t):
    """The textbook formula in numpy float64, written independently of the library."""
    o, t = np.asarray(o, np.float64), np.asarray(t, np.float64)
    e, sign = t - o, np.where(t > 0, 1, -1)
    margin = sign * o
    return {
        "squared_error": lambda: e**2,
        "huber": lambda: np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5),
        "log_cosh": lambda: np.abs(e) + np.log1p(np.exp(-2 * np.abs(e))) - np.log(2),
        "quantile": lambda: 0.5 * np.abs(e),
        "smooth_quantile": lambda: 0.5 * e + 0.1 * np.logaddexp(0, -e / 0.1),
        "poisson": lambda: np.exp(o) - t * o,
        "gamma": lambda: o + t * np.exp(-o),
        "logistic": lambda: t * np.logaddexp(0, -o) + (1 - t) * np.logaddexp(0, o),
        "focal": lambda: special.expit(-margin) ** 2 * np.logaddexp(0, -margin),
        "squared_hinge": lambda: np.maximum(0, 1 - margin) ** 2,
        "smoothed_hinge": lambda: np.where(
            margin >= 1, 0, np.where(margin <= 0, 0.5 - margin, (1 - margin) ** 2 / 2)
        ),
    }[name]()


def points(name, dtype):
    """Outputs and targets over the domain of a loss, including its joints."""
    o = jnp.asarray([-40.0, -7.3, -1.0, -1e-3, 0.0, 1e-3, 0.4, 1.0, 2.5, 17.0, 60.0], dtype)
    if name in LOGITS:
        labels = [jnp.zeros_like(o), jnp.ones_like(o)]
    elif name in EXPONENTIAL:
        labels = [jnp.full_like(o, 0.5), jnp.full_like(o, 3.0)]
    else:
        labels = [jnp.zeros_like(o), o + 0.3, o]
    return o, labels


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_values_match_a_float64_reference(name, dtype):
    o, labels = points(name, dtype)
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for t in labels:
        value = LOSSES[name].value(o, t)
        assert value.dtype == jnp.dtype(dtype)
        # log cosh near 0: the reference itself cancels, hence the absolute term
        np.testing.assert_allclose(value, reference(name, o, t), rtol=tolerance, atol=1e-15)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradient_matches_differences_of_the_reference(name):
    o, labels = points(name, "float64")
    step = 1e-6
    for t in labels:
        grad = jax.grad(lambda x, t=t: jnp.sum(LOSSES[name].value(x, t)))(o)
        numeric = (reference(name, o + step, t) - reference(name, o - step, t)) / (2 * step)
        smooth = np.abs(
            reference(name, o + step, t) - 2 * reference(name, o, t) + reference(name, o - step, t)
        ) < 1e-7 * np.maximum(1, np.abs(numeric))
        np.testing.assert_allclose(
            grad[smooth], numeric[smooth], rtol=1e-6, atol=step
        )  # across a joint: O(step)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_hessian_product_is_the_derivative_of_the_gradient(name, key):
    loss = LOSSES[name]
    outputs, targets = example(name, key)
    vectors = jax.random.normal(key, outputs.shape, outputs.dtype)
    automatic = jax.jvp(
        jax.grad(lambda o: jnp.sum(loss.value(o, targets))), (outputs,), (vectors,)
    )[1]
    np.testing.assert_allclose(
        loss.hvp(outputs, targets, vectors), automatic, rtol=1e-10, atol=1e-13
    )


def example(name, key, count=200):
    """Random outputs away from kinks, and targets in the loss's domain."""
    a, b = jax.random.split(key)
    if name == "softmax_cross_entropy":
        return 3 * jax.random.normal(a, (count, 5)), jax.random.randint(b, (count,), 0, 5)
    outputs = 2 * jax.random.normal(a, (count,))
    if name in LOGITS:
        return outputs, jax.random.bernoulli(b, 0.5, (count,)).astype(float)
    if name in EXPONENTIAL:
        return outputs, jax.random.exponential(b, (count,))
    return outputs, jax.random.normal(b, (count,))


@pytest.mark.parametrize("name", [*LOGITS, "softmax_cross_entropy"])
def test_extreme_logits_give_finite_exact_gradients_in_float32(name):
    extreme = jnp.asarray([-1e4, -90.0, 90.0, 1e4], jnp.float32)
    loss = LOSSES[name]
    if name == "softmax_cross_entropy":
        logits = jnp.stack([extreme, -extreme, jnp.zeros_like(extreme)], axis=1)
        for label in range(3):
            targets = jnp.full(4, label)
            value, grad = values_and_grads(loss, logits, targets)
            exact = np.asarray(logits, np.float64)
            top = exact.max(axis=1, keepdims=True)
            normaliser = top[:, 0] + np.log(np.sum(np.exp(exact - top), axis=1))
            np.testing.assert_allclose(value, normaliser - exact[:, label], rtol=1e-6, atol=1e-30)
            p = special.softmax(exact, axis=1)
            np.testing.assert_allclose(grad, p - np.eye(3)[label], rtol=1e-6, atol=1e-30)
    else:
        for label in (0.0, 1.0):
            targets = jnp.full_like(extreme, label)
            value, grad = values_and_grads(loss, extreme, targets)
            assert np.all(np.isfinite(value))
            assert np.all(np.isfinite(grad))
            np.testing.assert_allclose(
                value, reference(name, extreme, targets), rtol=1e-5, atol=1e-30
            )
            assert np.all(np.isfinite(loss.hvp(extreme, targets, jnp.ones_like(extreme))))


def values_and_grads(loss, outputs, targets):
    return loss.value(outputs, targets), jax.grad(lambda o: jnp.sum(loss.value(o, targets)))(
        outputs
    )


def test_confident_probabilities_keep_relative_accuracy_in_float32():
    logits = jnp.asarray([17.0, 30.0], jnp.float32)
    wide = np.asarray(logits, np.float64)
    np.testing.assert_allclose(
        losses.logistic.value(logits, jnp.ones(2, jnp.float32)), np.log1p(np.exp(-wide)), rtol=1e-6
    )
    pair = jnp.stack([logits, jnp.zeros_like(logits)], axis=1)
    np.testing.assert_allclose(
        losses.softmax_cross_entropy.value(pair, jnp.zeros(2, int)),
        np.log1p(np.exp(-wide)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", sorted(n for n, loss in LOSSES.items() if loss.sample))
def test_sampled_labels_have_zero_mean_score_and_the_stated_information(name, key):
    """E[grad] = 0 and E[grad^2] = Fisher under the loss's own law: z-tests over 200,000 draws."""
    loss, draws = LOSSES[name], 200_000
    if name == "softmax_cross_entropy":
        one = jnp.asarray([0.5, -1.0, 0.2])
        outputs = jnp.broadcast_to(one, (draws, 3))
        direction = jnp.asarray([1.0, -0.5, 0.3])
        vectors = jnp.broadcast_to(direction, outputs.shape)
    else:
        outputs = jnp.full(draws, 0.4)
        vectors = jnp.ones(draws)
    targets = loss.sample(key, outputs)
    scores = jax.grad(lambda o: jnp.sum(loss.value(o, targets)))(outputs)
    along = jnp.sum((scores * vectors).reshape(draws, -1), axis=1)
    z = jnp.mean(along) / (jnp.std(along) / draws**0.5)
    assert abs(z) < 4.5
    information = jnp.sum((loss.fisher(outputs, vectors) * vectors).reshape(draws, -1)[0])
    squares = along**2
    z = (jnp.mean(squares) - information) / (jnp.std(squares) / draws**0.5 + 1e-12)
    assert abs(z) < 4.5


def test_softmax_takes_integer_one_hot_and_soft_labels():
    logits = jnp.asarray([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    classes = jnp.asarray([2, 1])
    hot = jax.nn.one_hot(classes, 3)
    value = losses.softmax_cross_entropy.value
    np.testing.assert_allclose(value(logits, classes), value(logits, hot), rtol=1e-15)
    soft = jnp.asarray([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    expected = -np.sum(
        np.asarray(soft) * np.log(special.softmax(np.asarray(logits), axis=1)), axis=1
    )
    np.testing.assert_allclose(value(logits, soft), expected, rtol=1e-13)


def test_a_class_out_of_range_is_nan_and_may_be_left_out():
    logits, classes = jnp.asarray([[1.0, -2.0], [0.0, 3.0], [0.5, 0.1]]), jnp.asarray([1, -1, 2])
    value = losses.softmax_cross_entropy.value
    np.testing.assert_array_equal(jnp.isnan(value(logits, classes)), [False, True, True])
    weights = jnp.asarray([1.0, 0.0, 0.0])
    mean = lambda z: losses.weighted_mean(value(z, classes), weights)  # noqa: E731
    alone = jax.value_and_grad(lambda z: jnp.sum(value(z, classes[:1])))(logits[:1])
    found, gradient = jax.value_and_grad(mean)(logits)
    assert float(found) == float(alone[0])
    np.testing.assert_array_equal(gradient, jnp.zeros((3, 2)).at[:1].set(alone[1]))


def test_a_scalar_example_is_a_batch_of_shape_nothing():
    assert losses.logistic.value(jnp.asarray(0.0), jnp.asarray(1)).shape == ()
    assert losses.softmax_cross_entropy.value(jnp.zeros(4), jnp.asarray(3)).shape == ()


def test_weighted_mean_ignores_what_has_no_weight():
    values = jnp.asarray([1.0, jnp.nan, 3.0, jnp.inf])
    mask = jnp.asarray([True, False, True, False])
    assert float(losses.weighted_mean(values, mask)) == 2.0
    grads = jax.grad(lambda v: losses.weighted_mean(v, mask))(values)
    np.testing.assert_array_equal(grads, [0.5, 0, 0.5, 0])
    assert float(losses.weighted_mean(values[:1], jnp.asarray([4.0]))) == 1.0


def test_weights_of_examples_spread_over_trailing_axes():
    values = jnp.arange(6.0).reshape(3, 2)
    weights = jnp.asarray([1.0, 0.0, 1.0])
    assert float(losses.weighted_mean(values, weights)) == pytest.approx((0 + 1 + 4 + 5) / 4)


def test_summed_adds_the_outputs_of_an_example():
    outputs, targets = jnp.zeros((2, 3)), jnp.ones((2, 3))
    joint = losses.summed(losses.squared_error)
    np.testing.assert_allclose(joint.value(outputs, targets), [3.0, 3.0])
    assert joint.event_ndim == 1


def test_families_keep_identity_for_equal_hyperparameters():
    assert losses.huber(0.5) is losses.huber(0.5)
    assert losses.huber(0.5) != losses.huber(0.7)
    with pytest.raises(TypeError, match="logistic has no hyperparameters"):
        losses.logistic(2.0)


def test_mismatched_shapes_are_refused_not_broadcast():
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) and targets \(4,\) differ"):
        losses.squared_error.value(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(ValueError, match="do not fit logits"):
        losses.softmax_cross_entropy.value(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
    for loss in (losses.squared_error, losses.softmax_cross_entropy):
        with pytest.raises(TypeError, match=r"the model returned tuple: .* has_aux=True"):
            loss.value((jnp.zeros((4, 3)), None), jnp.zeros((4, 3)))


@pytest.mark.parametrize("penalty", [losses.l2(0.3), losses.smooth_l1(0.3, 0.05)])
def test_penalty_diagonal_is_its_hessian(penalty, key):
    params = {"w": jax.random.normal(key, (3,)), "b": jnp.asarray(0.2)}
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda v: penalty.value(unravel(v)))(flat)
    diagonal = jax.flatten_util.ravel_pytree(penalty.diagonal(params))[0]
    np.testing.assert_allclose(hessian, np.diag(diagonal), rtol=1e-12, atol=1e-14)


def test_l2_by_group_leaves_a_group_free():
    penalty = losses.l2({"w": 2.0, "b": 0.0})
    params = {"w": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(7.0)}
    assert float(penalty.value(params)) == 5.0
    residual = jax.flatten_util.ravel_pytree(penalty.residual(params))[0]
    assert float(jnp.sum(residual**2) / 2) == pytest.approx(5.0)
    assert losses.l2({"w": 2.0, "b": 0.0}) is penalty
    with pytest.raises(ValueError, match="no prefix of the parameters"):
        penalty.value({"other": jnp.ones(2)})


def test_smooth_l1_is_within_its_width_of_the_norm():
    w = jnp.asarray([3.0, -1e-9, 0.0, -4.0])
    value = losses.smooth_l1(1.0, 1e-3).value(w)
    assert 0 <= float(jnp.sum(jnp.abs(w)) - value) <= 4e-3
