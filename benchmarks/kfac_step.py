"""A K-FAC step over a gradient step on a deep autoencoder, with its parts.

    python benchmarks/kfac_step.py

The network of Hinton & Salakhutdinov (2006), 784-1000-500-250-30-250-500-1000-784, in float32, on
random images: the data do not matter for the cost of a step. Statistics from sampled labels and
inverses are taken every ten steps, as programs of their own. What is compared is a whole period,
both refreshes and ten steps, with ten gradient steps, in turn: a single gradient that follows the
inverses, which leave the caches cold, takes half as long again and would flatter the method.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, ratio, row, save, summary

import optikit as ok
from optikit.calculus import bind
from optikit.optimizers import kfac
from optikit.optimizers.protocol import Optimizer
from optikit.problems.networks import initial_layers, perceptron

SIZES = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
EVERY = 10
TARGETS = {1000: 1.8, 4000: 1.3}


def programs(method: Optimizer, objective, batch, params) -> tuple[dict, dict]:
    """The gradient, the step and the two refreshes, compiled; and seconds to trace and compile."""
    key = jax.random.key(1)
    seconds = {"trace": 0.0, "compile": 0.0}

    def build(function, *args, donate=()):
        begun = time.perf_counter()
        traced = jax.jit(function, donate_argnums=donate).trace(*args)
        between = time.perf_counter()
        compiled = traced.lower().compile()
        seconds["trace"] += between - begun
        seconds["compile"] += time.perf_counter() - between
        return compiled

    def oracle(batch):
        return bind(objective, batch, fixed=False)

    def gradient(params, batch):
        at = oracle(batch).value_and_grad(params)
        return jax.tree.map(lambda p, g: p - 1e-6 * g, params, at.grad), at.value

    def start(params, batch):
        return method.init(method.evaluate(oracle(batch), params)[0])

    def step(params, state, batch):
        at, _ = method.evaluate(oracle(batch), params)
        params, _, state, _ = method.step(oracle(batch), at, state, key)
        return params, state, at.value

    def refresh(update):
        def run(params, state, batch):
            at, _ = method.evaluate(oracle(batch), params)
            return update(oracle(batch), at, state, key)[0]

        return run

    state = jax.jit(start)(params, batch)
    parts = {
        "gradient": build(gradient, params, batch, donate=(0,)),
        "step": build(step, params, state, batch, donate=(0, 1)),
    }
    for name, part in zip(("statistics", "inverses"), method.refresh, strict=True):
        parts[name] = build(refresh(part.update), params, state, batch, donate=(1,))
    return parts, {**seconds, "state": state}


def study(rows: int) -> list[dict]:
    """The amortised ratio and the parts at one batch size."""
    rng = np.random.default_rng(0)
    params = initial_layers(jax.random.key(0), SIZES)
    x = jnp.asarray(rng.uniform(size=(rows, SIZES[0])), jnp.float32)
    batch = (x, x)
    objective = ok.composite(
        perceptron, ok.losses.summed(ok.losses.logistic), penalty=ok.losses.l2(1e-5)
    )
    method = kfac(1e-3, damping=1e-2, adapt=False, stats_every=EVERY, inverse_every=EVERY)
    parts, facts = programs(method, objective, batch, params)
    state = facts.pop("state")
    held = {"params": jax.tree.map(jnp.copy, params), "state": state}
    plain = {"params": jax.tree.map(jnp.copy, params)}

    def gradient():
        plain["params"], value = parts["gradient"](plain["params"], batch)
        return value

    def step():
        held["params"], held["state"], value = parts["step"](held["params"], held["state"], batch)
        return value

    def refresh(name):
        def run():
            held["state"] = parts[name](held["params"], held["state"], batch)
            return held["state"]

        return run

    def period():
        refresh("statistics")()
        refresh("inverses")()
        for _ in range(EVERY):
            value = step()
        return value

    def gradients():
        for _ in range(EVERY):
            value = gradient()
        return value

    whole = interleaved({"period": period, "gradients": gradients}, rounds=9, seconds=90)
    parts_of = {
        name: interleaved({name: call, "gradients": gradients}, rounds=7, seconds=30)
        for name, call in (
            ("step", step), ("statistics", refresh("statistics")), ("inverses", refresh("inverses"))
        )
    }  # fmt: skip
    seconds = summary(whole)
    for name, stamps in parts_of.items():
        seconds[name] = summary(stamps)[name]
    shares = {n: _each(ratio(stamps, n, "gradients")) for n, stamps in parts_of.items()}
    name = f"autoencoder, {rows} rows"
    return [
        row(f"K-FAC step over a gradient step, refreshes every {EVERY}: {name}", TARGETS[rows],
            ratio=ratio(whole, "period", "gradients"), seconds=seconds, building=facts),
        row(f"  step with old inverses: {name}", ratio=shares["step"]),
        row(f"  statistics: {name}", ratio=shares["statistics"]),
        row(f"  all inverses: {name}", ratio=shares["inverses"]),
    ]  # fmt: skip


def _each(found: dict[str, float]) -> dict[str, float]:
    """A ratio to a period of gradients as one to a single gradient."""
    return found | {name: EVERY * found[name] for name in ("median", "low", "high")}


def main() -> None:
    """Both batch sizes."""
    rows = [line for size in TARGETS for line in study(size)]
    save("kfac_step", "What does a K-FAC step cost over a gradient step?", rows)


if __name__ == "__main__":
    main()
