"""What data parallelism costs: seconds on forced host devices, bytes over the links, eight GPUs.

    python benchmarks/scaling_devices.py

Forced host devices share this machine's cores, so more of them cannot be faster: with the same
whole batch, the ratio to one device is the price of splitting alone, the update of the parameters
included, which every device does for itself. Bytes are those of the collectives in the compiled
step, where a loop's are counted once. The projection is arithmetic, not a measurement: compute
divided by eight, and the bytes of a ring over the links, without overlap.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time

from common import row, save

DEVICES = (1, 2, 4, 8)
BATCH, SIZES = 512, (784, 512, 256, 10)
STEPS, ROUNDS = 24, 5

GPU_FLOPS = 495e12 * 0.4
"""A step's rate: 0.4 of an H200's dense TF32 peak (datasheet), about what large products reach."""
LINK_BYTES = 450e9
"""NVLink of an H200, each way (datasheet)."""
LATENCY = 20e-6
"""Of one collective over eight GPUs: an assumption, of the size that NCCL reports."""

COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"(f64|f32|bf16|f16|s32|u32|s64|pred|s8|u8)\[([\d,]*)\]")
BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Number and bytes of results by kind of collective, in the text of a compiled program."""
    found: dict[str, dict[str, int]] = {}
    for match in COLLECTIVE.finditer(program):
        size = 0
        for kind, shape in ARRAY.findall(match["shapes"]):
            entries = 1
            for n in filter(None, shape.split(",")):
                entries *= int(n)
            size += entries * BYTES.get(kind, 1)
        entry = found.setdefault(match["kind"], {"calls": 0, "bytes": 0})
        entry["calls"] += 1
        entry["bytes"] += size
    return found


def measured(devices: int, method: str) -> dict:
    """Seconds a step, and the collectives of a step, in a process with so many devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import optikit as ok
    from optikit.problems.networks import initial_layers, perceptron
    from optikit.solve.course import begin, take
    from optikit.solve.minimize import as_optimizer
    from optikit.solve.placement import placement_over

    rng = np.random.default_rng(0)
    params = initial_layers(jax.random.key(0), SIZES)
    x = jnp.asarray(rng.normal(size=(BATCH, SIZES[0])), jnp.float32)
    batch = (x, jnp.asarray(rng.integers(0, SIZES[-1], BATCH)))
    objective = ok.composite(perceptron, ok.losses.softmax_cross_entropy)
    mesh = jax.make_mesh((devices,), ("batch",))
    placement = placement_over(mesh, spread=False)
    placed = placement.batch(batch)

    def fit(steps):
        before = time.perf_counter()
        run = ok.fit(objective, params, [placed], method=method, mesh=mesh,
                     budget=ok.Budget(steps=steps))  # fmt: skip
        jax.block_until_ready(run.params)
        return time.perf_counter() - before

    fit(STEPS)
    pairs = [(fit(STEPS), fit(3 * STEPS)) for _ in range(ROUNDS)]
    short, long = (min(times) for times in zip(*pairs, strict=True))
    seconds = (long - short) / (2 * STEPS)  # without what a fit costs once
    optimizer, _ = as_optimizer(method, objective, params, batch)
    course = begin(params, placed, jax.random.key(0), objective, optimizer, placement=placement)
    program = take.compiled(
        course, (placed,), 1, 5, objective=objective, optimizer=optimizer, placement=placement
    ).as_text()
    return {
        "seconds": seconds,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "collectives": collectives(program),
    }


def in_process(devices: int, method: str) -> dict:
    """`measured` in a process of its own, whose number of devices is fixed at its start."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--devices", str(devices), "--method", method],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def projected(parameters: float, rows: float, moved: float, calls: int) -> dict[str, float]:
    """Efficiency of eight GPUs: a step's compute on one against eight times that of eight."""
    one = 6 * parameters * rows / GPU_FLOPS
    links = 2 * 7 / 8 * moved / LINK_BYTES + calls * LATENCY
    return {"one GPU": one, "links": links, "efficiency": one / 8 / (one / 8 + links)}


def study(method: str) -> list[dict]:
    """One method over all numbers of devices."""
    runs = {devices: in_process(devices, method) for devices in DEVICES}
    eight = runs[8]["collectives"]
    moved = sum(entry["bytes"] for entry in eight.values())
    calls = sum(entry["calls"] for entry in eight.values())
    parameters = runs[8]["parameters"]
    name = f"{method}, MLP {'-'.join(map(str, SIZES))}, whole batch {BATCH}"
    lines = [
        row(f"{n} host devices, on the same cores: {name}",
            over_one_device=runs[n]["seconds"] / runs[1]["seconds"],
            seconds={str(n): runs[n]["seconds"], "1": runs[1]["seconds"]})
        for n in DEVICES[1:]
    ]  # fmt: skip
    looped = method == "newton-cg"
    note = ", with one product (each further one moves the parameters' bytes again)" * looped
    lines.append(
        row(f"what a step moves over the links{note}: {name}", bytes=moved,
            bytes_over_parameters=moved / (4 * parameters), collectives=calls, by_kind=eight)
    )  # fmt: skip
    for scale, rows in () if looped else ((1, 8 * BATCH), (100, 8 * 4096)):
        told = projected(scale * parameters, rows, scale * moved, calls)
        lines.append(
            row(f"projected for 8 H200, {scale * parameters / 1e6:.1f}M parameters, {rows} rows: "
                f"{method}", projected_efficiency=told.pop("efficiency"), seconds=told)
        )  # fmt: skip
    return lines


def main() -> None:
    """Run the study, or one measurement of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int)
    parser.add_argument("--method", action="append")
    given = parser.parse_args()
    if given.devices:
        print(json.dumps(measured(given.devices, given.method[0])))
        return
    lines = [line for method in given.method or ("adam", "newton-cg") for line in study(method)]
    save("scaling_devices", "What does it cost to split a batch over devices?", lines)


if __name__ == "__main__":
    main()
