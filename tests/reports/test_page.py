"""The page of a comparison: its text, its table, and nothing foreign that runs."""

import json
import re

from fed.reports import tables
from fed.reports.page import write_page
from fed.reports.page_figures import literal
from fed.reports.runs import Method
from support.fabricated_runs import fabricate
from support.foreign_runs import EVIL, NAMES
from support.parsed_pages import Parsed, make_findings


def test_the_page_refers_to_nothing_outside_itself(text, parsed):
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert links == []
    everything = "".join(parsed.styles) + "".join(value for *_, value in parsed.attributes)
    assert not re.search(r"@import|url\(|https?://|//", everything)
    assert not re.search(r"<(link|iframe|object|embed|base|img)\b", text.replace(max(parsed.scripts, key=len), ""))


def test_plotly_is_in_the_page_once(text, parsed):
    assert sum("plotly.js v" in script for script in parsed.scripts) == 1
    assert len(text) < 7_000_000


def test_text_from_outside_stays_text(text, parsed):
    assert "<script>alert" not in text
    assert text.count("</script>") == len(parsed.figures) + 2  # and plotly, and the page's own
    shown = "".join(parsed.texts)
    for foreign in (
        f"Comparison {EVIL}",
        f"{EVIL} server says 0 & means it, round 6.",
        NAMES[1],
        f"python main.py {EVIL}",
    ):
        assert foreign in shown
    assert json.dumps(parsed.figures).count(literal(EVIL)) > 4  # which plotly shows as it was


def test_the_table_shows_the_numbers_it_was_given(methods, parsed):
    given = [tables.cells(row) for row in tables.rows(methods)]
    heads = [head for head in given[0] if head != "seeds"]  # the same of all methods: in the line above
    shown = [[cell.strip() for cell in row] for row in parsed.rows[: 1 + len(methods)]]
    assert shown == [heads, *([cells[head] for head in heads] for cells in given)]


def test_seeds_stand_in_the_table_where_methods_differ_in_them(methods, tmp_path):
    fewer = [Method("fedpo", methods[0].runs[:1]), methods[2]]
    write_page(tmp_path / "report.html", fewer, make_findings(fewer))
    rows = Parsed((tmp_path / "report.html").read_text()).rows
    assert [row[rows[0].index("seeds")] for row in rows[1:3]] == ["0", "0, 1"]


def test_the_verdict_stands_on_top(parsed):
    texts = [text.strip() for text in parsed.texts if text.strip()]
    first = next(i for i, text in enumerate(texts) if "has the highest accuracy on the test pairs" in text)
    assert first < texts.index("Results")


def test_each_cell_says_what_it_is_where_a_row_is_a_card(methods, parsed):
    heads = [head for head in tables.cells(tables.rows(methods)[0]) if head not in ("method", "seeds")]
    named = [value for tag, name, value in parsed.attributes if tag == "td" and name == "data-head"]
    assert named[: len(heads)] == heads and len(named) == parsed.tags.count("td")


def test_every_difference_is_told_in_words(parsed):
    told = r" against .*: (no difference shown|.* is better than|too few seeds to say)"
    found = [text for text in parsed.texts if re.search(told, text)]
    assert len(found) == 6


def test_table_heads_say_what_they_head(parsed):
    scopes = [value for tag, name, value in parsed.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == parsed.tags.count("th") and set(scopes) == {"col", "row"}


def test_without_times_the_wall_clock_cannot_be_chosen(tmp_path):
    run = fabricate(tmp_path / "run", mode="federated", seed=0)
    (run.folder / "timing.jsonl").unlink()
    write_page(tmp_path / "report.html", [Method("fedpo", [run])], make_findings([Method("fedpo", [run])]))
    assert re.search(r'data-axis="time"[^>]* disabled', (tmp_path / "report.html").read_text())


def test_the_page_says_what_the_band_of_equal_seeds_is(text):
    said = " ".join(text.split())
    assert (
        "its band ± the standard error; where all seeds have the same accuracy, it is its 95 % Wilson interval." in said
    )


def test_without_samples_the_page_says_how_to_get_them(tmp_path):
    methods = [Method("fedpo", [fabricate(tmp_path / "run", mode="federated", seed=0, samples=0)])]
    write_page(tmp_path / "report.html", methods, make_findings(methods))
    assert "sample_during_eval=true" in Parsed((tmp_path / "report.html").read_text()).texts
