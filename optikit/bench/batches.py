"""Tuning trials that may share a program: hyperparameter lanes of one method on one problem.

With `measure.lanes` they are handed out together, as one job whose members they are, and run as one
program under `jax.vmap` (see `optikit.bench.lanes`); every member has its own record. Nothing here
imports JAX.
"""

import json
import pathlib
from collections.abc import Collection, Iterable

from optikit.bench import peers, store
from optikit.bench.job import Job


def may_share(use: str) -> bool:
    """Whether a method's trials may be lanes: other libraries' loops are not ours to batch."""
    return not peers.is_peer(use)


def batched(jobs: Iterable[Job], missing: Collection[str]) -> list[Job]:
    """The work that is left: jobs by themselves, and lanes with all that they share a program with.

    A batch is made of all its trials, recorded or not, so that running it again after a kill runs
    the same program.

    Args:
      jobs: of a plan. missing: the ids of those that have no good record.
    """
    jobs = list(jobs)
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        if job.measure.lanes:
            groups.setdefault(_shared(job), []).append(job)
    work, begun = [], set()
    for job in jobs:
        members = groups.get(_shared(job), []) if job.measure.lanes else []
        if len(members) < 2:
            work += [job] if job.id in missing else []
        elif _shared(job) not in begun:
            begun.add(_shared(job))
            if any(member.id in missing for member in members):
                work.append(_batch(members))
    return work


def is_recorded(folder: pathlib.Path, job: Job) -> bool:
    """Whether a job, or every member of a batch, has a good record."""
    return all(store.is_done(store.read(folder, one.id)) for one in job.members or [job])


def _shared(job: Job) -> tuple[str, str, str]:
    """What lanes have in common: the problem, the method, and all arguments that are no floats.

    Integers, choices and switches may change the shape of a program.
    """
    fixed = {k: "" if type(v) is float else v for k, v in job.optimizer_arguments.items()}
    return job.problem, job.optimizer, json.dumps(fixed, sort_keys=True)


def _batch(members: list[Job]) -> Job:
    first = members[0]
    title = f"{first.optimizer} ({len(members)} lanes)"
    return first.model_copy(update={"kind": "lanes", "variant": title, "members": members})
