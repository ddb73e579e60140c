"""Optimizers of a client in torch's fastest form, their state by parameter name, and the clipping of gradients."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fed.distributed.ranks import ALONE, Ranks

BLOCK = 1 << 18  # numbers: four such blocks of float32 are 4 MiB and stay in cache
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "SGD": torch.optim.SGD,
}


def make_optimizer(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of that name, with torch's defaults but for `lr`.

    AdamW, Adam and SGD are fused where torch can: AdamW and Adam then keep their `step` on the parameter's device. On a
    CPU torch's fused SGD (2.13) leaves blocks of 16 numbers in 16 bits as they were, so it is not used for those.
    """
    parameters = list(parameters)
    if name == "RMSprop":
        return RMSprop(parameters, lr=lr)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    if name == "SGD" and any(p.is_cpu and p.element_size() == 2 for p in parameters):
        fused = False
    return OPTIMIZERS[name](parameters, lr=lr, fused=fused or None)  # type: ignore[call-arg]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Give a new optimizer of these parameters the state that `optimizer_state` returned."""
    for key, tensor in state.items():
        name, slot = key.rsplit("/", 1)
        parameter = parameters[name]
        # Unless it is fused, AdamW keeps its step count on the CPU.
        here = slot != "step" or optimizer.param_groups[0].get("fused")
        optimizer.state[parameter][slot] = tensor.to(parameter.device if here else "cpu", copy=True)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the optimizer's state on the CPU, by "<parameter>/<slot>"."""
    return {
        f"{name}/{slot}": torch.as_tensor(value).cpu()
        for name, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
        if value is not None
    }


class RMSprop(torch.optim.RMSprop):
    """torch's RMSprop to the bit, with a state that either can load.

    On the CPU torch goes through all of a parameter once per operation, from memory; here a block that stays in cache
    goes through all operations at once. Elsewhere, and with options other than alpha and eps, torch's own step runs.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on every parameter with a gradient and return what `closure` returns."""
        if not all(map(_is_plain, self.param_groups)):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["square_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        tensors = (parameter, parameter.grad, state["square_avg"])
        if not all(tensor.is_contiguous() for tensor in tensors):
            _step(*tensors, None, group)
            return
        root = parameter.new_empty(min(BLOCK, parameter.numel()))
        for block, gradient, square_avg in zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True):
            _step(block, gradient, square_avg, root[: block.numel()], group)


def _step(parameter: Tensor, gradient: Tensor, square_avg: Tensor, root: Tensor | None, group: dict[str, Any]) -> None:
    """Apply theta -= lr g / (sqrt(v) + eps) with v = alpha v + (1 - alpha) g^2, by the operations that torch uses."""
    square_avg.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
    root = torch.sqrt(square_avg, out=root).add_(group["eps"])
    parameter.addcdiv_(gradient, root, value=-group["lr"])


def _is_plain(group: dict[str, Any]) -> bool:
    """Return whether `RMSprop` can run these options block by block."""
    options = ("momentum", "centered", "weight_decay", "maximize", "differentiable", "capturable")
    if isinstance(group["lr"], Tensor) or any(group[option] for option in options):
        return False
    return all(
        p.is_cpu and p.is_floating_point() and (p.grad is None or p.grad.layout == torch.strided)
        for p in group["params"]
    )


@torch.no_grad()
def clip_grad_norm(
    parameters: Iterable[Tensor], max_norm: float, parts: Iterable[Tensor] = (), holders: Ranks = ALONE
) -> Tensor:
    """Scale all gradients to norm `max_norm` if their norm is larger, and return the norm before.

    The result is that of `torch.nn.utils.clip_grad_norm_`, to the bit. Gradients within bounds are left untouched;
    torch multiplies them by 1.

    Args:
        parameters: Whole parameters, the same in all processes.
        max_norm: The largest norm allowed.
        parts: This process's parts of parameters that are split over processes.
        holders: The processes that hold all parts together.
    """
    whole, own = ([p for p in some if p.grad is not None] for some in (parameters, parts))
    norm = _norm(whole)
    if holders.count > 1:
        norm = (norm.double().square() + holders.sum(_norm(own).double().square())).sqrt().float()
    if not max_norm / (norm + 1e-6) >= 1:  # also if it is not a number: then all gradients become so
        torch.nn.utils.clip_grads_with_norm_([*whole, *own], max_norm, norm)
    return norm


def _norm(parameters: Iterable[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
