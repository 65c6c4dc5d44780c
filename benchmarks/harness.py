"""What the harness adds to the running time it reports.

    python benchmarks/harness.py

The same optax method on the same problem, as the harness times it (chunks on a geometric grid, a
synchronised stamp and a status after each, then what the chunks cost taken off) and as one bare
compiled loop that nobody watches, in turn. Both evaluate value and gradient at the start and after
every step: a run of 50 steps costs 51 evaluations, and its last value is known.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import ratio, row, save, summary

import optikit as ok
from optikit.bench.execute import warm_run
from optikit.bench.programs import programs

GROWTH = 1.2


def logistic(rows: int, features: int) -> ok.Problem:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features))
    y = (rng.random(rows) < 1 / (1 + np.exp(-x[:, 0]))) * 1.0
    return ok.Problem(
        ok.composite(lambda w, x: x @ w, ok.losses.logistic), np.zeros(features), (x, y)
    )


def grid(steps: int) -> list[int]:
    """The harness's snapshots."""
    found, limit = [0], 0
    while limit < steps:
        limit = min(steps, max(limit + 1, int(GROWTH * limit)))
        found.append(limit)
    return found


def case(
    name: str, problem: ok.Problem, tx: optax.GradientTransformation, steps: int, dtype: str
) -> dict:
    """Both ways of running, in turn; the ratio is of whole runs of `steps` steps."""
    problem = problem.cast(dtype)
    key = jax.random.key(0)
    params = problem.start(key)
    built = programs(problem, ok.from_optax(tx), params, key)

    def start():
        return jax.block_until_ready(built.start(params, problem.args, key))

    def go(progress, limit):
        bound = jnp.asarray(limit, jnp.int32)
        return jax.block_until_ready(built.go(progress, problem.args, bound))

    @jax.jit
    def bare(params, args):
        evaluate = jax.value_and_grad(problem.objective)

        def body(_, carry):
            params, state, _, grads = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, *evaluate(params, *args)

        return jax.lax.fori_loop(
            0, steps, body, (params, tx.init(params), *evaluate(params, *args))
        )

    snapshots = grid(steps)
    go(start(), 0)
    first = warm_run(start, go, snapshots, [1.0] * len(snapshots))  # chunk by chunk
    jax.block_until_ready(bare(params, problem.args))
    stamps: dict[str, list[float]] = {"harness": [], "bare": []}
    begun = time.perf_counter()
    while len(stamps["bare"]) < 7 or (
        len(stamps["bare"]) < 31 and time.perf_counter() - begun < 12
    ):
        stamps["harness"].append(warm_run(start, go, snapshots, first)[-1])
        before = time.perf_counter()
        jax.block_until_ready(bare(params, problem.args))
        stamps["bare"].append(time.perf_counter() - before)
    seconds = summary(stamps)
    per_step = {f"{k} per step": v / steps for k, v in seconds.items()}
    title = f"{name}, {dtype}, {steps} steps in {len(snapshots) - 1} chunks"
    return row(title, 1.05, ratio=ratio(stamps, "harness", "bare"), seconds=per_step)


def main() -> None:
    """Run the study."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    network = ok.problems.mlp_classification("digits", hidden=256)
    results = [
        case("logistic 20000 x 200, gradient descent", logistic(20_000, 200), optax.sgd(0.5), 150,
             "float64"),
        case("logistic 50000 x 200, adam", logistic(50_000, 200), optax.adam(0.01), 50, "float64"),
        case("MLP 64-256-10 on digits, adam", network, optax.adam(1e-3), 100, "float32"),
    ]  # fmt: skip
    save("harness", "What does the harness add to the running time it reports?", results)


if __name__ == "__main__":
    main()
