"""Factories that a study may name: registered, optax's, another library's, or by import path."""

import difflib
import re

from optikit.bench import peers
from optikit.bench.signature import Signature, absence, signature

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d][\w.-]*")


def find_factory(use: str, known: dict[str, str], *, optimizer: bool) -> tuple[str, str]:
    """The "module:function" behind a `use`, and a complaint if there is none.

    Args:
      known: the registry of the section.
      optimizer: whether optax's and other libraries' methods are meant too.
    """
    if optimizer and peers.is_peer(use):
        return use, peers.complaint(use)
    if ":" in use:
        if not is_import_path(use):
            return "", f"an import path is written module:function (got {use!r})"
        return use, absence(use)
    plain = use.lower().replace("_", "-")
    if plain in known:
        return known[plain], ""
    if optimizer:
        name = plain.removeprefix("optax.").replace("-", "_")
        for module in ("optax", "optax.contrib"):
            found = signature(f"{module}:{name}")
            if found and any(p.name == "learning_rate" for p in found.parameters):
                return f"{module}:{name}", ""
    close = difflib.get_close_matches(plain, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return "", f"unknown name {use!r}: {hint}"


def is_import_path(text: str) -> bool:
    """Whether a text has the form module:function."""
    return _IMPORT_PATH.fullmatch(text) is not None


def declared_by(target: str) -> Signature | None:
    """The arguments of what `find_factory` found; None if they cannot be read."""
    return peers.declared(target) if peers.is_peer(target) else signature(target)
