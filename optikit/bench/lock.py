"""Locks on files that die with the process that holds them, however it dies.

Where the file system knows no locks, work goes on without: records are written whole, so the worst
that can happen is that a trial is run twice and the first good record stays.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # no advisory locks on this system
    fcntl = None

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Busy(Exception):
    """Somebody else holds the lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool) -> Iterator[int]:
    """The file, made if need be, open for reading and appending, for this holder alone.

    Args:
      wait: until it is free; otherwise raise `Busy` at once.

    Raises:
      Busy: it is held, and `wait` is false.
      OSError: the file cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        if fcntl is not None:
            _acquire(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)  # and with it the lock


def is_held(path: pathlib.Path) -> bool:
    """Whether somebody holds the lock of a file right now."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _acquire(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except Busy:
        return True
    finally:
        os.close(handle)
    return False


def _acquire(handle: int, kind: int) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        raise Busy from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
