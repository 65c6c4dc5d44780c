"""Fits over several devices or processes against the same fits on one device.

    python tests/devices.py                                # 8 devices of one process
    python tests/devices.py ADDRESS PROCESSES NUMBER FOLDER  # one of several processes

Prints {method: {"params": largest relative difference, "counts": equal, ...}} as JSON.
"""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optikit as ok

jax.config.update("jax_enable_x64", True)
STEPS = 6


def problem():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(6, 8)) / 3, "b": rng.normal(size=(8, 3)) / 3}
    x, y = rng.normal(size=(3, 32, 6)), rng.integers(0, 3, (3, 32))
    weights = rng.uniform(0.5, 1.5, (3, 32))
    objective = ok.composite(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
        ok.losses.softmax_cross_entropy,
        penalty=ok.losses.l2(1e-2),
    )
    return objective, jax.tree.map(jnp.asarray, params), list(zip(x, y, weights, strict=True))


def compare(methods, mesh, batches, mine, **options):
    """Each method on this process' rows over the mesh, and on all rows here."""
    objective, params, _ = problem()
    budget, told = ok.Budget(steps=STEPS), {}
    for name, method in methods.items():
        many = ok.fit(objective, params, mine, method=method, budget=budget, mesh=mesh, **options)
        one = ok.fit(objective, params, batches, method=method, budget=budget)
        pairs = list(zip(jax.tree.leaves(many.params), jax.tree.leaves(one.params), strict=True))
        told[name] = {
            "params": max(float(np.max(np.abs(np.asarray(a) / np.asarray(b) - 1))) for a, b in pairs),
            "values": float(np.max(np.abs(np.asarray(many.trace.value / one.trace.value) - 1))),
            "counts": jax.tree.map(int, many.counts) == jax.tree.map(int, one.counts),
            "devices": len(jax.tree.leaves(many.params)[0].sharding.device_set),
            "moved": max(float(np.max(np.abs(np.asarray(b) - np.asarray(p)))) for (_, b), p in
                         zip(pairs, jax.tree.leaves(params), strict=True)),
        }  # fmt: skip
    return told


def methods():
    """By name; few CG iterations, since where those of Hessian-free end may hang on a rounding."""
    names = ["adam", "lbfgs", "newton-cg", "natural-gradient", "kfac"]
    return {name: name for name in names} | {
        "hessian-free": ok.optimizers.hessian_free(max_iters=5)
    }


def on_devices():
    _, _, batches = problem()
    mesh = jax.make_mesh((4, 2), ("hosts", "chips"))
    told = compare(methods(), mesh, batches, batches)
    spread = compare({"adam": optax.adam(1e-3)}, mesh, batches, batches, spread=True)
    return {**told, "adam, spread": spread["adam"]}


def among_processes(address, processes, number, folder):
    jax.distributed.initialize(address, num_processes=processes, process_id=number)
    _, _, batches = problem()
    mesh = jax.make_mesh((processes,), ("hosts",))
    size = 32 // processes
    mine = [tuple(part[number * size : (number + 1) * size] for part in b) for b in batches]
    chosen = {name: m for name, m in methods().items() if name not in ("lbfgs", "newton-cg")}
    told = compare(chosen, mesh, batches, mine, evaluate=(mine, 3))
    objective, params, _ = problem()

    def adam(steps, **options):
        return ok.fit(objective, params, mine, method="adam", mesh=mesh, spread=True,
                      budget=ok.Budget(steps=steps), **options)  # fmt: skip

    whole, resumed = adam(STEPS), []
    for form in ["safetensors"] + ["orbax"] * (importlib.util.find_spec("orbax") is not None):
        files = ok.Checkpoint(f"{folder}/{form}", every_steps=2, format=form)
        _, parts = adam(3, checkpoint=files), adam(STEPS, checkpoint=files)
        pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True)
        resumed += [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs]
    told["resumed"] = all(resumed)
    timed = ok.fit(objective, params, mine, method="adam", mesh=mesh, budget=ok.Budget(seconds=0.3))
    told["timed"] = int(timed.steps)
    return told


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps(on_devices()))
    else:
        address, processes, number, folder = sys.argv[1:]
        print(json.dumps(among_processes(address, int(processes), int(number), folder)))
