"""The optimizer and the learning rate, free of hidden state: the rate is a function of the number of updates done.

Because it is computed from the count of optimizer updates, neither gradient accumulation nor several processes can step
it twice, and a resumed run needs nothing restored (but reduce-on-plateau's factor, best loss and count).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.recipes.schema import TrainingSpec


def make_optimizer(network: nn.Module, spec: TrainingSpec, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the trainable parameters (arXiv:1711.05101), fused where the device has it."""
    params = [p for p in network.parameters() if p.requires_grad]
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(params, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=fused or None)


@dataclass
class Plateau:
    """Reduce-on-plateau: the rate is multiplied by `gamma` after `patience` validations in a row without a new best.

    Attributes:
        factor: The product of all reductions so far, which multiplies the rate.
        best: The lowest validation loss seen.
        waiting: Validations since then.
    """

    gamma: float
    patience: int
    factor: float = 1.0
    best: float = math.inf
    waiting: int = 0

    def observe(self, loss: float) -> bool:
        """Take a validation loss; return whether the rate was reduced."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.waiting = loss, 0
            return False
        self.waiting += 1
        if self.waiting <= self.patience:
            return False
        self.waiting = 0
        self.factor *= self.gamma
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)


def learning_rate(spec: TrainingSpec, step: int, total: int, steps_per_epoch: float, factor: float = 1.0) -> float:
    """Return the learning rate of the update that follows `step` earlier ones.

    Args:
        spec: The recipe's training section.
        step: Optimizer updates done so far, 0-based.
        total: Updates of the whole run.
        steps_per_epoch: Updates in one pass over the data (exponential: one factor per whole epoch).
        factor: Reduce-on-plateau's factor.
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    span = max(1, total - spec.warmup_steps)
    done = min(1.0, (step - spec.warmup_steps) / span)
    match spec.lr_schedule:
        case "linear":
            shape = 1 - done
        case "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * done))
        case "exponential":
            epochs = max(1.0, total / steps_per_epoch)
            gamma = spec.lr_gamma if spec.lr_gamma is not None else 0.1 ** (1 / epochs)
            shape = gamma ** math.floor(step / steps_per_epoch)
        case _:
            shape = 1.0
    return spec.lr * shape * factor


def gradient_norm(params: Sequence[Tensor], clip: float) -> Tensor:
    """Clip the gradients to a total norm (0: measure only) and return the norm before clipping, on the device."""
    if clip > 0:
        return torch.nn.utils.clip_grad_norm_(params, clip, foreach=True)
    return torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], foreach=True)


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take an optimizer step, or none where `bad` (a device scalar, 1.0 or 0.0) is set, without reading it on the host.

    The fused kernels skip the update by themselves; the others need one read.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    elif not bool(bad):
        optimizer.step()
