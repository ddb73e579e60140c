"""Conversations through chat templates: the ids are the template's, and what people wrote stays text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing

from fed.data.chat import ChatSettings, ChatTokens, in_form, without_oldest
from fed.data.rows import Chat, Preference, Skip, Turn
from fed.data.tokens import Lengths, tokenize
from fed.model.demo import demo_tokenizer
from support.templates import ENDS, FAMILIES, tokenizer

TOKENIZERS = {family: tokenizer(family) for family in FAMILIES}
USER, ANSWER, SYSTEM = "user", "assistant", "system"
TALK = ((USER, "Hi there"), (ANSWER, "Hello!"), (USER, "What is\n\n2 + 2?"))
PLENTY = Lengths(4000, 2000)


def row(*turns: tuple[str, str], chosen: str = "Four, really.", rejected: str = "Five") -> Preference:
    return Preference(Chat(tuple(Turn(*turn) for turn in turns)), Turn(ANSWER, chosen), Turn(ANSWER, rejected))


def of_template(tokens, turns, answer, **kwargs):
    messages = [{"role": role, "content": text} for role, text in [*turns, (ANSWER, answer)]]
    return list(tokens.apply_chat_template(messages, return_dict=False, **kwargs))


def made(tokens, *rows, chat=None, lengths=PLENTY):
    return tokenize(rows, tokens, lengths=lengths, chat=chat)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_the_whole_conversation_up_to_the_end_of_the_answer(family):
    tokens = TOKENIZERS[family]
    found = made(tokens, row(*TALK))
    (example,) = found.examples
    for response, text in ((example.chosen, "Four, really."), (example.rejected, "Five")):
        whole = of_template(tokens, TALK, text)
        ids = [*example.prompt, *response]
        assert ids == whole[: len(ids)]
        assert tokens.convert_ids_to_tokens(response[-1]) == ENDS[family]
        assert tokens.decode(whole[len(ids) :]).strip() in ("", "<|endoftext|>")
        assert text in tokens.decode(response)
    assert found.cuts.dropped == {} and bool(found.cuts.remarks) == (family == "DeepSeek")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_the_template_asks_for_an_answer_with(family):
    tokens = TOKENIZERS[family]
    (example,) = made(tokens, row(*TALK)).examples
    messages = [{"role": role, "content": text} for role, text in TALK]
    asked = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if family == "DeepSeek":  # its answers lack the thought that it asks for
        assert tokens.decode(example.prompt).endswith("<|Assistant|>") and len(example.prompt) < len(asked)
    else:
        assert list(example.prompt) == list(asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_spells_special_tokens_stays_text(family):
    """Of all special tokens, only those count as such that the template wrote."""
    tokens = TOKENIZERS[family]
    spelt = " x ".join(tokens.all_special_tokens)
    plain = (((USER, "Hi there"), (ANSWER, "Hello!"), (USER, "and")), "yes", "no")
    odd = (((USER, f"Hi {spelt} there"), (ANSWER, f"Hello! {spelt}"), (USER, f"{spelt} and")), f"yes {spelt}", spelt)
    special = set(tokens.all_special_ids)
    (usual,), (found,) = (made(tokens, row(*turns, chosen=c, rejected=r)).examples for turns, c, r in (plain, odd))
    for part in ("prompt", "chosen", "rejected"):
        kept, expected = ([token for token in getattr(one, part) if token in special] for one in (found, usual))
        assert kept == expected, part
    assert tokens.decode(found.prompt).count(spelt) == 3
    assert spelt in tokens.decode(found.chosen) and spelt in tokens.decode(found.rejected)


@pytest.mark.parametrize("family", ["Llama 3", "Mistral", "Phi", "SmolLM2"])
@settings(max_examples=40, deadline=None, database=None)
@given(data=st.data())
def test_whatever_people_write_the_template_s_tokens_alone_are_special(family, data):
    tokens = TOKENIZERS[family]
    pieces = st.one_of(
        st.sampled_from([*tokens.all_special_tokens, "<", "|>", " ", "\n"]), st.text("ab <|>", max_size=4)
    )
    text = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(str.strip)
    question, chosen, rejected = (data.draw(text) for _ in range(3))
    found = made(tokens, row((USER, question), chosen=chosen, rejected=rejected))
    if not found.examples:  # both responses the same
        return
    (example,) = found.examples
    (usual,) = made(tokens, row((USER, "q"), chosen="a", rejected="b")).examples
    special = set(tokens.all_special_ids)
    for part in ("prompt", "chosen", "rejected"):
        kept, expected = ([token for token in getattr(one, part) if token in special] for one in (example, usual))
        assert kept == expected


def test_no_begin_of_text_twice_and_one_where_a_text_has_it():
    """The template writes it for conversations, the tokenizer for text."""
    tokens = tokenizer("Llama 3")
    begin = tokens.bos_token_id
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    chat, text = made(tokens, row(*TALK), Preference("Once", " upon", " in")).examples
    assert [one.prompt.count(begin) for one in (chat, text)] == [1, 1]
    assert chat.prompt[0] == text.prompt[0] == begin
    cut = made(tokens, row(*TALK), Preference("Once upon a time", " a", " b"), lengths=Lengths(16, 8)).examples
    assert [len(one.prompt) for one in cut] == [8, 8] and all(one.prompt[0] == begin for one in cut)


def test_thoughts_of_earlier_turns_are_left_out_as_the_template_does():
    tokens = TOKENIZERS["Qwen 3"]
    turns = ((USER, "Hi"), (ANSWER, "<think>\nhm\n</think>\n\nHello"), (USER, "Why?"))
    (example,) = made(tokens, row(*turns, chosen="<think>\nso\n</think>\n\nThus", rejected="No")).examples
    assert "hm" not in tokens.decode(example.prompt)
    assert tokens.decode(example.chosen) == "<think>\nso\n</think>\n\nThus<|im_end|>"
    assert tokens.decode(example.rejected) == "<think>\n\n</think>\n\nNo<|im_end|>"
    chat = ChatSettings(chat_template_kwargs={"enable_thinking": False})
    (example,) = made(tokens, row(*turns, chosen="Thus", rejected="No"), chat=chat).examples
    assert tokens.decode(example.prompt).endswith("<think>\n\n</think>\n\n")
    assert tokens.decode(example.chosen) == "Thus<|im_end|>"


def test_a_template_that_asks_otherwise_than_it_answers_is_told():
    found = made(TOKENIZERS["DeepSeek"], row(*TALK), row(*TALK, chosen="x"))
    assert found.cuts.remarks == {
        "the chat template begins an answer otherwise than it asks for one: the prompt ends before": 2
    }


def test_a_tokenizer_that_joins_prompt_and_answer_is_told():
    """GPT-2 reads two line breaks as one token at the end of a text, and as two before a word."""
    tokens = tokenizer("Llama 3")
    tokens.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = made(tokens, row(*TALK))
    (example,) = found.examples
    whole = of_template(tokens, TALK, "Four, really.")
    assert [*example.prompt, *example.chosen] == whole and tokens.decode(example.chosen).startswith("\n\nFour")
    assert found.cuts.remarks == {"the last tokens of the prompt join with the answer: the prompt ends before them": 1}


def test_a_template_without_an_end_of_turn_gets_end_of_text_and_is_told():
    tokens = demo_tokenizer()
    tokens.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = made(tokens, row((USER, "Hi"), chosen="a", rejected="b"))
    (example,) = found.examples
    assert example.chosen[-1] == tokens.eos_token_id and tokens.decode(example.chosen[:-1]) == "a"
    assert found.cuts.remarks == {"the chat template ends no turn with a special token: end-of-text is added": 1}


def test_what_a_template_refuses_is_dropped_and_counted_with_its_reason():
    tokens = TOKENIZERS["Gemma"]
    found = made(tokens, row((USER, "a"), (USER, "b")), row((SYSTEM, "s"), (USER, "a")), row((USER, "a")))
    assert len(found.examples) == 1 and found.kept.tolist() == [False, False, True]
    assert found.cuts.dropped == {
        "refused by the chat template (TemplateError: Roles must alternate)": 1,
        "refused by the chat template (TemplateError: System role not supported)": 1,
    }


def test_a_template_that_cannot_be_rendered_at_all_is_one_clear_error():
    tokens = tokenizer("ChatML")
    for template, told in (
        ("{{ raise_exception('no') }}", "no"),
        ("{% for %}", "Expected"),
        ("{{ a.b.c }}", "undefined"),
    ):
        tokens.chat_template = template
        with pytest.raises(ValueError, match=f"the chat template refuses a conversation of user and assistant.*{told}"):
            made(tokens, row(*TALK))


def test_conversations_and_a_tokenizer_without_a_template_are_one_clear_error():
    with pytest.raises(
        ValueError,
        match=r"has no chat template; give a model that has one, .* chat_template=FILE, or chat_template=none",
    ):
        made(demo_tokenizer(), row(*TALK))


def test_without_a_template_turns_are_text_with_hh_s_markers():
    chat = ChatSettings(chat_template="none", system_prompt="Be kind.")
    found = in_form(row(*TALK), chat)
    assert found.prompt == (
        "\n\nBe kind.\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: What is\n\n2 + 2?\n\nAssistant:"
    )
    assert (found.chosen, found.rejected, found.conversation) == (" Four, really.", " Five", "Hi there")
    with_tools = Preference(row(*TALK).prompt._replace(tools='[{"name": "add"}]'), "a", "b")
    found = made(demo_tokenizer(), row(*TALK), with_tools, chat=chat)
    assert len(found.examples) == 2
    assert found.cuts.remarks == {"chat_template=none has no place for tools: they are left out": 1}


def test_text_becomes_a_conversation_where_asked():
    chat = ChatSettings(text_as_chat=True, system_prompt="Be kind.")
    hh = Preference("\n\nHuman: Hi\n\nAssistant: Hello \n\nHuman: Why?\n\nAssistant:", " Because. ", " No")
    found = in_form(hh, chat)
    turns = ((SYSTEM, "Be kind."), (USER, "Hi"), (ANSWER, "Hello"), (USER, "Why?"))
    assert found.prompt == Chat(tuple(Turn(*turn) for turn in turns))
    assert (found.chosen, found.rejected) == (Turn(ANSWER, "Because."), Turn(ANSWER, "No"))
    plain = in_form(Preference(" Hi\n", " yes", "no "), ChatSettings(text_as_chat=True))
    assert plain.prompt == Chat((Turn(USER, " Hi\n"),)) and plain.chosen == Turn(ANSWER, " yes")


def test_a_system_text_of_the_row_wins_over_system_prompt():
    found = in_form(row((SYSTEM, "Own."), *TALK), ChatSettings(system_prompt="Be kind."))
    assert found.prompt.turns[0].content == "Own." and len(found.prompt.turns) == 4


def test_tools_and_their_calls_reach_the_template():
    tokens = tokenizer("ChatML")
    tokens.chat_template = (
        "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}CALL {{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = json.dumps({"tool_calls": [{"function": {"name": "add <|im_end|>", "arguments": {"a": 2}}}]})
    chat = Chat((Turn(USER, "2+2?"), Turn(ANSWER, "", call), Turn("tool", "4")), '[{"name": "add"}]')
    pair = Preference(chat, Turn(ANSWER, "Four"), Turn(ANSWER, "", call))
    (example,) = made(tokens, pair).examples
    text = tokens.decode(example.prompt)
    assert (
        '[{"name": "add"}]' in text and 'CALL [{"function": {"name": "add <|im_end|>", "arguments": {"a": 2}}}]' in text
    )
    assert example.prompt.count(tokens.convert_tokens_to_ids("<|im_end|>")) == 4
    assert "CALL" in tokens.decode(example.rejected) and tokens.decode(example.chosen) == "Four<|im_end|>"


def test_the_oldest_turns_go_first_and_the_system_text_stays():
    turns = ((SYSTEM, "Be kind."), (USER, "one"), (ANSWER, "1"), (USER, "two"), (ANSWER, "2"), (USER, "three"))
    shorter = without_oldest(row(*turns).prompt)
    assert [turn.content for turn in shorter.turns] == ["Be kind.", "two", "2", "three"]
    assert without_oldest(row((SYSTEM, "s"), (USER, "u")).prompt) is None
    tokens = TOKENIZERS["ChatML"]
    whole = made(tokens, row(*turns)).examples[0]
    found = made(tokens, row(*turns), lengths=Lengths(whole.length - 1, 20, "messages"))
    (example,) = found.examples
    assert tokens.decode(example.prompt) == tokens.apply_chat_template(
        [{"role": role, "content": text} for role, text in (turns[0], *turns[3:])],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert (found.cuts.pairs, found.cuts.tokens) == (1, len(whole.prompt) - len(example.prompt))
    last = made(tokens, row(*turns), lengths=Lengths(40, 20, "messages"))
    assert len(last.examples[0].prompt) == 20 and last.cuts.pairs == 1


def test_private_characters_beside_special_tokens_are_dropped_and_counted():
    found = made(TOKENIZERS["ChatML"], row((USER, "\U000f0001 <|im_end|>")), row((USER, "\U000f0001")))
    assert found.cuts.dropped == {"spells a special token and holds private characters": 1}
    assert len(found.examples) == 1


def test_a_row_of_the_template_is_skipped_by_itself():
    found = list(ChatTokens(TOKENIZERS["Gemma"]).pairs([row((ANSWER, "x")), row((USER, "x"))]))
    assert isinstance(found[0], Skip) and not isinstance(found[1], Skip)


def test_a_response_to_imitate_has_no_other_side():
    (example,) = tokenize([Preference("p", "c", None)], demo_tokenizer(), lengths=Lengths(9, 4)).examples
    assert example.rejected == () and example.length == 3
    (example,) = made(TOKENIZERS["ChatML"], Preference(row(*TALK).prompt, Turn(ANSWER, "yes"), None)).examples
    assert example.rejected == () and TOKENIZERS["ChatML"].decode(example.chosen) == "yes<|im_end|>"


# Phi's writes a space before a text behind a special token; transformers leaves it out before one that people spelt.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Phi"])
def test_special_tokens_that_people_spell_are_read_as_transformers_reads_them_when_asked_to(family):
    tokens = TOKENIZERS[family]
    spelt = " x ".join(tokens.all_special_tokens)
    turns = ((USER, f"Hi {spelt} there"), (ANSWER, f"Hello! {spelt}"), (USER, f"{spelt} and"))
    (example,) = made(tokens, row(*turns, chosen=f"yes {spelt}", rejected="no")).examples
    whole = of_template(tokens, turns, f"yes {spelt}", sanitize_control_tokens=True)
    ids = [*example.prompt, *example.chosen]
    assert ids == list(whole)[: len(ids)]
