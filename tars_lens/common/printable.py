"""Text of a model or a corpus, made safe to be shown in a terminal."""


def printable(text: str, *, lines: bool = False) -> str:
    """A text without what would steer a terminal.

    Args:
        text: Any text.
        lines: Keep its lines; else their ends are shown as signs, on one line.
    """
    shown = text.replace("\r", "").replace("\t", " ")
    shown = shown if lines else shown.replace("\n", "\u23ce")
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in shown)


def visible(token: str) -> str:
    """A token as one word: its spaces as tokenizers write them, so that none is lost in a line."""
    return printable(token).replace(" ", "\u2581") or "\u2205"
