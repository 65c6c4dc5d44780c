"""Leaves by name: the key path of a leaf as one string, and patterns for it.

The name of `params["layers"][0]["kernel"]` is "layers/0/kernel"; that of an attribute is the
attribute's. A pattern is a glob over the whole name, in which `*` also crosses slashes, or a
compiled regular expression that is searched for in it.
"""

import fnmatch
import re
from collections.abc import Iterable

import jax

from optikit.core.typing import PyTree

Pattern = str | re.Pattern[str]


def key_paths(tree: PyTree) -> list[str]:
    """The names of the leaves, in the order of `jax.tree.leaves`.

    Example:
      >>> key_paths({"layers": [{"kernel": 1.0}], "bias": 2.0})
      ['bias', 'layers/0/kernel']
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def matches(pattern: Pattern, name: str) -> bool:
    """Whether a glob fits the whole name, or a regular expression some part of it.

    Example:
      >>> matches("*/kernel", "layers/0/kernel"), matches(re.compile("bias$"), "layers/0/kernel")
      (True, False)
    """
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern.search(name) is not None


def matches_any(patterns: Iterable[Pattern], name: str) -> bool:
    """Whether one of the patterns fits."""
    return any(matches(pattern, name) for pattern in patterns)
