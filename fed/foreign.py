"""Text that others sent: made fit for a console and a log."""

LINE, TEXT = 500, 20_000  # characters that are kept
CUT = " ..."


def one_line(text: str) -> str:
    """Return the text in one line of printable characters, cut to 500 of them; others become "?"."""
    return _cut("".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 4 * LINE].split())), LINE)


def printable(text: str) -> str:
    """Return the text with its line breaks and no other control character, cut to 20,000 characters."""
    kept = text[: TEXT + 1].expandtabs(4)
    return _cut("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in kept), TEXT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - len(CUT)] + CUT
