"""HTML is read as a browser reads it, and becomes plain text."""

import pytest

from fed.data.html import text_of_html


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("1 < 2 <b", "1 < 2 <b"),
        ("a<!-- <p>b</p> -->c <!-- d", "ac"),
        ("a<!DOCTYPE x><?php y ?></>b<![CDATA[c", "ab"),
        ("<img alt='x > y' src=\"z\">a<p class='b>c</p>d", "a\n\nc\n\nd"),
        ("<SCRIPT>if (a</b) '<p>'</Script >a<style/>b<script>c", "ab"),
        ("<p>-</p><p>a</p><ul><li> <p>b</p></li><li>- </li></ul>", "-\n\na\n\n-  b\n- -"),
    ],
)
def test_odd_html_is_read_as_a_browser_does(html, text):
    assert text_of_html(html) == text


def test_html_keeps_lists_quotes_links_emphasis_and_code():
    html = (
        '<p>See <a href="x">the <b>docs</b></a> &amp; try:</p>\n<ul>\n<li>one</li>\n<li><p>two</p></li></ul>'
        "<pre><code>if a &lt; b:\n    c</code></pre><blockquote><p>said <i>he</i></p></blockquote>"
        "<p>call <code>f(x)</code></p><script>no</script>"
    )
    assert text_of_html(html) == (
        "See the docs & try:\n\n- one\n- two\n\n<code>if a < b:\n    c</code>\n\nsaid he\n\ncall <code>f(x)</code>"
    )
