"""`python -m scripts.judge`: judges of several kinds, and what becomes of their answers."""

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fed.data.rows import Preference
from fed.data.source import Reading
from feedback.judging import Opinion, agreed, as_text
from feedback.rules import Lexicon
from feedback.server_judge import PROMPTS, judge_prompt
from load_data import load, load_file
from scripts.judge import main
from support.command_line import SMALL, CommandLine
from support.judged_files import good_or_bad, judged, responses
from support.records import ANSWER, USER, chat
from support.stub_server import Reply, stub_server

__all__ = ["judged"]


def says(text: str) -> Callable[[Any, int], Reply]:
    return lambda body, number: Reply(text)


def knows(body: Any, number: int) -> Reply:
    """Answer with the response that is good, wherever it stands."""
    text = body["messages"][-1]["content"]
    return Reply("Response (a)" if text.index("good") < text.index("bad") else "Response (b)")


def test_a_judge_that_knows_is_followed_and_the_result_trains(judged) -> None:
    with stub_server(knows) as server:
        code, lines, out, _ = judged(
            "two.jsonl", "judge=helpful", "model=m", f"base_url={server.url}", "annotations=annotations.json"
        )
        assert code == 0 and len(server.asked) == 8, "each pair in both orders"
        assert all(body["temperature"] == 0 and body["max_tokens"] == 10 for body in server.asked)
        judged("two.jsonl", "judge=helpful", "model=m", f"base_url={server.url}", out="again.jsonl")
        assert len(server.asked) == 8, "answers are kept"
    assert [line["winner"] for line in lines] == ["a", "b", "a", "b"] and "a 2, b 2, ties 0" in out
    assert lines[0]["raw_ab"] == "Response (a)" and lines[0]["raw_ba"] == "Response (b)"
    assert lines[0]["judge"] == "helpful by m" and lines[0]["prompt_hash"] == judge_prompt("helpful").digest
    rows = load_file("out.jsonl").rows
    assert [row.chosen.content for row in rows] == ["good 0", "good 1", "good 0", "good 1"]
    assert [row.group for row in rows] == ["g0", "g1", "g0", "g1"]
    found = load(["aiprefs"], "train", data_dir="annotations.json", seed=0, test_fraction=0.25)
    assert len(found.rows) == 3 and all("good" in row.chosen.content for row in found.rows)


@pytest.mark.parametrize("answer", ["Response (a)", "Response (b)"])
def test_a_judge_that_goes_by_the_place_gives_ties_only(judged, answer: str) -> None:
    with stub_server(says(answer)) as server:
        where = ("judge=helpful", "model=m", f"base_url={server.url}")
        _, lines, out, _ = judged("two.jsonl", *where)
        assert [line["winner"] for line in lines] == ["tie"] * 4 and "ties: 100.0%" in out
        assert load_file_skipped("out.jsonl") == {"a tie": 4}
        _, once, _, _ = judged("two.jsonl", *where, "orders=given", out="given.jsonl")
        assert {line["winner"] for line in once} == {"a" if answer == "Response (a)" else "b"}
        responses("many.jsonl", good_or_bad, count=200)
        _, drawn, _, _ = judged("many.jsonl", *where, "orders=random", out="random.jsonl")
        share = sum(line["winner"] == "a" for line in drawn) / 200
        assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 200)


def load_file_skipped(path: str) -> dict[str, int]:
    with pytest.raises(ValueError) as found:
        load_file(path)
    (counted,) = [part for part in str(found.value).split("(skipped: ")[1].rstrip(")").split(", ")]
    number, _, reason = counted.partition(" x ")
    return {reason: int(number)}


def test_prose_is_counted_and_never_guessed(judged) -> None:
    def answers(body: Any, number: int) -> Reply:
        text = body["messages"][-1]["content"]
        if "question 0" in text:
            return Reply("Both are nice, response (a) and response (b).")
        return Reply("", status=400) if "question 1" in text else knows(body, number)

    with stub_server(answers) as server:
        code, lines, out, _ = judged("two.jsonl", "judge=helpful", "model=m", f"base_url={server.url}")
    assert code == 0 and [line["winner"] for line in lines] == [None, None, "a", "b"]
    assert "1 pair without a judgement: an answer that is no judgement" in out
    assert "1 pair without a judgement: refused by the server (no)" in out
    with stub_server(says("I cannot choose.")) as server:
        code, lines, _, _ = judged("two.jsonl", "judge=helpful", "model=n", f"base_url={server.url}", out="none.jsonl")
    assert code == 1 and {line["winner"] for line in lines} == {None}


def test_letters_are_judged_by_their_probability(judged) -> None:
    def answers(body: Any, number: int) -> Reply:
        first = knows(body, number).text == "Response (a)"
        better, worse = math.log(0.7), math.log(0.2)
        return Reply("a", first={" a": better if first else worse, "B": worse if first else better, "x": math.log(0.1)})

    with stub_server(answers) as server:
        where = ("judge=helpful", "model=m", f"base_url={server.url}", "answers=letters")
        _, lines, _, _ = judged("two.jsonl", *where)
        assert server.asked[0]["logprobs"] is True and server.asked[0]["max_tokens"] == 1
    assert [line["winner"] for line in lines] == ["a", "b", "a", "b"]
    assert [line["share_a"] for line in lines] == pytest.approx([7 / 9, 2 / 9] * 2)
    with stub_server(says(" b")) as server:
        where = ("judge=helpful", "model=m", f"base_url={server.url}", "answers=letters")
        _, plain, _, _ = judged("two.jsonl", *where, out="plain.jsonl")
    assert {line["winner"] for line in plain} == {"tie"} and "share_a" not in plain[0]


def test_json_is_asked_for_and_read(judged) -> None:
    def answers(body: Any, number: int) -> Reply:
        assert body["response_format"]["json_schema"]["schema"]["properties"]["better"]["enum"] == ["a", "b", "tie"]
        return Reply(json.dumps({"better": "a" if knows(body, 0).text == "Response (a)" else "b"}))

    with stub_server(answers) as server:
        where = ("judge=helpful", "model=m", f"base_url={server.url}", "answers=json")
        assert [line["winner"] for line in judged("two.jsonl", *where)[1]] == ["a", "b", "a", "b"]


def test_a_ranking_is_read_as_alpaca_eval_reads_it(judged) -> None:
    def answers(body: Any, number: int) -> Reply:
        text = body["messages"][-1]["content"]
        listed = ast.literal_eval(text[text.index('[{"model": "model_1", "answer"') : text.index("\n\nAnswer with")])
        ranks = [1, 2] if "good" in listed[0]["answer"] else [2, 1]
        return Reply(f"Sure: [{{'model': 'model_1', 'rank': {ranks[0]}}}, {{'model': 'model_2', 'rank': {ranks[1]}}}]")

    with stub_server(answers) as server:
        where = ("judge=alpaca_ranking", "model=m", f"base_url={server.url}")
        assert [line["winner"] for line in judged("two.jsonl", *where)[1]] == ["a", "b", "a", "b"]
    read = judge_prompt("alpaca_ranking").read
    assert read('[{"model": "model_2", "rank": 1}, {"model": "model_1", "rank": 1}]') == "tie"
    assert read("none") is None and read("[1, 2]") is None and read("[" * 10_000) is None


def test_alpaca_evals_letters_are_read_by_its_expression() -> None:
    read = judge_prompt("alpaca_letters").read
    assert read("Output (a)") == "a" and read("Well.\n Output (b)") == "b"
    assert read("The best is Output (a)") is None and read("Output (a)\nOutput (b)") is None


@pytest.mark.parametrize("path", sorted(PROMPTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_prompt_shows_all_and_keeps_braces(path: Path) -> None:
    from feedback.judging import Pair

    prompt = judge_prompt(path.stem)
    pair = Pair(Preference("use {braces}", "", None), "print({1: 2})", "{a} {prompt}")
    shown = "".join(message["content"] for message in prompt.messages(pair, "ba"))
    assert "use {braces}" in shown and shown.index("{a} {prompt}") < shown.index("print({1: 2})")
    assert judge_prompt(str(path)).digest == prompt.digest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("user: '{prompt} {a}'\nfirst: a\nsecond: b", "does not show {b}"),
        ("user: '{prompt} {a} {b}'\nfirst: a", "does not say how answers are read"),
        ("user: '{prompt} {a} {b} {c}'\nfirst: a\nsecond: b", "is no judge's prompt (KeyError"),
        ("user: '{prompt} {a} {b}'\nfirst: '('\nsecond: b", "is no judge's prompt"),
        ("user: [", "is no judge's prompt"),
        ("user: x\ncolour: red", "is no judge's prompt"),
    ],
)
def test_a_prompt_that_cannot_work_is_one_line(judged, text: str, told: str) -> None:
    Path("own.yaml").write_text(text)
    assert main(["two.jsonl", "judge=own.yaml", "model=m", "base_url=http://127.0.0.1:1/v1"]) == 2
    with pytest.raises(ValueError) as found:
        judge_prompt("own.yaml")
    assert told in str(found.value) and "\n" not in str(found.value)


def test_a_rule_over_words_needs_no_server(judged) -> None:
    code, lines, _, _ = judged("two.jsonl", "judge=lexicon", "rule={bad: -1}")
    assert code == 0 and [line["winner"] for line in lines] == ["a", "b", "a", "b"]
    assert lines[0]["raw_ab"] == "0 -1" and lines[0]["judge"] == "lexicon"
    rule = Lexicon.read("{I apologize: -2, sorry: -1, per_word: -0.5}")
    assert rule.score_of("Sorry, I APOLOGIZE for sorrynow.") == -1 - 2 - 0.5 * 5
    for wrong in ("x", "{}", "{a: b}", "[1]"):
        with pytest.raises(ValueError, match="rule="):
            Lexicon.read(wrong)


def test_pairs_come_from_one_file_from_two_and_from_people(judged) -> None:
    responses("four.jsonl", lambda index, draw: f"{'bad ' * draw}{index}", n=4, count=3)
    rule = ("judge=lexicon", "rule={bad: -1}")
    assert len(judged("four.jsonl", *rule, out="a.jsonl")[1]) == 3
    every = judged("four.jsonl", *rule, "pairs=all", out="b.jsonl")[1]
    assert len(every) == 18 and {line["winner"] for line in every} == {"a"}
    responses("b_side.jsonl", lambda index, draw: f"bad {index}", n=1, count=4, name="other")
    _, lines, out, _ = judged("four.jsonl", "b_side.jsonl", *rule, out="c.jsonl")
    assert len(lines) == 3 and lines[0]["generator_a"] == "m" and lines[0]["generator_b"] == "other"
    assert "1 prompt without a second response" in out
    Path("people.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"q{n}", "chosen": "good", "rejected": "bad" if n else " good"}) + "\n"
            for n in range(3)
        )
    )
    _, lines, out, _ = judged("people.jsonl", *rule, out="d.jsonl")
    assert [line["winner"] for line in lines] == ["a", "a"] and "1 pair of equal responses" in out
    assert main(["two.jsonl", "people.jsonl", *rule]) == 2


def test_a_policy_judges_by_its_implicit_reward(
    command_line: CommandLine, judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("max_length=112", "max_prompt_length=64", "lr=0.02", "comm_round=4", "n_train_examples=80")
    result = command_line(*SMALL, *options, "n_test_examples=24")
    monkeypatch.chdir(result.folder)
    from fed.tracking.recorded import recorded_settings
    from run.data import reading_of, shared_out

    config = recorded_settings(result.run)
    test = shared_out(config, frozenset(), reading_of(config, supervised=False)).split.test
    lines = [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in test]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, found, _, _ = judged("pairs.jsonl", f"judge=policy:{result.run}")
    share = sum(line["winner"] == "a" for line in found) / len(found)
    assert share == pytest.approx(result.lines(split="test")[-1]["accuracy"])


def test_opinions_and_texts_by_hand() -> None:
    a, b, none = Opinion("ab", "a", ""), Opinion("ba", "b", ""), Opinion("ba", None, "")
    assert agreed([a, Opinion("ba", "a", "")]).winner == "a" and agreed([a, b]).winner == "tie"
    assert agreed([a, none]).winner is None and agreed([a, none]).problem
    assert as_text("\n\nHuman: Why?\n\nAssistant:") == "Why?" and as_text("Why?") == "Why?"
    assert as_text(chat((USER, "Hi"), (ANSWER, "Yes"), (USER, "So?"))) == "User: Hi\n\nAssistant: Yes\n\nUser: So?"
    two = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: So?\n\nAssistant:"
    assert as_text(two) == two.strip()
    assert Reading().needs == "pairs"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "judge= is missing"),
        (("judge=helpfull",), "judge=helpfull is unknown; expected alpaca_letters"),
        (("judge=helpful",), "model= is missing"),
        (("judge=helpful", "model=m", "orders=one"), "orders=one is unknown; expected both, mean, random, given"),
        (("judge=alpaca_ranking", "model=m", "answers=letters"), "answers=letters asks for a or b, and alpaca_ranking"),
        (("judge=lexicon", "rule={a: 1}", "answers=json"), "answers=json has no effect with judge=lexicon"),
        (("judge=helpful", "model=m", "orders=mean"), "orders=mean needs probabilities, which answers=text has not"),
        (("judge=helpful", "model=m", "rule={a: 1}"), "a rule has no effect on another judge than lexicon"),
        (("judge=lexicon",), "the judge lexicon needs a rule"),
        (("judge=policy:./nowhere",), "nowhere"),
        (("judge=lexicon", "rule={a: 1}", "pairs=some"), "pairs=some is unknown"),
    ],
)
def test_mistakes_are_told_in_one_line(judged, arguments: tuple[str, ...], told: str) -> None:
    code, lines, _, err = judged("two.jsonl", *arguments)
    assert code == 2 and told in err and err.count("\n") == 1 and lines == []
