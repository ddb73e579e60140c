"""The win rate of the global policy against the policy before training, on the server's test prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from fed.data.prompts import Prompt
from fed.model.evaluation import Metrics
from fed.model.generation import Draws, generate
from fed.model.policy import Policy
from feedback.judging import Judge, Judgement, Pair
from feedback.winrates import VALUES, Battle, length_controlled, win_rate


class WinRate:
    """A measurement that is made at each evaluation, with the same prompts, random numbers and judge.

    Args:
        prompts: What is asked.
        draws: How responses are drawn.
        judge: Who judges. Equal responses tie, and he is not asked.
    """

    def __init__(self, prompts: Sequence[Prompt], draws: Draws, judge: Judge) -> None:
        self._prompts, self._draws, self._judge = prompts, draws, judge
        self._reference: list[str] = []  # the responses of the policy before training, which the first call sees

    def measure(self, policy: Policy) -> Metrics:
        """Return the win rate, a tie counting half, and the length-controlled one, each with its 95 % interval.

        Before training all responses tie, and the rate is 0.5. Pairs that the judge says nothing of are left out and
        counted as `win_unjudged`.
        """
        responses = generate(policy, [prompt.ids for prompt in self._prompts], self._draws)
        new = [policy.tokenizer.decode(response, skip_special_tokens=True) for response in responses]
        self._reference = old = self._reference or new
        asked = [place for place in range(len(new)) if new[place].strip() != old[place].strip()]
        values = dict.fromkeys({*range(len(new))} - {*asked}, VALUES["tie"])

        def on_judged(number: int, judgement: Judgement) -> None:
            if judgement.winner is not None:
                values[asked[number]] = VALUES[judgement.winner]

        self._judge.judge([Pair(self._prompts[place].row, new[place], old[place]) for place in asked], on_judged)
        battles = [
            Battle(place, "policy", "reference", value, float(len(new[place]) - len(old[place])))
            for place, value in sorted(values.items())
        ]
        found: Metrics = {"win_unjudged": len(new) - len(battles)}
        if not battles:
            return found
        plain, controlled = win_rate(battles), length_controlled(battles)
        found.update(win_rate=plain.value, win_rate_low=plain.low, win_rate_high=plain.high)
        found.update(length_controlled=controlled.value)
        found.update(length_controlled_low=controlled.low, length_controlled_high=controlled.high)
        return {**found, "win_prompts": len(battles)}

    def state_dict(self) -> dict[str, Any]:
        """Return the responses of the policy before training, which a resumed run cannot draw again."""
        return {"reference": self._reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._reference = list(state["reference"])
