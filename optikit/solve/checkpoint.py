"""Checkpoints of a fit: a folder of files, each of which is all that is needed to go on.

A file holds parameters, the method's memory, counts, key, history and the place in the stream of
batches. It is written beside its name and renamed, so that a name never stands for half a file,
also after a power cut; it carries a checksum, and where the newest file does not agree with its own
the one before is taken.
"""

import base64
import dataclasses
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from optikit.core import Status
from optikit.solve import archive, sharded_archive
from optikit.solve.archive import Archive, DamagedError
from optikit.solve.course import Course
from optikit.solve.feed import Position
from optikit.solve.history import Page, Row, Rows, rows
from optikit.solve.placement import agreed, fetched

DEFAULT_SECONDS = 60.0
SUFFIX = ".safetensors"
ORBAX = ".orbax"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit writes down how it stands; `fit(..., checkpoint=Checkpoint(...))`.

    A fit that finds a checkpoint in the folder goes on from it, bit by bit as if it had not been
    cut off; one that finds its own end returns the same Solution at once.

    Attributes:
      folder: of this one fit; it is made if it does not exist.
      every_steps: write after each multiple of so many steps.
      every_seconds: write when so much time has passed; 60 unless one of the two is given.
      keep: how many of the newest files stay.
      format: "safetensors", one file, which the first process writes; or "orbax" (an extra), one
        folder, in which each process writes what it holds of arrays that are split over hosts.
        Orbax keeps no checksum of ours. A fit goes on from either.

    Raises:
      ValueError: a period or `keep` is not positive, or the format is neither.
      ImportError: Orbax is asked for and not installed.

    Example:
      >>> import tempfile, optikit as ok
      >>> batches = [(jnp.full(4, t),) for t in (1.0, 3.0)]
      >>> def run(steps):
      ...     return ok.fit(lambda x, b: jnp.mean((x - b) ** 2), jnp.array(0.0), batches,
      ...                   method="adam", budget=ok.Budget(steps=steps), checkpoint=folder)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     first, more = run(10), run(30)
      >>> int(first.steps), int(more.steps), more.trace.value.shape
      (10, 30, (30,))
    """

    folder: str | os.PathLike
    every_steps: int | None = None
    every_seconds: float | None = None
    keep: int = 3
    format: str = "safetensors"

    def __post_init__(self):
        if self.format not in ("safetensors", "orbax"):
            msg = f"format must be 'safetensors' or 'orbax'; got {self.format!r}."
            raise ValueError(msg)
        if self.format == "orbax":
            sharded_archive.library()
        for name in ("every_steps", "every_seconds", "keep"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                msg = f"{name} must be positive; got {value}."
                raise ValueError(msg)

    @property
    def path(self) -> pathlib.Path:
        """The folder."""
        return pathlib.Path(self.folder)

    @property
    def seconds(self) -> float:
        """Between two files."""
        if self.every_seconds is not None:
            return self.every_seconds
        return DEFAULT_SECONDS if self.every_steps is None else math.inf

    def write(self, stand: "Stand") -> None:
        """Write down how a fit stands, and let go of the oldest files."""
        split = self.format == "orbax"
        packed = stand.packed(sharded_archive.part if split else fetched)
        first = jax.process_index() == 0
        if first:
            self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"step-{stand.position.taken:012d}{ORBAX if split else SUFFIX}"
        if split:
            sharded_archive.write(packed, path)
        elif first:
            archive.write(packed, path)
        if first:
            for old in self.files()[self.keep :]:
                _remove(old)

    def files(self) -> list[pathlib.Path]:
        """The files, and the folders of Orbax, newest first."""
        return sorted([p for end in (SUFFIX, ORBAX) for p in self.path.glob(f"step-*[0-9]{end}")],
                      reverse=True)  # fmt: skip

    def newest(self) -> Archive | None:
        """The newest file that is whole, None if there are no files; damaged ones are renamed.

        Over several processes the first one chooses; they all must see the folder.

        Raises:
          ValueError: there are files, and none is whole.
        """
        found = self._whole() if jax.process_index() == 0 else None
        number = agreed(-1 if found is None else self.files().index(found[0]))
        if number < 0:
            return None
        return _read(self.files()[number]) if found is None else found[1]

    def _whole(self) -> tuple[pathlib.Path, Archive] | None:
        for leftover in self.path.glob(f".step-*{SUFFIX}.*.tmp"):  # of a fit that was killed
            leftover.unlink(missing_ok=True)
        files = self.files()
        for path in files:
            try:
                return path, _read(path)
            except DamagedError as error:
                path.replace(path.with_name(path.name + ".damaged"))
                msg = f"checkpoint {path} is damaged ({error}); the one before it is taken."
                warnings.warn(msg, RuntimeWarning, stacklevel=4)
        if files:
            msg = f"no checkpoint in {self.path} can be read: empty the folder to start anew."
            raise ValueError(msg)
        return None


def _read(path: pathlib.Path) -> Archive:
    return (sharded_archive if path.suffix == ORBAX else archive).read(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Stand(NamedTuple):
    """How a fit stands between two steps.

    Attributes:
      pages: of history, before the one in the course.
      validation: (steps, value) of each look at it.
      chosen: why the method was chosen, where "auto" chose it; the method is not chosen again.
      capacity: batches of a dispatch; another program might round otherwise.
    """

    course: Course
    pages: list[Page]
    position: Position
    validation: list[tuple[int, Any]]
    seconds: float
    ended: Status
    method: str
    chosen: str
    capacity: int

    def packed(self, held: Callable[[Any], Any] = fetched) -> Archive:
        """What a file holds; the last evaluation only at the end, since a step makes its own."""
        course = self.course._replace(page=rows([*self.pages, self.course.page]))  # pyright: ignore
        if self.ended == Status.RUNNING:
            course = course._replace(last=None)  # pyright: ignore[reportArgumentType]
        return archive.packed(
            course,
            {
                "version": 1,
                "position": {**self.position._asdict(), "state": plain(self.position.state)},
                "validation": [[step, float(np.asarray(v))] for step, v in self.validation],
                "seconds": self.seconds,
                "ended": self.ended.name,
                "method": self.method,
                "chosen": self.chosen,
                "capacity": self.capacity,
            },
            held,
        )


class Record(NamedTuple):
    """A checkpoint that was found, before it is known whether it belongs to this fit."""

    held: Archive

    @property
    def ended(self) -> Status:
        """How the fit that wrote it ended, or RUNNING."""
        return Status[self.held.meta["ended"]]

    @property
    def position(self) -> Position:
        """The place in the stream of batches."""
        place = Position(**self.held.meta["position"])
        return place._replace(state=unplain(place.state))

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.held.meta["method"]

    @property
    def chosen(self) -> str:
        """Why it was chosen."""
        return self.held.meta["chosen"]

    @property
    def seconds(self) -> float:
        """Of wall clock so far."""
        return self.held.meta["seconds"]

    @property
    def gradients(self) -> int:
        """Gradient evaluations and products so far."""
        return Row(0.0, self.held.arrays["page.ledger"][-1]).gradients

    def stand(self, blank: Course, method: str, where: os.PathLike | str) -> Stand:
        """How the fit stood, in the structure of this one.

        Raises:
          ValueError: it was another fit; the first difference is named.
        """
        meta, held = self.held.meta, dict(self.held.arrays)
        where = f"the checkpoint in {os.fspath(where)!r}"
        if self.method != method:
            msg = (
                f"{where} was written by method {self.method!r}, and this fit runs {method!r}: "
                "go on with the same method, or give another folder."
            )
            raise ValueError(msg)
        history = Rows(held.pop("page.measures"), held.pop("page.ledger"))
        template = blank._replace(page=None)  # pyright: ignore[reportArgumentType]
        if self.ended == Status.RUNNING:
            template = template._replace(last=None)  # pyright: ignore[reportArgumentType]
        course = archive.unpacked(self.held._replace(arrays=held), template, where=where)
        if self.ended == Status.RUNNING:
            course = course._replace(last=blank.last)
        return Stand(
            course._replace(page=blank.page),
            [history.page()],
            self.position,
            [(step, value) for step, value in meta["validation"]],
            meta["seconds"],
            self.ended,
            method,
            meta["chosen"],
            meta["capacity"],
        )


def plain(state: Any) -> Any:
    """A stream's state as JSON can hold it.

    Raises:
      TypeError: it holds something else than numbers, text, bytes, arrays, lists and dicts.
    """
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    if isinstance(state, bytes):
        return {"$bytes": base64.b64encode(state).decode()}
    if isinstance(state, dict) and all(isinstance(key, str) for key in state):
        return {"$dict": {key: plain(value) for key, value in state.items()}}
    if isinstance(state, (list, tuple)):
        kind = "$list" if isinstance(state, list) else "$tuple"
        return {kind: [plain(value) for value in state]}
    if isinstance(state, (np.ndarray, np.generic)):
        data = base64.b64encode(np.ascontiguousarray(state).tobytes()).decode()
        return {"$array": [state.dtype.str, list(state.shape), data]}
    msg = (
        f"state_dict() of the batches holds {type(state).__name__}: a checkpoint can hold numbers, "
        "text, bytes, NumPy arrays, lists and dicts with text as keys."
    )
    raise TypeError(msg)


def unplain(state: Any) -> Any:
    """The inverse of `plain`."""
    if not isinstance(state, dict):
        return state
    ((kind, value),) = state.items()
    if kind == "$bytes":
        return base64.b64decode(value)
    if kind == "$dict":
        return {key: unplain(item) for key, item in value.items()}
    if kind == "$array":
        dtype, shape, data = value
        return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
    items = [unplain(item) for item in value]
    return items if kind == "$list" else tuple(items)


def as_checkpoint(given: Any) -> Checkpoint | None:
    """A Checkpoint, also from a folder's name.

    Raises:
      TypeError: it is neither.
    """
    if given is None or isinstance(given, Checkpoint):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Checkpoint(given)
    msg = f"checkpoint must be a folder or an ok.Checkpoint; got {type(given).__name__}."
    raise TypeError(msg)
