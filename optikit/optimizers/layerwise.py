"""Methods that precondition a model layer by layer: the steps that K-FAC, EKFAC and FOOF share.

What they differ in is an `Approximation`. Here statistics are gathered and averaged, damped, and
turned into steps. On fixed data a step is the best combination of the new direction and the last
step under the exact quadratic model, followed by a search, and the damping follows Levenberg and
Marquardt. On batches it is a learning rate, given or found from the same model every so often, with
momentum.

The damping is relative: of a block with factors A and G it is `damping` times the mean eigenvalue
of A x G, plus the penalty's curvature. So nothing changes with the units of the loss, and on fixed
data with those of a layer's inputs. On batches it is, as usual, one for all blocks: `damping` times
the largest of their mean eigenvalues.

References: Martens & Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
curvature", sections 5 to 8; Ba, Grosse & Martens (2017), section 4 (norm constraint); Schaul, Zhang
& LeCun (2013), "No more pesky learning rates", eq. 9 (rates from the share of noise in gradients).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.layers import Layers, Layout
from optikit.calculus.subspace import inner_products
from optikit.core import Counts, Key, Params, Scalar, tally, tree
from optikit.optimizers.approximation import Approximation, mixed, past_weight
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo, info_from_search, running
from optikit.optimizers.scaling import Scaling
from optikit.optimizers.span import best_in_span, searched

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Relative dampings tried before the first step."""

ENOUGH = 0.7
"""Share of the most that a trial damping won, from which a larger one is preferred."""

KEPT, BROKEN = 0.75, 0.25
"""Shares of the promised decrease from which the damping is lowered, and below which raised."""

FACTOR = 1.5
"""By which the damping is changed."""

LARGEST = 1e6
"""Bound of the relative damping; the other is what rounding leaves of a factorisation."""

OVERSHOT = -0.1
"""Share of the gradient's slope that earlier directions have uphill, from which they went too far.
On noise alone it is near zero; as the restarts of O'Donoghue & Candes (2015), section 3.2."""

Rate = float | Callable[[Any], Any]


class LayerwiseState(NamedTuple):
    """What the next step needs."""

    steps: Int[Array, ""]
    seen: Int[Array, ""]  # batches in the averages
    blocks: tuple[Any, ...]  # what the approximation keeps of each block
    loose: Any  # of the leaves without factors: diagonals, or the state of a transformation
    damping: Scalar
    rate: Scalar  # on batches, where none is given
    signal: Scalar  # share of the gradient that other batches agree with, averaged
    velocity: Params  # the last step, or on batches the average of directions; at least float32


class Settings(NamedTuple):
    """How steps are made; see `optikit.optimizers.kfac` for the arguments."""

    learning_rate: Rate | None
    damping: float | None
    adapt: bool
    momentum: float
    norm_constraint: float | None
    weight_decay: float
    stats_every: int
    inverse_every: int

    def check(self) -> None:
        """Whether they make sense.

        Raises:
          ValueError: one is out of range.
        """
        for name in ("stats_every", "inverse_every"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1 step; got {getattr(self, name)}."
                raise ValueError(msg)
        if isinstance(self.damping, (int, float)) and self.damping <= 0:
            msg = f"damping must be positive: factors are singular without; got {self.damping}."
            raise ValueError(msg)
        if isinstance(self.momentum, (int, float)) and not 0 <= self.momentum < 1:
            msg = f"momentum must be in [0, 1); got {self.momentum}."
            raise ValueError(msg)


def layerwise(approximation: Approximation, scaling: Scaling, settings: Settings) -> Optimizer:
    """The optimizer of an approximation."""
    settings.check()
    if isinstance(scaling.fallback, str) and scaling.fallback not in ("diagonal", "gradient"):
        msg = f"fallback is 'diagonal', 'gradient' or a transformation; got {scaling.fallback!r}."
        raise ValueError(msg)
    parts = _Parts(approximation, scaling, settings)
    refresh = [Refresh(settings.stats_every, parts.observe)]
    if settings.damping is None:
        refresh.append(Refresh(0, parts.first_damping))
    refresh.append(Refresh(settings.inverse_every, parts.invert))
    if approximation.moments is not None:
        refresh.append(Refresh(settings.stats_every, parts.moments))
    if settings.adapt or settings.learning_rate is None:
        refresh.append(Refresh(settings.inverse_every, parts.calibrate))
    return Optimizer(
        parts.init,
        parts.step,
        evaluate=parts.evaluate,
        monotone=settings.learning_rate is None,
        name=scaling.name,
        learns=True,
        patience=30,
        refresh=tuple(refresh),
    )


class _Parts(NamedTuple):
    """The functions of the protocol."""

    approximation: Approximation
    scaling: Scaling
    settings: Settings

    def evaluate(self, oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        at = oracle.value_and_grad(params)
        layout = self.scaling.layers(oracle, params).layout
        return at._replace(local=layout), Counts(grad=1)

    def init(self, at: Eval) -> LayerwiseState:
        layout: Layout = at.local
        if not isinstance(layout, Layout):
            msg = (
                f"{self.scaling.name} keeps statistics of the model's layers, which parameters "
                "alone do not tell: use as_optax(..., example=(inputs, targets)) with data of some "
                "step."
            )
            raise TypeError(msg)
        dtype = tree.inner_dtype(at.params)
        first = GRID[-2] if self.settings.damping is None else self.settings.damping
        none = jnp.asarray(0, jnp.int32)
        return LayerwiseState(
            steps=none,
            seen=none,
            blocks=tuple(self.approximation.init(block, dtype) for block in layout.blocks),
            loose=self.scaling.loose_state(at.params, layout),
            damping=jnp.asarray(first, at.value.dtype),
            rate=jnp.zeros((), at.value.dtype),
            signal=jnp.ones((), at.value.dtype),
            velocity=jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), at.params),
        )

    def observe(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        """One batch more in the averages."""
        layers = self.scaling.layers(oracle, at.params)
        found, counts = self.approximation.gather(oracle, at.params, layers, key)
        past = past_weight(state.seen, at.value.dtype)
        blocks = tuple(
            kept._replace(factors=mixed(kept.factors, new, past))
            for kept, new in zip(state.blocks, found.blocks, strict=True)
        )
        loose = self.scaling.observed(state.loose, found.loose, past)
        return state._replace(blocks=blocks, loose=loose, seen=state.seen + 1), counts

    def first_damping(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        """The damping of a grid whose step wins about the most on this batch."""
        del key
        layers = self.scaling.layers(oracle, at.params)
        for _ in GRID:
            oracle.tap("value")
            oracle.tap("jvp")
            oracle.tap("value")
        silent = oracle._replace(tap=lambda name: None)  # traced once, run for each

        def won(damping: Scalar) -> Scalar:
            trial = self._prepared(silent, at, state._replace(damping=damping), layers)
            d = self._direction(silent, at, trial, layers)
            t = _along(silent, at, d, self._drag(silent, trial, layers, [d])[0, 0])[0]
            gain = at.value - silent.value(tree.add_scaled(at.params, t, d))
            return jnp.where(jnp.isfinite(gain), gain, -jnp.inf)

        grid = jnp.asarray(GRID, at.value.dtype)
        gains = lax.map(won, grid)
        # the largest that wins most of what can be won: one batch is not all of the data
        most = jnp.max(gains)
        largest = len(GRID) - 1 - jnp.argmax((gains >= ENOUGH * most)[::-1])
        damping = jnp.where(most > 0, grid[largest], grid[-1])
        return state._replace(damping=damping), Counts(value=2 * len(GRID), jvp=len(GRID))

    def invert(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        """Inverses of the averages."""
        del key
        return self._prepared(oracle, at, state, self.scaling.layers(oracle, at.params)), Counts()

    def moments(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        """What is averaged in the bases that were found last."""
        assert self.approximation.moments is not None
        layers = self.scaling.layers(oracle, at.params)
        blocks, counts = self.approximation.moments(oracle, at.params, layers, state.blocks, key)
        return state._replace(blocks=blocks), counts

    def calibrate(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        """On batches: the rate by the quadratic model, the damping by how well that predicts."""
        del key
        if oracle.fixed and self.settings.learning_rate is None:
            return state, Counts()
        layers = self.scaling.layers(oracle, at.params)
        d = self._direction(oracle, at, state, layers)
        t, promised = _along(oracle, at, d, self._drag(oracle, state, layers, [d])[0, 0])
        gained = at.value - oracle.value(tree.add_scaled(at.params, t, d))
        kept, broken = gained >= KEPT * promised, ~(gained >= BROKEN * promised)  # NaN included
        factor = jnp.where(kept, 1 / FACTOR, jnp.where(broken, FACTOR, 1))
        factor = jnp.where(gained > 0, factor, 4)
        damping = state.damping
        if self.settings.adapt:
            damping = _within_bounds(damping * factor.astype(damping.dtype))
        t = jnp.where(gained > 0, t, t / 4)
        rate = jnp.where(state.rate > 0, jnp.sqrt(state.rate * t), t)
        rate = jnp.where(jnp.isfinite(rate), rate, state.rate)
        return state._replace(damping=damping, rate=rate), Counts(value=2, jvp=1)

    def step(self, oracle: Oracle, at: Eval, state: LayerwiseState, key: Key):
        del key
        layers = self.scaling.layers(oracle, at.params)
        d = self._direction(oracle, at, state, layers)
        changes, loose = self.scaling.transformed(at, state.loose, layers)
        state = state._replace(loose=loose)
        if oracle.fixed and self.settings.learning_rate is None:
            d = d if changes is None else tree.add(d, changes)
            return self._on_fixed_data(oracle, at, state, d, layers)
        return self._on_a_batch(at, state, d, changes)

    def _on_fixed_data(
        self, oracle: Oracle, at: Eval, state: LayerwiseState, d: Params, layers: Layers
    ):
        decay = self.settings.weight_decay
        if isinstance(decay, (int, float)) and decay:
            msg = (
                f"weight_decay={decay} needs a learning rate to go with: on fixed data use "
                f"composite(..., penalty=ok.losses.l2({decay})), or give learning_rate."
            )
            raise ValueError(msg)
        drag = self._drag(oracle, state, layers, [d, state.velocity])
        best, spent = best_in_span(oracle, at, d, state.velocity, drag)
        search = searched(oracle, at, best)
        t = search.step_size.astype(at.value.dtype)
        promised = -(t * best.slope + t**2 * best.damped / 2)
        gained = at.value - (at.value if search.next is None else search.next.value)
        broken = ~search.accepted | (t < 1) | ~(gained >= BROKEN * promised)
        factor = jnp.where(gained >= KEPT * promised, 1 / FACTOR, 1)
        factor = jnp.where(broken, FACTOR, factor).astype(t.dtype)
        damping = state.damping
        if self.settings.adapt:
            damping = _within_bounds(damping * factor)
        velocity = jax.tree.map(lambda s: search.step_size.astype(s.dtype) * s, best.step)
        search = search._replace(counts=tally(spent, search.counts))
        info = info_from_search(search, damping=state.damping)
        new = state._replace(steps=state.steps + 1, damping=damping, velocity=velocity)
        return search.params, search.next, new, info

    def _on_a_batch(self, at: Eval, state: LayerwiseState, d: Params, changes: Params | None):
        settings, dtype = self.settings, at.value.dtype
        rate, signal, velocity = state.rate, state.signal, state.velocity
        if settings.learning_rate is None:
            # what an average over earlier batches agrees with is signal; the rest is noise
            whole = -tree.vdot(at.grad, d)
            shared = -tree.vdot(at.grad, velocity)
            known = (state.steps > 0) & (whole > 0)
            share = jnp.where(known, shared / jnp.where(known, whole, 1), 1).astype(dtype)
            past = jnp.minimum(1 - 1 / (state.steps.astype(dtype) + 1), 0.99)
            signal = jnp.where(known, past * signal + (1 - past) * jnp.clip(share, 0, 1), signal)
            # uphill where the last steps went: too far, also for the average of directions
            overshot = share < OVERSHOT
            state = state._replace(rate=jnp.where(overshot, rate / 2, rate))
            velocity = tree.where(overshot, tree.zeros_like(velocity), velocity)
            rate = state.rate * signal
        elif callable(settings.learning_rate):
            rate = jnp.asarray(settings.learning_rate(state.steps)).astype(dtype)
        else:
            rate = jnp.asarray(settings.learning_rate).astype(dtype)
        if settings.norm_constraint is not None:
            # <d, F d> is what the damped system says of it: -<g, d>
            size = rate**2 * -tree.vdot(at.grad, d).astype(dtype)
            bound = jnp.asarray(settings.norm_constraint).astype(dtype)
            shrink = jnp.sqrt(bound / jnp.where(size > bound, size, bound))
            d = tree.scale(shrink, d)
        beta = jnp.asarray(settings.momentum)
        velocity = jax.tree.map(
            lambda v, x: beta.astype(v.dtype) * v + (1 - beta).astype(v.dtype) * x,
            velocity, d,
        )  # fmt: skip
        # the average starts at zero: divided by the weights that it has
        bias = 1 - beta.astype(dtype) ** (state.steps.astype(dtype) + 1)
        change = tree.scale(rate / bias, velocity)
        if changes is not None:
            change = tree.add(change, changes)
        decay = rate * jnp.asarray(settings.weight_decay).astype(dtype)
        change = jax.tree.map(lambda c, p: c - decay.astype(c.dtype) * p.astype(c.dtype), change,
                              at.params)  # fmt: skip
        size = tree.norm(change).astype(dtype)
        usable = jnp.isfinite(size)
        change = jax.tree.map(lambda c: jnp.where(usable, c, 0), change)
        velocity = tree.where(usable, velocity, state.velocity)
        params = tree.add_scaled(at.params, 1.0, change)
        info = StepInfo(
            step_norm=jnp.where(usable, size, 0),
            accepted=usable,
            counts=tally(Counts()),
            predicted=None,
            status=running(),
            extras={"step_size": rate, "damping": state.damping},
        )
        new = state._replace(steps=state.steps + 1, velocity=velocity, signal=signal)
        return params, None, new, info

    def _prepared(
        self, oracle: Oracle, at: Eval, state: LayerwiseState, layers: Layers
    ) -> LayerwiseState:
        blocks, _ = self.scaling.levels(oracle, at.params, state, layers)
        found = self.approximation.prepare(layers.layout, state.blocks, blocks)
        kept = tuple(
            tree.where(tree.all_finite(new), new, old)  # else the inverses of before
            for new, old in zip(found, state.blocks, strict=True)
        )
        return state._replace(blocks=kept)

    def _direction(self, oracle: Oracle, at: Eval, state: LayerwiseState, layers: Layers) -> Params:
        return self.scaling.direction(oracle, at, state, layers)

    def _drag(
        self, oracle: Oracle, state: LayerwiseState, layers: Layers, directions: list[Params]
    ) -> Array:
        if not self.approximation.whole:
            return jnp.zeros((len(directions),) * 2, state.damping.dtype)
        return self.scaling.drag(oracle, state, layers, directions)


def _along(oracle: Oracle, at: Eval, d: Params, drag: Scalar) -> tuple[Scalar, Scalar]:
    """The best multiple of one direction under the damped model, and the decrease it promises."""
    like = jax.tree.map(lambda p, x: x.astype(p.dtype), at.params, d)
    bend = inner_products(oracle, at.params, [like])[0, 0].astype(at.value.dtype) + drag
    slope = tree.vdot(at.grad, like).astype(at.value.dtype)
    t = -slope / jnp.where(bend > 0, bend, jnp.maximum(jnp.abs(slope), 1))
    return t, -t * slope / 2


def _within_bounds(damping: Scalar) -> Scalar:
    return jnp.clip(damping, 8 * tree.eps(damping.dtype), LARGEST)
