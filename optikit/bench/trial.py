"""One job, start to record: what a worker process runs.

The same job may be run again after a kill: it writes its record once, atomically, under its id.
"""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from optikit.bench import environment, peers
from optikit.bench.plan import Job
from optikit.bench.store import Record

Found = tuple[dict[str, Any], list[dict[str, Any]]]
"""Facts and rows."""


def run_job(job: Job) -> Record:
    """Run a job in this process; a failure is a record too, with its traceback.

    Inside, x64 and the matmul precision are the job's, whatever the process has set.
    """
    started, begun = time.time(), time.perf_counter()

    def run() -> Found:
        return (_problem_job(job), []) if job.kind == "problem" else _trial_job(job)

    with _as_asked(job):
        facts, rows = _whatever_happens(run)
    return _record(job, facts, rows, started, time.perf_counter() - begun)


def run_lanes(job: Job) -> list[Record]:
    """Run the members of a batch in this process, as lanes of one program where they can be.

    Members whose hyperparameters change the program are grouped by those; one that is left by
    itself is run by itself. If a program fails, so do all its lanes.
    """
    found: dict[str, Record] = {}
    with _as_asked(job):
        for members in _programs(job):
            if len(members) == 1:
                found[members[0].id] = run_job(members[0])
                continue
            started, begun = time.time(), time.perf_counter()
            lanes = _whatever_happens(lambda members=members: _lanes_job(members))
            share = (time.perf_counter() - begun) / len(members)
            each = lanes if isinstance(lanes, list) else [lanes] * len(members)
            for member, (facts, rows) in zip(members, each, strict=True):
                found[member.id] = _record(member, dict(facts), rows, started, share)
    return [found[member.id] for member in job.members]


@contextlib.contextmanager
def _as_asked(job: Job) -> Iterator[None]:
    import jax

    with jax.enable_x64(job.dtype == "float64"), jax.default_matmul_precision(job.matmul_precision):
        yield


def _whatever_happens(run: Callable[[], Any]) -> Any:
    """What it returns; or the facts of its failure, and no rows."""
    try:
        return run()
    except Exception as error:  # a failing solver is a result, not the end of the study
        return {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(limit=-8),
        }, []


def _record(
    job: Job, facts: dict[str, Any], rows: list[dict[str, Any]], started: float, seconds: float
) -> Record:
    own = {"environment": environment.capture(), "started": started, "wall_seconds": seconds}
    told = job.model_dump(mode="json", exclude={"members"}) | {"id": job.id}
    return Record(told, {"error": None, **facts, **own}, rows)


def _problem_job(job: Job) -> dict[str, Any]:
    import jax

    from optikit.bench.prices import prices
    from optikit.bench.referee import referee, reference
    from optikit.bench.resolve import fingerprint, problem_of
    from optikit.bench.spectra import spectra
    from optikit.core import tree

    problem = problem_of(job)
    cast = problem.cast(job.dtype)
    key = jax.random.key(0)
    known = reference(
        problem, key, seconds=5 * job.budget.seconds + 10, solve=job.measure.reference
    )
    told = known._asdict()
    del told["point"]
    return {
        "reference": told,
        "checksum": fingerprint(jax.device_get(_data(problem))),
        "start_value": referee(problem)(problem.start(key))[0],
        "prices": prices(cast, key) if job.measure.prices else {},
        "parameters": tree.size(cast.start(key)),
        "spectra": spectra(problem, key, known.point) if job.measure.spectrum else [],
        "description": problem.description,
    }


def _data(problem: Any) -> Any:
    """All that a problem's numbers depend on besides its code."""
    return problem.args if problem.held_out is None else (problem.args, problem.held_out)


def _trial_job(job: Job) -> Found:
    from optikit.bench.execute import measure
    from optikit.bench.referee import appraiser, referee
    from optikit.bench.replay import costs_along
    from optikit.bench.resolve import optimizer_of, problem_of

    problem = problem_of(job)
    cast, key = problem.cast(job.dtype), _key(job)
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
    run = measured(
        problem=cast,
        key=key,
        budget=job.budget,
        how=job.measure,
        judge=referee(problem),
        goal=_goal(job, problem),
    )
    steps = [snapshot.step for snapshot in run.snapshots]
    along = followed(problem=cast, key=key, steps=steps) if job.measure.flops else None
    facts = _facts(job, problem, run, along, optimizer.name) | more()
    return facts, _rows(run, along, _share(problem), appraiser(problem))


def _key(job: Job) -> Any:
    import jax

    return jax.random.fold_in(jax.random.key(0), job.seed)


def _goal(job: Job, problem: Any) -> Any:
    """What first hits are narrowed for, if anything."""
    from optikit.bench.refine import Goal

    known = problem.optimum if job.known is None else job.known
    return Goal(known, job.targets) if job.measure.refine and known is not None else None


def _programs(job: Job) -> list[list[Job]]:
    """The members of a batch, those together that can share a program, in the plan's order."""
    from optikit.bench.lanes import shareable
    from optikit.bench.resolve import optimizer_of, problem_of

    try:
        problem = problem_of(job).cast(job.dtype)
    except Exception:  # each of them will say so
        return [[member] for member in job.members]
    if problem.batches is not None:  # a lane's steps see the whole data
        return [[member] for member in job.members]
    sound, alone = [], []
    for member in job.members:
        try:
            optimizer_of(member)
            sound.append(member)
        except Exception:  # it will say so when it is run
            alone.append([member])
    if not sound:
        return alone
    lanes = _lanes(sound)
    free = shareable(problem, lanes)
    groups: dict[str, list[Job]] = {}
    for member in sound:
        fixed = [member.optimizer_arguments[name] for name in lanes.varied if name not in free]
        groups.setdefault(repr(fixed), []).append(member)
    return [*groups.values(), *alone]


def _lanes(members: list[Job]) -> Any:
    """What the members of one program have in common, and what varies."""
    from optikit.bench.lanes import Lanes
    from optikit.bench.resolve import optimizer_of

    given = [member.optimizer_arguments for member in members]
    names = [k for k, v in given[0].items() if any(other[k] != v for other in given)]

    def make(chosen):
        arguments = given[0] | dict(chosen)
        return optimizer_of(members[0].model_copy(update={"optimizer_arguments": arguments}))

    varied = {name: [float(one[name]) for one in given] for name in names}
    return Lanes(make, varied, [_key(member) for member in members])


def _lanes_job(members: list[Job]) -> list[Found]:
    """Facts and rows of every lane of one program."""
    import jax

    from optikit.bench.lanes import costs_of_lanes, executed, measure_lanes
    from optikit.bench.referee import appraiser, referee
    from optikit.bench.resolve import optimizer_of, problem_of

    job = members[0]
    problem = problem_of(job)
    cast, lanes = problem.cast(job.dtype), _lanes(members)
    runs, seconds = measure_lanes(
        cast,
        lanes,
        budget=job.budget,
        how=job.measure,
        judge=referee(problem),
        goals=[_goal(member, problem) for member in members],
    )
    steps = [[snapshot.step for snapshot in run.snapshots] for run in runs]
    alongs = costs_of_lanes(cast, lanes, steps) if job.measure.flops else [None] * len(runs)
    shared: dict[str, Any] = {"number": len(members), "seconds": seconds, "executed": None}
    if job.measure.flops:
        own = [along.costs[-1] for along in alongs if along is not None]
        shared["logical"] = _plain(jax.tree.map(lambda *xs: sum(xs), *own))
        shared["executed"] = _plain(executed(cast, lanes, max(every[-1] for every in steps)))
    name = optimizer_of(job).name
    return [
        (
            _facts(member, problem, run, along, name) | {"lanes": shared | {"lane": i}},
            _rows(run, along, None, appraiser(problem)),
        )
        for i, (member, run, along) in enumerate(zip(members, runs, alongs, strict=True))
    ]


def _plain(cost: Any) -> dict[str, Any]:
    return {"flops": cost.flops, "bytes": cost.bytes, "calls": cost.calls._asdict()}


def _facts(job: Job, problem: Any, run: Any, along: Any, method: str) -> dict[str, Any]:
    from optikit.bench.certificate import final_certificate

    return {
        "status": run.status.name,
        "sentence": run.status.sentence,
        "method": method,
        "seconds": run.seconds,
        "memory": run.memory,
        "memory_bytes": run.memory["program_bytes"],
        "clock": run.clock | {"runs": run.warm.runs, "coverage": run.warm.coverage},
        "marks": run.clock["marks"] + _mismatched(run.snapshots[-1].params, job.dtype),
        "invalid": run.clock["invalid"],
        "known": problem.optimum if job.known is None else job.known,
        "ledger_agrees": None if along is None else along.ledger_agrees,
        "unpriced": None if along is None else along.unknown,
        "trace": run.trace,
        "certificate": final_certificate(problem, run.snapshots[-1].params)
        if job.measure.certificates and job.role == "report" and _certifiable(problem)
        else None,
    }


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
