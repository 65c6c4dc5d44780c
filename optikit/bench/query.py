"""SQL over the records of a results folder, by DuckDB in memory.

Two tables: `trials` has a row per job, `snapshots` one per snapshot. The connection reads nothing
but them: files, extensions and settings are locked before the question is asked, and a question is
one SELECT.
"""

import json
import pathlib
from typing import Any, NamedTuple

from optikit.bench import store
from optikit.bench.plain import on_one_line
from optikit.bench.record import Record
from optikit.bench.store import StoreError

JOB = (
    "kind", "problem", "optimizer", "variant", "seed", "dtype", "matmul_precision", "problem_use",
    "optimizer_use", "code",
)  # fmt: skip
FACTS = ("status", "error", "wall_seconds", "started", "attempt", "host")


class QueryError(Exception):
    """A question that cannot be answered, in words."""


class Answer(NamedTuple):
    """Names of the columns, and the rows."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def __str__(self) -> str:
        rows = [self.columns, *self.rows]
        return "\n".join("\t".join(map(_cell, row)) for row in rows)

    def as_json(self) -> str:
        """For programs: one object per row; dates and the like as text, NaN as null."""
        plain = [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]
        return json.dumps(plain, indent=2, allow_nan=False, default=str)


def query(folder: pathlib.Path, sql: str) -> Answer:
    """Ask one SELECT of the records of a results folder.

    Columns of `trials`: id, kind, problem, optimizer, variant, seed, dtype, ..., status, error,
    wall_seconds, attempt, host, invalid (why its clock does not count), device, machine, steps (of
    the last snapshot), and everything else as JSON in `job` and `facts`
    (`facts->>'$.seconds.compile'`). Columns of `snapshots`: id, problem, variant, seed, and those
    of the records: step, value, grad_norm, warm_seconds, ...

    Raises:
      QueryError: it is no SELECT, names what is not there, or asks for more than the records.
      StoreError: the folder is not a results folder, or is damaged.
    """
    import duckdb

    trials, snapshots = _tables(store.everything(folder))
    connection = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
    try:
        for name, table in (("trials", trials), ("snapshots", snapshots)):
            connection.register("given", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        statements = connection.extract_statements(sql)
        allowed = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
        if len(statements) != 1 or statements[0].type not in allowed:
            msg = "a question is one SELECT; results are never changed by it."
            raise QueryError(msg)
        found = connection.execute(statements[0])
        return Answer([column[0] for column in found.description or ()], found.fetchall())
    except duckdb.Error as error:
        msg = str(error).strip()
        raise QueryError(msg) from error
    finally:
        connection.close()


def _tables(records: dict[str, Record]) -> tuple[Any, Any]:
    import pyarrow as pa

    if not records:
        msg = "there are no records to ask yet."
        raise StoreError(msg)
    trials = [_trial(job_id, record) for job_id, record in records.items()]
    parts = []
    for job_id, record in records.items():
        if record.job.get("kind") != "trial" or record.facts.get("error"):
            continue
        own = {"id": job_id, **{k: record.job.get(k) for k in ("problem", "variant", "seed")}}
        parts.append(pa.Table.from_pylist([{**own, **row} for row in record.rows]))
    columns = {"id": pa.string(), "step": pa.int64()}
    snapshots = pa.concat_tables(
        [pa.table({k: pa.array([], t) for k, t in columns.items()}), *parts],
        promote_options="permissive",
    )
    return pa.Table.from_pylist(trials), snapshots


def _trial(job_id: str, record: Record) -> dict[str, Any]:
    environment = record.facts.get("environment") or {}
    return {
        "id": job_id,
        **{name: record.job.get(name) for name in JOB},
        **{name: record.facts.get(name) for name in FACTS},
        "invalid": list(record.facts.get("invalid") or []),
        **{name: environment.get(name) for name in ("device", "machine", "commit")},
        "steps": record.rows[-1].get("step") if record.rows else None,
        "job": json.dumps(record.job),
        "facts": json.dumps(record.facts),
    }


def _cell(value: Any) -> str:
    """Text in one cell of one line."""
    return "" if value is None else on_one_line(str(value).translate({9: " ", 10: " ", 13: " "}))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
