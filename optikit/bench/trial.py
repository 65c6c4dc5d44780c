"""One job, start to record: what a worker process runs.

The same job may be run again after a kill: it writes its record once, atomically, under its id.
"""

import contextlib
import time
import traceback
from typing import Any

from optikit.bench import environment
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
            work = _problem_job if job.kind == "problem" else _trial_job
            facts, rows = work(job)
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


def _problem_job(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax

    from optikit.bench.prices import prices
    from optikit.bench.referee import judge, reference
    from optikit.bench.resolve import fingerprint, problem_of
    from optikit.core import tree

    problem = problem_of(job)
    cast = problem.cast(job.dtype)
    key = jax.random.key(0)
    known = reference(problem, key, seconds=5 * job.budget.seconds + 10)
    return {
        "reference": known._asdict(),
        "checksum": fingerprint(jax.device_get(problem.args)),
        "start_value": judge(problem, [problem.start(key)]).values[0],
        "prices": prices(cast, key) if job.measure.prices else {},
        "parameters": tree.size(cast.start(key)),
        "description": problem.description,
    }, []


def _trial_job(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax
    import numpy as np

    from optikit.bench.certificate import final_certificate
    from optikit.bench.execute import flops_along, measure
    from optikit.bench.referee import judge
    from optikit.bench.resolve import optimizer_of, problem_of

    problem = problem_of(job)
    cast, optimizer = problem.cast(job.dtype), optimizer_of(job)
    key = jax.random.fold_in(jax.random.key(0), job.seed)
    run = measure(
        cast,
        optimizer,
        key,
        budget=job.budget,
        repeats=job.measure.repeats,
        growth=job.measure.growth,
    )
    verdicts = judge(problem, run.params)
    flops = flops_along(cast, optimizer, key, run.steps) if job.measure.flops else None
    warm = np.asarray(run.warm_seconds)
    rows = [
        {
            "step": step,
            "value": verdicts.values[i],
            "grad_norm": verdicts.grad_norms[i],
            "solver_value": run.values[i],
            "first_seconds": run.first_seconds[i],
            "warm_seconds": float(np.median(warm[:, i])),
            "warm_low": float(np.min(warm[:, i])),
            "warm_high": float(np.max(warm[:, i])),
            "flops": None if flops is None else flops[i],
            **{f"count_{kind}": n for kind, n in run.counts[i]._asdict().items()},
        }
        for i, step in enumerate(run.steps)
    ]
    return {
        "status": run.status.name,
        "sentence": run.status.sentence,
        "method": optimizer.name,
        "seconds": run.seconds,
        "memory_bytes": run.memory_bytes,
        "certificate": final_certificate(problem, run.params[-1])
        if job.measure.certificates and job.role == "report"
        else None,
    }, rows


if __name__ == "__main__":
    import sys

    from optikit.bench.attempt import main

    sys.exit(main(sys.argv[1:]))
