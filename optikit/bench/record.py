"""What a job left, and how it becomes Parquet: one record a file, or many in one.

Rows are the table; the job and the facts are JSON in the file's metadata. Only plain data is read
back: nothing is unpickled.
"""

import json
from typing import Any, NamedTuple

META = b"optikit"
"""The key in a file's metadata under which its jobs and facts stand."""


class Record(NamedTuple):
    """What a job left.

    Attributes:
      job: the job's fields.
      facts: about the job as a whole: status, compile seconds, environment, ...
      rows: one dict per snapshot.
    """

    job: dict[str, Any]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]


def encode(record: Record) -> bytes:
    """A record as the bytes of a Parquet file."""
    return _file(_table(record), {"job": record.job, "facts": record.facts})


def decode(content: bytes) -> Record:
    """The record in a Parquet file.

    Raises:
      ValueError: it is damaged, or is no record.
    """
    table, meta = _read(content)
    try:
        return Record(dict(meta["job"]), dict(meta["facts"]), table.to_pylist())
    except (KeyError, TypeError) as error:
        msg = "not a record"
        raise ValueError(msg) from error


def encode_many(records: dict[str, Record]) -> bytes:
    """Records by id as one Parquet file: their rows one below the other, with a column `id`.

    Columns that a record lacks are empty in its rows; the metadata says which it had, and of which
    type, so that `decode_many` gives back what went in.

    Raises:
      ValueError: they would not read back as they are, as when a column is text in one and a number
        in another.
    """
    import pyarrow as pa

    tables, meta = [], {}
    for job_id, record in records.items():
        table = _table(record)
        meta[job_id] = {
            "job": record.job,
            "facts": record.facts,
            "columns": {field.name: str(field.type) for field in table.schema},
            "rows": table.num_rows,
        }
        tables.append(table.add_column(0, "id", pa.array([job_id] * table.num_rows)))
    try:
        merged = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    content = _file(merged, meta)
    if json.dumps(decode_many(content)) != json.dumps(records):  # not ==: NaN stands for itself
        msg = "they would not read back as they are"
        raise ValueError(msg)
    return content


def decode_many(content: bytes) -> dict[str, Record]:
    """The records in a file of `encode_many`.

    Raises:
      ValueError: it is damaged, or is no such file.
    """
    table, meta = _read(content)
    rows, at, records = table.to_pylist(), 0, {}
    try:
        for job_id, own in meta.items():
            mine = rows[at : at + own["rows"]]
            at += own["rows"]
            records[job_id] = Record(
                own["job"], own["facts"], [_narrowed(row, own["columns"]) for row in mine]
            )
    except (KeyError, TypeError, AttributeError) as error:
        msg = "not a file of records"
        raise ValueError(msg) from error
    return records


def _narrowed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """A row with the columns its record had, whole numbers as such."""
    return {
        name: int(row[name]) if kind == "int64" and row[name] is not None else row[name]
        for name, kind in columns.items()
    }


def _table(record: Record) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(record.rows or [{"step": 0}])


def _file(table: Any, meta: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({META: json.dumps(meta, allow_nan=True).encode()}), sink
    )
    return sink.getvalue().to_pybytes()


def _read(content: bytes) -> tuple[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        return table, json.loads(table.schema.metadata[META])
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        msg = f"not readable as Parquet with our metadata ({type(error).__name__})"
        raise ValueError(msg) from error
