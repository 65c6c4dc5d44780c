"""Exact natural gradients, Levenberg-Marquardt and Hessian-free against Adam and L-BFGS.

    python benchmarks/natural_gradient.py [--seconds 20] [--clock cpu]
                                          [--only pinn|regression|quantum]

At equal seconds of stepping, compilation apart, on three problems where curvature is known to pay:
a physics-informed network (Poisson in 2-D, 2-64-1), a network with far more parameters than
examples (diabetes, 10-256-256-1), and a neural quantum state (critical Ising ring of 12 spins, all
configurations summed), in float64. Adam takes a cosine schedule over the seconds it has, at several
learning rates, of which the best counts. The methods take turns of about half a second, so that a
drift of the machine meets all alike. On a machine that others use as well, `--clock cpu` counts
the process' own processor seconds (of all its threads) instead.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TURN = 0.5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# (problem, arguments, metric or None for the objective, target, methods of ours)
CASES: dict[str, tuple] = {
    "pinn": (
        "pinn-poisson",
        {"dimension": 2, "hidden": 64},
        "relative L2 error",
        1e-4,
        {
            "natural-gradient": ("natural-gradient", {}),
            "levenberg-marquardt": ("levenberg-marquardt", {}),
            "hessian-free": ("hessian-free", {}),
        },
    ),
    "regression": (
        "overparameterized-regression",
        {"data": "diabetes", "hidden": 256, "depth": 2},
        None,
        1e-8,
        {
            "natural-gradient": ("natural-gradient", {}),
            "levenberg-marquardt": ("levenberg-marquardt", {}),
            "hessian-free": ("hessian-free", {}),
        },
    ),
    "quantum": (
        "neural-quantum-state",
        {"sites": 12},
        "relative energy error",
        1e-5,
        {
            "natural-gradient": ("natural-gradient", {}),
            "natural-gradient, momentum 0.9": ("natural-gradient", {"momentum": 0.9}),
        },
    ),
}


class Contestant:
    """A method on a problem, whose clock runs only while it steps."""

    def __init__(self, name: str, method: Any, objective: Any, start: Any, args: tuple, clock: str):
        import jax
        import jax.numpy as jnp

        from optikit.calculus import bind
        from optikit.optimizers.protocol import folded
        from optikit.solve.loop import advance, begin

        self.name, self.seconds, self.pace, self.now = name, 0.0, None, CLOCKS[clock]
        self.curve: list[tuple[float, int, float]] = []
        method = folded(method)

        def never(*_: Any) -> Any:
            return jnp.asarray(False)

        def first(params, args):
            return begin(method, bind(objective, args), params, jax.random.key(0))

        def more(progress, args, limit):
            tol = jnp.zeros((), progress.at.value.dtype)
            return advance(method, bind(objective, args), progress, limit, tol, never)

        before = time.perf_counter()
        self.args = args
        self.progress = jax.jit(first)(start, args)
        self.more = jax.jit(more)
        jax.block_until_ready(self.more(self.progress, args, 0))
        self.compile_seconds = time.perf_counter() - before

    def turn(self, seconds: float, metric: Callable[[Any], Any]) -> None:
        """As many steps as fit, by the pace so far."""
        import jax

        if self.ended:
            self.seconds += seconds
            return
        taken = int(self.progress.steps)
        steps = 1 if self.pace is None else max(1, int(seconds / self.pace))
        before = self.now()
        self.progress = jax.block_until_ready(self.more(self.progress, self.args, taken + steps))
        spent = max(self.now() - before, 1e-6)
        self.seconds += spent
        self.pace = spent / max(1, int(self.progress.steps) - taken)
        error = abs(float(metric(self.progress.at.params)))
        self.curve.append((self.seconds, int(self.progress.steps), error))

    @property
    def ended(self) -> bool:
        """Whether the method itself has stopped."""
        return int(self.progress.status) != 0

    def facts(self, target: float) -> dict[str, Any]:
        """What a row says of it."""
        reached = [seconds for seconds, _, error in self.curve if error <= target]
        return {
            "error": self.curve[-1][2],
            "best_error": min(error for *_, error in self.curve),
            "steps": self.curve[-1][1],
            "seconds": round(self.curve[-1][0], 2),
            "seconds_to_target": round(reached[0], 3) if reached else None,
            "compile_seconds": round(self.compile_seconds, 2),
            "ended": self.ended,
            "counts": {k: int(v) for k, v in self.progress.counts._asdict().items() if int(v)},
        }


def race(case: str, seconds: float, clock: str) -> list[dict[str, Any]]:
    """One row a method, and one for the problem."""
    import jax
    import jax.numpy as jnp
    import optax
    from common import row

    import optikit as ok
    from optikit.problems import PROBLEMS

    name, arguments, metric_name, target, ours = CASES[case]
    problem = PROBLEMS[name](**arguments).cast(jnp.float64)
    start = problem.start(jax.random.key(0))
    args = jax.tree.map(jnp.asarray, problem.args)
    if metric_name is None:
        metric = jax.jit(lambda p: problem.objective(p, *args))
    else:
        given = problem.metrics[metric_name]
        metric = jax.jit(lambda p: given.fun(p, *given.args))

    def contestant(label: str, method: Any) -> Contestant:
        return Contestant(label, method, problem.objective, start, args, clock)

    field = [
        contestant(label, ok.optimizers.named(method, **settings))
        for label, (method, settings) in ours.items()
    ]
    field.append(contestant("lbfgs", ok.optimizers.named("lbfgs")))
    field.append(contestant("optax.lbfgs", ok.from_optax(optax.lbfgs(), name="optax.lbfgs")))
    probe = contestant("adam", ok.optimizers.named("adam", learning_rate=1e-3))
    for _ in range(4):  # its pace sets the horizon of the schedules
        probe.turn(TURN / 4, metric)
    horizon = max(10, int(seconds / probe.pace))
    field += [
        contestant(
            f"adam, cosine from {rate:g}",
            ok.from_optax(optax.adam(optax.cosine_decay_schedule(rate, horizon)), name="adam"),
        )
        for rate in RATES
    ]
    metric(start)
    while any(c.seconds < seconds for c in field):
        for c in field:
            if c.seconds < seconds:
                c.turn(min(TURN, seconds - c.seconds), metric)
    rows = [row(f"{case}: {c.name}", **c.facts(target)) for c in field]
    best = {c.name: min(error for *_, error in c.curve) for c in field}
    of_ours = {n: e for n, e in best.items() if n in ours}
    of_rivals = {n: e for n, e in best.items() if n not in ours}
    winner, rival = min(of_ours, key=of_ours.__getitem__), min(of_rivals, key=of_rivals.__getitem__)
    rows.append(
        row(
            f"{case}: best rival's error over ours at {seconds:g} s each",
            description=problem.description,
            parameters=sum(x.size for x in jax.tree.leaves(start)),
            ours=winner,
            rival=rival,
            error_ratio=of_rivals[rival] / of_ours[winner],
            error_target=target,
            clock=clock,
        )
    )
    return rows


def main() -> None:
    """Race here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=sorted(CASES))
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    from common import save

    cases = [options.only] if options.only else list(CASES)
    rows = [entry for case in cases for entry in race(case, options.seconds, options.clock)]
    suffix = f"-{options.only}" if options.only else ""
    save(
        f"natural_gradient{suffix}",
        "What does exact curvature gain over Adam and L-BFGS at equal seconds where it should?",
        rows,
    )


if __name__ == "__main__":
    main()
