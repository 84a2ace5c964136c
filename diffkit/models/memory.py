"""What `memory` auto, low and lowest mean on a machine: where the weights wait, how the VAE works, how T5 is loaded.

A plan is a value; the families carry it out. Nothing here changes which picture comes out, but for VAE tiling (only
above the tile's size) and 8-bit text encoders (which cache under their own name).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from diffkit.errors import UsageError
from diffkit.models.kinds import network_class
from diffkit.types import Network

LOG = logging.getLogger("diffkit.models")

LEVELS = ("auto", "low", "lowest")

# Activations, the other parts and the allocator's slack need room beside the weights.
_ROOM = 1.5


@dataclass(frozen=True)
class MemoryPlan:
    """How to fit a model into the memory there is.

    Attributes:
        level: What was asked for, or what auto came to: "none", "low" or "lowest".
        offload: "none": everything used stays on the device. "model": a part is there only while it works.
            "sequential": one layer at a time.
        vae_slicing: The VAE takes one image at a time.
        vae_tiling: And that in overlapping tiles.
        text_8bit: T5 in 8 bits.
        max_batch: Rows per network call, None for no limit.
    """

    level: str = "none"
    offload: str = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    text_8bit: bool = False
    max_batch: int | None = None

    def describe(self) -> str:
        """Say in one line what the plan does."""
        said = {
            "no offload": self.offload == "none",
            "parts wait on the CPU": self.offload == "model",
            "layers wait on the CPU": self.offload == "sequential",
            "VAE one image at a time": self.vae_slicing,
            "VAE in tiles": self.vae_tiling,
            "text encoder in 8 bits": self.text_8bit,
            f"at most {self.max_batch} rows per network call": self.max_batch is not None,
        }
        return f"memory {self.level}: " + ", ".join(text for text, so in said.items() if so)


def make_plan(level: str, device: torch.device, weights: int = 0) -> MemoryPlan:
    """Choose a plan.

    Args:
        level: auto, low or lowest.
        device: Where the model runs; offloading needs an accelerator and is left out without one.
        weights: Bytes of the UNet's weights, what auto decides by.

    Raises:
        UsageError: Unknown level.
    """
    if level not in LEVELS:
        raise UsageError(f"`memory` {level!r} is not one of {', '.join(LEVELS)}")
    if level == "auto":
        level = _automatic(device, weights)
    if level == "none":
        return MemoryPlan()
    accelerator = device.type != "cpu"
    if not accelerator:
        LOG.info("`memory` %s: no offloading without an accelerator", level)
    eight = device.type == "cuda" and find_spec("bitsandbytes") is not None
    if level == "low":
        return MemoryPlan("low", "model" if accelerator else "none", True, True, eight)
    return MemoryPlan("lowest", "sequential" if accelerator else "none", True, True, eight, max_batch=1)


def _automatic(device: torch.device, weights: int) -> str:
    if device.type != "cuda":
        return "none"
    free, _ = torch.cuda.mem_get_info(device)
    if free > _ROOM * weights + 2**30:
        return "none"
    return "low" if free > weights + 2**29 else "lowest"


def default_dtype(device: torch.device, half: torch.dtype = torch.float16) -> torch.dtype:
    """Return the type of a large model's weights on a device: half precision on CUDA, fp32 elsewhere."""
    return half if device.type == "cuda" else torch.float32


def place(module: nn.Module, device: torch.device, plan: MemoryPlan) -> nn.Module:
    """Put a module where it will work; with sequential offload its layers follow the call, one by one."""
    if plan.offload == "sequential" and device.type != "cpu":
        from accelerate import cpu_offload

        cpu_offload(module, device)
        return module
    return module.to(device)


def count_parameters(network: Network) -> int:
    """Count the parameters of a network from its configuration, without making them."""
    with torch.device("meta"):
        module = network_class(network.kind).from_config(dict(network.config))
    return sum(p.numel() for p in module.parameters())
