"""A page of four methods whose texts hold scripts, made once."""

import pytest

from fed.reports.page import write_page
from support.foreign_runs import make_methods
from support.parsed_pages import Parsed, make_findings


@pytest.fixture(scope="session")
def methods(tmp_path_factory):
    return make_methods(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def path(methods, tmp_path_factory):
    written = tmp_path_factory.mktemp("page") / "report.html"
    write_page(written, methods, make_findings(methods))
    return written


@pytest.fixture(scope="session")
def text(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def parsed(text):
    return Parsed(text)
