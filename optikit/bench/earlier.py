"""Results of another version of optikit, read by this one: for reports and comparisons.

A trial's id covers the code that ran it, so that new code runs every trial anew. What the old code
recorded stays what it was: here records are matched with a study by everything but the code.
"""

import contextlib
import pathlib

from optikit.bench import store
from optikit.bench.plan import Job, outlook, plan
from optikit.bench.record import Record
from optikit.bench.spec import Measure, Study


def earlier(study: Study, folder: pathlib.Path) -> tuple[list[Job], dict[str, Record]]:
    """The jobs of a study and their records, whichever code left them; of several, the latest.

    Raises:
      StoreError: it is not a results folder, or a record is damaged.
    """
    found: dict[str, Record] = {}
    kept = store.everything(folder).values()
    for record in sorted(kept, key=lambda record: record.facts.get("started") or 0.0):
        with contextlib.suppress(ValueError):  # of a version whose jobs are not ours to read
            found[_whoever_ran_it(Job.model_validate(record.job))] = record

    def recorded(jobs: list[Job]) -> dict[str, Record]:
        named = {job.id: _whoever_ran_it(job) for job in jobs}
        return {own: found[name] for own, name in named.items() if name in found}

    jobs = plan(study)
    if outlook(study)[1]:
        jobs = plan(study, recorded(jobs), settle=True)
    return jobs, recorded(jobs)


def _whoever_ran_it(job: Job) -> str:
    """The job's id, were it not for the code."""
    blank = job.model_copy(update={"code": ""})
    if job.kind == "problem":  # it is measured by its prices alone
        blank = blank.model_copy(update={"measure": Measure(prices=job.measure.prices)})
    return blank.id
