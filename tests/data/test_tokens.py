"""Rows as token ids: truncation, special tokens and refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.data.chat import PairIds
from fed.data.examples import Example
from fed.data.rows import Preference
from fed.data.tokens import Cuts, Lengths, tokenize, truncate
from fed.model.demo import END_OF_TEXT, demo_tokenizer
from support.templates import tokenizer as tokenizer_of

TOKENIZER = demo_tokenizer()  # one token per byte, so lengths can be counted in the text
END = TOKENIZER.eos_token_id


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def tokens(*rows: Preference, max_length: int = 20, max_prompt_length: int = 8) -> list[Example]:
    return list(tokenize(rows, TOKENIZER, lengths=Lengths(max_length, max_prompt_length)).examples)


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
    example = truncate(PairIds(prompt, *responses), keep, Lengths(max_length, max_prompt_length))
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
    (example,) = tokenize([Preference(text, text, "x")], tokenizer, lengths=Lengths(99, 49)).examples
    assert not special & set(example.prompt)
    assert example.chosen[-1] == END and not special & set(example.chosen[:-1])
    assert tokenizer.decode(example.chosen[:-1]) == text == tokenizer.decode(example.prompt)


def test_a_prompt_begins_as_the_tokenizer_begins_a_text_and_nothing_else_is_added():
    from tokenizers.processors import TemplateProcessing

    tokenizer = demo_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, END)]
    )
    assert tokenizer("a")["input_ids"] == [END, *ids("a"), END]
    (example,) = tokenize([Preference("p", "c", "r")], tokenizer, lengths=Lengths(9, 4)).examples
    assert example == Example((END, *ids("p")), (*ids("c"), END), (*ids("r"), END))


def test_a_prompt_without_tokens_is_refused_with_its_response():
    rows = [Preference("p", "c", "r"), Preference("", "the answer", "r")]
    with pytest.raises(ValueError, match=r"the prompt '' has no tokens in this tokenizer.*chosen: 'the answer'"):
        tokens(*rows)


@pytest.mark.parametrize("max_prompt_length", [0, -1, 20, 21])
def test_lengths_that_leave_nothing_for_prompt_or_response_are_refused(max_prompt_length):
    with pytest.raises(ValueError, match=f"max_prompt_length={max_prompt_length} must be at least 1 and below"):
        tokens(Preference("p", "c", "r"), max_prompt_length=max_prompt_length)


def test_no_rows_are_no_examples():
    assert tokens() == []


def test_pairs_that_are_equal_or_empty_once_cut_are_dropped_and_counted():
    rows = [
        Preference("p" * 9, "same start a", "same start b"),
        Preference("p" * 9, "x", "a"),
        Preference("p", "a", "b"),
    ]
    found = tokenize(rows, TOKENIZER, lengths=Lengths(10, 4))
    assert found.kept.tolist() == [False, True, True]
    assert found.cuts == Cuts(2, 24, {"both responses equal once they are cut": 1}, {})
    assert (
        tokenize([rows[0]], TOKENIZER, lengths=Lengths(5, 4)).cuts.dropped["both responses equal once they are cut"]
        == 1
    )
    assert (
        tokenize([rows[2]], TOKENIZER, lengths=Lengths(2, 1)).cuts.dropped["both responses equal once they are cut"]
        == 1
    )


@pytest.mark.parametrize(
    ("prompt", "response"), [("2+2=", "4"), ("Answer:", "Yes"), ("f():\n", "\treturn 1"), ("a", "\n\nb"), ("a", " the")]
)
@pytest.mark.parametrize("family", ["Mistral", "Gemma", "ChatML"])
def test_what_is_trained_decodes_to_what_was_written(family, prompt, response):
    tokens = tokenizer_of(family)
    found = tokenize([Preference(prompt, response, "no")], tokens, lengths=Lengths(99, 49))
    (example,) = found.examples
    assert tokens.decode([*example.prompt, *example.chosen[:-1]]) == prompt + response
    assert tokens.decode([*example.prompt, *example.rejected[:-1]]) == prompt + "no"
    assert not found.cuts.remarks


def test_a_tokenizer_that_swallows_what_stands_before_is_told():
    class Spaced(type(tokenizer_of("Mistral"))):
        def __call__(self, text, **how):
            if isinstance(text, list):
                return {
                    "input_ids": [
                        super(Spaced, self).__call__(" " + one.strip(), **how)["input_ids"] + [5] for one in text
                    ]
                }
            return super().__call__(text, **how)

        def decode(self, ids, **how):
            return "xy" if ids.count(5) == 1 else "x y"

    tokens = Spaced(tokenizer_object=tokenizer_of("Mistral").backend_tokenizer, eos_token="</s>")
    found = tokenize([Preference("p", "c", "r")], tokens, lengths=Lengths(99, 49))
    assert found.cuts.remarks == {"the tokenizer writes a space before the response that nobody wrote": 2}
