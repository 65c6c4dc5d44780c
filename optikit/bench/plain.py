"""Text from elsewhere (a user's file, exception or label) as a terminal may show it."""


def on_one_line(text: str) -> str:
    r"""The text without line ends and control characters: they are written as escapes.

    Example:
      >>> on_one_line("a\nb \x1b[31m")
      'a\\nb \\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def on_lines(text: str) -> str:
    """The text without control characters, in the lines it came in."""
    return "\n".join(map(on_one_line, text.split("\n")))
