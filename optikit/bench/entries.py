"""Arguments of problems that name an entry of a registry, or give an address in its place."""

import difflib
from typing import Any

from optikit.bench.factories import is_import_path
from optikit.bench.signature import registry

_ENTRIES = {
    "data": ("optikit.problems.data", "DATA"),
    "loss": ("optikit.losses", "LOSSES"),
    "text": ("optikit.problems.text", "TEXTS"),
}
"""Arguments that name an entry of a registry, wherever they occur."""

_SCHEMES = {"data": ("file", "http", "https", "openml"), "text": ("file", "http", "https")}
"""How addresses begin that our own problems take in place of a name."""


def unknown_entry(argument: str, value: Any, target: str) -> str:
    """A complaint about a data set, text or loss that does not exist, or an empty string.

    Args:
      target: the factory it is given to; a user's own may take other addresses.
    """
    if argument not in _ENTRIES or not isinstance(value, str):
        return ""
    if ":" in value:
        return _unknown_address(argument, value) if target.startswith("optikit.") else ""
    known = registry(*_ENTRIES[argument])
    if not known or value in known:
        return ""
    close = difflib.get_close_matches(value, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {argument} {value!r}: {hint}"


def _unknown_address(argument: str, value: str) -> str:
    schemes = _SCHEMES.get(argument, ())
    if not schemes or value.partition(":")[0] in schemes or is_import_path(value):
        return ""
    others = ", ".join(f"{scheme}:" for scheme in schemes)
    return f"unknown address {value!r}: begin with {others}, or give module:function"
