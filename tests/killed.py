"""A fit that is killed with SIGKILL at random moments and begun again, until it has ended.

    python tests/killed.py FOLDER KILLS

Children are forked after the imports and before JAX has begun to work, so that each costs only its
own compilation. Prints {"killed at": [...], "equal": ...}.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optikit as ok

STEPS = 60


class Shuffled:
    """Batches in an order that a generator of its own draws anew each epoch; one holds NaN."""

    def __init__(self, pause):
        self.rng, self.pause = np.random.default_rng(5), pause
        self.x = np.random.default_rng(6).normal(size=(7, 8, 3)).astype(np.float32)
        self.x[3, 0, 0] = np.nan

    def __iter__(self):
        for k in self.rng.permutation(len(self.x)):
            time.sleep(self.pause)
            yield self.x[k], np.sum(self.x[k], axis=1)


def loss(p, x, y):
    hidden = jnp.tanh(x @ p["w"]) * p["half"].astype(jnp.float32)
    return jnp.mean((hidden.sum(1) + p["b"] - y) ** 2)


def fit(out, folder=None, pause=0.0):
    params = {"w": jnp.eye(3), "half": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros(()), "no": None}
    noisy = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(7)), optax.adam(0.01))
    files = None if folder is None else ok.Checkpoint(folder, every_steps=4, every_seconds=0.02)
    run = ok.fit(loss, params, Shuffled(pause), method=noisy, budget=ok.Budget(steps=STEPS),
                 checkpoint=files)  # fmt: skip
    leaves = [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(run)]
    partial = pathlib.Path(f"{out}.tmp")
    partial.write_text(json.dumps(leaves))
    partial.rename(out)


def child(*args):
    pid = os.fork()
    if pid == 0:
        try:
            fit(*args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid):
    _, code = os.waitpid(pid, 0)
    if code:
        sys.exit("a fit failed")


def newest(folder):
    files = sorted(folder.glob("step-*.safetensors"))
    return int(files[-1].stem.removeprefix("step-")) if files else 0


def main(folder, kills):
    folder = pathlib.Path(folder)
    undisturbed, disturbed, files = folder / "a.json", folder / "b.json", folder / "files"
    ended(child(undisturbed))
    moments, stops = random.Random(os.getpid()), []
    while len(stops) < kills:
        before, pid = newest(files), child(disturbed, files, 0.004)
        moment = before + moments.randint(1, 2 * STEPS // (kills + 1) - 4)
        while newest(files) < moment and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.001)
        if disturbed.exists():
            break
        time.sleep(moments.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        stops.append(newest(files))
    if not disturbed.exists():
        ended(child(disturbed, files, 0.0))
    equal = json.loads(undisturbed.read_text()) == json.loads(disturbed.read_text())
    print(json.dumps({"killed at": stops, "equal": equal}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
