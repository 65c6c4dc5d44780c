"""Sizes that a problem can have."""

from collections.abc import Sequence


def at_least(least: int, **sizes: int | Sequence[int] | None) -> None:
    """Refuse a size that is too small, by its name; None stands for a default.

    Raises:
      ValueError: one of them, or one entry of a sequence, is smaller.

    Example:
      >>> at_least(1, n=-3)
      Traceback (most recent call last):
      ValueError: n must be at least 1; got -3.
    """
    for name, given in sizes.items():
        entries = given if isinstance(given, Sequence) else [given]
        if any(size is not None and size < least for size in entries):
            msg = f"{name} must be at least {least}; got {given}."
            raise ValueError(msg)
