"""The wire: arrays travel as float32, or as bfloat16 differences from weights that server and client both know.

Weights themselves in bfloat16 would lose what training changes: it keeps 8 bits, and one round moves a weight by less
than its last one. So the server sends the difference from the initial weights, which every client has, and a client the
difference from the weights it received: the error is 2^-8 of each difference at most. The server adds a client's
difference to its own exact weights, not to what the client received: errors of the way out do not add up over rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from fed.errors import Failed
from fed.model.arrays import not_finite, to_record, to_tensors

DIFFERENCE = "bfloat16-difference"  # Flower's `stype` of what numpy cannot read


@dataclass(frozen=True)
class Wire:
    """The form in which arrays travel.

    Args:
        dtype: "float32" leaves arrays as they are; "bfloat16" halves their bytes.
        initial: The model's weights before any training, by name; read with bfloat16 only.
    """

    dtype: str
    initial: Mapping[str, Tensor]

    @property
    def itemsize(self) -> int:
        """Return the bytes of one number."""
        return 2 if self.dtype == "bfloat16" else 4

    def pack(self, record: ArrayRecord, base: ArrayRecord | None = None) -> ArrayRecord:
        """Return Flower's own arrays to be sent, as differences from `base`; None: from the initial weights."""
        packed = ArrayRecord()
        for name, tensor in to_tensors(record).items():
            if self.dtype == "float32":
                packed[name] = Array.from_numpy_ndarray(tensor.float().cpu().numpy())
            else:
                words = self._difference(name, tensor, base).view(torch.int16).numpy()
                data = words.astype("<i2", copy=False).tobytes()
                packed[name] = Array("bfloat16", tuple(tensor.shape), DIFFERENCE, data)
        return packed

    def unpack(self, record: ArrayRecord, base: ArrayRecord | None = None) -> ArrayRecord:
        """Return the differences that the other side had packed, added to `base` in float32.

        Args:
            record: What travelled.
            base: The weights that this side has in place of those the differences are from; None: the initial ones.

        Raises:
            ValueError: If they were packed in another dtype, or do not fit the model.
        """
        tensors = {}
        for name, array in record.items():
            if (array.stype == DIFFERENCE) != (self.dtype == "bfloat16"):
                raise ValueError(f"{name} travels as {array.dtype}, expected {self.dtype}: wire_dtype differs")
            if self.dtype == "float32":
                values = array.numpy()
                if values.dtype != np.float32:
                    raise ValueError(f"{name} travels as {values.dtype}, expected float32")
                tensors[name] = torch.from_numpy(values)
            else:
                words = np.frombuffer(array.data, dtype="<i2").reshape(array.shape).astype(np.int16)
                tensors[name] = self._sum(name, torch.from_numpy(words).view(torch.bfloat16), base)
        return to_record(tensors)

    def travelled(self, record: ArrayRecord) -> ArrayRecord:
        """Return what a client in this process unpacks of the server's weights."""
        return self._moved(record, None, None)

    def returned(self, trained: ArrayRecord, received: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
        """Return what the server unpacks of the weights that a client in this process has trained.

        Args:
            trained: The client's weights after training.
            received: The weights that it received.
            sent: The server's exact weights that these came from.
        """
        return self._moved(trained, received, sent)

    def _moved(self, record: ArrayRecord, base: ArrayRecord | None, onto: ArrayRecord | None) -> ArrayRecord:
        if self.dtype == "float32":
            return record
        tensors = to_tensors(record).items()
        return to_record({n: self._sum(n, self._difference(n, t, base), onto) for n, t in tensors})

    def _difference(self, name: str, tensor: Tensor, base: ArrayRecord | None) -> Tensor:
        return (tensor.cpu().float() - self._known(name, base)).bfloat16()

    def _sum(self, name: str, difference: Tensor, base: ArrayRecord | None) -> Tensor:
        known = self._known(name, base)
        if known.shape != difference.shape:
            raise ValueError(f"{name} has shape {tuple(difference.shape)}, expected {tuple(known.shape)}")
        return known + difference.float()

    def _known(self, name: str, base: ArrayRecord | None) -> Tensor:
        known = self.initial if base is None else to_tensors(base)
        if name not in known:
            raise ValueError(f"{name} is not in the model; server and clients must have the same")
        return known[name].cpu().float()


AS_IT_IS = Wire("float32", {})


def unpacking(wire: Wire) -> Mod:
    """Return a client mod, the outermost: mods inside it, and the training, see whole weights in float32."""

    def unpacked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        received = {key: wire.unpack(record) for key, record in message.content.array_records.items()}
        for key, record in received.items():
            if (name := not_finite(to_tensors(record))) is not None:
                raise Failed(f"the server sent {name} with numbers that are not finite; nothing is sent")
            message.content[key] = record
        reply = call_next(message, context)
        if not reply.has_error():
            for key in reply.content.array_records.keys() & received.keys():
                reply.content[key] = wire.pack(reply.content.array_records[key], received[key])
        return reply

    return unpacked
