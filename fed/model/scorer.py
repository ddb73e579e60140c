"""Reward models: the body of a causal language model under a value head, which gives a response one score.

A scorer is transformers' model for sequence classification with one label, so that
`AutoModelForSequenceClassification.from_pretrained` loads what is saved. It reads a response up to and with its last
token, and the hidden state there becomes the score.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from fed.data.examples import Example

KIND = "ForSequenceClassification"  # ends the names of such models' classes


def is_scorer(model: Any) -> bool:
    """Return True if the model gives scores in place of tokens."""
    return type(model).__name__.endswith(KIND)


def as_scorer(model: Any) -> Any:
    """Return a causal language model's body under a value head, with the weights that it has.

    The head is drawn from torch's generator, with variance 1 / (hidden size + 1) as in arXiv 2009.01325.

    Raises:
        ValueError: If transformers has no such model of this family.
    """
    config = model.config
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"loss=reward needs a model for sequence classification, and transformers has none of the kind of "
            f"{type(model).__name__}; give a model of another family"
        )
    one_score(config)
    with torch.device("meta"):  # an empty shell around the weights
        scorer = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
    setattr(scorer, scorer.base_model_prefix, model.base_model)
    scorer.config = config  # the body's own, so that both have the same attention
    scorer.score = nn.Linear(model.get_input_embeddings().embedding_dim, 1, bias=False, dtype=model.dtype)
    check_scorer(scorer)
    scorer.head_is_drawn = True
    nn.init.normal_(scorer.score.weight, std=(scorer.score.in_features + 1) ** -0.5)
    return scorer


def one_score(config: Any) -> None:
    """Set the configuration to one score.

    A padding token that also ends texts is left out: transformers reads the score at the last token that is none, and
    would take the one before the end. It then scores one text at a time only.
    """
    config.num_labels = 1
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id in ends:
        config.pad_token_id = None


def check_scorer(model: Any) -> None:
    """Check that the model is a body under one linear layer with one output.

    Raises:
        ValueError: If it is something else.
    """
    head = getattr(model, "score", None)
    model.head_is_drawn = False
    if not isinstance(head, nn.Linear) or head.out_features != 1 or any(p.is_meta for p in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} is no body under a layer `score` with one output; give a causal language model "
            "or a reward model"
        )


def whole_responses(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the last token of each response twice: batches leave the last one out."""
    return [
        replace(
            example,
            chosen=(*example.chosen, example.chosen[-1]),
            rejected=(*example.rejected, *example.rejected[-1:]),
        )
        for example in examples
    ]
