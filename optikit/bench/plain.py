"""Text for people; what comes from elsewhere (a user's file, exception, label) made harmless."""


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


def counted(number: int, what: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "trial"), counted(2, "trial")
      ('1 trial', '2 trials')
    """
    return f"{number} {what}{'s' * (number != 1)}"
