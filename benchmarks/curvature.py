"""Eigenpairs, traces, diagonals and spectral sums beside scipy's and matfree's, and at a million.

    python benchmarks/curvature.py [--only rivals|million]      (needs the extra `peers`)

The rivals meet on the Hessian and the Gauss-Newton matrix of a network on digits, 64-32-32-10 with
3466 parameters, trained by 20 quasi-Newton steps, in float64: small enough that all eigenvalues are
known. Each gets the same compiled product. Eigenpairs are compared by products and seconds to the
same largest residual; estimates by their root mean square error over keys at the same number of
products, and by the products that a rival takes to the same error. At a million parameters,
784-1000-300-10 on 512 rows in float32, each instrument runs in a process of its own; its memory is
what its compiled program allocates for temporaries and results, over the parameters' bytes: in all,
and without the rows' activations, which is what two numbers of rows extrapolate to none.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RESIDUAL = 1e-6
"""Largest residual of an eigenpair, over the largest |eigenvalue|."""

KEYS = 20
"""Random keys of which errors are the root mean square."""

PRODUCTS = 64
"""Products of one estimate."""

LADDER = (32, 64, 128, 256, 512)
"""Products that rivals are given until they reach our error."""


def network() -> tuple[Any, Any, tuple]:
    """Objective, parameters after some training, and data."""
    import jax

    import optikit as ok
    from optikit.problems import mlp_classification

    problem = mlp_classification("digits", hidden=32, depth=2)
    sol = ok.minimize(
        problem.objective,
        problem.start(jax.random.key(0)),
        args=problem.args,
        method="lbfgs",
        max_steps=20,
    )
    return problem.objective, sol.params, problem.args


def best(call: Callable[[], Any], runs: int = 3) -> float:
    """The least seconds of several synchronised calls after one that is discarded."""
    import jax

    jax.block_until_ready(call())
    stamps = []
    for _ in range(runs):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        stamps.append(time.perf_counter() - begun)
    return min(stamps)


def eigenpair_rows(kind: str, operator: Any, product: Callable, exact: Any) -> list[dict]:
    """The ten eigenpairs of largest magnitude: ours, scipy's eigsh, matfree's Lanczos."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from matfree import decomp, eig
    from scipy.sparse.linalg import LinearOperator, eigsh

    import optikit as ok

    n, scale = exact.size, np.abs(exact).max()
    wanted = exact[np.argsort(-np.abs(exact))[:10]]
    rows = []

    def told(name: str, values: Any, vectors: Any, products: float, seconds: float) -> None:
        images = np.stack([np.asarray(product(jnp.asarray(v))) for v in vectors])
        residuals = np.linalg.norm(images - np.asarray(values)[:, None] * vectors, axis=1)
        order = np.argsort(-np.abs(values))
        rows.append({
            "case": f"top 10 of the {kind}", "library": name, "products": int(products),
            "residual": float(residuals.max() / scale),
            "value_error": float(np.abs(np.asarray(values)[order] - wanted).max() / scale),
            "seconds": {"warm": seconds},
        })  # fmt: skip

    params = jnp.zeros(n)

    def ours():
        return ok.eigenpairs(operator, params, k=10, tol=RESIDUAL)

    found = ours()
    told("optikit", found.values, np.asarray(found.vectors), found.counts.hvp, best(ours))

    count = 0

    def counted(v):
        nonlocal count
        count += 1
        return np.asarray(product(jnp.asarray(v.ravel())))

    as_scipy = LinearOperator((n, n), matvec=counted, dtype=np.float64)
    start = np.asarray(jax.random.normal(jax.random.key(0), (n,)))
    # eigsh stops on estimates relative to each value: its loosest tolerance that suffices
    for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        count = 0
        begun = time.perf_counter()
        values, vectors = eigsh(as_scipy, k=10, which="LM", tol=tol, v0=start)
        seconds = time.perf_counter() - begun
        images = np.stack([np.asarray(product(jnp.asarray(v))) for v in vectors.T])
        worst = np.linalg.norm(images - values[:, None] * vectors.T, axis=1).max() / scale
        if worst <= RESIDUAL:
            break
    again = [count]
    seconds = min(seconds, best(lambda: eigsh(as_scipy, k=10, which="LM", tol=tol, v0=start)[0], 2))
    told(f"scipy eigsh, tol {tol:g}", values, vectors.T, again[0], seconds)

    for number in range(20, 201, 5):  # matfree takes a number of products, and does not stop itself
        pairs = jax.jit(eig.eigh_partial(decomp.tridiag_sym(number)), static_argnums=0)
        values, vectors = pairs(product, jnp.asarray(start))
        chosen = np.argsort(-np.abs(np.asarray(values)))[:10]
        picked, kept = np.asarray(values)[chosen], np.asarray(vectors)[chosen]
        images = np.stack([np.asarray(product(jnp.asarray(v))) for v in kept])
        worst = np.linalg.norm(images - picked[:, None] * kept, axis=1).max() / scale
        if worst <= RESIDUAL:
            seconds = best(lambda run=pairs: run(product, jnp.asarray(start)))
            told("matfree, fewest that suffice", picked, kept, number, seconds)
            break
    return rows


def estimate_rows(kind: str, operator: Any, product: Callable, matrix: Any) -> list[dict]:
    """Trace, diagonal and an effective dimension: errors at equal products, products to equal."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from matfree import decomp, funm, stochtrace

    import optikit as ok

    n = matrix.shape[0]
    like = jnp.zeros(n)
    keys = [jax.random.key(i) for i in range(KEYS)]
    values = np.linalg.eigvalsh(matrix)
    ridge = 1e-3 * values.max()
    dimension = float(np.sum(np.where(values > 0, values / (np.abs(values) + ridge), 0)))

    def relative(found: list, true: Any) -> float:
        errors = [np.linalg.norm(np.asarray(x) - true) ** 2 for x in found]
        return float(np.sqrt(np.mean(errors)) / np.linalg.norm(true))

    def theirs(estimator: Callable, integrand: Callable, samplers: Callable) -> Callable:
        def run(number: int) -> Callable:
            return jax.jit(lambda key: estimator(integrand, samplers(number))(product, key))

        return run

    def normal(number):
        return stochtrace.sampler_normal(like, num=number)

    def half(number):  # two products a sample
        return stochtrace.sampler_normal(like, num=number // 2)

    def signs(number):
        return stochtrace.sampler_signs(like, num=number)

    def half_signs(number):
        return stochtrace.sampler_signs(like, num=number // 2)

    one_out, many = stochtrace.estimator_leave_one_out, stochtrace.estimator_monte_carlo

    depth = 32
    spectral = funm.monte_carlo_funm_sym(
        funm.dense_funm_sym_eigh(lambda a: jnp.where(a > 0, a / (jnp.abs(a) + ridge), 0)),
        decomp.tridiag_sym(depth, reortho="full"),
    )

    def probes(number):
        return stochtrace.sampler_normal(like, num=max(number // depth, 1))

    def ours_dimension(number):
        def run(key):
            found = ok.spectrum(
                operator, like, k=0, num_probes=max(number // depth, 1), num_products=depth,
                key=key, dense=False,
            )  # fmt: skip
            return found.effective_dimension(ridge)[0]

        return run

    semidefinite = values.min() > -1e-10 * values.max()
    method: Any = "xnystrace" if semidefinite else "xtrace"
    quantities = {
        "trace": (
            np.trace(matrix),
            lambda m: (
                lambda key: ok.trace(operator, like, num_products=m, method=method, key=key).value
            ),
            {
                "matfree xtrace": theirs(one_out, stochtrace.leave_one_out_xtrace(), half),
                "matfree Hutchinson": theirs(many, stochtrace.monte_carlo_trace(), signs),
            },
        ),
        "diagonal": (
            np.diagonal(matrix),
            lambda m: lambda key: ok.diagonal(operator, like, num_products=m, key=key).value,
            {
                "matfree xdiag": theirs(one_out, stochtrace.leave_one_out_xdiag(), half_signs),
                "matfree Hutchinson": theirs(many, stochtrace.monte_carlo_diagonal(), signs),
            },
        ),
        "effective dimension": (
            dimension,
            ours_dimension,
            {"matfree Lanczos quadrature": theirs(many, spectral, probes)},
        ),
    }
    if semidefinite:
        quantities["trace"][2]["matfree xnystrace"] = theirs(
            one_out, stochtrace.leave_one_out_xnystrace(), normal
        )
    rows = []
    for quantity, (true, ours, rivals) in quantities.items():
        number = 8 * PRODUCTS if quantity == "effective dimension" else PRODUCTS
        base = {"case": f"{quantity} of the {kind}", "products": number}
        run = ours(number)
        goal = relative([run(key) for key in keys], true)
        seconds = best(lambda run=run: run(keys[0]))
        own = f"optikit {method}" if quantity == "trace" else "optikit"
        rows.append(base | {"library": own, "error": goal, "seconds": {"warm": seconds}})
        for name, rival in rivals.items():
            run = rival(number)
            found = relative([run(key) for key in keys], true)
            seconds = best(lambda run=run: run(keys[0]))
            needed = None
            for more in LADDER:
                error = found if more == number else None
                if error is None:
                    other = rival(more)
                    error = relative([other(key) for key in keys[:10]], true)
                if error <= goal:
                    needed = more
                    break
            rows.append(
                base
                | {"library": name, "error": found, "products_to_our_error": needed,
                   "seconds": {"warm": seconds}}
            )  # fmt: skip
    return rows


def rivals() -> list[dict]:
    """All comparisons on the small network."""
    import jax
    import numpy as np
    from jax.flatten_util import ravel_pytree

    import optikit as ok

    jax.config.update("jax_enable_x64", True)
    objective, params, args = network()
    flat, unravel = ravel_pytree(params)
    rows = []
    for kind in ("hessian", "ggn"):
        curvature = (ok.hessian if kind == "hessian" else ok.ggn)(objective, params, args=args)

        @jax.jit
        def product(v, curvature=curvature):
            return ravel_pytree(curvature @ unravel(v))[0]

        matrix = np.asarray(jax.jit(jax.vmap(product))(np.eye(flat.size)))
        matrix = (matrix + matrix.T) / 2
        operator = ok.LinearOperator(
            lambda product=product: product, lambda matrix=matrix: matrix,
            ok.Counts(hvp=1), ok.Counts(), ok.Counts(),
        )  # fmt: skip
        rows += eigenpair_rows(kind, operator, product, np.linalg.eigvalsh(matrix))
        rows += estimate_rows(kind, operator, product, matrix)
    return rows


ROWS = 512

MILLION = {
    "gradient": "the base",
    "eigenpairs": "ten eigenpairs",
    "density": "the density, 8 probes of 50 products, k=0",
    "trace": "a trace, 32 products",
    "certify": "a certificate",
}


def one_of_a_million(what: str) -> dict:
    """One instrument in this process: seconds, products and the process' peak memory."""
    import jax
    import jax.numpy as jnp

    import optikit as ok
    from optikit.core import tree
    from optikit.problems.networks import initial_layers, perceptron

    sizes = (784, 1000, 300, 10)
    params = initial_layers(jax.random.key(0), sizes)
    inputs = jax.random.normal(jax.random.key(1), (ROWS, sizes[0]))
    labels = jax.random.randint(jax.random.key(2), (ROWS,), 0, sizes[-1])
    objective = ok.composite(perceptron, ok.losses.softmax_cross_entropy)
    args = (inputs, labels)
    calls = {
        "gradient": lambda p, a: ok.grad(objective, p, args=a),
        "eigenpairs": lambda p, a: ok.eigenpairs(objective, p, a, k=10),
        "density": lambda p, a: ok.spectrum(objective, p, a, k=0),
        "trace": lambda p, a: ok.trace(objective, p, a, method="hutchinson"),
        "certify": lambda p, a: ok.certify(objective, p, args=a),
    }
    call = jax.jit(calls[what])

    def allocated(args: tuple) -> int:
        held = call.lower(params, args).compile().memory_analysis()
        return held.temp_size_in_bytes + held.output_size_in_bytes

    half = allocated(jax.tree.map(lambda x: x[: ROWS // 2], args))
    begun = time.perf_counter()
    used = allocated(args)
    jax.block_until_ready(call(params, args))
    cold = time.perf_counter() - begun
    begun = time.perf_counter()
    found = jax.block_until_ready(call(params, args))
    warm = time.perf_counter() - begun
    size = tree.size(params) * 4
    counts = getattr(found, "counts", None)
    row = {
        "case": f"a million parameters: {MILLION[what]}",
        "parameters": tree.size(params),
        "memory_over_parameters": used / size,
        "memory_without_rows": (2 * half - used) / size,
        "counts": {} if counts is None else {k: int(v) for k, v in counts._asdict().items() if v},
        "seconds": {"cold": cold, "warm": warm},
    }
    if what == "eigenpairs":
        largest = float(jnp.abs(found.values[0]))
        row["residual"] = float(jnp.max(found.residuals)) / largest
    return row


def million() -> list[dict]:
    """Each instrument in a process of its own."""
    rows = []
    for what in MILLION:
        command = [sys.executable, __file__, "--one", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("rivals", "million"))
    parser.add_argument("--one", choices=sorted(MILLION), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one_of_a_million(chosen.one)))
        return
    from common import save

    parts = {"million": million, "rivals": rivals}
    questions = {
        "million": "What does it cost to know the curvature at a million parameters?",
        "rivals": "What does it cost to know the spectrum, beside other libraries?",
    }
    for part, run in parts.items():
        if chosen.only in (None, part):
            rows = [
                {"name": ": ".join(row.pop(key) for key in ("case", "library") if key in row)} | row
                for row in run()
            ]
            save(f"curvature-{part}", questions[part], rows)


if __name__ == "__main__":
    main()
