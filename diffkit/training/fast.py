"""Accelerate for one run, and what makes the same arithmetic faster: the memory format, the precision, compilation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffkit.models.devices import several_cpu_processes
from diffkit.recipes.schema import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = logging.getLogger(__name__)


@contextmanager
def accelerated(recipe: Recipe, folder: Path) -> Iterator[Accelerator]:
    """Accelerate, set up for this run alone: it keeps its settings per process, and the next run may have others."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    kwargs = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=several_cpu_processes(),
        mixed_precision=mixed_precision(recipe.training.mixed_precision),
        log_with=list(recipe.output.report_to) or None,
        project_dir=str(folder),
        kwargs_handlers=[kwargs],
    )
    if accelerator.is_main_process and emulated(accelerator.mixed_precision, accelerator.device):
        LOG.warning(
            "this CPU computes %s in software, several times slower than fp32: `training.mixed_precision=no`",
            accelerator.mixed_precision,
        )
    try:
        yield accelerator
        if accelerator.num_processes > 1:
            accelerator.wait_for_everyone()
            torch.distributed.destroy_process_group()
    finally:
        if accelerator.num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


def mixed_precision(wanted: str) -> str | None:
    """Choose Accelerate's `mixed_precision`: the recipe's word, else the launcher's (None), else bf16 on a fit GPU."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if launched not in (None, "no"):
        return None
    if wanted != "auto":
        return wanted
    if launched == "no":
        return None
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def emulated(precision: str | None, device: torch.device) -> bool:
    """Whether a CPU has no instructions for a half precision and computes it in software, many times slower."""
    if device.type != "cpu" or precision not in ("bf16", "fp16") or not torch.backends.mkldnn.is_available():
        return False
    return not getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")()


def prepare_network(
    network: nn.Module, device: torch.device, *, channels_last: bool | None, compile_it: bool
) -> nn.Module:
    """Set the memory format (default: channels_last on CUDA) and TF32, and compile where asked; returns what to call.

    The modules and their parameters stay the same objects.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if channels_last or (channels_last is None and device.type == "cuda"):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    called: Any = torch.compile(network) if compile_it else network
    return called
