"""Results on disk: one Parquet file per job, written whole or not at all.

A file appears under its final name only after its bytes are on the disk, so a killed study leaves
no torn record, and "is it done?" is "does the file exist?". Rows are snapshots; everything about
the job as a whole is JSON in the file's metadata. Temporary files of killed writers are ignored.

    study.json      what is run               records/ID.parquet   one per job
    run.json        how, and with what path   records.parquet      many in one (see compact.py)
    lock            who runs it now           attempts/ID          who has tried it, and when
    jobs/ID.json    what a worker is given    logs/ID.log          what it said
"""

import contextlib
import datetime
import functools
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterable, Iterator

from optikit.bench.lock import Busy, locked
from optikit.bench.record import Record, decode, decode_many, encode, encode_many

COMPACT = "records.parquet"


class StoreError(Exception):
    """A results folder that cannot be used, in words."""


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """The folder of records inside a results folder, made if need be.

    Raises:
      StoreError: it cannot be written.
    """
    records = folder / "records"
    try:
        for name in ("records", "jobs", "attempts", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=records):
            pass
    except OSError as error:
        msg = f"the results folder {folder} cannot be written ({error.strerror}): choose another."
        raise StoreError(msg) from error
    return records


@contextlib.contextmanager
def sole_use(folder: pathlib.Path) -> Iterator[None]:
    """Hold a results folder alone: two runs at once would spoil each other's timings.

    Raises:
      StoreError: another run holds it, or it cannot be written.
    """
    path = folder / "lock"
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(locked(path, wait=False))
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            os.ftruncate(handle, 0)
            os.write(
                handle, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode()
            )
        except Busy:
            holder = path.read_text(errors="replace") or "another process"
            msg = f"{folder} is being run by {holder}: wait for it, or give another --out."
            raise StoreError(msg) from None
        except OSError as error:
            raise unwritable(path, error) from error
        yield


def unwritable(path: pathlib.Path, error: OSError) -> StoreError:
    """What to tell of a file that could not be written."""
    return StoreError(
        f"{path} cannot be written ({error.strerror or error}): what is recorded is kept; "
        "free the disk or repair the folder, then try again."
    )


def path_of(folder: pathlib.Path, job_id: str) -> pathlib.Path:
    """Where a job's record is, or will be."""
    return folder / "records" / f"{job_id}.parquet"


def write(folder: pathlib.Path, job_id: str, record: Record) -> pathlib.Path:
    """Write a record so that it is there entirely or not at all.

    A record that is there and did not fail stays: whoever comes first.

    Raises:
      StoreError: the disk is full, or the folder cannot be written.
    """
    final = path_of(folder, job_id)
    if is_done(read(folder, job_id)):
        return final
    write_atomically(final, encode(record))
    return final


def write_atomically(final: pathlib.Path, content: bytes) -> None:
    """Bytes under a name, by a temporary file in the same folder, fsync and rename.

    Raises:
      StoreError: they could not be written; nothing has changed then.
    """
    try:
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
    except OSError as error:
        raise unwritable(final, error) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_done(record: Record | None) -> bool:
    """Whether a record is there that did not fail; a failed job is tried again."""
    return record is not None and not record.facts.get("error")


def read(folder: pathlib.Path, job_id: str) -> Record | None:
    """A job's record, or None if there is none.

    Raises:
      StoreError: the file is there but is not a record of this job.
    """
    path = path_of(folder, job_id)
    try:
        record = decode(path.read_bytes())
    except FileNotFoundError:
        return _compacted(folder).get(job_id)
    except (OSError, ValueError) as error:
        msg = f"{path} is damaged ({error}): delete it and run the study again."
        raise StoreError(msg) from error
    if record.job.get("id") != job_id:
        msg = f"{path} holds the record of another job ({record.job.get('id')}): delete it."
        raise StoreError(msg)
    return record


def read_all(folder: pathlib.Path, job_ids: Iterable[str]) -> dict[str, Record]:
    """The records that exist among some jobs."""
    found = {job_id: read(folder, job_id) for job_id in job_ids}
    return {job_id: record for job_id, record in found.items() if record is not None}


def everything(folder: pathlib.Path) -> dict[str, Record]:
    """All records of a results folder, also those of jobs that its study no longer has.

    Raises:
      StoreError: it is not a results folder, or a record is damaged.
    """
    return read_all(folder, recorded_ids(folder))


def recorded_ids(folder: pathlib.Path) -> list[str]:
    """The ids of all jobs that a results folder has a record of, each once.

    Raises:
      StoreError: it is not a results folder, or records.parquet is damaged.
    """
    # git keeps no empty folder: a clone of a compacted study has no records/
    if not any((folder / name).exists() for name in ("records", COMPACT, "study.json")):
        msg = f"{folder} is not a results folder: it has no records."
        raise StoreError(msg)
    loose = sorted(path.stem for path in (folder / "records").glob("[!.]*.parquet"))
    return list(dict.fromkeys([*_compacted(folder), *loose]))


def compact(folder: pathlib.Path) -> int:
    """Put all good records into one file, records.parquet, and remove the single ones.

    A kill in between loses nothing: what stands in both is the same. Returns how many it holds.
    Records of failed jobs stay as they are, since those jobs are tried again.

    Raises:
      StoreError: the folder is in use, a record is damaged, or the records do not fit one table;
        nothing is removed then.
    """
    with sole_use(folder):
        records = {k: record for k, record in everything(folder).items() if is_done(record)}
        try:
            content = encode_many(records) if records else b""
        except ValueError as error:
            msg = f"the records of {folder} cannot be put into one table: {error}"
            raise StoreError(msg) from error
        if records:
            write_atomically(folder / COMPACT, content)
        for job_id in records:
            path_of(folder, job_id).unlink(missing_ok=True)
            (folder / "jobs" / f"{job_id}.json").unlink(missing_ok=True)
            (folder / "attempts" / job_id).unlink(missing_ok=True)
    return len(records)


def _compacted(folder: pathlib.Path) -> dict[str, Record]:
    """The records in records.parquet, if there is one."""
    path = folder / COMPACT
    try:
        stamp = path.stat()
    except OSError:
        return {}
    try:
        return _cached(path, stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
    except (OSError, ValueError) as error:
        msg = f"{path} is damaged ({error}): restore it, or delete it and run the study again."
        raise StoreError(msg) from error


@functools.lru_cache(maxsize=4)
def _cached(path: pathlib.Path, *stamp: int) -> dict[str, Record]:
    del stamp  # another file under the same name is read anew
    return decode_many(path.read_bytes())
