"""A served model as a judge: a prompt from a YAML file, and what its answers mean."""

import ast
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from fed.config.explain import listed, nearest
from fed.data.rows import Skip
from feedback.api import Answer, Client, Message, Question
from feedback.judging import (
    Judgement,
    OnJudged,
    Opinion,
    Order,
    Orders,
    Pair,
    Side,
    agreed,
    as_text,
    by_mean,
    mirrored,
    orders_of,
)

PROMPTS = Path(__file__).parent / "judge_prompts"
TAKES = ("prompt", "a", "b", "prompt_json", "a_json", "b_json")  # what a prompt may have in braces
Answers = Literal["text", "json", "letters", "choice"]
CHOICES = (("a", "response (a) is better"), ("b", "response (b) is better"))
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgement",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"better": {"type": "string", "enum": ["a", "b", "tie"]}},
            "required": ["better"],
            "additionalProperties": False,
        },
    },
}
HOW_JSON = '\n\nAnswer with JSON only: {"better": "a"}, {"better": "b"} or {"better": "tie"}.'
HOW_LETTER = "\n\nAnswer with the one letter a or b, and nothing else."


@dataclass(frozen=True)
class JudgePrompt:
    """The question to a judge, and the way its answer is read.

    Attributes:
        name: The name of the file.
        user: The message, with {prompt}, {a} and {b} (or {prompt_json}, ...: the same as JSON).
        system: A message before it; "": none.
        first: A regular expression that is found in an answer which prefers the response that stood first.
        second: The same for the second.
        tie: The same for a tie; "": the judge has none.
        ranking: The answer is a list of {"model": "model_1", "rank": 1}, ... instead.
        max_tokens: Tokens of the longest answer.
    """

    name: str
    user: str
    system: str = ""
    first: str = ""
    second: str = ""
    tie: str = ""
    ranking: bool = False
    max_tokens: int = 50

    @property
    def digest(self) -> str:
        """A hash of all that decides the answers."""
        content = [getattr(self, item.name) for item in fields(self)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def messages(self, pair: Pair, order: Order, more: str = "") -> list[Message]:
        """Return the question about a pair, shown in this order."""
        prompt, (first, second) = as_text(pair.row.prompt), (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        plain = {"prompt": prompt, "a": first, "b": second}
        values = {**plain, **{f"{name}_json": json.dumps(text, ensure_ascii=False) for name, text in plain.items()}}
        asked = {"role": "user", "content": self.user.format(**values) + more}
        return [{"role": "system", "content": self.system}, asked] if self.system else [asked]

    def read(self, text: str) -> Side | None:
        """Return the side that the answer prefers: a is the response shown first; None if it cannot be read."""
        if self.ranking:
            return _ranked(text)
        sides: dict[Side, str] = {"a": self.first, "b": self.second, "tie": self.tie}
        found = [side for side, pattern in sides.items() if pattern and re.search(pattern, text)]
        return found[0] if len(found) == 1 else None


def _ranked(text: str) -> Side | None:
    """Read a list of models with ranks, as Python or JSON writes it."""
    start, end = text.find("["), text.rfind("]")
    try:
        found = ast.literal_eval(text[start : end + 1])
        ranks = {item["model"]: item["rank"] for item in found}
        first, second = float(ranks["model_1"]), float(ranks["model_2"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return None
    return "tie" if first == second else "a" if first < second else "b"


def judge_prompt(name: str) -> JudgePrompt:
    """Read a judge's prompt by the name of a file in feedback/judge_prompts/, or by its path.

    Raises:
        ValueError: If there is no such file, or it does not say what a prompt must.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROMPTS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PROMPTS.glob("*.yaml"))
        raise ValueError(f"judge={name} is unknown; expected {listed(known)}, or a YAML file{nearest(name, known)}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        prompt = JudgePrompt(path.stem, **found)
        for pattern in (prompt.first, prompt.second, prompt.tie):
            re.compile(pattern)
        prompt.user.format(**dict.fromkeys(TAKES, ""))
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        re.error,
    ) as error:
        raise ValueError(
            f"{path} is no judge's prompt ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not prompt.ranking and not (prompt.first and prompt.second):
        raise ValueError(f"{path} does not say how answers are read; give first and second, or ranking: true")
    for name in ("prompt", "a", "b"):
        if not re.search(rf"\{{{name}(_json)?\}}", prompt.user):
            raise ValueError(f"{path} does not show {{{name}}}; a judge must see prompt, a and b")
    return prompt


@dataclass(frozen=True)
class ServerJudge:
    """A served model that is asked about each pair.

    Attributes:
        client: The server's client.
        prompt: What it is asked.
        model: The name of the model.
        answers: "text": the prompt's own way; "json": JSON that the server enforces; "letters": the probabilities of
            the letters a and b as its first token, and the letter itself where the server has no probabilities;
            "choice": the probabilities that `/v1/systemone` of transformers' server gives.
        orders: The orders in which pairs are shown, and whether both must agree or their mean probability decides.
        seed: Decides orders that are drawn.
        settings: More arguments of each call.
    """

    client: Client
    prompt: JudgePrompt
    model: str
    answers: Answers = "text"
    orders: Orders = "both"
    seed: int = 0
    settings: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name that stands beside each judgement."""
        return f"{self.prompt.name} by {self.model}"

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that decide the judgements."""
        return {
            "judge": self.name,
            "prompt_hash": self.prompt.digest,
            "answers": self.answers,
            "orders": self.orders,
            "judge_seed": self.seed,
            "settings": dict(self.settings or {}),
        }

    def __post_init__(self) -> None:
        if self.prompt.ranking and self.answers != "text":
            raise ValueError(
                f"answers={self.answers} asks for a or b, and {self.prompt.name} for a ranking; give answers=text"
            )
        if self.orders == "mean" and self.answers not in ("letters", "choice"):
            raise ValueError(
                f"orders=mean needs probabilities, which answers={self.answers} has not; give answers=letters, or "
                "answers=choice"
            )

    def judge(self, pairs: Sequence[Pair], on_judged: OnJudged) -> None:
        """Ask about all pairs; a pair is judged when the answers to all its orders are there.

        Raises:
            CannotContinue: If the server cannot be used; judgements that were there have been handed over.
        """
        shown = [
            (place, order) for place, pair in enumerate(pairs) for order in orders_of(pair, self.orders, self.seed)
        ]
        found: dict[int, list[Opinion]] = {}
        refused: dict[int, str] = {}
        left = Counter(place for place, _ in shown)

        def heard(number: int, answer: Answer | Skip) -> None:
            place, order = shown[number]
            left[place] -= 1
            if isinstance(answer, Skip):
                refused[place] = answer.reason
            else:
                found.setdefault(place, []).append(self._opinion(order, answer))
            if not left[place]:
                opinions = sorted(found.get(place, ()), key=lambda opinion: opinion.order)
                judgement = by_mean(opinions) if self.orders == "mean" else agreed(opinions)
                problem = refused.get(place)
                on_judged(place, Judgement(None, opinions, problem) if problem else judgement)

        self.client.ask_all([self._question(pairs[place], order) for place, order in shown], heard)

    def _question(self, pair: Pair, order: Order) -> Question:
        if self.answers == "choice":
            return Question(self.prompt.messages(pair, order), {}, choices=CHOICES)
        more = {"text": "", "json": HOW_JSON, "letters": HOW_LETTER}[self.answers]
        settings: dict[str, Any] = {"temperature": 0, "max_tokens": self.prompt.max_tokens, **(self.settings or {})}
        if self.answers == "json":
            settings["response_format"] = SCHEMA
        elif self.answers == "letters":
            settings |= {"logprobs": True, "top_logprobs": 20, "max_tokens": 1}
        return Question(self.prompt.messages(pair, order, more), settings)

    def _opinion(self, order: Order, answer: Answer) -> Opinion:
        """Return what an answer says of the pair; the judge speaks of what stood first and second."""
        read = {"text": self.prompt.read, "json": _of_json}.get(self.answers, _of_letter)
        shown, share = read(answer.text), _share(answer) if self.answers in ("letters", "choice") else None
        if share is not None:
            shown = "tie" if share == 0.5 else "a" if share > 0.5 else "b"
        turned = order == "ba"
        return Opinion(
            order,
            mirrored(shown) if turned else shown,
            answer.text,
            share if share is None or not turned else 1 - share,
        )


def _of_json(text: str) -> Side | None:
    try:
        better = json.loads(text)["better"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return better if better in ("a", "b", "tie") else None


def _of_letter(text: str) -> Side | None:
    found = text.strip().strip("().\"'").lower()
    return found if found in ("a", "b") else None  # type: ignore[return-value]


def _share(answer: Answer) -> float | None:
    """Return the probability of a among the letters a and b; None if the server gives none."""
    total = {"a": 0.0, "b": 0.0}
    for token, logprob in answer.first.items():
        if letter := _of_letter(token):
            total[letter] += math.exp(logprob)
    return total["a"] / (total["a"] + total["b"]) if sum(total.values()) else None
