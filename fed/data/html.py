"""HTML of questions and answers as plain text, in time that grows with its length alone, whatever the markup."""

import re
from collections.abc import Iterator
from html import unescape

BLOCKS = frozenset(re.findall(r"\w+", "p li ul ol dl dt dd pre blockquote div h1 h2 h3 h4 h5 h6 hr table tr"))
CODE = frozenset(("pre", "code"))
HIDDEN = frozenset(("script", "style"))

MARKUP = re.compile(r"<(?:!--|/?[a-zA-Z]|[!?/])")
# Up to the first ">" that is in no quotes. Possessive: what was once read is not read again another way.
TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*)((?:[^>=]+|=\s*"[^"]*"|=\s*'[^']*'|=)*+)>""")
TAG_WITHOUT_QUOTES = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)([^>]*)>")


def text_of_html(html: str) -> str:
    """Reduce HTML to paragraphs, quotes, list items ("- ") and <code>; words of links and emphasis stay.

    Raises:
        ValueError: If the number of a character has thousands of digits.
    """
    text = _Text()
    handle = {"text": text.add, "start": text.start, "end": text.end}
    for kind, content in _pieces(html):
        handle[kind](content)
    return text.whole()


def _pieces(html: str) -> Iterator[tuple[str, str]]:
    """Yield ("text", characters), ("start", tag) and ("end", tag); leave out comments, declarations and scripts."""
    place, pattern = 0, TAG
    while opening := MARKUP.search(html, place):
        yield "text", html[place : (place := opening.start())]
        if not opening.group()[-1].isalpha():
            place = _end_of_declaration(html, place)
        else:
            tag = pattern.match(html, place)
            if tag is None:  # an open quote holds all that follows: stop looking for quotes, or every tag would
                pattern = TAG_WITHOUT_QUOTES
                tag = pattern.match(html, place)
            if tag is None:
                break
            yield from _tags(tag)
            place = _end_of_script(html, tag)
    yield "text", html[place:]


def _end_of_declaration(html: str, start: int) -> int:
    """Find the end of a comment or declaration; one that is never closed hides the rest, as in a browser."""
    closing = "-->" if html.startswith("<!--", start) else ">"
    end = html.find(closing, start + 2)
    return len(html) if end < 0 else end + len(closing)


def _end_of_script(html: str, tag: re.Match[str]) -> int:
    """Find where text continues after the tag: at its end, or for a script at its closing tag."""
    closes, name, attributes = tag.groups()
    if closes or name.lower() not in HIDDEN or attributes.endswith("/"):
        return tag.end()
    end = re.compile(f"</{name}", re.IGNORECASE).search(html, tag.end())
    return end.start() if end else len(html)


def _tags(tag: re.Match[str]) -> Iterator[tuple[str, str]]:
    closes, name, attributes = tag.groups()
    if not closes:
        yield "start", name.lower()
    if closes or attributes.endswith("/"):
        yield "end", name.lower()


class _Text:
    """Blocks of text that are put together from pieces."""

    def __init__(self) -> None:
        self.blocks: list[list[str]] = [[]]
        self.code = 0  # depth, for <pre><code> is one piece of code
        self.bare_item = False  # True while a list item has no text yet

    def start(self, tag: str) -> None:
        if tag in BLOCKS:
            self._start_block("- " if tag == "li" else "")
        if tag == "br":
            self.blocks[-1].append("\n")
        if tag in CODE:
            self._append("" if self.code else "<code>")
            self.code += 1

    def end(self, tag: str) -> None:
        if tag in CODE and self.code:
            self.code -= 1
            self._append("" if self.code else "</code>")
        if tag in BLOCKS:
            self._start_block("")

    def add(self, piece: str) -> None:
        characters = unescape(piece)
        self._append(characters if self.code else re.sub(r"\s+", " ", characters))

    def whole(self) -> str:
        """Join all blocks: list items on lines of their own, other blocks with an empty line between."""
        self._append("</code>" if self.code else "")
        parts, in_list = [], False
        for block in filter(None, ("".join(pieces).strip() for pieces in self.blocks)):
            parts += ["\n" if in_list and block.startswith("- ") else "\n\n", block]
            in_list = block.rpartition("\n\n")[2].startswith("- ")
        return "".join(parts).strip()

    def _append(self, text: str) -> None:
        self.blocks[-1].append(text)
        self.bare_item = self.bare_item and not text.strip()

    def _start_block(self, opening: str) -> None:
        if self.code:
            self._append("\n")
        elif opening or not self.bare_item:  # a paragraph inside an item stays on the item's line
            self.blocks.append([opening])
            self.bare_item = bool(opening)
