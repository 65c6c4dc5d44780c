"""What is minimised: a scalar function of parameters and data that knows its own structure.

A black box offers gradients and Hessian products. A composite objective (a model's outputs under a
loss) and residuals (a sum of squares) also offer Gauss-Newton and Fisher matrices, and structured
dense Hessians. Objectives are values: built twice from the same parts, they are equal, so compiled
solves are found again.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus.variational import LocalEnergy, LogAmplitude, energy
from optikit.core import Params, PyTree, Scalar, tree
from optikit.losses import Loss, Penalty, Robust, expand_weights, from_value, weighted_mean

Kind = Literal["black_box", "composite", "residuals", "variational"]


class Objective(NamedTuple):
    """A pure function (params, *args) -> scalar, or (scalar, aux) with `has_aux`.

    Build it with `black_box`, `composite`, `residuals` or `variational`. Calling it evaluates it,
    so it can be given to `jax.grad`, to scipy or to any other library.
    """

    fun: Callable[..., Any]  # the function, the model, the residuals or the amplitude, by kind
    kind: Kind
    loss: Loss | None = None
    penalty: Penalty | None = None
    has_aux: bool = False
    robust: Robust | None = None  # of residuals alone
    local: LocalEnergy | None = None  # of a variational objective alone

    def __call__(self, params: Params, *args: Any) -> Any:
        """The value, or (value, aux)."""
        value, aux = value_and_aux(self, params, args)
        return (value, aux) if self.has_aux else value


def black_box(fun: Callable[..., Any], *, has_aux: bool = False) -> Objective:
    """An objective of which only values are known: fun(params, *args) -> scalar.

    Args:
      fun: pure and differentiable. With `has_aux` it returns (scalar, aux).

    Example:
      >>> sphere = black_box(lambda x: jnp.sum(x**2))
      >>> float(sphere(jnp.array([3.0, 4.0])))
      25.0
    """
    if isinstance(fun, Objective):
        return fun
    return Objective(fun, "black_box", has_aux=has_aux)


def composite(
    predict: Callable[..., Any],
    loss: Loss | Callable[[Array, Array], Array],
    *,
    penalty: Penalty | Callable[[Params], Scalar] | None = None,
    has_aux: bool = False,
) -> Objective:
    """The mean loss of a model, plus a penalty: obj(params, inputs, targets[, weights]) -> scalar.

    The mean is over the entries of `loss.value(outputs, targets)`, weighted if weights (or a mask)
    for their leading axes are given: one entry per example for scalar outputs and for softmax;
    outputs of shape (batch, K) under an elementwise loss average over batch x K unless the loss is
    `ok.losses.summed(loss)`.

    Args:
      predict: (params, inputs) -> outputs, pure; examples along the leading axis of outputs. With
        `has_aux` it returns (outputs, aux).
      loss: from `ok.losses`, or a function of outputs and targets (its curvature by autodiff).
      penalty: from `ok.losses`, or a function of the parameters; not averaged.

    Raises:
      ValueError: when called on no examples, or on targets that do not fit the outputs.

    Example:
      >>> import optikit as ok
      >>> obj = composite(lambda w, x: x @ w, ok.losses.squared_error)
      >>> float(obj(jnp.array([1.0]), jnp.array([[1.0], [2.0]]), jnp.array([0.0, 0.0])))
      2.5
    """
    if not isinstance(loss, Loss):
        loss = from_value(loss)
    if penalty is not None and not isinstance(penalty, Penalty):
        penalty = Penalty(penalty, None, name=getattr(penalty, "__name__", "penalty"))
    return Objective(predict, "composite", loss, penalty, has_aux)


def residuals(
    fun: Callable[..., PyTree],
    *,
    penalty: Penalty | None = None,
    has_aux: bool = False,
    robust: Robust | None = None,
) -> Objective:
    """Half the sum of squared residuals, |r|^2 / 2 (as MINPACK and scipy), plus a penalty.

    Args:
      fun: (params, *args) -> pytree of residuals; with `has_aux`, (residuals, aux).
      robust: from `ok.losses.robust`, what takes the place of the square of each residual (not of
        the penalty).

    Example:
      >>> float(residuals(lambda x: x - 1.0)(jnp.array([3.0, 4.0])))
      6.5
    """
    if isinstance(fun, Objective):
        return fun
    return Objective(fun, "residuals", penalty=penalty, has_aux=has_aux, robust=robust)


def variational(
    log_amplitude: LogAmplitude, local_energy: LocalEnergy, *, penalty: Penalty | None = None
) -> Objective:
    """The energy of a quantum state: obj(params, configurations[, log_density]) -> scalar.

    Without `log_density` the configurations are all there are, and the energy is exact. With it
    they are a sample, drawn with the density exp(log_density) up to a factor (from |psi|^2 at
    other parameters: 2 Re log psi there), and the energy is the self-normalised estimate. Natural
    gradients on it are stochastic reconfiguration, MinSR and SPRING.

    Args:
      log_amplitude: (params, configurations) -> log psi, (m,), real or complex; configurations
        along axis 0 of every leaf, each by itself. The parameters are real.
      local_energy: (params, configurations) -> (H psi)(s) / psi(s), (m,); H Hermitian.
      penalty: from `ok.losses`.

    Raises:
      TypeError, ValueError: when called on arguments that do not fit.

    Example:
      >>> spin = jnp.array([1.0, -1.0])  # H = [[0, -1], [-1, 0]], psi(s) = exp(w s)
      >>> obj = variational(lambda w, s: w * s, lambda w, s: -jnp.exp(-2 * w * s))
      >>> float(obj(jnp.asarray(0.0), spin))
      -1.0
    """
    return Objective(log_amplitude, "variational", penalty=penalty, local=local_energy)


def value_and_aux(objective: Objective, params: Params, args: tuple) -> tuple[Scalar, Any]:
    """The value and the auxiliary output (None without `has_aux`)."""
    if objective.kind == "black_box":
        result = objective.fun(params, *args)
        return result if objective.has_aux else (result, None)
    if objective.kind == "residuals":
        r, aux = _split(objective, objective.fun(params, *args))
        check_residuals(objective, r)
        robust = objective.robust
        value = tree.vdot(r, r) / 2 if robust is None else _robust_cost(robust, r)
    elif objective.kind == "variational":
        value, aux = energy(objective.fun, local_energy_of(objective), params, args), None
    else:
        inputs, targets, weights = split_data(objective, args)
        outputs, aux = _split(objective, objective.fun(params, inputs))
        value = weighted_mean(*example_losses(objective, outputs, targets, weights))
    if objective.penalty is not None:
        value = value + objective.penalty.value(params).astype(value.dtype)
    return value, aux


def check_residuals(objective: Objective, r: PyTree) -> None:
    """Refuse residuals that are none, or no real numbers.

    Raises:
      TypeError: they are not real floating point.
      ValueError: there are none.
    """
    leaves = jax.tree.leaves(r)
    if sum(jnp.size(leaf) for leaf in leaves) == 0:
        msg = f"{fingerprint(objective)} returned no residuals: there is nothing to fit."
        raise ValueError(msg)
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            msg = (
                f"{fingerprint(objective)} returned {dtype.name} residuals: they must be real "
                "floating point. Split complex ones into real and imaginary parts."
            )
            raise TypeError(msg)


def _robust_cost(robust: Robust, r: PyTree) -> Scalar:
    flat = tree.ravel(r)
    return jnp.sum(robust.cost(flat.astype(tree.inner_dtype(flat))))


def robust_weights(
    objective: Objective, r: Float[Array, " m"], penalties: int
) -> tuple[Scalar, Float[Array, " m"], Float[Array, " m"]]:
    """(f, a, b) from the residual vector of a robust objective.

    f is its value; the residuals a r with the Jacobian b J have its gradient and its curvature as
    far as that is positive. The last `penalties` rows are not robust.

    Raises:
      TypeError: the objective is not robust.
    """
    if objective.robust is None:
        msg = f"{fingerprint(objective)} has no robust loss."
        raise TypeError(msg)
    data, extra = r[: r.size - penalties], r[r.size - penalties :]
    value = _robust_cost(objective.robust, data) + tree.vdot(extra, extra) / 2
    a, b = objective.robust.scaled(data)
    ones = jnp.ones_like(extra)
    return value, jnp.concatenate([a, ones]), jnp.concatenate([b, ones])


def penalty_residuals(objective: Objective, params: Params) -> int:
    """How many of the residuals are the penalty's; they come last."""
    penalty = objective.penalty
    if penalty is None or penalty.residual is None:
        return 0
    return tree.size(jax.eval_shape(penalty.residual, params))


def split_data(objective: Objective, args: tuple) -> tuple[Any, Any, Any]:
    """(inputs, targets, weights or None) of a composite objective."""
    if len(args) not in (2, 3):
        msg = (
            "a composite objective takes args=(inputs, targets) or (inputs, targets, weights); "
            f"got {len(args)} of them for {objective.loss.name if objective.loss else 'it'}."
        )
        raise TypeError(msg)
    return args if len(args) == 3 else (*args, None)


def example_losses(
    objective: Objective, outputs: Array, targets: Array, weights: Array | None
) -> tuple[Float[Array, "..."], Array | None]:
    """Loss values and their weights; outputs of weight 0 are replaced, so their NaN stays out."""
    loss = loss_of(objective)
    if weights is not None:
        lead = outputs.shape[: outputs.ndim - loss.event_ndim]
        used = expand_weights(weights, jnp.zeros(lead, outputs.dtype)) != 0
        used = used.reshape(used.shape + (1,) * loss.event_ndim)
        outputs = jnp.where(used, outputs, 0)
    values = loss.value(outputs, targets)
    if values.size == 0:
        msg = f"the batch is empty: outputs have shape {outputs.shape}; a mean needs an example."
        raise ValueError(msg)
    return values, weights


def check_examples(inputs: Any) -> None:
    """That a model may be taken example by example, as far as shapes tell.

    Raises:
      TypeError: an array of the inputs does not have the examples along axis 0.
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    if () in shapes or len({s[0] for s in shapes}) > 1:
        msg = (
            "curvature example by example needs the examples along axis 0 of every array of the "
            f"inputs; got shapes {shapes}: repeat what is shared for each of them (a random key by "
            "jax.random.split(key, n)), or put it into the model."
        )
        raise TypeError(msg)


def mean_weights(values: Array, weights: Array | None) -> Float[Array, "..."]:
    """The factor with which each loss value enters the mean; these sum to 1."""
    if weights is None:
        return jnp.full(values.shape, 1 / values.size, values.dtype)
    expanded = expand_weights(weights, values)
    return expanded / jnp.sum(expanded)


def outputs_of(objective: Objective, params: Params, inputs: Any) -> Array:
    """The model's outputs, without its auxiliary output."""
    return _split(objective, objective.fun(params, inputs))[0]


def residual_vector(objective: Objective) -> Callable[..., Float[Array, " m"]] | None:
    """(params, *args) -> r with objective = |r|^2 / 2, where the objective is a sum of squares.

    Of a robust objective, the residuals before their loss; see `robust_weights`. For a composite
    under squared error the examples' weights enter by their square roots; an L2 penalty adds one
    residual per parameter. None for any other objective.
    """
    penalty, loss = objective.penalty, objective.loss
    if penalty is not None and penalty.residual is None:
        return None
    if objective.kind == "residuals":

        def data_part(params, *args):
            found, _ = _split(objective, objective.fun(params, *args))
            check_residuals(objective, found)
            return tree.ravel(found)

    elif loss is not None and loss.residual is not None:
        each = loss.residual

        def data_part(params, *args):
            inputs, targets, weights = split_data(objective, args)
            r = each(outputs_of(objective, params, inputs), targets)
            factor = jnp.sqrt(mean_weights(r, weights))
            return jnp.where(factor == 0, 0, factor * r).ravel()

    else:
        return None
    extra = None if penalty is None else penalty.residual
    if extra is None:
        return data_part

    def stacked(params, *args):
        return jnp.concatenate([data_part(params, *args), tree.ravel(extra(params))])

    return stacked


def loss_of(objective: Objective) -> Loss:
    """The loss of a composite objective.

    Raises:
      TypeError: the objective is of another kind.
    """
    if objective.loss is None:
        msg = f"this needs an Objective from composite(...); got {fingerprint(objective)}."
        raise TypeError(msg)
    return objective.loss


def local_energy_of(objective: Objective) -> LocalEnergy:
    """The local energy of a variational objective.

    Raises:
      TypeError: the objective is of another kind.
    """
    if objective.local is None:
        msg = f"this needs an Objective from variational(...); got {fingerprint(objective)}."
        raise TypeError(msg)
    return objective.local


def _split(objective: Objective, result: Any) -> tuple[Any, Any]:
    return result if objective.has_aux else (result, None)


def fingerprint(objective: Objective) -> str:
    """A short description for messages: the kind and the names of its parts."""
    inner = getattr(objective.fun, "__name__", type(objective.fun).__name__)
    named = (objective.loss, objective.penalty, objective.robust)
    parts = [inner] + [p.name for p in named if p is not None]
    return f"{objective.kind}({', '.join(parts)})"


def abstract(objective: Objective, params: Params, args: tuple) -> Any:
    """Shapes and dtypes of (value, aux), without computing anything."""
    return jax.eval_shape(lambda p, a: value_and_aux(objective, p, a), params, args)
