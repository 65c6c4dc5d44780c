"""Dense Newton's time over that of its two irreducible kernels, on whatever device JAX runs on.

    python benchmarks/newton_kernels.py [--rows 32560] [--features 123] [--dtype float64]

A Newton step on a linear model needs a weighted Gram product and a factorisation; a textbook solve
takes one of each a step. The ratio sets a whole solve of logistic regression (random normal
features, l2 = 1e-4) against as many of the two as it took steps. Below 1 it has saved some of them.
"""

import argparse
from typing import Any

TARGET = 1.15


def newton_over_kernels(dtype: Any, rows: int, features: int) -> list[dict[str, Any]]:
    """One row: the ratio, the seconds of each part, the oracle calls."""
    import jax
    import jax.numpy as jnp
    from common import interleaved, ratio, row, summary

    import optikit as ok
    from optikit.calculus.gram import weighted_gram

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, features), dtype)
    z = x @ jax.random.normal(keys[1], (features,), dtype) / features**0.5
    y = (z + jax.random.logistic(keys[2], (rows,), dtype) > 0).astype(dtype)
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(1e-4))
    start = jnp.zeros(features, dtype)

    def solve():
        return ok.minimize(objective, start, args=(x, y), method="newton")

    steps = int(solve().steps)

    @jax.jit
    def kernels(x, weights):
        gram = weighted_gram(x, weights)
        return jnp.linalg.cholesky(gram + jnp.eye(features, dtype=dtype))

    @jax.jit
    def floor(x, weights):
        def body(_, carry):  # weights that change, so that nothing is hoisted out of the loop
            return carry * (1 + 1e-9 * kernels(x, carry)[0, 0])

        return jax.lax.fori_loop(0, steps, body, weights)

    weights = y / 8 + 0.125
    stamps = interleaved(
        {"newton": lambda: solve().params, "kernels": lambda: floor(x, weights)}, rounds=9
    )
    calls = {k: int(v) for k, v in solve().counts._asdict().items() if int(v)}
    name = f"Newton over {steps} Gram products and factorisations, {rows} x {features}"
    return [
        row(
            f"{name}, {jnp.dtype(dtype).name}",
            target=TARGET,
            ratio=ratio(stamps, "newton", "kernels"),
            seconds=summary(stamps),
            steps=steps,
            calls=calls,
        )
    ]


def main() -> None:
    """Measure here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32_560)
    parser.add_argument("--features", type=int, default=123)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    options = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    from common import save

    rows = newton_over_kernels(options.dtype, options.rows, options.features)
    save("newton_kernels", "What does dense Newton cost beside its two kernels?", rows)


if __name__ == "__main__":
    main()
