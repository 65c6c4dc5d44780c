"""What does a new objective cost? The first call on a further function, compilation included.

    python benchmarks/compile.py [--rounds 5] [--methods NAME ...]

Each method runs in a process of its own, which has already solved another problem of another size,
so that imports and the device's start are paid. Then comes a new function, Rosenbrock's in ten
dimensions (float64, tolerance 1e-8): `first` is its first solve, `warm` the median of ten more.
Rounds take the methods in turn; ratios are to the fastest rival that compiles its own loop, round
by round. Below them, the floors: compiling the function's gradient, and its Hessian, alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import common
from peers import METHODS

CHOSEN = (
    "optikit auto", "optikit newton", "optikit newton-cg", "optikit trust-region-exact",
    "optikit bfgs", "optikit lbfgs",
    "scipy L-BFGS-B + jax", "scipy trust-ncg + jax", "jaxopt LBFGS", "optimistix BFGS",
    "optax lbfgs",
)  # fmt: skip
RIVALS = ("optimistix BFGS", "optax lbfgs", "jaxopt LBFGS")
"""Those whose loop is compiled, as ours are."""
TARGET_SECONDS = 0.25


def measure(method: str) -> dict[str, float]:
    """Seconds of the first solve and of later ones."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    solve = METHODS[method](1000)

    def quartic(x):
        return jnp.sum((x - 1.0) ** 4 + x**2)

    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    def seconds(fun, x0):
        before = time.perf_counter()
        out = solve(fun, x0, (), 1e-8)
        jax.block_until_ready(out.x)
        return time.perf_counter() - before, out

    seconds(quartic, jnp.zeros(3))
    start = jnp.full(10, -1.0)
    first, out = seconds(rosenbrock, start)
    gradient = float(jnp.max(jnp.abs(jax.grad(rosenbrock)(jnp.asarray(out.x)))))
    warm = statistics.median(seconds(rosenbrock, start)[0] for _ in range(10))
    floors = {}
    for name, of in {"gradient": jax.value_and_grad, "hessian": jax.hessian}.items():
        before = time.perf_counter()
        jax.block_until_ready(jax.jit(of(rosenbrock))(start))
        floors[name] = time.perf_counter() - before
    return {"first": first, "warm": warm, "max_grad": gradient, **floors}


def main() -> None:
    """Take the methods in turn, round by round, and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(CHOSEN), choices=sorted(METHODS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.methods}
    for _ in range(given.rounds):
        for name in given.methods:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    first = {name: [run["first"] for run in runs] for name, runs in found.items()}
    rivals = {n: statistics.median(first[n]) for n in RIVALS if n in first}
    base = min(rivals, key=rivals.__getitem__, default=None)
    rows = []
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        facts = {"seconds": {"first": middle["first"], "warm": middle["warm"]}}
        if base is not None and name != base and given.rounds > 1:
            facts["ratio"] = common.ratio(first, name, base)
        rows.append(common.row(name, max_grad=middle["max_grad"], **facts))
    every = [run for runs in found.values() for run in runs]
    for floor in ("gradient", "hessian"):
        seconds = {"first": statistics.median(run[floor] for run in every)}
        rows.append(common.row(f"floor: jax.jit of the {floor} alone", seconds=seconds))
    question = (
        "How long is the first solve of a further function, compilation included? "
        f"(ratios to {base}; asked: {TARGET_SECONDS} s)"
    )
    common.save("compile", question, rows)


if __name__ == "__main__":
    main()
