"""The DPO step of others: the original DPO code, published FeDPO, and TRL's DPOTrainer.

The first two are written from their definitions. Each step runs on the shared model and changes nothing of it but the
weights. Shapes: B pairs, N = 2B sequences (chosen, then rejected), T tokens of the longest, V vocabulary.
"""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fed.data.examples import Example

Step = Callable[[Sequence[Example]], float]
IGNORED = -100  # label of tokens outside the response


@dataclass(frozen=True)
class Models:
    """The models and the optimizer that all variants share, so that many of them fit into one process."""

    policy: Any
    reference: Any
    server: Any  # FeDPO's copy of the model the round started from; gathers gradients
    optimizer: torch.optim.Optimizer
    beta: float = 0.1
    max_grad_norm: float = 10.0

    @property
    def device(self) -> torch.device:
        """The device of all models."""
        found: torch.device = self.policy.device
        return found

    def update(self) -> None:
        """Clip the gradients, take the optimizer step and drop the gradients, as every variant does."""
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Padded(NamedTuple):
    """Chosen and rejected sequences, right-padded to the longest of the batch, each (N, T)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor  # IGNORED for prompt and padding


def pad(pairs: Sequence[Example], device: torch.device | str = "cpu") -> Padded:
    """Concatenate the sequences as the original DPO code does; the tensors lie on `device`."""
    sequences = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids, mask, labels = [], [], []
    for prompt, response in sequences:
        padding = width - len(prompt) - len(response)
        input_ids.append([*prompt, *response] + [0] * padding)
        mask.append([1] * (width - padding) + [0] * padding)
        labels.append([IGNORED] * len(prompt) + [*response] + [IGNORED] * padding)
    return Padded(*(torch.tensor(rows, device=device) for rows in (input_ids, mask, labels)))


def full_logps(model: Any, batch: Padded) -> Tensor:
    """Return the summed log-probs of each response, (N,), by log-softmax over all logits in float32."""
    logits_NTV = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits.float()
    targets_NT = batch.labels[:, 1:]
    responses_NT = targets_NT != IGNORED
    logps_NTV = logits_NTV[:, :-1].log_softmax(-1)
    logps_NT = logps_NTV.gather(2, targets_NT.clamp(min=0)[:, :, None]).squeeze(2)
    logps_N: Tensor = (logps_NT * responses_NT).sum(-1)
    return logps_N


def dpo_of(logps_N: Tensor, reference_N: Tensor, beta: float) -> Tensor:
    """Return the mean of -log sigmoid(beta h), without using the project's own code, which it is compared with."""
    chosen, rejected = (logps_N - reference_N).chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def plain_step(models: Models, pairs: Sequence[Example]) -> float:
    """Take one step of the original DPO code and return the loss."""
    batch = pad(pairs, models.device)
    logps = full_logps(models.policy, batch)
    with torch.no_grad():
        reference = full_logps(models.reference, batch)
    loss = dpo_of(logps, reference, models.beta)
    loss.backward()  # type: ignore[no-untyped-call]
    models.update()
    return loss.item()


def fedpo_step(models: Models, pairs: Sequence[Example], alpha: float = 1.0) -> float:
    """Take one step of published FeDPO and return the DPO part of its loss.

    The policy runs a second time for the anchor term. The server's copy runs with gradients, which nothing reads or
    clears: the published code drops the result of the `.detach()` that should have prevented them.
    """
    batch = pad(pairs, models.device)
    logps = full_logps(models.policy, batch)
    with torch.no_grad():
        reference = full_logps(models.reference, batch)
    loss = dpo_of(logps, reference, models.beta)
    (loss + alpha * server_term(models, batch)).backward()  # type: ignore[no-untyped-call]
    models.update()
    return loss.item()


def server_term(models: Models, batch: Padded) -> Tensor:
    """Return the mean squared difference from the server's summed log-probs, chosen plus rejected."""
    pairs = zip(full_logps(models.policy, batch).chunk(2), full_logps(models.server, batch).chunk(2), strict=True)
    return sum((F.mse_loss(policy, server) for policy, server in pairs), torch.zeros((), device=models.device))


def trl_version() -> str | None:
    """Return the version of the installed TRL, or None."""
    return None if importlib.util.find_spec("trl") is None else str(importlib.import_module("trl").__version__)


class Trl:
    """TRL's DPOTrainer: its collator, its `training_step`, and then everyone's clip and optimizer step.

    The trainer changes the models (forward functions for its fused head and autocast, training mode, activation
    checkpointing); these changes hold only while it is `prepared`.
    """

    def __init__(self, models: Models, tokenizer: Any, folder: str, batch: int, **configuration: Any) -> None:
        """Make a trainer with DPOConfig's defaults, except for `configuration`."""
        self.models = models
        self.precomputed = bool(configuration.get("precompute_ref_log_probs", False))
        both = (models.policy, models.reference)
        with restored(models.policy), restored(models.reference), _quiet():
            before = [dict(model.__dict__) for model in both]
            self.trainer = self._trainer(tokenizer, folder, batch, configuration)
            self.trainer.accelerator.prepare(models.policy)
            self.changes = [_changed(old, model.__dict__) for old, model in zip(before, both, strict=True)]
        self.trainer.current_gradient_accumulation_steps = 1  # its training loop would say so

    @contextmanager
    def prepared(self) -> Iterator[Step]:
        """Yield the step; meanwhile the models are as the trainer wants them."""
        policy, reference = self.models.policy, self.models.reference
        with restored(policy), restored(reference), _quiet():
            policy.__dict__.update(self.changes[0])
            reference.__dict__.update(self.changes[1])
            if self.trainer.args.gradient_checkpointing:
                checkpointing(policy, "enable")
            yield self._step

    def _step(self, pairs: Sequence[Example]) -> float:
        loss = self.trainer.training_step(self.models.policy, self.inputs(pairs))
        self.models.update()
        return float(loss)

    def _trainer(self, tokenizer: Any, folder: str, batch: int, configuration: dict[str, Any]) -> Any:
        trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
        # The trainer wants a data set and gets one pair: batches come as token ids, with reference log-probs if any.
        row = datasets.Dataset.from_list([{"prompt": "One", "chosen": " two", "rejected": " three"}])
        arguments = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_length=512,
            beta=self.models.beta,
            use_cpu=self.models.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
            **configuration,
        )
        return trl.DPOTrainer(
            model=self.models.policy,
            ref_model=None if self.precomputed else self.models.reference,
            args=arguments,
            train_dataset=row,
            processing_class=tokenizer,
            optimizers=(self.models.optimizer, None),
        )

    def inputs(self, pairs: Sequence[Example]) -> dict[str, Tensor]:
        """Return the batch of TRL's collator, checked to hold exactly the tokens that every variant gets."""
        inputs: dict[str, Tensor] = self.trainer.data_collator([self._row(pair) for pair in pairs])
        tokens = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)
        responses = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        assert int(inputs["attention_mask"].sum()) == tokens
        assert int(inputs["completion_mask"].sum()) == responses
        return inputs

    def _row(self, pair: Example) -> dict[str, Any]:
        row: dict[str, Any] = {
            "prompt_ids": list(pair.prompt),
            "chosen_ids": list(pair.chosen),
            "rejected_ids": list(pair.rejected),
        }
        if self.precomputed:
            assert pair.reference is not None
            row |= {"ref_chosen_logps": pair.reference.chosen, "ref_rejected_logps": pair.reference.rejected}
        return row


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in new.items() if name not in old or old[name] is not value}


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Undo at the end all changes to the model's attributes, mode, checkpointing and configuration."""
    attributes, configuration, training = dict(model.__dict__), dict(model.config.__dict__), model.training
    try:
        yield
    finally:
        checkpointing(model, "disable")
        model.train(training)
        for own, before in ((model.__dict__, attributes), (model.config.__dict__, configuration)):
            own.clear()
            own.update(before)


def checkpointing(model: Any, do: str) -> None:
    """Do `enable` or `disable` to the recomputation of activations, which happens in training mode only."""
    # Newer transformers 5 has the first name and warns of the second.
    (getattr(model, f"activation_checkpointing_{do}", None) or getattr(model, f"gradient_checkpointing_{do}"))()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of TRL, which do not concern the reader of a table."""
    os.environ["TQDM_DISABLE"] = "1"
    importlib.import_module("datasets").disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
