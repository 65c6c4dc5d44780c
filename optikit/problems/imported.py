"""A user's own loader, by import path."""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def imported(address: str, schemes: Sequence[str]) -> Callable[[], Any]:
    """The function behind "module:function".

    Args:
      schemes: how other addresses begin, for the message.

    Raises:
      ValueError: it is no import path.
      ImportError: there is no such module, or no such function in it.
    """
    others = ", ".join(f"{scheme}:" for scheme in schemes)
    if not _IMPORT_PATH.fullmatch(address):
        msg = f"unknown address {address!r}: begin with {others}, or give module:function."
        raise ValueError(msg)
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        msg = (
            f"{address}: no module {error.name!r}; run from the folder that holds it, or install "
            f"it. Other addresses begin with {others}."
        )
        raise ImportError(msg) from error
    except AttributeError as error:
        msg = f"{address}: module {module!r} has no {name!r}."
        raise ImportError(msg) from error
