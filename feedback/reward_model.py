"""A reward model's scores of responses, and the model as a judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fed.data.rows import Preference
from feedback.asking import Wanted, how_to_read
from feedback.evaluation import Read, chosen_logps, read
from feedback.policies import Found, Loading, load


class RewardModel:
    """A scorer that `main.py loss=reward` has trained, or another model for sequence classification with one label.

    A response is read with its prompt up to the token that ends it, and the score is that token's.

    Args:
        found: The model.
        loading: How it is loaded; its `max_length` is that of prompt and response.
        wanted: How pairs are read, where it is not as the model's run had it.
        batch_size: Pairs at a time.

    Raises:
        ValueError: If it cannot be loaded, or is no reward model.
    """

    def __init__(self, found: Found, loading: Loading, wanted: Wanted, batch_size: int = 16) -> None:
        self._found, self._batch_size = found, batch_size
        self._model = load(found, loading, scores=True)
        if self._model.model.head_is_drawn and isinstance(self._model.model.score, nn.Linear):
            raise ValueError(f"{found.name} is no reward model: it has no value head; main.py loss=reward trains one")
        self._asking = how_to_read(found, self._model, wanted, loading.max_length)

    def read(self, rows: Sequence[Preference]) -> Read:
        """Return the rows with the scores of their responses in place of log-probs, float64, (N,).

        Raises:
            ValueError: If no row has token ids.
        """
        return read(self._model, rows, self._asking, batch_size=self._batch_size, on_pairs=lambda pairs: None)

    def score(self, rows: Sequence[Preference]) -> list[float]:
        """Return the score of each row's chosen response.

        Raises:
            ValueError: If a row has no token ids.
        """
        return chosen_logps(self._model, rows, self._asking, batch_size=self._batch_size).tolist()

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that decide the scores."""
        return {"judge": "reward_model", "reward_model": self._found.name}
