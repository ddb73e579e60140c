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

from fed.data.dialogues import dialogues
from fed.data.forms import own_rows
from fed.data.html import text_of_html
from fed.data.implied import common_prompt
from fed.data.loader import DATASETS, dataset, load, load_file, load_splits
from fed.data.records import Source
from fed.data.rows import ASSISTANT, HUMAN, Preference, Skip, usable

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


@dataset("demo")
def demo(source: Source) -> Iterator[Preference | Skip]:
    """Yield kind answers preferred to rude ones, made from the seed."""
    train, test = dialogues(source.seed)
    for dialogue in train if source.split == "train" else test:
        prompt = f"{HUMAN} {dialogue.question}{ASSISTANT}"
        yield Preference(prompt, dialogue.kind, dialogue.rude, group=dialogue.topic)
