"""AdamW on float32 masters, whatever dtype the model computes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from aha.models import Transformer

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW (arXiv:1711.05101) whose masters and gradients are float32.

    After a step it writes the parameters from the masters and raises the model's `weight_version`.

    Args:
        weight_decay: decoupled, on matrices only; norms and biases are left alone.
    """

    def __init__(self, model: Transformer, *, weight_decay: float = 0.0) -> None:
        self._model = model
        # What is frozen, as under LoRA, gets neither masters nor moments.
        self._parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
        self._masters = {key: _make_master(p) for key, p in self._parameters.items()}
        groups = [
            {"params": [m for m in self._masters.values() if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in self._masters.values() if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.95), fused=True)
        self._hooks = []
        for key, parameter in self._parameters.items():
            if self._masters[key] is not parameter:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(_accumulate_into(self._masters[key])))

    def close(self) -> None:
        """Let go of the model, so that another optimiser can take it over."""
        self.zero_grad()
        for hook in self._hooks:
            hook.remove()

    def zero_grad(self) -> None:
        for tensor in (*self._masters.values(), *self._parameters.values()):
            tensor.grad = None

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale gradients down to `max_norm`; returns the norm before, NaN or infinite if any gradient is."""
        return float(nn.utils.clip_grad_norm_(list(self._masters.values()), max_norm))

    @torch.no_grad()
    def step(self, *, learning_rate: float) -> None:
        """Update masters and parameters from the accumulated gradients, and clear the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for key, parameter in self._parameters.items():
            if self._masters[key] is not parameter:
                parameter.copy_(self._masters[key])
        self._model.weight_version += 1
        self.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat: masters and moments by parameter name."""
        tensors: dict[str, Tensor] = {}
        for key, master in self._masters.items():
            if master is not self._parameters[key]:
                tensors[f"{key}.master"] = master.detach()
            state = self._adamw.state.get(master, {})
            tensors |= {f"{key}.{moment}": state[moment] for moment in _MOMENTS if moment in state}
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_tensors` gave."""
        for key, master in self._masters.items():
            if master is not self._parameters[key]:
                master.copy_(tensors[f"{key}.master"])
            if f"{key}.step" in tensors:
                self._adamw.state[master] = {
                    moment: tensors[f"{key}.{moment}"].to(master.device, copy=True) for moment in _MOMENTS
                }


def _make_master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _accumulate_into(master: Tensor) -> Callable[[Tensor], None]:
    """Sums of bf16 gradients over micro-batches are kept in float32, so that the split does not show."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return hook
