"""The win rate of the global policy against the policy before training, on the server's test prompts."""

from collections.abc import Mapping
from typing import Any

from fed.data.rows import Preference
from fed.model.evaluation import Metrics
from fed.model.policy import Policy
from fed.model.samples import Sampler
from feedback.judging import Judge, Judgement, Pair
from feedback.winrates import VALUES, Battle, length_controlled, win_rate


class WinRate:
    """A measurement that is made at each evaluation, with the same prompts, random numbers and judge.

    Args:
        sampler: Draws the responses; those of the policy before training come from its first call.
        judge: Who judges. Equal responses tie, and he is not asked.
    """

    def __init__(self, sampler: Sampler, judge: Judge) -> None:
        self._sampler, self._judge = sampler, judge

    def measure(self, policy: Policy) -> Metrics:
        """Return the win rate, a tie counting half, and the length-controlled one, each with its 95 % interval.

        Before training all responses tie, and the rate is 0.5. Pairs that the judge says nothing of are left out and
        counted as `win_unjudged`.
        """
        rows = self._sampler.draw(policy)
        asked = [place for place, row in enumerate(rows) if row["policy"].strip() != row["reference"].strip()]
        values = dict.fromkeys({*range(len(rows))} - {*asked}, VALUES["tie"])

        def on_judged(number: int, judgement: Judgement) -> None:
            if judgement.winner is not None:
                values[asked[number]] = VALUES[judgement.winner]

        pairs = [Pair(Preference(rows[p]["prompt"], "", None), rows[p]["policy"], rows[p]["reference"]) for p in asked]
        self._judge.judge(pairs, on_judged)
        battles = [
            Battle(
                place, "policy", "reference", value, float(len(rows[place]["policy"]) - len(rows[place]["reference"]))
            )
            for place, value in sorted(values.items())
        ]
        found: Metrics = {"win_unjudged": len(rows) - len(battles)}
        if not battles:
            return found
        plain, controlled = win_rate(battles), length_controlled(battles)
        found.update(win_rate=plain.value, win_rate_low=plain.low, win_rate_high=plain.high)
        found.update(length_controlled=controlled.value)
        found.update(length_controlled_low=controlled.low, length_controlled_high=controlled.high)
        return {**found, "win_prompts": len(battles)}

    def state_dict(self) -> dict[str, Any]:
        """Return the responses of the policy before training, which a resumed run cannot draw again."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._sampler.load_state_dict(state)
