"""One job, start to record: what a worker process runs.

The same job may be run again after a kill: it writes its record once, atomically, under its id.
"""

import contextlib
import functools
import time
import traceback
from typing import Any

from optikit.bench import environment, peers
from optikit.bench.plan import Job
from optikit.bench.store import Record


def run_job(job: Job) -> Record:
    """Run a job in this process; a failure is a record too, with its traceback.

    Inside, x64 and the matmul precision are the job's, whatever the process has set.
    """
    import jax

    started = time.time()
    begun = time.perf_counter()
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(job.dtype == "float64"))
        stack.enter_context(jax.default_matmul_precision(job.matmul_precision))
        try:
            if job.kind == "problem":
                facts = _problem_job(job)
            else:
                facts, rows = _trial_job(job)
            facts["error"] = None
        except Exception as error:  # a failing solver is a result, not the end of the study
            facts = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(limit=-8),
            }
    facts["environment"] = environment.capture()
    facts["started"] = started
    facts["wall_seconds"] = time.perf_counter() - begun
    return Record(job.model_dump(mode="json") | {"id": job.id}, facts, rows)


def _problem_job(job: Job) -> dict[str, Any]:
    import jax

    from optikit.bench.prices import prices
    from optikit.bench.referee import referee, reference
    from optikit.bench.resolve import fingerprint, problem_of
    from optikit.core import tree

    problem = problem_of(job)
    cast = problem.cast(job.dtype)
    key = jax.random.key(0)
    known = reference(
        problem, key, seconds=5 * job.budget.seconds + 10, solve=job.measure.reference
    )
    return {
        "reference": known._asdict(),
        "checksum": fingerprint(jax.device_get(_data(problem))),
        "start_value": referee(problem)(problem.start(key))[0],
        "prices": prices(cast, key) if job.measure.prices else {},
        "parameters": tree.size(cast.start(key)),
        "description": problem.description,
    }


def _data(problem: Any) -> Any:
    """All that a problem's numbers depend on besides its code."""
    return problem.args if problem.held_out is None else (problem.args, problem.held_out)


def _trial_job(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax

    from optikit.bench.certificate import final_certificate
    from optikit.bench.execute import measure
    from optikit.bench.referee import appraiser, referee
    from optikit.bench.refine import Goal
    from optikit.bench.replay import costs_along
    from optikit.bench.resolve import optimizer_of, problem_of

    problem = problem_of(job)
    cast, key = problem.cast(job.dtype), jax.random.fold_in(jax.random.key(0), job.seed)
    if peers.is_peer(job.optimizer_use):
        if problem.batches is not None:
            msg = f"{job.optimizer_use} wants the whole data, and {job.problem} comes in batches."
            raise TypeError(msg)
        optimizer = peers.peer_of(job.optimizer_use, job.optimizer_arguments)
        measured, followed, more = optimizer.measure, optimizer.costs, optimizer.facts
    else:
        optimizer = optimizer_of(job)
        measured = functools.partial(measure, optimizer=optimizer)
        followed, more = functools.partial(costs_along, optimizer=optimizer), dict
    known = problem.optimum if job.known is None else job.known
    run = measured(
        problem=cast,
        key=key,
        budget=job.budget,
        how=job.measure,
        judge=referee(problem),
        goal=Goal(known, job.targets) if job.measure.refine and known is not None else None,
    )
    steps = [snapshot.step for snapshot in run.snapshots]
    along = followed(problem=cast, key=key, steps=steps) if job.measure.flops else None
    return {
        "status": run.status.name,
        "sentence": run.status.sentence,
        "method": optimizer.name,
        "seconds": run.seconds,
        "memory": run.memory,
        "memory_bytes": run.memory["program_bytes"],
        "clock": run.clock | {"runs": run.warm.runs, "coverage": run.warm.coverage},
        "marks": run.clock["marks"] + _mismatched(run.snapshots[-1].params, job.dtype),
        "invalid": run.clock["invalid"],
        "known": known,
        "ledger_agrees": None if along is None else along.ledger_agrees,
        "unpriced": None if along is None else along.unknown,
        "trace": run.trace,
        "certificate": final_certificate(problem, run.snapshots[-1].params)
        if job.measure.certificates and job.role == "report" and _certifiable(problem)
        else None,
        **more(),
    }, _rows(run, along, _share(problem), appraiser(problem))


def _mismatched(params: Any, dtype: str) -> list[str]:
    """A mark for parameters that did not stay in the precision asked for."""
    import jax
    import jax.numpy as jnp

    kinds = {leaf.dtype for leaf in jax.tree.leaves(params)}
    strays = [k for k in kinds if jnp.issubdtype(k, jnp.floating) and k != jnp.dtype(dtype)]
    return ["mismatched"] if strays else []


def _certifiable(problem: Any) -> bool:
    """Whether a certificate would be of what was minimised, on data that a step can see."""
    return problem.batches is None and problem.held_out is None


def _share(problem: Any) -> float | None:
    """The part of the data that a step sees; None where that is all."""
    import jax

    if problem.batches is None:
        return None
    batch = jax.eval_shape(problem.step_args, jax.random.key(0))
    seen, there = (jax.tree.leaves(args)[0].shape[0] for args in (batch, problem.args))
    return seen / there


def _rows(run: Any, along: Any, share: float | None, appraise: Any) -> list[dict[str, Any]]:
    """One row per snapshot: what the referee saw, and what it had cost."""
    whole = run.warm.median[-1]
    rows = []
    for i, snapshot in enumerate(run.snapshots):
        value, grad_norm = snapshot.judged
        ran = run.warm.median[i] / whole if whole > 0 else 0.0
        rows.append(
            {
                "step": snapshot.step,
                "rejected": snapshot.rejected,
                "refined": snapshot.refined,
                "value": value,
                "grad_norm": grad_norm,
                "solver_value": snapshot.value,
                "first_seconds": run.first_seconds[i],
                "warm_seconds": run.warm.median[i],
                "warm_low": run.warm.low[i],
                "warm_high": run.warm.high[i],
                "flops": None if along is None else along.costs[i].flops,
                "bytes": None if along is None else along.costs[i].bytes,
                "joules": None if run.joules is None else run.joules * ran,
                "epochs": None if share is None else snapshot.step * share,
                **{f"count_{kind}": n for kind, n in snapshot.counts._asdict().items()},
                **{f"metric_{name}": x for name, x in appraise(snapshot.params).items()},
            }
        )
    return rows


if __name__ == "__main__":
    import sys

    from optikit.bench.attempt import main

    sys.exit(main(sys.argv[1:]))
