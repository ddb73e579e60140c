"""Rows as token ids: truncation, special tokens and refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.data.rows import Preference
from fed.data.tokens import Example, tokenize, truncate
from fed.model.demo import END_OF_TEXT, demo_tokenizer

TOKENIZER = demo_tokenizer()  # one token per byte, so lengths can be counted in the text
END = TOKENIZER.eos_token_id


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def tokens(*rows: Preference, max_length: int = 20, max_prompt_length: int = 8) -> list[Example]:
    return tokenize(rows, TOKENIZER, max_length=max_length, max_prompt_length=max_prompt_length)


def token(row: Preference) -> Example:
    return tokens(row)[0]


# S1.9: the four truncation fixtures; 20 tokens at most, prompts of 8 if they must be cut


def test_a_pair_that_fits_is_left_alone_even_with_a_prompt_above_max_prompt_length():
    """12 + max(7, 3) + 1 for end-of-text = 20."""
    example = token(Preference("abcdefghijkl", "mnopqrs", "tuv"))
    assert example == Example(ids("abcdefghijkl"), (*ids("mnopqrs"), END), (*ids("tuv"), END))
    assert example.length == 20


def test_a_long_prompt_keeps_its_end():
    """12 + 8 + 1 = 21 is one too many, so the prompt's last 8 stay; 8 + 9 fit."""
    example = token(Preference("abcdefghijkl", "mnopqrst", "u", truncation="keep_end"))
    assert example == Example(ids("efghijkl"), (*ids("mnopqrst"), END), (*ids("u"), END))


def test_a_long_prompt_keeps_its_start_where_its_row_says_so():
    example = token(Preference("abcdefghijkl", "u", "mnopqrst", truncation="keep_start"))
    assert example == Example(ids("abcdefgh"), (*ids("u"), END), (*ids("mnopqrst"), END))


def test_responses_that_are_still_too_long_are_cut_and_keep_their_end_of_text():
    """8 + 14 + 1 = 23: responses get 20 - 8 = 12 tokens, 11 of text and the end; the short one is untouched."""
    example = token(Preference("abcdefghijkl", "0123456789ABCD", "xyz"))
    assert example == Example(ids("efghijkl"), (*ids("0123456789A"), END), (*ids("xyz"), END))
    assert example.length == 20


def test_a_short_prompt_is_kept_whole_while_responses_are_cut():
    """2 + 23 + 1 is too long; the response still gets no more than 20 - 8, as in the original code."""
    example = token(Preference("ab", "0" * 23, "1"))
    assert example == Example(ids("ab"), (*ids("0" * 11), END), (*ids("1"), END))


@settings(max_examples=50, deadline=None, database=None)
@given(
    sizes=st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60)),
    keep=st.sampled_from(["keep_end", "keep_start"]),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_what_is_kept_fits_and_is_a_start_or_an_end(sizes, keep, limits):
    max_prompt_length, max_length = limits[0], sum(limits)
    prompt = list(range(sizes[0]))
    responses = [[*range(100, 100 + size), END] for size in sizes[1:]]
    example = truncate(prompt, *responses, keep, max_length, max_prompt_length)
    assert 1 <= example.length <= max_length
    if len(prompt) + max(map(len, responses)) <= max_length:
        assert example == Example(tuple(prompt), *map(tuple, responses))
    else:
        assert len(example.prompt) == min(len(prompt), max_prompt_length)
    kept = len(example.prompt)
    assert list(example.prompt) == (prompt[-kept:] if keep == "keep_end" else prompt[:kept])
    for response, found in zip(responses, (example.chosen, example.rejected), strict=True):
        assert found[-1] == END and found.count(END) == 1
        assert list(found[:-1]) == response[: len(found) - 1]
        assert len(found) in (len(response), max_length - max_prompt_length)


@pytest.mark.parametrize("text", [END_OF_TEXT, f"so{END_OF_TEXT}", f"{END_OF_TEXT} and on", "<|im_end|>"])
def test_special_tokens_in_the_text_stay_text(text):
    tokenizer = demo_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    special = set(tokenizer.all_special_ids)
    assert special & set(tokenizer(text)["input_ids"]), "the tokenizer left to itself does recognise it"
    (example,) = tokenize([Preference(text, text, "x")], tokenizer, max_length=99, max_prompt_length=49)
    assert not special & set(example.prompt)
    assert example.chosen[-1] == END and not special & set(example.chosen[:-1])
    assert tokenizer.decode(example.chosen[:-1]) == text == tokenizer.decode(example.prompt)


def test_a_tokenizer_that_adds_special_tokens_by_itself_is_not_let():
    from tokenizers.processors import TemplateProcessing

    tokenizer = demo_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, END)]
    )
    assert tokenizer("a")["input_ids"] == [END, *ids("a"), END]
    (example,) = tokenize([Preference("p", "c", "r")], tokenizer, max_length=9, max_prompt_length=4)
    assert example == Example(ids("p"), (*ids("c"), END), (*ids("r"), END))


def test_a_prompt_without_tokens_is_refused_with_its_response():
    rows = [Preference("p", "c", "r"), Preference("", "the answer", "r")]
    with pytest.raises(ValueError, match=r"the prompt '' has no tokens in this tokenizer.*chosen: 'the answer'"):
        tokens(*rows)


@pytest.mark.parametrize("max_prompt_length", [0, -1, 20, 21])
def test_lengths_that_leave_nothing_for_prompt_or_response_are_refused(max_prompt_length):
    with pytest.raises(ValueError, match=f"max_prompt_length={max_prompt_length} must be at least 1 and below"):
        tokens(Preference("p", "c", "r"), max_prompt_length=max_prompt_length)


def test_a_token_id_is_one_object_in_whatever_texts_it_stands():
    """Python makes an object of 28 bytes of each number above 256 that a tokenizer returns."""

    class Large:
        eos_token_id = 0

        def __call__(self, text, **kwargs):
            return {"input_ids": [[1000 + ord(character) for character in one] for one in text]}

    first, second = (
        tokenize([Preference("ab", "b", "a")], Large(), max_length=9, max_prompt_length=4)[0] for _ in range(2)
    )
    assert first.prompt == (1097, 1098) and first.prompt[1] is first.chosen[0] is second.prompt[1]


def test_no_rows_are_no_examples():
    assert tokens() == []
