"""What a step of the matrix preconditioners costs beside AdamW's, and Muon beside optax's.

    python benchmarks/matrix_methods.py [--width 128] [--layers 4]

The gradients are given, but for a multiple of the parameters that keeps them out of the compiler's
hands, so only the methods' own work is timed: ten steps in one compiled loop, a period of the roots
and bases. Every figure is a ratio of interleaved runs on the same machine.
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from common import interleaved, ratio, row, save, summary

import optikit as ok
from optikit.calculus import Eval, bind
from optikit.optimizers import from_optax, muon, psgd_kron, shampoo, soap
from optikit.optimizers.protocol import Optimizer, folded

STEPS = 10
ORACLE = bind(ok.black_box(lambda p: jnp.zeros(())))  # no method here asks it anything


def transformer(width: int, layers: int) -> dict:
    """Random gradients in the shapes of a small transformer."""
    shapes = {"embed": (1024, width), "lm_head": (width, 1024)}
    for i in range(layers):
        inner = dict.fromkeys("qkvo", (width, width))
        inner |= {"up": (width, 4 * width), "down": (4 * width, width), "scale": (width,)}
        shapes |= {f"{i}/{name}": shape for name, shape in inner.items()}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def ten_steps(method: Optimizer, grads: dict):
    """A call that takes ten steps, starting where the first period ends."""
    method = folded(method)

    @jax.jit
    def run(params, state, grads):
        def body(k, carry):
            params, state = carry
            moving = jax.tree.map(lambda g, p: g + 1e-3 * p, grads, params)
            at = Eval(params, jnp.zeros(()), moving)
            params, _, state, _ = method.step(ORACLE, at, state, jax.random.key(k))
            return params, state

        return jax.lax.fori_loop(0, STEPS, body, (params, state))

    first = jax.jit(method.init)(Eval(grads, jnp.zeros(()), grads))
    start = run(grads, first, grads)
    return lambda: run(*start, grads)


def methods() -> dict[str, Optimizer]:
    """What is compared; in all of them embedding and head go to Adam."""
    apart = ("embed", "lm_head")
    spec = optax.contrib.MuonDimensionNumbers()

    def dimensions(params):
        names = {n: not n.endswith("scale") and n not in apart for n in params}
        return {n: spec if matrix else None for n, matrix in names.items()}

    theirs = optax.contrib.muon(0.02, muon_weight_dimension_numbers=dimensions)
    return {
        "adamw": from_optax(optax.adamw(1e-3)),
        "optax muon": from_optax(theirs),
        "muon": muon(),
        "muon, leaf by leaf": muon(bucketed=False),
        "shampoo": shampoo(apart=apart),
        "shampoo, newton roots": shampoo(apart=apart, root="newton"),
        "shampoo, kl": shampoo(apart=apart, variant="kl"),
        "soap": soap(apart=apart),
        "psgd-kron, every step": psgd_kron(apart=apart, precondition_every=1),
        "psgd-kron, every 33": psgd_kron(apart=apart, precondition_every=33),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    grads = transformer(options.width, options.layers)
    calls = {name: ten_steps(method, grads) for name, method in methods().items()}
    stamps = interleaved(calls, rounds=options.rounds, seconds=options.seconds)
    shape = f"transformer of width {options.width}, {options.layers} layers"
    seconds = {name: value / STEPS for name, value in summary(stamps).items()}
    results = [
        row(f"{name} over adamw: {shape}", ratio=ratio(stamps, name, "adamw"),
            seconds_a_step=seconds[name])
        for name in calls
        if name != "adamw"
    ]  # fmt: skip
    results.append(
        row(f"muon over optax's muon: {shape}", 1.0, ratio=ratio(stamps, "muon", "optax muon"))
    )
    save("matrix_methods", "What does a step of a matrix preconditioner cost?", results)


if __name__ == "__main__":
    main()
