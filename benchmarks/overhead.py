"""What optikit adds to a step, and what its derivatives cost against JAX's own.

    python benchmarks/overhead.py

Every figure is a ratio of interleaved runs on the same machine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import interleaved, ratio, row, save, summary
from jax.flatten_util import ravel_pytree

import optikit as ok
from optikit.problems.networks import initial_layers, perceptron

BATCH, SIZES, STEPS = 512, (784, 256, 128, 10), 200


def network(dtype=jnp.float32):
    """A three-layer network on random images: the data do not matter for the cost of a step."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x.astype(dtype), initial_layers(jax.random.key(0), SIZES))
    x = jnp.asarray(rng.normal(size=(BATCH, SIZES[0])), dtype)
    y = jnp.asarray(rng.integers(0, SIZES[-1], BATCH))
    return ok.composite(perceptron, ok.losses.softmax_cross_entropy), params, (x, y)


def step_overhead() -> list[dict]:
    """`fit` and `minimize` with optax.adam against loops a user would write."""
    objective, params, batch = network()
    tx = optax.adam(1e-3)

    @jax.jit
    def step(params, state, x, y):
        value, grads = jax.value_and_grad(objective)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def hand_written():
        p, s, values = params, tx.init(params), []
        for _ in range(STEPS):
            p, s, value = step(p, s, *batch)
            values.append(value)  # a user keeps the losses, and looks at them at the end
        return p, jnp.stack(values)

    @jax.jit
    def compiled_loop(params, x, y):
        def body(_, carry):
            return step(*carry[:2], x, y)

        start = params, tx.init(params), jnp.zeros((), jnp.float32)
        return jax.lax.fori_loop(0, STEPS, body, start)

    def by_fit():
        run = ok.fit(objective, params, [batch], method=tx, budget=ok.Budget(steps=STEPS))
        return run.params, run.trace.value

    def by_minimize():
        sol = ok.minimize(objective, params, args=batch, method=tx, max_steps=STEPS, tol=0.0)
        return sol.params, sol.value

    outer = interleaved({"fit": by_fit, "hand-written": hand_written}, rounds=31, seconds=60)
    inner = interleaved(
        {"minimize": by_minimize, "fori_loop": lambda: compiled_loop(params, *batch)},
        rounds=31,
        seconds=60,
    )
    name = f"MLP {'-'.join(map(str, SIZES))}, batch {BATCH}, adam, {STEPS} steps"
    return [
        row(f"fit over a hand-written optax loop: {name}", 1.05,
            ratio=ratio(outer, "fit", "hand-written"), seconds=summary(outer)),
        row(f"minimize over a fori_loop with optax: {name}", 1.05,
            ratio=ratio(inner, "minimize", "fori_loop"), seconds=summary(inner)),
    ]  # fmt: skip


def product_cost(dtype) -> list[dict]:
    """A Hessian product of the linearised operator against a gradient, by a chain of each."""
    objective, params, batch = network(dtype)
    chain = 10

    @jax.jit
    def gradients(params, x, y):
        def body(_, p):
            g = jax.grad(objective)(p, x, y)
            return jax.tree.map(lambda a, b: a + 1e-3 * b, p, g)

        return jax.lax.fori_loop(0, chain, body, params)

    def products(kind):
        @jax.jit
        def run(params, x, y):
            mv = kind(objective, params, (x, y)).mv

            def body(_, v):
                return jax.tree.map(lambda a, b: a + 1e-3 * b, v, mv(v))

            return jax.lax.fori_loop(0, chain, body, params)

        return lambda: run(params, *batch)

    stamps = interleaved(
        {
            "grad": lambda: gradients(params, *batch),
            "hvp": products(ok.hessian),
            "ggnvp": products(ok.ggn),
        }
    )
    name = f"MLP {'-'.join(map(str, SIZES))}, batch {BATCH}, {jnp.dtype(dtype).name}"
    return [
        row(f"Hessian product over gradient: {name}", 1.6, ratio=ratio(stamps, "hvp", "grad"),
            seconds={k: v / chain for k, v in summary(stamps).items()}),
        row(f"Gauss-Newton product over gradient: {name}", ratio=ratio(stamps, "ggnvp", "grad")),
    ]  # fmt: skip


def hessian_cost(rows: int, features: int, classes: int, dtype) -> dict:
    """The structured Hessian of a linear model against jax.hessian of the same function."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, features)), dtype)
    loss = ok.losses.softmax_cross_entropy if classes > 1 else ok.losses.logistic
    y = jnp.asarray(rng.integers(0, max(classes, 2), rows))
    shape = (features, classes) if classes > 1 else (features,)
    w = jnp.asarray(0.01 * rng.normal(size=shape), dtype)
    objective = ok.composite(lambda w, x: x @ w, loss)
    flat, unravel = ravel_pytree(w)
    theirs = jax.jit(lambda v, x, y: jax.hessian(lambda u: objective(unravel(u), x, y))(v))
    ours = jax.jit(lambda w, x, y: ok.hessian(objective, w, (x, y)).dense())
    scale = float(jnp.max(jnp.abs(theirs(flat, x, y))))
    error = float(jnp.max(jnp.abs(theirs(flat, x, y) - ours(w, x, y)))) / scale
    stamps = interleaved(
        {"structured": lambda: ours(w, x, y), "jax.hessian": lambda: theirs(flat, x, y)}
    )
    kind = f"softmax over {classes}" if classes > 1 else "logistic"
    size = f"{rows} x {features}, {jnp.dtype(dtype).name}"
    return row(
        f"structured Hessian over jax.hessian: {kind}, {size}",
        0.6, ratio=ratio(stamps, "structured", "jax.hessian"), seconds=summary(stamps),
        largest_difference=error,
    )  # fmt: skip


def hessian_costs(dtype) -> list[dict]:
    """The binary and the multiclass case."""
    return [hessian_cost(32_000, 123, 1, dtype), hessian_cost(1_797, 64, 10, dtype)]


def main() -> None:
    """Run the study."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    results = step_overhead()
    for dtype in (jnp.float32, jnp.float64):
        results += product_cost(dtype) + hessian_costs(dtype)
    save("overhead", "What does optikit add to a step, and what do its derivatives cost?", results)


if __name__ == "__main__":
    main()
