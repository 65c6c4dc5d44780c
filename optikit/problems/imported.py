"""What an import path names: a user's own loader or factory."""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def imported(path: str) -> Callable[..., Any]:
    """The function behind "module:function".

    Raises:
      ImportError: there is no such module, or no such function in it.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        msg = f"{path}: no module {error.name!r}; run from the folder that holds it, or install it."
        raise ImportError(msg) from error
    except AttributeError as error:
        msg = f"{path}: module {module!r} has no {name!r}."
        raise ImportError(msg) from error


def loader(address: str, schemes: Sequence[str]) -> Callable[[], Any]:
    """A user's own loader, where an address begins with none of our schemes.

    Raises:
      ValueError: it is no import path.
      ImportError: as `imported` does.
    """
    others = ", ".join(f"{scheme}:" for scheme in schemes)
    if not _IMPORT_PATH.fullmatch(address):
        msg = f"unknown address {address!r}: begin with {others}, or give module:function."
        raise ValueError(msg)
    try:
        return imported(address)
    except ImportError as error:
        msg = f"{error} Other addresses begin with {others}."
        raise ImportError(msg) from error
