"""The state of a client between rounds. It is stored in the client's Flower context, so it never leaves the client."""

from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fed.model.arrays import to_record, to_tensors


@dataclass
class ClientState:
    """Counters, the decay lambda_k, and the optimizer's state when it persists."""

    # lambda_k of docs/algorithm.md: multiplied by decay_rate after each round that did not beat the server.
    decay: float = 1.0
    updates: int = 0  # optimizer steps ever taken
    examples: int = 0  # pairs ever trained on
    batches: int = 0  # position in this client's endless order of batches
    optimizer: dict[str, Tensor] = field(default_factory=dict)  # "<parameter>/<slot>" -> tensor

    def add_step(self, pairs: int) -> None:
        """Count an optimizer step on so many pairs."""
        self.updates += 1
        self.examples += pairs


def read_state(records: RecordDict) -> ClientState:
    """Return the state stored in a context; a fresh one before the first round."""
    counters = records.metric_records.get("client")
    if counters is None:
        return ClientState()
    optimizer = records.array_records.get("optimizer")
    return ClientState(
        decay=float(counters["decay"]),  # type: ignore[arg-type]
        updates=int(counters["updates"]),  # type: ignore[arg-type]
        examples=int(counters["examples"]),  # type: ignore[arg-type]
        batches=int(counters["batches"]),  # type: ignore[arg-type]
        optimizer={} if optimizer is None else to_tensors(optimizer),
    )


def write_state(records: RecordDict, state: ClientState) -> None:
    """Store the state in a context, in place of the one before."""
    records["client"] = MetricRecord(
        {"decay": state.decay, "updates": state.updates, "examples": state.examples, "batches": state.batches}
    )
    records["optimizer"] = to_record(state.optimizer) if state.optimizer else ArrayRecord()
