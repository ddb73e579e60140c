"""The data sets: one function each turns records into rows of prompt, chosen and rejected response.

To add one, write a function here under `@dataset("name")` that takes a `Source`:
- `source.records("hub/name")` yields its records, from the files in `data_dir` or else from the hub;
- `record.text("field")` and `record.number("field")` return checked fields, `record.part` the name of the file;
- yield `usable(Preference(prompt, chosen, rejected, group=...))` for each pair, or `Skip("reason")`.
Then `datasets=[name]` trains on it.
"""

import re
from collections.abc import Iterator
from itertools import combinations

from fed.data.best_of import text_of_ids
from fed.data.chat import ChatSettings, in_form
from fed.data.dialogues import dialogues
from fed.data.forms import each_answer, imitated, own_rows
from fed.data.html import text_of_html
from fed.data.implied import common_prompt
from fed.data.loader import DATASETS, dataset, load, load_file, load_splits
from fed.data.messages import turns
from fed.data.rows import ASSISTANT, HUMAN, Chat, Preference, Skip, Turn, usable
from fed.data.source import Source

__all__ = ["DATASETS", "dataset", "load", "load_file", "load_splits"]

HH_BASE = ("harmless-base", "helpful-base")
HH_PARTS = (*HH_BASE, "helpful-online", "helpful-rejection-sampled")


@dataset("hh_base", parts=HH_BASE)
@dataset("hh")
def hh(source: Source) -> Iterator[Preference | Skip]:
    """Yield Anthropic's helpful and harmless dialogues; `hh_base` are those with Anthropic's first models only.

    The prompt is what both dialogues share, up to its last "Assistant:". The group tells helpful from harmless ones.
    """
    for record in source.records("Anthropic/hh-rlhf", source.parts or HH_PARTS):
        chosen, rejected = record.text("chosen"), record.text("rejected")
        prompt = common_prompt(chosen, rejected)
        responses = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt:
            yield Skip("no assistant turn in common")
        elif any(turn in response for turn in (HUMAN, ASSISTANT) for response in responses):
            yield Skip("response holds a further turn")
        else:
            yield usable(Preference(prompt, *responses, group=record.part))


@dataset("shp", validation=True)
def shp(source: Source) -> Iterator[Preference | Skip]:
    """Yield pairs of Stanford Human Preferences: Reddit comments, one voted at least twice as high as the other."""
    for record in source.records("stanfordnlp/SHP"):
        prompt = f"{HUMAN} {record.text('history')}{ASSISTANT}"
        chosen, rejected = " " + record.text("human_ref_A"), " " + record.text("human_ref_B")
        if record.number("labels") != 1:
            chosen, rejected = rejected, chosen
        # The published field names the subreddit and the split, e.g. askbaking_train.
        domain = re.sub("_(train|validation|test)$", "", record.text("domain"))
        if not record.number("score_ratio") >= 2:
            yield Skip("score_ratio below 2")
        else:
            yield usable(Preference(prompt, chosen, rejected, group=domain, truncation="keep_start"))


MOST_ANSWERS = 1000  # they make half a million pairs; a damaged record could ask for any number


@dataset("se", test_share=0.01)
def se(source: Source) -> Iterator[Preference | Skip]:
    """Yield all pairs of the answers to a Stack Exchange question; of equal scores the later answer is preferred."""
    for record in source.records("HuggingFaceH4/stack-exchange-preferences", has_test=False):
        question = record.text("question")
        answers = [(answer.number("pm_score"), answer.text("text")) for answer in record.records("answers")]
        if len(answers) > MOST_ANSWERS:
            yield Skip(f"more than {MOST_ANSWERS} answers")
            continue
        try:
            prompt = f"{HUMAN} {text_of_html(question)}{ASSISTANT}"
            answers = [(score, " " + text_of_html(text)) for score, text in answers]
        except ValueError:
            yield Skip("malformed html")
            continue
        for (score, earlier), (later_score, later) in combinations(answers, 2):
            chosen, rejected = (earlier, later) if score > later_score else (later, earlier)
            yield usable(Preference(prompt, chosen, rejected, group="stack-exchange", truncation="keep_start"))


dataset("files")(own_rows)  # the user's own, in any form that fed/data/forms.py knows
dataset("jsonl")(own_rows)  # the name that `files` had when it read JSON lines only; kept for recorded runs


# Best-of-four labels of Ziegler et al. (arXiv 1909.08593), in files


@dataset("cnndm60k")
@dataset("cnndm")
@dataset("tldr60k")
@dataset("tldr")
@dataset("descriptiveness")
@dataset("sentiment")
def best_of_four(source: Source) -> Iterator[Preference | Skip]:
    """Yield the preferred of four continuations against each other one; texts may be GPT-2's token ids."""
    for record in source.records(hub=None):
        query, *samples = (text_of_ids(record, name, source.reading) for name in ("query", *SAMPLES))
        best = record.number("best")
        if best not in range(len(samples)):
            raise ValueError(f"{record.where}: 'best' is {best}, expected 0 to {len(samples) - 1}")
        for place, other in enumerate(samples):
            if place != best:
                yield usable(Preference(query, samples[int(best)], other, group=source.name))


SAMPLES = ("sample0", "sample1", "sample2", "sample3")


# Conversations, and preferences of models about them (arXiv 2402.12366)


@dataset("sharegpt", test_share=0.01)
def sharegpt(source: Source) -> Iterator[Preference | Skip]:
    """Yield every answer of conversations that a person begins, as responses to imitate."""
    for record in source.records(hub=None):
        conversation = turns(record, "conversations") if record.value("conversations") else ()
        if not conversation or conversation[0].role == "assistant":
            yield Skip("begins with an answer" if conversation else "empty conversation")
            continue
        yield from each_answer(conversation)


@dataset("sharegpt4", test_share=0.01, parts=("gpt4_completions",))
@dataset("shareclaude", test_share=0.01, parts=("claude_completions",))
def completions(source: Source) -> Iterator[Preference | Skip]:
    """Yield a model's answers to ShareGPT's first questions, from files of {prompt: [answer, ...]}."""
    for record in source.records(hub=None):
        yield imitated(record.text("prompt"), record.text("completion"))


@dataset("aiprefs", test_share=0.01)
def aiprefs(source: Source) -> Iterator[Preference | Skip]:
    """Yield AlpacaEval's annotations: two answers to an instruction and the judge's preference."""
    for row in own_rows(source):
        yield row if isinstance(row, Skip) else in_form(row, ChatSettings(text_as_chat=True))


RELABELLED = "Asap7772/ultrafeedback_binarized_relabelled_ultrarm"
NARROW = "Asap7772/ultrafeedback_binarized_narrow"
PREFERENCES = {"train": "train_prefs", "test": "test_prefs"}


@dataset("ultrafeedback_narrow")
@dataset("ultrafeedback")
def ultrafeedback(source: Source) -> Iterator[Preference | Skip]:
    """Yield UltraFeedback as a reward model labels it; the narrow one has other training pairs and the same test."""
    is_narrow = source.name == "ultrafeedback_narrow" and source.split == "train"
    for record in source.records(NARROW if is_narrow else RELABELLED, splits=PREFERENCES):
        question = record.text("prompt")
        start = f"Human: {question}\n\nAssistant: "
        sides = [record.text(name) for name in ("chosen", "rejected")]
        if not all(side.startswith(start) for side in sides):
            yield Skip("does not begin with its prompt")
            continue
        chosen, rejected = (Turn("assistant", side.removeprefix(start)) for side in sides)
        yield usable(Preference(Chat((Turn("user", question),)), chosen, rejected, group="ultrafeedback"))


@dataset("ultrachat")
def ultrachat(source: Source) -> Iterator[Preference | Skip]:
    """Yield the first answer of each conversation of UltraChat, as a response to imitate."""
    splits = {"train": "train_sft", "test": "test_sft"}
    for record in source.records("HuggingFaceH4/ultrachat_200k", splits=splits):
        first = turns(record, "messages")[:2]
        yield next(iter(each_answer(first)), Skip("does not begin with a question and its answer"))


@dataset("wiki")
def wiki(source: Source) -> Iterator[Preference | Skip]:
    """Yield paragraphs of WikiText-2 as the continuation of their first ten words: 10 to train and 128 to test on."""
    found = 0
    for record in source.records("Salesforce/wikitext", config="wikitext-2-raw-v1"):
        words = record.text("text").split(" ")
        if sum(map(len, words)) + len(words) - 1 > 100 and len(words) > 10:
            found += 1
            yield usable(Preference(" ".join(words[:10]) + " ", " ".join(words[10:]), None, group="wiki"))
        if found == (10 if source.split == "train" else 128) and not source.undivided:
            return


@dataset("alpaca_eval")
def alpaca_eval(source: Source) -> Iterator[Preference | Skip]:
    """Yield AlpacaEval's instructions with its reference answers."""
    splits = {"train": "eval"}
    for record in source.records("tatsu-lab/alpaca_eval", has_test=False, splits=splits, config="alpaca_eval"):
        yield imitated(record.text("instruction"), record.text("output"))


@dataset("lc", test_share=0.01)
def lc(source: Source) -> Iterator[Preference | Skip]:
    """Yield two solutions of a LeetCode problem, of which a person preferred number `preference`, 0 or 1."""
    for record in source.records(hub=None):
        versions = [Turn("assistant", str(record.value(name) or "")) for name in ("version1", "version2")]
        better = record.value("preference")
        if better is None:
            yield Skip("no judgement")
        elif better not in (0, 1):
            raise ValueError(f"{record.where}: 'preference' is {better!r:.40}, expected 0 or 1")
        else:
            chosen, rejected = versions[int(better)], versions[1 - int(better)]
            prompt = Chat((Turn("user", record.text("description")),))
            yield usable(Preference(prompt, chosen, rejected, group=record.label("difficulty") or "lc"))


@dataset("demo")
def demo(source: Source) -> Iterator[Preference | Skip]:
    """Yield kind answers preferred to rude ones, made from the seed."""
    train, test = dialogues(source.seed)
    for dialogue in train if source.split == "train" else test:
        prompt = f"{HUMAN} {dialogue.question}{ASSISTANT}"
        yield Preference(prompt, dialogue.kind, dialogue.rude, group=dialogue.topic)
