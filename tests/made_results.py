"""Results that no machine measured: records with known courses, for tests of what is shown."""

import math

import numpy as np

import optikit as ok
from optikit.bench.experiment import Results
from optikit.bench.plan import plan
from optikit.bench.report import summarise
from optikit.bench.score import score
from optikit.bench.store import Record

KINDS = ("value", "grad", "jvp", "vjp", "hvp", "ggnvp", "hessian", "jacobian")


def made_results(folder, problems=2, methods=3, seeds=3, snapshots=30, tune=0, labels=None):
    """A study of quadratics in which method k has the rate 2^-(k+1); odd ones use curvature."""
    names = labels or [f"method {k}" for k in range(methods)]
    rates = {name: 0.5 ** (k + 1) for k, name in enumerate(names)}
    optimizers = {name: {"use": "newton" if k % 2 else "adam", **({} if k % 2 else {"learning_rate": 0.1})}
                  for k, name in enumerate(names)}  # fmt: skip
    if tune:
        optimizers[names[0]] = {"use": "adam", "learning_rate": {"log_uniform": [1e-3, 1.0]}}
    experiment = ok.Experiment(
        "made", {f"p{i}": {"use": "quadratic", "n": 10 + i % 2} for i in range(problems)}, optimizers,
        seeds=range(seeds), tuning={"trials": tune, "seeds": [101]} if tune else {},
    )  # fmt: skip
    study = experiment.study()
    records = {}
    for _ in range(2 if tune else 1):
        jobs = plan(study, records)
        records |= {job.id: record(job, rates, snapshots) for job in jobs if job.id not in records}
    jobs = plan(study, records)
    records = {job.id: records[job.id] for job in jobs}
    scored = score(jobs, records)
    summary = summarise(scored, study.targets, [], budget=study.budget)
    return Results(study, folder, jobs, records, scored, summary)


def made_spectra():
    """One of all eigenvalues, and one with a band."""
    x = np.linspace(-1, 1, 50)
    mean = np.exp(-(x**2))
    plain = {"x": x.tolist(), "mean": mean.tolist(), "low": (0.9 * mean).tolist(),
             "high": (1.1 * mean).tolist(), "floor": 1e-3, "largest": [1.0], "smallest": [-1.0]}  # fmt: skip
    return [{**plain, "where": "the start", "exact": True},
            {**plain, "where": "the reference solution", "exact": False}]  # fmt: skip


def record(job, rates, snapshots):
    fields = job.model_dump(mode="json") | {"id": job.id}
    environment = {"machine": "m1", "device": "cpu", "load": 0.1, "cores": 2}
    if job.kind == "problem":
        facts = {
            "reference": {"value": 0.0, "source": "known in closed form", "grad_norm": 0.0,
                          "certificate": "a minimum", "kind": "minimum"},
            "prices": {"grad": 1e-4, "value": 0.5e-4, "hessian": 1e-3},
            "spectra": made_spectra() if job.problem == "p0" else [],
            "parameters": job.problem_arguments.get("n", 10), "description": "made up",
        }  # fmt: skip
        return Record(fields, facts | {"environment": environment, "error": None}, [])
    rng = np.random.default_rng([job.seed, int(job.problem[1:])])
    rate = rates[job.optimizer] * (0.8 + 0.4 * rng.random())
    steps = np.unique(np.r_[0, np.geomspace(1, 1.2**snapshots, snapshots).astype(int)])
    rows = []
    for step in steps.tolist():
        value = max(math.exp(-rate * step), 1e-16)
        counts = dict.fromkeys([f"count_{kind}" for kind in KINDS], 0)
        counts |= {"count_value": step, "count_grad": step, "count_hessian": step * (job.optimizer_use == "newton")}  # fmt: skip
        rows.append({"step": step, "value": value, "grad_norm": value**0.5, "solver_value": value,
                     "first_seconds": 2e-3 * step, "warm_seconds": 1e-3 * step,
                     "warm_low": 0.9e-3 * step, "warm_high": 1.1e-3 * step, "flops": 100.0 * step, "bytes": 800.0 * step,
                     **counts})  # fmt: skip
    facts = {"status": "MAX_STEPS", "sentence": "ran out", "method": job.optimizer_use,
             "seconds": {"trace": 0.1, "lower": 0.1, "compile": 0.3}, "memory_bytes": 2**20,
             "certificate": {"kind": "minimum", "message": "smallest curvature 1.0"},
             "environment": environment, "error": None}  # fmt: skip
    return Record(fields, facts, rows)
