"""A policy against what it was before training: both answer the same prompts, and a judge compares."""

from collections.abc import Sequence

from fed.data.prompts import Prompt
from fed.model.generation import Draws, generate
from fed.model.policy import Policy
from feedback.asking import until
from feedback.judging import Judge, Judgement, Pair, settled
from feedback.winrates import VALUES, Battle


class Contest:
    """Prompts, and the way in which responses to them are drawn and judged, each time with the same random numbers.

    Args:
        prompts: What is asked.
        draws: How responses are drawn; stop strings end them and are no part of them.
        judge: Who judges what is not settled without a judge.
        number: Tells the draws from those of other contests.
    """

    def __init__(self, prompts: Sequence[Prompt], draws: Draws, judge: Judge, number: tuple[int, ...] = ()) -> None:
        self.prompts, self._draws, self._judge, self._number = prompts, draws, judge, number

    def responses(self, policy: Policy) -> list[str]:
        """Draw the policy's response to each prompt. If several processes share the policy, all of them call this."""
        numbers = [(*self._number, place) for place in range(len(self.prompts))]
        drawn = generate(policy, [prompt.ids for prompt in self.prompts], self._draws, numbers=numbers)
        texts = (policy.tokenizer.decode(response, skip_special_tokens=True) for response in drawn)
        return [until(text, self._draws.stop_strings) for text in texts]

    def battles(self, new: Sequence[str], old: Sequence[str]) -> tuple[list[Battle], int]:
        """Return the judgements of new responses against old ones, and how many pairs have none."""
        known = [settled(*both) for both in zip(new, old, strict=True)]
        values = {place: VALUES[side] for place, side in enumerate(known) if side is not None}
        asked = [place for place, side in enumerate(known) if side is None]

        def on_judged(number: int, judgement: Judgement) -> None:
            if judgement.winner is not None:
                values[asked[number]] = VALUES[judgement.winner]

        self._judge.judge([Pair(self.prompts[place].row, new[place], old[place]) for place in asked], on_judged)
        found = [
            Battle(place, "policy", "reference", value, float(len(new[place]) - len(old[place])))
            for place, value in sorted(values.items())
        ]
        return found, len(new) - len(found)
