"""A network tried out before a run: its sizes on fake tensors, its speed on random images.

Fake tensors have shapes and no contents: the forward pass is run on them, and what autograd keeps for the backward pass
is added up. That is the exact sum for the kernels that the device would choose, and it costs no memory.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.models.devices import keep_memory
from diffkit.models.text_network import TrainedNetwork
from diffkit.recipes.schema import Recipe
from diffkit.training import build, fast
from diffkit.training.ema import EMA
from diffkit.training.optim import make_optimizer

_CPU_FLOPS = 4e11  # arithmetic of one timed update on a CPU; more than that is timed on fewer images
_SECONDS = 4.0  # after this no further update is timed
_UPDATES = 5


@dataclass(frozen=True)
class Sizes:
    """What a network weighs.

    Attributes:
        parameters: All weights.
        trainable: Those that are not frozen.
        activations: Bytes that autograd keeps for one micro-batch.
        flops: Floating-point operations of the forward pass for one image.
    """

    parameters: int
    trainable: int
    activations: int
    flops: int


def measure(
    recipe: Recipe, shape: tuple[int, int, int], num_classes: int, device: torch.device, precision: str = "no"
) -> Sizes:
    """Count a network's parameters, activations and operations without making it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    batch = recipe.training.batch_size
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), torch.device(device):
        network = _network(recipe, shape, num_classes, device)
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        # The tensors are held, so that no storage of the count is freed and its address taken by the next.
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = tensor
            return tensor

        counter = FlopCounterMode(display=False)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with counter, hooks, _autocast(device, precision):
            network(*_inputs(network, batch, device))
    return Sizes(
        parameters=sum(p.numel() for p in network.parameters()),
        trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
        activations=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        flops=int(counter.get_total_flops()) // batch,
    )


@dataclass(frozen=True)
class Seconds:
    """How long things take.

    Attributes:
        image: Forward and backward pass, per image of a micro-batch.
        update: A whole update with its accumulation, optimizer and average.
    """

    image: float
    update: float


def time_updates(
    recipe: Recipe, shape: tuple[int, int, int], num_classes: int, sizes: Sizes, device: torch.device, precision: str
) -> Seconds | None:
    """Time a few updates on random images; None where the memory is not enough for one."""
    spec = recipe.training
    fixed = 20 * sizes.parameters
    per_image = sizes.activations / spec.batch_size
    batch = spec.batch_size
    while batch > 1 and (
        fixed + batch * per_image > 0.7 * _free(device)
        or (device.type == "cpu" and 3 * batch * sizes.flops > _CPU_FLOPS)
    ):
        batch = -(-batch // 2)
    if fixed + batch * per_image > 0.7 * _free(device):
        return None
    keep_memory()
    with torch.random.fork_rng(devices=[]):
        network = _network(recipe, shape, num_classes, device).to(device)
        inputs = _inputs(network, batch, device)
    called = fast.prepare_network(network, device, channels_last=spec.channels_last, compile_it=False)
    optimizer = make_optimizer(called, spec, device)
    average = EMA(network, spec.ema_decay) if spec.ema else None
    passes, ends = [], []
    start = time.perf_counter()
    for _ in range(_UPDATES + 1):
        passes.append(_timed(device, lambda: _pass(called, inputs, precision)))
        ends.append(_timed(device, lambda: _end(optimizer, average)))
        if time.perf_counter() - start > _SECONDS and len(passes) > 1:
            break
    # The first one pays for what is set up once; of the others, the median.
    image = sorted(passes[1:])[len(passes[1:]) // 2] / batch
    end = sorted(ends[1:])[len(ends[1:]) // 2]
    return Seconds(image, image * spec.batch_size * spec.gradient_accumulation + end)


def _pass(network: nn.Module, inputs: tuple[Tensor, Tensor, Tensor | None], precision: str) -> None:
    with _autocast(inputs[0].device, precision):
        out = network(*inputs)
    out.float().square().mean().backward()


def _end(optimizer: torch.optim.Optimizer, average: EMA | None) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if average is not None:
        average.update(0)


def _timed(device: torch.device, work: Any) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not on every system
        return float("inf")


def _network(recipe: Recipe, shape: tuple[int, int, int], num_classes: int, device: torch.device) -> TrainedNetwork:
    # The words are not known before the dataset is read; their rows of the text encoder are a matter of kilobytes.
    network = build.new_network(recipe, shape, num_classes, ["a picture"])
    build.set_up(network, recipe, device)
    network.train()
    return network


def _inputs(network: TrainedNetwork, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    size = int(network.unet.config.sample_size)
    images = torch.rand(batch, network.channels, size, size, device=device)
    zeros = torch.zeros(batch, dtype=torch.long, device=device)
    return images, zeros, zeros if network.num_classes else None


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in kinds:
        return contextlib.nullcontext()
    return torch.autocast(device.type, kinds[precision])
