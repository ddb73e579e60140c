"""A policy as a judge: its own implicit reward, beta (log p_policy(y|x) - log p_reference(y|x)).

arXiv 2305.18290, equation 5, without the term that depends on the prompt alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fed.data.rows import Preference
from fed.model.lora import adapter_off
from feedback.asking import Wanted, how_to_read
from feedback.evaluation import chosen_logps
from feedback.policies import Found, Loading, load


class ImplicitReward:
    """Scores responses by a policy and its reference, both in memory.

    Args:
        found: The policy.
        loading: How both are loaded; its `max_length` is that of prompt and response.
        wanted: How pairs are read, where it is not as the policy's run had it.
        batch_size: Responses at a time.

    Raises:
        ValueError: If they cannot be loaded, or no reference is known.
    """

    def __init__(self, found: Found, loading: Loading, wanted: Wanted, batch_size: int = 16) -> None:
        if not found.has_adapter and found.reference is None:
            raise ValueError(
                f"{found.name} cannot judge: what it began with is not known, and rewards are against that"
            )
        self._found, self._batch_size = found, batch_size
        self._policy = load(found, loading)
        self._reference = self._policy if found.has_adapter or not found.reference else load(found.reference, loading)
        self._asking = how_to_read(found, self._policy, wanted, loading.max_length)

    def score(self, rows: Sequence[Preference]) -> list[float]:
        """Return the reward of each row's chosen response with beta = 1, which ranks as any other beta does.

        Raises:
            ValueError: If a row has no token ids.
        """
        policy = chosen_logps(self._policy, rows, self._asking, batch_size=self._batch_size)
        with adapter_off(self._policy.model):  # of no effect on a policy without one
            reference = chosen_logps(self._reference, rows, self._asking, batch_size=self._batch_size)
        return (policy - reference).tolist()

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that decide the scores."""
        return {"judge": "policy", "policy": self._found.name}
