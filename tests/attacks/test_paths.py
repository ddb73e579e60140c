"""Names that come from messages become paths below a folder, or nothing."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fed.files import inside, plain_name

ODD = st.text(alphabet=st.sampled_from("ab0._-/\\ \n\0~%é‮"), max_size=12)


@given(names=st.lists(ODD | st.text(max_size=200), max_size=3))
@example(names=["a", "..", "b"])
@example(names=["."])
@settings(max_examples=500, deadline=None)
def test_a_path_lies_below_its_folder_or_is_refused(tmp_path_factory, names):
    folder = tmp_path_factory.getbasetemp()
    try:
        path = inside(folder, *names)
    except ValueError:
        return
    assert path.resolve().parts[: len(folder.parts)] == folder.resolve().parts
    assert len(path.parts) == len(folder.parts) + len(names) and ".." not in path.parts


@given(text=st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_becomes_a_plain_name(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    assert inside(folder, plain_name(text)).parent == folder


def test_a_name_that_is_plain_stays():
    assert plain_name("fedpo_2026-11-28_17-11-20") == "fedpo_2026-11-28_17-11-20"
    with pytest.raises(ValueError, match="'a b' is not a plain name"):
        inside(Path("folder"), "a b")
