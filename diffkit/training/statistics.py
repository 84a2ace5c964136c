"""The running statistics of batch normalizations while a network trains; nothing to do for networks without.

They change in the forward pass, not in the optimizer's step. So what is taken back of an update (memory ran out, or a
gradient was not finite) must be taken back of them, too; and each process sees its own images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a network's batch normalizations, by name."""
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            found |= {f"{name}.running_mean": module.running_mean, f"{name}.running_var": module.running_var}
    return found


class RunningStatistics:
    """The running statistics around an update.

    Args:
        network: The network itself, not wrapped.
    """

    def __init__(self, network: nn.Module) -> None:
        self._values = list(running_statistics(network).values())
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember them, before an update."""
        self._kept = [value.clone() for value in self._values]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was remembered."""
        for value, kept in zip(self._values, self._kept, strict=True):
            value.copy_(kept)

    @torch.no_grad()
    def settle(self, bad: Tensor, accelerator: Accelerator) -> None:
        """End an update: average over the processes, and go back where it is not taken (`bad`, a device scalar)."""
        if not self._values:
            return
        if accelerator.num_processes > 1:  # so that a checkpoint, which one process writes, holds those of all
            joined = accelerator.reduce(torch.cat(self._values), "mean")
            parts = joined.split([value.numel() for value in self._values])
            for value, part in zip(self._values, parts, strict=True):
                value.copy_(part)
        for value, kept in zip(self._values, self._kept, strict=True):
            value.copy_(torch.where(bad > 0, kept, value))
