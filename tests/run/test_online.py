"""Online federated DPO: clients draw responses from the policy they received, judge them, and train on the result."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

import clients.app
from clients.fresh import FreshPairs
from fed.config.online import OnlineSettings
from fed.data.examples import Example, Examples
from fed.data.prompts import Prompt
from fed.data.rows import Preference
from fed.errors import Failed
from fed.model.arrays import model_tensors
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.evaluation import Metrics
from fed.model.generation import Draws
from fed.model.policy import Policy, pair_logps
from feedback.judging import Judgement, Opinion, ScoreJudge
from support.command_line import CommandLine
from support.online_runs import ONLINE, RULE, lines
from support.pairs import examples
from support.separate_runs import launch, only_run

LEARNS = (
    *("client_num_in_total=4", "comm_round=4", "n_train_examples=240", "n_test_examples=48", "lr=0.01", "alpha=0"),
    *("warmup_steps=0", "batch_size=8", "online.n=4", "online.max_new_tokens=24", "num_threads=1"),
)


def fresh_pairs(policy: Policy, score: Any, asked: Sequence[Example] = tuple(examples(6)), **how: Any) -> FreshPairs:
    def fill(found: Any) -> Examples:
        return Examples.of(found).with_reference(np.asarray(pair_logps(policy, found, batch_size=4)))

    def prompts(client_id: int) -> list[Prompt]:
        ids = dict.fromkeys(example.prompt[-8:] for example in asked)
        return [Prompt(Preference(policy.tokenizer.decode(prompt), "", None), prompt) for prompt in ids]

    draws = Draws(9, 4, seed=3, stop=tuple({example.chosen[-1] for example in asked}))
    judge = ScoreJudge("test", lambda rows: [score(row.chosen) for row in rows])
    return FreshPairs(policy, judge, OnlineSettings(judge="lexicon", **how), draws, fill, prompts)


def test_the_best_response_is_preferred_to_the_worst(policy: Policy) -> None:
    stored = examples(6)
    found, told = fresh_pairs(policy, len, n=4).of(0, 1, stored, RecordDict())
    assert told["examples"] == len(found) and told["prompts"] == len({example.prompt for example in stored})
    decode = policy.tokenizer.decode  # type: ignore[attr-defined]
    for pair in found:
        assert pair.prompt in {example.prompt[-8:] for example in stored} and pair.reference is not None
        chosen, rejected = (decode(side, skip_special_tokens=True) for side in (pair.chosen, pair.rejected))
        assert len(chosen) > len(rejected)
    again, _ = fresh_pairs(policy, len, n=4).of(0, 1, stored, RecordDict())
    assert list(again) == list(found)
    for other in ((1, 1), (0, 2)):
        assert list(fresh_pairs(policy, len, n=4).of(*other, stored, RecordDict())[0]) != list(found)


def test_a_response_that_a_stop_string_ends_ends_like_those_of_the_data(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    maker = fresh_pairs(policy, len)
    maker._draws = replace(maker._draws, stop_strings=("\n\nHuman:",))
    ids = tuple(tokenizer([" Yes.\n\nHuman: and"])["input_ids"][0])
    ended, text = maker._ended(ids)
    assert text == " Yes." and tokenizer.decode(ended, skip_special_tokens=True) == " Yes."
    assert ended[-1] == tokenizer.eos_token_id and maker._ended(ended) == (ended, " Yes.")


def test_ties_and_prompts_without_a_judgement_make_no_pair(policy: Policy) -> None:
    class Silent(ScoreJudge):
        def judge(self, pairs: Any, on_judged: Any) -> None:
            for number, _ in enumerate(pairs):
                on_judged(number, Judgement(None, (Opinion("ab", None, "hm"),), "no judgement"))

    with pytest.raises(Failed, match=r"client 2 has no fresh pair: of \d prompts \d have responses that tie, and 0 no"):
        fresh_pairs(policy, lambda text: 0.0).of(2, 1, examples(6), RecordDict())
    silent = fresh_pairs(policy, len)
    silent._judge = Silent("silent", lambda rows: [])
    with pytest.raises(Failed, match=r"have responses that tie, and [1-6] no judgement"):
        silent.of(2, 1, examples(6), RecordDict())


def test_rounds_without_a_draw_train_on_the_last_pairs(policy: Policy) -> None:
    kept, maker = RecordDict(), fresh_pairs(policy, len, n=3, every=2)
    first, told = maker.of(0, 1, examples(6), kept)
    second, none = maker.of(0, 2, examples(6), kept)
    third, _ = maker.of(0, 3, examples(6), kept)
    assert list(second) == list(first) != list(third) and "prompts" in told and "prompts" not in none
    behind = fresh_pairs(policy, len, n=3, every=2).of(0, 2, examples(6), RecordDict())
    assert len(behind[0]), "a client that joins later draws at once"


def test_a_client_that_is_drawn_in_some_rounds_only_still_draws(policy: Policy) -> None:
    """With every=2 it draws in rounds 2 and 4, though both are even, and in round 5 trains on the last ones."""
    kept, maker = RecordDict(), fresh_pairs(policy, len, n=3, every=2)
    told = {number: maker.of(0, number, examples(6), kept)[1] for number in (2, 4, 5)}
    assert ["prompts" in told[number] for number in (2, 4, 5)] == [True, True, False]


@pytest.mark.parametrize(("mix", "share"), [(0.0, 0.0), (0.5, 0.5), (0.25, 0.25)])
def test_pairs_of_the_data_are_mixed_in(policy: Policy, mix: float, share: float) -> None:
    stored = list(Examples.of(examples(12)).with_reference(np.zeros((12, 2))))
    found, told = fresh_pairs(policy, len, examples(12), n=2, mix=mix, prompts=9).of(0, 1, stored, RecordDict())
    assert told["stored"] == pytest.approx(share * len(found), abs=0.6) and told["prompts"] == 9
    assert sum(pair in stored for pair in found) == told["stored"]


def test_the_rule_is_learned_and_the_win_rate_rises(command_line: CommandLine) -> None:
    run = command_line(*LEARNS, "online.judge=lexicon", RULE).run
    rates = [line["win_rate"] for line in lines(run, "test", "server")]
    assert rates[0] == 0.5 and rates[-1] > 0.9, rates
    last = lines(run, "test", "server")[-1]
    assert last["win_rate_low"] > 0.8 and last["win_prompts"] == 48 and last["win_unjudged"] == 0
    assert json.loads((run / "summary.json").read_text())["final"]["test"]["win_rate"] == rates[-1]


def test_prompts_without_responses_are_enough(command_line: CommandLine, tmp_path: Path) -> None:
    """The win rate is then all that is measured, and a strategy that wants accuracies is refused."""
    questions = [{"prompt": f"\n\nHuman: Say something about {n}.\n\nAssistant:", "level": "easy"} for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    own = ("datasets=[files]", f"data_dir={tmp_path / 'asked.jsonl'}", "server_fraction=0", "n_test_examples=8")
    options = (*own, "client_num_in_total=2", "comm_round=3", *ONLINE, "lr=0.01", "alpha=0", "warmup_steps=0")
    refused = command_line(*options)
    assert refused.code == 2 and "which prompts without responses do not have; use strategy=fedavg" in refused.err
    result = command_line(*options, "strategy=fedavg", "batch_size=4", "online.n=4")
    assert result.code == 0, result.err
    assert "clients have 34 prompts (17 each), test prompts 4" in result.out, result.out
    tested = lines(result.run, "test", "server")
    assert [line["round"] for line in tested] == [0, 1, 2, 3] and "accuracy" not in tested[-1]
    assert tested[0]["win_rate"] == 0.5 < tested[-1]["win_rate"]
    assert not lines(result.run, "validation")
    assert [line["prompts"] for line in lines(result.run, "online")] == [17] * 6


def test_conversations_without_a_template_are_refused(command_line: CommandLine, tmp_path: Path) -> None:
    asked = [{"prompt": [{"role": "user", "content": f"Say something about {n}."}]} for n in range(12)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(question) + "\n" for question in asked))
    result = command_line(
        "datasets=[files]", f"data_dir={tmp_path / 'chats.jsonl'}", "client_num_in_total=2", *ONLINE, "strategy=fedavg"
    )
    assert result.code == 2 and "chat template" in result.err and result.err.count("\n") == 1, result.err


def test_a_judge_reads_the_prompts_as_the_data_have_them(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, though the policy reads their ends only."""
    seen: list[Any] = []
    whole = ScoreJudge.judge

    def spied(self: ScoreJudge, pairs: Sequence[Any], on_judged: Any) -> None:
        seen.extend(pair.row.prompt for pair in pairs)
        whole(self, pairs, on_judged)

    monkeypatch.setattr(ScoreJudge, "judge", spied)
    command_line("client_num_in_total=2", "comm_round=1", "n_train_examples=24", "n_test_examples=8", *ONLINE[:3],
                 "max_length=40", "max_prompt_length=24")  # fmt: skip
    assert seen and all(prompt.startswith("\n\nHuman:") and prompt.endswith("Assistant:") for prompt in seen)
    assert min(map(len, seen)) > 24


@pytest.mark.parametrize("reference", ["fixed", "previous"])
@pytest.mark.parametrize("adapter", [(), ("lora.r=2",)])
def test_the_reference_is_the_policy_before_training_or_the_one_received(
    command_line: CommandLine, reference: str, adapter: tuple[str, ...]
) -> None:
    small = ("client_num_in_total=2", "comm_round=2", "n_train_examples=24", "n_test_examples=8", "lr=0.05")
    run = command_line(
        *small, *ONLINE, *adapter, f"online.reference={reference}", "local_steps=1", "alpha=0", "warmup_steps=0",
        "batch_size=64", "gradient_accumulation_steps=1",
    ).run  # fmt: skip
    first, second = ([line for line in lines(run, "train") if line["round"] == server_round] for server_round in (1, 2))
    assert all(line["ties"] == 1 for line in first), "the policy received is the one before training"
    tied = [line["ties"] == 1 for line in second]
    assert all(tied) if reference == "previous" else not any(tied)


def test_two_clients_at_once_draw_what_one_after_the_other_draws(tmp_path: Path) -> None:
    small = ("client_num_in_total=2", "comm_round=2", "n_train_examples=24", "n_test_examples=8", "num_threads=1")

    def drawn(name: str, *options: str) -> list[dict[str, Any]]:
        (folder := tmp_path / name).mkdir()
        ended = launch(folder, *small, *ONLINE, *options, "output_dir=runs", "cache_dir=cache")
        assert ended.code == 0, ended.text
        run = only_run(folder)
        assert run is not None
        found = [{k: v for k, v in line.items() if k != "pairs"} for line in lines(run, "online")]
        return sorted(found, key=lambda line: (line["round"], line["who"]))

    one, two = drawn("one"), drawn("two", "clients_in_parallel=2")
    assert one[:2] == two[:2] and len(one) == len(two) == 4, "later rounds begin with means that are rounded otherwise"


def test_no_text_leaves_a_client(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply is read: arrays under the model's own names, and numbers; no text and no token ids."""
    seen: list[Any] = []
    texts: list[str] = []
    whole = FreshPairs.of

    def spied(self: FreshPairs, *arguments: Any) -> tuple[Any, Metrics]:
        found = whole(self, *arguments)
        decode = self._policy.tokenizer.decode  # type: ignore[attr-defined]
        texts.extend(decode(side) for pair in found[0] for side in (pair.prompt, pair.chosen))
        return found

    answer = clients.app.Client.train

    def train(self: Any, message: Any, context: Any) -> Any:
        seen.append(reply := answer(self, message, context))
        return reply

    monkeypatch.setattr(FreshPairs, "of", spied)
    monkeypatch.setattr(clients.app.Client, "train", train)
    command_line("client_num_in_total=2", "comm_round=2", "n_train_examples=24", "n_test_examples=8", *ONLINE)
    assert len(seen) == 4 and len(texts) > 8
    names = set(model_tensors(demo_model(demo_tokenizer())))
    for reply in seen:
        assert set(reply.content) == {"arrays", "metrics"}
        assert set(reply.content["arrays"]) == names
        assert all(isinstance(value, int | float) for value in reply.content["metrics"].values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("online.n=3",), "online.n has no effect with online.judge=null"),
        (("online.judge=lexicon",), "the judge lexicon needs a rule"),
        (("online.judge=helpfull", "online.model=m"), "judge=helpfull is unknown"),
        (("online.judge=helpful",), "the judge helpful is a served model's"),
        (("online.judge=lexicon", RULE, "engine=ray"), "needs engine=local"),
        (("online.judge=lexicon", RULE, "mode=centralized"), "mode=centralized has no clients that make pairs"),
        (("online.judge=lexicon", RULE, "online.mix=1"), "online.mix=1"),
        (("online.judge=lexicon", 'online.rule="{per_word: .nan}"'), "is no rule; expected phrases with numbers"),
        (("online.judge=lexicon", RULE, "loss=sft", "online.reference=previous"), "online.reference=previous has no"),
        (
            ("online.judge=lexicon", RULE, "mode=local", "online.client_eval_prompts=2"),
            "online.client_eval_prompts has no effect with mode=local",
        ),
        (
            ("online.judge=lexicon", RULE, "max_length=64", "max_prompt_length=60", "online.max_new_tokens=5"),
            "online.max_new_tokens=5 is more than the 4 tokens",
        ),
        (("online.judge=lexicon", RULE, "online.model=m"), "online.model=m has no effect with online.judge=lexicon"),
        (("online.judge=lexicon", RULE, "online.orders=mean"), "online.orders=mean has no effect"),
        (
            ("online.judge=helpful", "online.model=m", "online.base_url=http://x", "online.orders=mean"),
            "orders=mean needs probabilities",
        ),
        (
            ("online.judge=lexicon", RULE, "online.client_eval_prompts=2"),
            "online.client_eval_prompts=2 has no effect with strategy.fraction_evaluate=0",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    command_line: CommandLine, options: tuple[str, ...], told: str
) -> None:
    result = command_line("client_num_in_total=2", "n_train_examples=24", "n_test_examples=8", *options)
    assert result.code == 2 and told in result.err and result.err.count("\n") == 1, result.err
