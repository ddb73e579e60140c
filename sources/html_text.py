"""HTML of questions and answers to plain text."""

import re
from html.parser import HTMLParser


def text_of_html(html: str) -> str:
    """Paragraphs, quotes, list items ("- ") and <code>, without other markup; words of links and emphasis stay."""
    parser = _TextOfHtml()
    parser.feed(html)
    parser.close()
    return parser.text()


class _TextOfHtml(HTMLParser):
    BLOCKS = frozenset(re.findall(r"\w+", "p li ul ol dl dt dd pre blockquote div h1 h2 h3 h4 h5 h6 hr table tr"))
    CODE = frozenset(("pre", "code"))
    HIDDEN = frozenset(("script", "style"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks = [""]
        self.code = 0  # depth: <pre><code> is one piece of code
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self._start_block("- " if tag == "li" else "")
        if tag == "br":
            self.blocks[-1] += "\n"
        if tag in self.CODE:
            self.blocks[-1] += "" if self.code else "<code>"
            self.code += 1

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN and self.hidden > 0
        if tag in self.CODE and self.code:
            self.code -= 1
            self.blocks[-1] += "" if self.code else "</code>"
        if tag in self.BLOCKS:
            self._start_block("")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.blocks[-1] += data if self.code else re.sub(r"\s+", " ", data)

    def text(self) -> str:
        """All blocks; items of a list on lines of their own, other blocks with an empty line between."""
        self.blocks[-1] += "</code>" if self.code else ""
        text = ""
        for block in filter(None, map(str.strip, self.blocks)):
            in_list = block.startswith("- ") and text.rpartition("\n\n")[2].startswith("- ")
            text += ("\n" if in_list else "\n\n") + block
        return text.strip()

    def _start_block(self, opening: str) -> None:
        if self.code:
            self.blocks[-1] += "\n"
        elif opening or self.blocks[-1].strip() != "-":  # a paragraph inside an item stays on the item's line
            self.blocks.append(opening)
