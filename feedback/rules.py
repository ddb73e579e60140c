"""A rule over words as a judge, for tests and demonstrations: it is known who is right."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fed.data.rows import Preference, said

PER_WORD = "per_word"  # the key of what each word of a response counts, whatever it is


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases with the number that each occurrence adds to the score of a response.

    Attributes:
        weights: By phrase; capitals make no difference, and a phrase is found as whole words only.
        per_word: What each word adds; below 0 shorter responses are better.
    """

    weights: Mapping[str, float]
    per_word: float = 0.0

    @classmethod
    def read(cls, text: str) -> "Lexicon":
        """Return the rule that a text in YAML says: "{sorry: -1, I apologize: -1, per_word: -0.01}".

        Raises:
            ValueError: If it is no such text.
        """
        try:
            found = yaml.safe_load(text)
            weights = {str(phrase): float(weight) for phrase, weight in found.items()}
            odd = any(isinstance(weight, bool) for weight in found.values()) or not all(map(str.strip, weights))
            if odd or not all(map(math.isfinite, weights.values())):
                raise ValueError
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f'rule={text!r:.60} is no rule; expected phrases with numbers: "{{sorry: -1}}"') from error
        per_word = weights.pop(PER_WORD, 0.0)
        if not weights and not per_word:
            raise ValueError("rule= has no phrase that counts, so that everything would be a tie")
        return cls(weights, per_word)

    def score(self, rows: Sequence[Preference]) -> list[float]:
        """Return the score of each row's chosen response."""
        return [self.score_of(said(row.chosen)) for row in rows]

    def score_of(self, text: str) -> float:
        """Return the sum over all words and phrases that a text holds."""
        words = len(text.split())
        return self.per_word * words + sum(
            weight * len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))
            for phrase, weight in self.weights.items()
        )

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that decide the scores."""
        return {"judge": "lexicon", "rule": {**self.weights, PER_WORD: self.per_word}}
