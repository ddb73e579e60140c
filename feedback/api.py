"""Questions to a model behind an OpenAI-compatible server: some at a time, tried again, and kept on the disk.

Everything that speaks `/v1/chat/completions` will do: hosted models, Ollama, vLLM, `transformers serve`.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from fed.data.rows import Skip
from fed.errors import CannotContinue
from fed.files import make_private, write_whole, writing

KEY = "OPENAI_API_KEY"  # the variable that holds the key
Message = Mapping[str, str]
OnAnswer = Callable[[int, "Answer | Skip"], None]  # called with the number of a question, in the order of the answers


@dataclass(frozen=True)
class Server:
    """A served model, and how it is called.

    Attributes:
        model: The name under which it is served.
        base_url: Where, "http://127.0.0.1:8000/v1"; None: OpenAI's own, or the variable OPENAI_BASE_URL.
        timeout: Seconds that one answer may take.
        retries: How often a question is asked again that the server could not answer, each time after a longer wait, or
            after what the server's Retry-After says.
        concurrency: Questions at a time.
        cache: A folder of answers, so that none is asked for twice; None: none is kept.
    """

    model: str
    base_url: str | None = None
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 8
    cache: Path | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        text: What the model said.
        finish_reason: Why it ended: "stop", "length", ...
        prompt_tokens: Tokens of the question, as the server counts them; 0 if it does not.
        completion_tokens: Tokens of the answer.
        first: The log-probabilities of the likeliest first tokens, by their text; {} if the server gives none.
        kept: It comes from the disk: nobody was asked.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    first: Mapping[str, float] = field(default_factory=dict)
    kept: bool = False


@dataclass(frozen=True)
class Question:
    """A conversation to be continued.

    Attributes:
        messages: Role and content of each message.
        settings: Arguments of the call: temperature, max_tokens, seed, logprobs, extra_body, ...
        draw: Tells questions apart that are otherwise the same.
        choices: Ask for the probability of these instead, each with its meaning, by `/v1/systemone` of transformers'
            server; () for a completion.
    """

    messages: Sequence[Message]
    settings: Mapping[str, Any]
    draw: int = 0
    choices: tuple[tuple[str, str], ...] = ()


class Client:
    """A client of one server.

    Args:
        server: The server.

    Raises:
        ValueError: If the package openai is not installed, or no key is given where one is needed.
    """

    def __init__(self, server: Server) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError("asking a server needs the package openai: pip install -e '.[feedback]'") from error
        base_url = server.base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(KEY)
        if not key and base_url is None:
            raise ValueError(f"OpenAI's server needs a key: set {KEY}, or give base_url= of another server")
        self._server, self.place = server, _shown(base_url or "https://api.openai.com/v1")
        self._cache = None if server.cache is None else server.cache.absolute()
        self._client = OpenAI(
            api_key=key or "none", base_url=base_url, timeout=server.timeout, max_retries=server.retries
        )

    def ask_all(self, questions: Sequence[Question], on_answer: OnAnswer) -> None:
        """Ask all questions, and call `on_answer` with each answer, or with the reason why the server refuses one.

        Raises:
            CannotContinue: If the server cannot be used; the answers that were there have been handed over.
        """
        left: SimpleQueue[tuple[int, Question]] = SimpleQueue()
        found: SimpleQueue[tuple[int, Answer | Skip | BaseException]] = SimpleQueue()
        for item in enumerate(questions):
            left.put(item)
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                try:
                    place, question = left.get_nowait()
                except Empty:
                    return
                try:
                    found.put((place, self.ask(question)))
                except BaseException as error:  # raised again where all answers arrive
                    ended.set()
                    found.put((place, error))

        try:
            for _ in range(min(self._server.concurrency, len(questions))):
                threading.Thread(target=work, daemon=True).start()  # a question under way keeps nobody from leaving
            for _ in questions:
                place, answer = found.get()
                if isinstance(answer, BaseException):
                    raise answer
                on_answer(place, answer)
        finally:
            ended.set()

    def ask(self, question: Question) -> Answer | Skip:
        """Return the answer to one question, or the reason why the server refuses to give one.

        Raises:
            CannotContinue: If the server cannot be used, or the disk refuses the answer.
        """
        entry = self._entry(question)
        if entry is not None and (kept := _read(entry)) is not None:
            return kept
        found = self._answer(question)
        if entry is not None and isinstance(found, Answer):
            with writing(entry):
                make_private(entry.parents[1])
                write_whole(entry, json.dumps(asdict(found)).encode(), mode=0o600)
        return found

    def _entry(self, question: Question) -> Path | None:
        """Return the file of a question's answer, named by a hash of all that decides it."""
        if self._cache is None:
            return None
        asked = (list(question.messages), dict(question.settings), question.draw, question.choices)
        decides = (self.place, self._server.model, *asked)
        name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return self._cache / name[:2] / f"{name}.json"

    def _answer(self, question: Question) -> Answer | Skip:
        import openai

        times = f"after {self._server.retries} retries"
        try:
            found = self._choice(question) if question.choices else self._completion(question)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._end(f"refuses the key ({error.status_code}): set {KEY}") from error
        except (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError) as error:
            return self._refused(error, question)
        except openai.RateLimitError as error:
            raise self._end(f"still asks to wait {times} (429)") from error
        except openai.APITimeoutError as error:
            raise self._end(f"does not answer within timeout={self._server.timeout:g} seconds, {times}") from error
        except openai.APIConnectionError as error:
            reason = f": {error.__cause__}" if error.__cause__ else ""
            raise self._end(f"cannot be reached {times}{reason}") from error
        except openai.APIStatusError as error:
            raise self._end(f"answers {error.status_code} {times}: {_one_line(error)}") from error
        except (openai.OpenAIError, ValueError) as error:  # the latter of JSON that is none
            raise self._end(f"answers with something that is no completion: {_one_line(error)}") from error
        return found if isinstance(found, Answer) else self._read_answer(found)

    def _completion(self, question: Question) -> Any:
        messages = cast(Any, list(question.messages))
        return self._client.chat.completions.create(model=self._server.model, messages=messages, **question.settings)

    def _choice(self, question: Question) -> Any:
        """Return the probabilities of the choices as an answer; what the server says if it is something else."""
        state = "\n\n".join(message["content"] for message in question.messages)
        asked = {"type": "choice", "instructions": "Which is better?", "criteria": dict(question.choices)}
        body = {"model": self._server.model, "state": state, "questions": {"best": asked}}
        found: Any = self._client.post("/systemone", cast_to=object, body=body)
        try:
            best, usage = found["answers"]["best"], found.get("usage") or {}
            shares = {name: math.log(max(float(share), 1e-30)) for name, share in best["probabilities"].items()}
            return Answer(str(best["choice"]), "stop", int(usage.get("input_tokens", 0)), 0, shares)
        except (KeyError, TypeError, ValueError, AttributeError):
            return found

    def _read_answer(self, found: Any) -> Answer:
        try:
            choice, usage = found.choices[0], found.usage
            text = choice.message.content or ""
            first = choice.logprobs.content[0].top_logprobs if choice.logprobs and choice.logprobs.content else []
            if not isinstance(text, str):
                raise TypeError
            letters = {token.token: float(token.logprob) for token in first}
            counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
            return Answer(text, str(choice.finish_reason), counts[0], counts[1], letters)
        except (AttributeError, IndexError, TypeError) as error:
            raise self._end(f"answers with something that is no completion: {str(found)[:100]}") from error

    def _refused(self, error: Any, question: Question) -> Skip:
        """Return why the server does not answer this question.

        Raises:
            CannotContinue: If it would answer none, because it does not serve the model.
        """
        served = self._served()
        if error.status_code == 404 and question.choices and self._server.model in served:
            raise self._end("has no /v1/systemone: answers=choice needs transformers serve") from error
        if error.status_code == 404 or (served and self._server.model not in served):
            has = f"; it serves {', '.join(served[:5])}" if served else ""
            raise self._end(f"does not serve model={self._server.model} ({_one_line(error)}){has}") from error
        return Skip(f"refused by the server ({_one_line(error)})")

    def _served(self) -> list[str]:
        try:
            return [model.id for model in self._client.with_options(max_retries=0).models.list()]
        except Exception:  # whatever a server without such a list answers
            return []

    def _end(self, what: str) -> CannotContinue:
        return CannotContinue(f"the server at {self.place} {what}")


def _shown(base_url: str) -> str:
    """Return an address without the name and the password that may stand in it.

    Raises:
        ValueError: If it is no address.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url={base_url:.60} is no address; expected such as http://127.0.0.1:8000/v1")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _one_line(error: Exception) -> str:
    body = getattr(error, "body", None)
    known = [body[name] for name in ("message", "detail") if body.get(name)] if isinstance(body, Mapping) else []
    response = getattr(error, "response", None)
    text = known[0] if known else getattr(response, "text", "") or error
    return " ".join(str(text).split())[:150]


def _read(entry: Path) -> Answer | None:
    """Return an answer that was kept; None if there is none, or the file is damaged."""
    try:
        return Answer(**{**json.loads(entry.read_text(encoding="utf-8")), "kept": True})
    except (OSError, ValueError, TypeError):
        return None
