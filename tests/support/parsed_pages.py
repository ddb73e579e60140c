"""A comparison's page as a browser parses it, without running it."""

import json
from html.parser import HTMLParser

from fed.reports import tables
from fed.reports.page import Findings
from fed.reports.runs import Method
from fed.reports.statistics import differences
from support.foreign_runs import EVIL


class Parsed(HTMLParser):
    """The tags, attributes, texts, scripts, styles and table rows of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts, self.styles = [], [], [], [], []
        self.rows, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag  # all that is opened is closed

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(tag, self.texts).append(data)
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data

    @property
    def figures(self):
        """Plotly's JSON of each figure."""
        return [json.loads(text) for text in self.scripts if text.startswith("{")]


def make_findings(methods: list[Method]) -> Findings:
    return Findings(f"Comparison {EVIL}", tables.rows(methods), differences(methods), [f"python main.py {EVIL}"])
