"""Fresh pairs of a client: responses that the policy it received gives to its own prompts, judged where they are.

Neither prompts nor responses leave the client; a judge that is a served model is asked by the client itself.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fed.config.online import OnlineSettings
from fed.data.examples import Example, Examples
from fed.data.prompts import Prompt
from fed.data.tokens import text_ids
from fed.errors import Failed
from fed.model.evaluation import Metrics
from fed.model.generation import Draws, generate
from fed.model.policy import Policy
from fed.seeding import generator
from feedback.asking import until
from feedback.judging import Judge, Judgement, Pair, settled

KEPT = "online"  # the record of a client's context that holds its last fresh pairs
WORTH = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}  # what a judgement is worth to both responses
# Returns examples with their reference column.
Fill = Callable[[Sequence[Example]], Examples]


class Drawn(NamedTuple):
    """The responses to one prompt."""

    prompt: Prompt
    responses: list[tuple[int, ...]]
    texts: list[str]


class FreshPairs:
    """The maker of all clients' fresh pairs.

    Args:
        policy: The run's one model; it holds the weights that the client received when `of` is called.
        judge: Who judges.
        settings: How many responses are drawn, how often, and what they are mixed with.
        draws: How responses are drawn; stop strings end them and are no part of them.
        fill: Fills in the reference column, and leaves the weights as they are.
        prompts: Returns the prompts of a client, each once.
    """

    def __init__(
        self,
        policy: Policy,
        judge: Judge,
        settings: OnlineSettings,
        draws: Draws,
        fill: Fill,
        prompts: Callable[[int], Sequence[Prompt]],
    ) -> None:
        self._policy, self._judge, self._settings = policy, judge, settings
        self._draws, self._fill, self._prompts = draws, fill, prompts

    def of(
        self, client_id: int, server_round: int, stored: Sequence[Example], kept: RecordDict
    ) -> tuple[Sequence[Example], Metrics]:
        """Return what a client trains on in a round, with the reference column, and what became of the draws.

        Args:
            client_id: The client.
            server_round: The round; the draws depend on it.
            stored: The client's pairs of the data, some of which may be trained on beside the fresh ones.
            kept: The client's context, which keeps the fresh pairs for rounds that draw none.

        Raises:
            Failed: If no prompt has responses of which one is better.
        """
        found, drawn, told = *self._last(kept), Metrics()
        if found is None or server_round - drawn >= self._settings.every:
            fresh, told = self._fresh(client_id, server_round)
            if not fresh:
                raise Failed(
                    f"client {client_id} has no fresh pair: of {told['prompts']:g} prompts {told['ties']:g} have "
                    f"responses that tie, and {told['unjudged']:g} no judgement"
                )
            found = self._fill(fresh)
            _keep(kept, found, server_round)
        elif self._settings.reference == "previous":
            found = self._fill(found)
        own = self._stored(client_id, server_round, stored, len(found))
        return Examples.joined([found, own]) if own else found, {**told, "examples": len(found), "stored": len(own)}

    def _stored(self, client_id: int, server_round: int, stored: Sequence[Example], fresh: int) -> Examples:
        """Draw the pairs of the data that are trained on beside the fresh ones."""
        mix = self._settings.mix
        count = min(round(fresh * mix / (1 - mix)), len(stored))
        places = generator(self._draws.seed, "stored pairs", client_id, server_round).permutation(len(stored))[:count]
        chosen = Examples.of(stored[int(place)] for place in np.sort(places))
        return self._fill(chosen) if chosen and self._settings.reference == "previous" else chosen

    def _fresh(self, client_id: int, server_round: int) -> tuple[list[Example], Metrics]:
        drawn = self._draw(client_id, server_round)
        worths, judged = self._judged(drawn)
        pairs, ties = [], 0
        for one, worth, is_judged in zip(drawn, worths, judged, strict=True):
            if not is_judged:
                continue
            best, worst = int(np.argmax(worth)), int(np.argmin(worth))
            if worth[best] == worth[worst]:
                ties += 1
            else:
                pairs.append(Example(one.prompt.ids, one.responses[best], one.responses[worst]))
        lengths = [len(response) for one in drawn for response in one.responses]
        told = {"prompts": len(drawn), "ties": ties, "unjudged": judged.count(False), "tokens": float(np.mean(lengths))}
        return pairs, told

    def _draw(self, client_id: int, server_round: int) -> list[Drawn]:
        """Draw the responses to the client's prompts of this round."""
        prompts = self._prompts(client_id)
        count = min(self._settings.prompts or len(prompts), len(prompts))
        places = np.sort(
            generator(self._draws.seed, "prompts", client_id, server_round).choice(len(prompts), count, replace=False)
        ).tolist()
        n = self._settings.n
        asked = [prompts[place].ids for place in places for _ in range(n)]
        numbers = [(client_id, server_round, place, draw) for place in places for draw in range(n)]
        responses = generate(self._policy, asked, self._draws, numbers=numbers)
        found = []
        for number, place in enumerate(places):
            own = [self._ended(response) for response in responses[number * n : (number + 1) * n]]
            found.append(Drawn(prompts[place], [ids for ids, _ in own], [text for _, text in own]))
        return found

    def _ended(self, response: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
        """Return a response and what it says; one that a stop string has ended ends as the data's responses do."""
        tokenizer = self._policy.tokenizer
        whole = tokenizer.decode(response, skip_special_tokens=True)
        text = until(whole, self._draws.stop_strings)
        if text != whole:
            (ids,) = text_ids([text], tokenizer)
            response = (*ids, tokenizer.eos_token_id)
        return response, text

    def _judged(self, drawn: Sequence[Drawn]) -> tuple[list[np.ndarray], list[bool]]:
        """Return what each response is worth against the others to its prompt, and which prompts have a judgement."""
        worths = [np.zeros(len(one.texts)) for one in drawn]
        asked: list[tuple[int, int, int]] = []  # the prompt, and two of its responses
        pairs: list[Pair] = []
        for place, one in enumerate(drawn):
            for i, j in combinations(range(len(one.texts)), 2):
                a, b = one.texts[i], one.texts[j]
                if (side := settled(a, b)) is not None:
                    worths[place][[i, j]] += WORTH[side]
                else:
                    asked.append((place, i, j))
                    pairs.append(Pair(one.prompt.row, a, b))
        judged = [True] * len(drawn)

        def on_judged(number: int, judgement: Judgement) -> None:
            place, i, j = asked[number]
            if judgement.winner is None:
                judged[place] = False
            else:
                worths[place][[i, j]] += WORTH[judgement.winner]

        self._judge.judge(pairs, on_judged)
        return worths, judged

    def _last(self, kept: RecordDict) -> tuple[Examples | None, int]:
        """Return the fresh pairs that the context holds, None before the first draw, and the round of their draw."""
        record = kept.array_records.get(KEPT)
        if record is None:
            return None, 0
        arrays = {name: array.numpy() for name, array in record.items()}
        examples = Examples(arrays["ids"].astype(np.uint32), arrays["ends"], arrays["reference"])
        return examples, int(arrays["round"][0])


def _keep(kept: RecordDict, found: Examples, server_round: int) -> None:
    assert found.reference is not None
    columns = {"ids": found.ids.astype(np.int64), "ends": found.ends.astype(np.int64), "reference": found.reference}
    columns["round"] = np.array([server_round])
    kept[KEPT] = ArrayRecord({name: Array(column) for name, column in columns.items()})
