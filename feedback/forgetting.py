"""The loss of a policy on text that has nothing to do with the preferences: what it has forgotten."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed.data.examples import Example, Examples
from fed.data.readers import has_reader, records_of
from fed.data.records import Record
from fed.data.tokens import begin_of_text, text_ids
from fed.intervals import ratio_interval
from fed.model.policy import OnPairs, Policy, pair_logps


def documents(path: str) -> list[str]:
    """Read the texts of a file: records with a field `text`, or of another file the paragraphs.

    Raises:
        ValueError: If it cannot be read, or has no text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"text={path} is no file")
    if not has_reader(file):
        try:
            found = file.read_text(encoding="utf-8").split("\n\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text={path} cannot be read ({error})") from error
    else:
        found = [Record(where, "", fields).text("text") for where, fields in records_of(file)]
    found = [text for text in found if text.strip()]
    if not found:
        raise ValueError(f"text={path} holds no text")
    return found


@dataclass(frozen=True)
class TextLosses:
    """The loss of one policy on texts, cut into pieces.

    Attributes:
        owners: The number of the text of each piece.
        tokens: How many tokens of each piece are scored.
        losses: The sum of their -log p, in nats.
    """

    owners: Sequence[int]
    tokens: Sequence[float]
    losses: Sequence[float]

    @property
    def per_token(self) -> float:
        """The mean of -log p over all tokens, in nats."""
        return math.fsum(self.losses) / math.fsum(self.tokens)


def text_losses(
    policy: Policy, texts: Sequence[str], max_length: int, *, batch_size: int, on_pairs: OnPairs
) -> TextLosses:
    """Score texts in pieces of at most `max_length` tokens, each from its second token on.

    Raises:
        ValueError: If no text has two tokens.
    """
    begin, pieces, owners = begin_of_text(policy.tokenizer), [], []
    for number, ids in enumerate(text_ids(texts, policy.tokenizer)):
        whole = [*begin, *ids]
        for start in range(0, len(whole), max_length):
            piece = whole[start : start + max_length]
            if len(piece) > 1:
                pieces.append(Example((piece[0],), tuple(piece[1:]), ()))
                owners.append(number)
    if not pieces:
        raise ValueError("no text has two tokens")
    found = pair_logps(policy, Examples.of(pieces), batch_size=batch_size, paired=False, on_pairs=on_pairs)
    return TextLosses(owners, [float(len(one.chosen)) for one in pieces], [-one.chosen for one in found])


def forgotten(policy: TextLosses, reference: TextLosses | None) -> dict[str, Any]:
    """Return the loss per token of policy and reference, and their difference with the ends of its 95 % interval.

    Texts are independent, the pieces of one are not.

    Raises:
        ValueError: If both do not have the same tokens.
    """
    found: dict[str, Any] = {"documents": len({*policy.owners}), "tokens": int(sum(policy.tokens))}
    found["loss_per_token"] = policy.per_token
    if reference is None:
        return found
    if (list(policy.owners), list(policy.tokens)) != (list(reference.owners), list(reference.tokens)):
        raise ValueError(
            "policy and reference have different tokenizers, so that their losses per token do not compare"
        )
    more = [own - other for own, other in zip(policy.losses, reference.losses, strict=True)]
    mean, low, high = ratio_interval(more, policy.tokens, policy.owners)
    found["reference_loss_per_token"] = reference.per_token
    return {**found, "difference": mean, "difference_low": low, "difference_high": high}
