"""Completions of a served model, as records of data that train as they are."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fed.data.chat import ChatSettings, in_form
from fed.data.rows import Chat, Preference, Skip
from feedback.api import Answer, Client, Message, Question
from feedback.job_files import JobFile, part_of
from feedback.responses import Prompts, line_of


@dataclass(frozen=True)
class Asked:
    """The way a model is asked for completions.

    Attributes:
        generator: The name of the model in the records.
        settings: Arguments of each call.
        seed: Draw number k of a prompt is asked with the seed `seed` + k.
        system_prompt: A system text before prompts without one.
        require_stop: Leave out completions that did not end by themselves.
    """

    generator: str
    settings: Mapping[str, Any]
    seed: int = 0
    system_prompt: str | None = None
    require_stop: bool = True

    def problem(self, answer: Answer | Skip) -> str:
        """Return why an answer is no completion to keep; "" if it is one."""
        if isinstance(answer, Skip):
            return answer.reason
        if not answer.text.strip():
            return "an empty completion"
        is_cut = self.require_stop and answer.finish_reason != "stop"
        return f"cut before its end ({answer.finish_reason})" if is_cut else ""


@dataclass
class Told:
    """The result of a job, in numbers.

    Attributes:
        skipped: How many questions have no completion, by reason.
        calls: How many were asked; the others' answers were on the disk.
        kept: How many answers were on the disk.
        prompt_tokens: Tokens of the questions that were asked.
        completion_tokens: Tokens of their answers.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count(self, answer: Answer) -> None:
        """Count an answer, and its tokens if it was asked for."""
        if answer.kept:
            self.kept += 1
            return
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens


def as_asked(row: Preference, system_prompt: str | None = None) -> Preference:
    """Return the row as a conversation; HH's markers divide turns, other text is one turn of the user."""
    return in_form(row, ChatSettings(text_as_chat=True, system_prompt=system_prompt))


def messages_of(row: Preference) -> list[Message]:
    """Return the messages of a row that is a conversation."""
    assert isinstance(row.prompt, Chat)
    return [{"role": turn.role, "content": turn.content} for turn in row.prompt.turns]


def complete(
    client: Client, prompts: Prompts, how: Asked, file: JobFile, on_done: Callable[[int], None] = lambda done: None
) -> Told:
    """Ask for the completions that `file` does not have yet.

    Args:
        client: The server's client.
        prompts: What is asked.
        how: How it is asked.
        file: Gets a line for each completion, as `feedback.responses` writes them.
        on_done: Is told how many completions are there.

    Raises:
        CannotContinue: If the server cannot be used; completions that were there are in the file.
    """
    own = [(index, as_asked(row, how.system_prompt)) for index, row in part_of(prompts.rows, prompts.shard)]
    jobs = [(index, draw, row) for index, row in own for draw in range(prompts.n)]
    done = file.done
    left = [job for job in jobs if job[:2] not in done]
    questions = [Question(messages_of(row), {**how.settings, "seed": how.seed + draw}, draw) for _, draw, row in left]
    told = Told()

    def write(place: int, answer: Answer | Skip) -> None:
        index, draw, row = left[place]
        if isinstance(answer, Answer):
            told.count(answer)
        if problem := how.problem(answer):
            told.skipped[problem] += 1
        elif isinstance(answer, Answer):
            reason = answer.finish_reason
            file.add([line_of(row, index, draw, answer.text, answer.completion_tokens, reason, how.generator)])
            on_done(len(file.lines))

    client.ask_all(questions, write)
    return told
