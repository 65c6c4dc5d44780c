"""Curvature as rows: a Gauss-Newton or Fisher matrix R^T R with the gradient R^T w + q.

Of an objective with m outputs (examples times outputs each), R is the (m, n) Jacobian of the
outputs, each example's weighted by a root of its output-space curvature. What the least-squares
and kernel forms of a step need is R and w; nothing of size (n, n) is formed here.

For a variational energy, R is the centred Jacobian of log psi, each configuration's weighted by
sqrt(2 p), and w = sqrt(2 p) (e - E): R^T R is twice the quantum geometric tensor, and a whole step
is one unit of imaginary time (stochastic reconfiguration).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from optikit.calculus.apart import warn_where_examples_meet
from optikit.calculus.columns import COLUMNS_AT_ONCE
from optikit.calculus.objective import (
    Objective,
    check_examples,
    example_losses,
    local_energy_of,
    loss_of,
    mean_weights,
    outputs_of,
    residual_vector,
    robust_weights,
    split_data,
)
from optikit.calculus.oracle import Oracle
from optikit.calculus.variational import deviations, estimate, parts
from optikit.core import Params, tree
from optikit.core.tree import HIGHEST

RowKind = Literal["ggn", "fisher"]

CHUNK = 2**24
"""Numbers that rows may fill where only their sums are wanted."""


class Rows(NamedTuple):
    """The curvature R^T R + diag(extra) at a point whose gradient is R^T w + q.

    q holds the penalty's gradient, and that of outputs without curvature.
    """

    rows: Float[Array, "m n"]
    w: Float[Array, " m"]
    q: Float[Array, " n"]
    extra: Float[Array, " n"]


class Products(NamedTuple):
    """What multiplies with R without forming it.

    Attributes:
      seeds: for each row of an example, R's cotangents of the outputs, all examples at once.
      forward: v -> R v, one jvp. backward: u -> R^T u, one vjp.
    """

    seeds: Float[Array, "width ..."]
    forward: Callable[[Float[Array, " n"]], Float[Array, " m"]]
    backward: Callable[[Float[Array, " m"]], Float[Array, " n"]]


class RowSource(NamedTuple):
    """The same with rows that are computed when they are asked for.

    Attributes:
      examples: how many there are. width: rows of each.
      take: indices of b examples -> their rows, (b width, n); one with index `examples` has zeros.
      w, q, extra: as of `Rows`.
      products: of a composite objective.
    """

    examples: int
    width: int
    take: Callable[[Int[Array, " b"]], Float[Array, "b_width n"]]
    w: Float[Array, " m"]
    q: Float[Array, " n"]
    extra: Float[Array, " n"]
    products: Products | None = None


def curvature_rows(oracle: Oracle, params: Params, kind: RowKind) -> Rows:
    """The rows of "ggn" or "fisher" at params. Price: Counts(jacobian=1).

    For residuals they are the residuals and their Jacobian. Otherwise examples stand along axis 0
    of every leaf of the inputs and do not see each other: each one's Jacobian is taken alone, in
    reverse mode, so that all cost the gradients of m outputs.

    Raises:
      TypeError: a black box; a penalty that is not separable; no Fisher information.
    """
    if _by_example(oracle.objective):
        oracle.tap("jacobian")
        source = row_source(oracle, params, kind)
        rows = source.take(jnp.arange(source.examples, dtype=jnp.int32))
        return Rows(rows, source.w, source.q, source.extra)
    data = oracle._replace(objective=oracle.objective._replace(penalty=None))
    r, jacobian = data.residuals_and_jacobian(params)
    if oracle.objective.robust is not None:
        _, a, b = robust_weights(oracle.objective, r, 0)
        r, jacobian = a * r, b[:, None] * jacobian
    return Rows(jacobian, r, *_penalty(oracle.objective, params, jacobian.dtype))


def curvature_diagonal(oracle: Oracle, params: Params, kind: RowKind) -> Float[Array, " n"]:
    """The diagonal of R^T R + diag(extra). Price: Counts(jacobian=1); rows are not kept."""
    if not _by_example(oracle.objective):
        model = curvature_rows(oracle, params, kind)
        return jnp.sum(model.rows**2, axis=0) + model.extra
    oracle.tap("jacobian")
    source = row_source(oracle, params, kind)
    index = jnp.arange(source.examples, dtype=jnp.int32)
    many = max(1, min(CHUNK // (source.width * source.q.size), COLUMNS_AT_ONCE))

    def squares(i: Array) -> Array:
        return jnp.sum(source.take(i) ** 2, axis=0)

    chunks = -(-source.examples // many)
    padded = jnp.full(chunks * many, source.examples, jnp.int32).at[: source.examples].set(index)

    def add(k: Array, total: Array) -> Array:
        return total + squares(lax.dynamic_slice_in_dim(padded, k * many, many))

    return lax.fori_loop(0, chunks, add, source.extra)


def count_rows(objective: Objective, params: Params, args: tuple) -> int:
    """How many rows there are, from shapes alone."""

    def outputs(p: Params, args: tuple) -> Array:
        if objective.kind == "composite":
            return outputs_of(objective, p, split_data(objective, args)[0])
        if objective.kind == "variational":
            log_psi = objective.fun(p, args[0])
            return jnp.repeat(log_psi, 2) if jnp.iscomplexobj(log_psi) else log_psi
        return _residuals(objective)(p, *args)

    if objective.kind == "black_box":
        return 0  # whoever asks for the rows is told that there are none
    return jax.eval_shape(outputs, params, args).size


def row_source(oracle: Oracle, params: Params, kind: RowKind) -> RowSource:
    """The rows at params, without computing them; the caller counts a jacobian for each pass.

    Residuals have no examples that are known: each row costs a gradient of all of them.

    Raises:
      TypeError: as `curvature_rows`.
    """
    objective = oracle.objective
    if objective.kind == "composite":
        return _composite(oracle, params, kind)
    if objective.kind == "variational":
        return _variational(objective, params, oracle.args)
    function = _residuals(objective)
    flat, unravel = ravel_pytree(params)
    r, pull = jax.vjp(lambda v: function(unravel(v), *oracle.args), flat)
    a, b = jnp.ones_like(r), jnp.ones_like(r)
    if objective.robust is not None:
        _, a, b = robust_weights(objective, r, 0)

    def take(index: Array) -> Array:
        units = jax.nn.one_hot(index, r.size, dtype=r.dtype) * b[None]
        return lax.map(lambda u: pull(u)[0], units, batch_size=COLUMNS_AT_ONCE)

    return RowSource(r.size, 1, take, a * r, *_penalty(objective, params, r.dtype))


def _by_example(objective: Objective) -> bool:
    return objective.kind in ("composite", "variational")


def _residuals(objective: Objective) -> Callable[..., Float[Array, " m"]]:
    function = residual_vector(objective._replace(penalty=None))
    assert function is not None
    return function


def _penalty(objective: Objective, params: Params, dtype: Any) -> tuple[Array, Array]:
    """Gradient and Hessian diagonal of the penalty, ravelled."""
    penalty = objective.penalty
    if penalty is None:
        zero = jnp.zeros(tree.size(params), dtype)
        return zero, zero
    if penalty.diagonal is None:
        msg = f"rows need a separable penalty; {penalty.name} gives no diagonal."
        raise TypeError(msg)
    gradient = tree.ravel(jax.grad(penalty.value)(params)).astype(dtype)
    return gradient, tree.ravel(penalty.diagonal(params)).astype(dtype)


def _composite(oracle: Oracle, params: Params, kind: RowKind) -> RowSource:
    objective = oracle.objective
    inputs, targets, weights = split_data(objective, oracle.args)
    check_examples(inputs)
    warn_where_examples_meet(objective, lambda p, x: outputs_of(objective, p, x), params, inputs)
    flat, unravel = ravel_pytree(params)

    def model(v: Array) -> Array:
        return outputs_of(objective, unravel(v), inputs)

    outputs, pull = jax.vjp(model, flat)
    loss = loss_of(objective)
    values = example_losses(objective, outputs, targets, weights)[0]
    factor = mean_weights(values, weights)

    def total(o: Array) -> Array:
        values = example_losses(objective, o, targets, weights)[0]
        return jnp.sum(jnp.where(factor == 0, 0, factor * values))

    slopes = jax.grad(total)(outputs)
    curvature = oracle.output_curvature(kind)
    events = outputs.shape[outputs.ndim - loss.event_ndim :]
    root, w, rest = (_scalar_root if loss.event_ndim == 0 else _matrix_root)(
        lambda v: curvature(outputs, targets, v), factor, slopes
    )
    examples = outputs.shape[0]
    own, extra = _penalty(objective, params, flat.dtype)
    q = own + pull(rest.reshape(outputs.shape).astype(outputs.dtype))[0]
    root = root.reshape(examples, -1, *root.shape[root.ndim - 2 * loss.event_ndim :])

    def predict(v: Array, example: Any) -> Array:
        alone = jax.tree.map(lambda x: x[None], example)
        return outputs_of(objective, unravel(v), alone)[0].reshape(-1, *events)

    def take(index: Array) -> Array:
        jacobian = _jacobians(predict, flat, inputs, index)
        mine = jnp.take(root, index, axis=0, mode="fill", fill_value=0)
        if loss.event_ndim == 0:
            return (mine[..., None] * jacobian).reshape(-1, flat.size)
        weighted = jnp.einsum("bpkl,bpln->bpkn", mine, jacobian, precision=HIGHEST)
        return weighted.reshape(-1, flat.size)

    def weighted(u: Array) -> Array:  # by the roots, which are symmetric
        if loss.event_ndim == 0:
            return (root * u.reshape(root.shape)).reshape(outputs.shape)
        mine = jnp.einsum("bpkl,bpl->bpk", root, u.reshape(root.shape[:-1]), precision=HIGHEST)
        return mine.reshape(outputs.shape)

    width = outputs.size // examples
    units = jnp.eye(width, dtype=root.dtype)
    products = Products(
        jax.vmap(lambda unit: weighted(jnp.tile(unit, examples)))(units).astype(outputs.dtype),
        lambda v: weighted(jax.jvp(model, (flat,), (v.astype(flat.dtype),))[1]).ravel(),
        lambda u: pull(weighted(u).astype(outputs.dtype))[0],
    )
    return RowSource(examples, width, take, w.ravel(), q, extra, products)


def _variational(objective: Objective, params: Params, args: tuple) -> RowSource:
    flat, unravel = ravel_pytree(params)
    check_examples(args[0])
    warn_where_examples_meet(objective, objective.fun, params, args[0])
    found = estimate(objective.fun, local_energy_of(objective), params, args)
    off = deviations(found)
    width = off.shape[1]

    def log_psi(v: Array, configuration: Any) -> Array:
        alone = jax.tree.map(lambda x: x[None], configuration)
        return parts(objective.fun(unravel(v), alone)[0], width)

    pull = jax.vjp(lambda v: parts(objective.fun(unravel(v), args[0]), width), flat)[1]
    units = jnp.eye(width, dtype=found.weights.dtype)
    centre = jnp.stack([pull(found.weights[:, None] * unit[None])[0] for unit in units])
    root = jnp.sqrt(2 * found.weights)

    def take(index: Array) -> Array:
        centred = _jacobians(log_psi, flat, args[0], index) - centre[None]
        mine = jnp.take(root, index, mode="fill", fill_value=0)[:, None, None]
        return jnp.where(mine == 0, 0, mine * centred).reshape(-1, flat.size)

    penalty = _penalty(objective, params, flat.dtype)
    return RowSource(root.size, width, take, (root[:, None] * off).ravel(), *penalty)


def _jacobians(
    function: Callable[[Array, Any], Array], flat: Array, data: Any, index: Array
) -> Float[Array, "b ... n"]:
    """Each example's Jacobian alone, in reverse mode."""

    def one(i: Array) -> Array:
        example = jax.tree.map(lambda x: jnp.take(jnp.asarray(x), i, axis=0, mode="clip"), data)
        outputs, pull = jax.vjp(lambda v: function(v, example), flat)
        units = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(-1, *outputs.shape)
        return jax.vmap(lambda u: pull(u)[0])(units).reshape(*outputs.shape, flat.size)

    if index.size <= COLUMNS_AT_ONCE:
        return jax.vmap(one)(index)
    return lax.map(one, index, batch_size=COLUMNS_AT_ONCE)


def _scalar_root(curvature: Any, factor: Array, slopes: Array) -> tuple[Array, Array, Array]:
    """(S, w, rest) with S^2 the curvature of each output and slopes = S w + rest."""
    root = jnp.sqrt(jnp.maximum(factor * curvature(jnp.ones_like(slopes)), 0))
    curved = root > 0
    w = jnp.where(curved, slopes / jnp.where(curved, root, 1), 0)
    return root, w, jnp.where(curved, 0, slopes)


def _matrix_root(curvature: Any, factor: Array, slopes: Array) -> tuple[Array, Array, Array]:
    """The same for curvatures between the outputs of an example, flattened over examples."""
    count = slopes.shape[-1]
    units = jnp.eye(count, dtype=slopes.dtype)
    columns = [curvature(jnp.broadcast_to(units[k], slopes.shape)) for k in range(count)]
    matrices = (factor[..., None, None] * jnp.stack(columns, axis=-1)).reshape(-1, count, count)
    values, vectors = jnp.linalg.eigh((matrices + jnp.swapaxes(matrices, 1, 2)) / 2)
    top = jnp.max(values, axis=1, keepdims=True)
    kept = values > 8 * count * tree.eps(values.dtype) * top
    lengths = jnp.sqrt(jnp.where(kept, values, 0))
    along = jnp.einsum("bkl,bk->bl", vectors, slopes.reshape(-1, count), precision=HIGHEST)
    inside = jnp.where(kept, along, 0)
    weights = jnp.where(kept, inside / jnp.where(kept, lengths, 1), 0)
    root = jnp.einsum("bkl,bl,bml->bkm", vectors, lengths, vectors, precision=HIGHEST)
    w = jnp.einsum("bkl,bl->bk", vectors, weights, precision=HIGHEST)
    rest = jnp.einsum("bkl,bl->bk", vectors, along - inside, precision=HIGHEST)
    size = jnp.linalg.norm(along, axis=1, keepdims=True)
    outside = jnp.linalg.norm(rest, axis=1, keepdims=True) > jnp.sqrt(tree.eps(size.dtype)) * size
    return root, w, jnp.where(outside, rest, 0)
