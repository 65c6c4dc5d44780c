"""Texts: by name, by address (a file, a web address), and by a user's own function."""

from collections.abc import Callable

from optikit.problems import fetch, readers
from optikit.problems.imported import loader

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


def python_manual() -> str:
    """The language reference that comes with Python for `help()`: half a million characters.

    Raises:
      ImportError: this Python was packaged without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        msg = "this Python has no pydoc_data.topics: give text as 'file:PATH' or a web address."
        raise ImportError(msg) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def tinyshakespeare() -> str:
    """A million characters of plays: $OPTIKIT_DATA/tinyshakespeare.txt.gz, else char-rnn's copy."""
    try:
        path = fetch.data_file("tinyshakespeare.txt.gz")
    except FileNotFoundError:
        path = fetch.fetch(SHAKESPEARE)
    return readers.read_text(path.read_bytes(), path.name)


TEXTS: dict[str, Callable[[], str]] = {
    "python-manual": python_manual,
    "tinyshakespeare": tinyshakespeare,
}


def load_text(text: str | Callable[[], str]) -> str:
    """A text by name, by address, or from a function; never empty.

    Addresses: as for `optikit.problems.load`: `file:notes.txt`, `https://host/book.txt.gz`,
    `my_lab.data:book`; `#sha256=...` demands a checksum. Files are UTF-8, compressed or not.

    Raises:
      ValueError: an unknown name or kind of address, or a content that is no text.
      FileNotFoundError: the file is nowhere; the message says where it was looked for.
      ImportError: there is no such module or function.
      ConnectionError: a download failed.

    Example:
      >>> load_text("python-manual").count("lambda") > 10
      True
    """
    content = _content(text)
    if not content:
        msg = f"{text!r} is empty."
        raise ValueError(msg)
    return content


def _content(text: str | Callable[[], str]) -> str:
    if callable(text):
        return text()
    if ":" not in text:
        if text not in TEXTS:
            msg = (
                f"unknown text {text!r}: choose from {sorted(TEXTS)}, give 'module:function', "
                "'file:PATH' or a web address."
            )
            raise ValueError(msg)
        return TEXTS[text]()
    schemes = ("file", "http", "https")
    if text.partition(":")[0] not in schemes:
        return loader(text, schemes)()
    bare, options = fetch.address(text, {"sha256"})
    return readers.read_text(fetch.content(bare, options.get("sha256")), bare)
