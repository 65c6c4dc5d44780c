"""The device part of every study, on one GPU, within eight minutes, as one results file.

    python benchmarks/gpu.py [--minutes 8]

Matmul precision is pinned to "highest": an H200 would otherwise multiply float32 in TF32. What the
time did not suffice for is named in the results, not left out in silence.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

NO_GPU = 2


def parts(deadline: float) -> list[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """What runs, in order of importance."""
    import batch
    import jax.numpy as jnp
    import overhead
    from newton_kernels import newton_over_kernels
    from quickstart import quickstart
    from studies import study

    # a reading, not the protocol
    few = ["tuning.trials=1", "seeds=[0]", "budget.seconds=3.0", "measure.energy=false"]

    return [
        ("step overhead", overhead.step_overhead),
        ("products, float32", functools.partial(overhead.product_cost, jnp.float32)),
        ("products, float64", functools.partial(overhead.product_cost, jnp.float64)),
        ("Hessians, float32", functools.partial(overhead.hessian_costs, jnp.float32)),
        ("Hessians, float64", functools.partial(overhead.hessian_costs, jnp.float64)),
        ("quickstart, float64", functools.partial(quickstart, "float64", deadline)),
        ("quickstart, float32", functools.partial(quickstart, "float32", deadline)),
        (
            "Newton, 1e6 x 1000, float32",
            functools.partial(newton_over_kernels, jnp.float32, 10**6, 1000),
        ),
        (
            "Newton, 1e6 x 1000, float64",
            functools.partial(newton_over_kernels, jnp.float64, 10**6, 1000),
        ),
        ("1e5 fits, float64", functools.partial(batch.device_part, jnp.float64, 10**5)),
        ("1e5 fits, float32", functools.partial(batch.device_part, jnp.float32, 10**5)),
        ("1e6 fits, float64", functools.partial(batch.device_part, jnp.float64, 10**6)),
        ("1e6 fits, float32", functools.partial(batch.device_part, jnp.float32, 10**6)),
        (
            "physics, full size",
            functools.partial(study, "physics-gpu", "physics, full size", deadline, *few),
        ),
        (
            "networks, full size",
            functools.partial(study, "deep-gpu", "networks, full size", deadline, *few),
        ),
    ]


def main() -> None:
    """Run it, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes - 15  # the rest is for leaving in order
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    import jax

    if jax.default_backend() != "gpu":
        print(
            f"no GPU: JAX runs on {jax.devices()[0].device_kind!r} here. Install jax[cuda13] (or "
            "jax[cuda12]) on a machine with an NVIDIA GPU. Nothing was measured.",
            file=sys.stderr,
        )
        sys.exit(NO_GPU)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")

    from common import save

    results: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, part in parts(deadline):
        if time.monotonic() > deadline:
            results.append({"name": name, "error": "not run: the time was used up"})
            continue
        begun = time.monotonic()
        try:
            results += part()
        except Exception as error:  # one part's failure is its result
            results.append({"name": name, "error": f"{type(error).__name__}: {error}"})
            failed.append(name)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    save("gpu", "The device part of every study", results)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
