"""The batches of a fit: where in the stream they stand, and ahead of their use on the device.

A position is what a checkpoint needs to go on in the stream: how many batches were taken, in which
epoch and where in it, and the stream's own state where it has one.
"""

import contextlib
import contextvars
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Self

import jax

from optikit.calculus.validate import as_args

PATIENCE_SECONDS = 5.0
"""How long the end of a fit waits for a batch that is just being read."""


class Position(NamedTuple):
    """A place in a stream, after a batch."""

    taken: int = 0
    epoch: int = 0
    within: int = 0  # batches of this epoch
    state: Any = None


Item = tuple[tuple, Position]


def numbered(
    batches: Iterable[tuple], start: Position, *, remember: bool, seen: Callable[[tuple], None]
) -> Generator[Item]:
    """Batches as args tuples, from a position on, each with the position behind it.

    A collection is repeated, an iterator is not. To get to the position: what has
    `load_state_dict` is given its state; a list or tuple is indexed; a collection with `set_epoch`
    begins in the right epoch and all else at its beginning, and batches are read and dropped.

    Args:
      remember: ask a stream that has `state_dict` for it after each batch.
      seen: is told of each batch that is dropped.
    """
    own = isinstance(batches, Iterator)
    state_of = getattr(batches, "state_dict", None) if remember else None
    drop, epoch, within, taken = start.taken, 0, 0, 0
    resumed = start.taken > 0
    if start.taken and callable(getattr(batches, "load_state_dict", None)):
        batches.load_state_dict(start.state)  # pyright: ignore[reportAttributeAccessIssue]
        drop, (taken, epoch, within, _) = 0, start
    elif start.taken and isinstance(batches, (list, tuple)):
        drop, taken = 0, start.taken
        epoch, within = start.epoch, start.within
    elif start.taken and callable(getattr(batches, "set_epoch", None)):
        drop, taken, epoch = start.within, start.taken - start.within, start.epoch
    while True:
        empty, resumed = not resumed, False  # the rest of an epoch may be nothing
        if callable(getattr(batches, "set_epoch", None)):
            batches.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        once: Iterator = iter(batches)
        if isinstance(batches, (list, tuple)):
            once = iter(batches[within:])
        try:
            for batch in once:
                empty = False
                within, taken = within + 1, taken + 1
                if drop:
                    drop -= 1
                    seen(as_args(batch))
                    continue
                state = state_of() if callable(state_of) else None
                yield as_args(batch), Position(taken, epoch, within, state)
        finally:
            if not own and hasattr(once, "close"):
                once.close()  # pyright: ignore[reportAttributeAccessIssue]
        if own or empty:
            return
        epoch, within = epoch + 1, 0


class Feed:
    """Batches on the device, read and copied by a thread of its own ahead of their use.

    The thread never reads beyond `limit` batches. An error of the stream is raised by `next` with
    its traceback. `close` ends the thread, and closes the iterators that were made here; an
    iterator of the caller's is let go of and may be used further.

    Args:
      batches, start, remember: as for `numbered`.
      limit: batches to read at most.
      place: puts a batch on the device.
      threaded: without, batches are read when they are asked for.
    """

    def __init__(
        self,
        batches: Iterable[tuple],
        *,
        start: Position,
        limit: int | None,
        place: Callable[[tuple], tuple],
        threaded: bool,
        remember: bool,
    ):
        self.example: tuple | None = None
        """The first batch that was read, taken or dropped."""
        stream = numbered(batches, start, remember=remember, seen=self._seen)
        self._limited = itertools.islice(stream, limit)
        self._stream, self._place, self._depth = stream, place, 1
        self._ready: deque[Item | BaseException | None] = deque()
        self._held: list[Item] = []
        self._change, self._closed, self._ended = threading.Condition(), False, False
        self._thread = None
        if threaded:
            settings, context = _settings(), contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._work, settings), name="optikit-feed", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def deepen(self, depth: int) -> None:
        """Hold so many batches ready."""
        with self._change:
            self._depth = depth
            self._change.notify_all()

    def peek(self) -> Item | None:
        """The next batch, which stays; None at the end."""
        if not self._held:
            item = self.next()
            if item is None:
                return None
            self._held.append(item)
        return self._held[0]

    def next(self) -> Item | None:
        """The next batch and the position behind it; None at the end."""
        if self._held:
            return self._held.pop()
        if self._ended:
            return None
        item = self._read() if self._thread is None else self._waited()
        self._ended = item is None or isinstance(item, BaseException)
        if isinstance(item, BaseException):
            raise item
        if item is not None and self.example is None:
            self.example = item[0]
        return item

    def close(self) -> None:
        """End the thread, at once unless the stream is just being read; no error from here."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        if self._thread is None:
            self._stream.close()
        else:
            self._thread.join(PATIENCE_SECONDS)

    def _seen(self, batch: tuple) -> None:
        if self.example is None:
            self.example = self._place(batch)

    def _read(self) -> Item | None:
        item = next(self._limited, None)
        return None if item is None else (self._place(item[0]), item[1])

    def _waited(self) -> Item | BaseException | None:
        with self._change:
            while not self._ready:
                self._change.wait()
            item = self._ready.popleft()
            self._change.notify_all()
            return item

    def _work(self, settings: Callable[[], contextlib.ExitStack]) -> None:
        item: Item | BaseException | None = None
        with settings():
            try:
                while not self._closed:
                    item = self._read()
                    if not self._offer(item) or item is None:
                        return
            except BaseException as error:  # it is the caller's, and is raised there
                self._offer(error)
            finally:
                self._stream.close()

    def _offer(self, item: Item | BaseException | None) -> bool:
        """Put a batch, an error or the end in the queue; whether it is wanted."""
        with self._change:
            while len(self._ready) >= self._depth and not self._closed:
                self._change.wait()
            if not self._closed:
                self._ready.append(item)
                self._change.notify_all()
            return not self._closed


_SETTINGS = {
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_default_device": jax.default_device,
    "jax_default_matmul_precision": jax.default_matmul_precision,
}


def _settings() -> Callable[[], contextlib.ExitStack]:
    """This thread's settings of JAX, to be taken over by another."""
    values = {name: getattr(jax.config, name) for name in _SETTINGS}

    def taken_over() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for name, setting in _SETTINGS.items():
            stack.enter_context(setting(values[name]))
        return stack

    return taken_over
