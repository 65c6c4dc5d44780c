"""Results on disk: one Parquet file per job, written whole or not at all.

A file appears under its final name only after its bytes are on the disk, so a killed study leaves
no torn record, and "is it done?" is "does the file exist?". Rows are snapshots; everything about
the job as a whole is JSON in the file's metadata. Temporary files of killed writers are ignored.
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple

_META = b"optikit"


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


class StoreError(Exception):
    """A results folder that cannot be used, in words."""


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """The folder of records inside a results folder, made if need be.

    Raises:
      StoreError: it cannot be written.
    """
    records = folder / "records"
    try:
        records.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=records):
            pass
    except OSError as error:
        msg = f"the results folder {folder} cannot be written ({error.strerror}): choose another."
        raise StoreError(msg) from error
    return records


def path_of(folder: pathlib.Path, job_id: str) -> pathlib.Path:
    """Where a job's record is, or will be."""
    return folder / "records" / f"{job_id}.parquet"


def write(folder: pathlib.Path, job_id: str, record: Record) -> pathlib.Path:
    """Write a record so that it is there entirely or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(record.rows or [{"step": 0}])
    meta = json.dumps({"job": record.job, "facts": record.facts}, allow_nan=True)
    table = table.replace_schema_metadata({_META: meta.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    final = path_of(folder, job_id)
    write_atomically(final, sink.getvalue().to_pybytes())
    return final


def write_atomically(final: pathlib.Path, content: bytes) -> None:
    """Bytes under a name, by a temporary file in the same folder, fsync and rename."""
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(name).chmod(0o666 & ~_umask())  # mkstemp makes it private
        pathlib.Path(name).replace(final)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(folder: pathlib.Path, job_id: str) -> Record | None:
    """A job's record, or None if there is none.

    Raises:
      StoreError: the file is there but is not a record.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path_of(folder, job_id)
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_META])
        return Record(meta["job"], meta["facts"], table.to_pylist())
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} is damaged ({type(error).__name__}): delete it and run the study again."
        raise StoreError(msg) from error


def read_all(folder: pathlib.Path, job_ids: Iterable[str]) -> dict[str, Record]:
    """The records that exist among some jobs."""
    found = {job_id: read(folder, job_id) for job_id in job_ids}
    return {job_id: record for job_id, record in found.items() if record is not None}
