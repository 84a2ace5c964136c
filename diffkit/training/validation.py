"""The loss on the held-out part of a dataset."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from diffkit.training import rng
from diffkit.training.loop import TrainState
from diffkit.training.objectives import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffkit.data import Loader


@torch.no_grad()
def validation_loss(
    state: TrainState, loader: Loader, objective: Objective, accelerator: Accelerator, seed: int
) -> float:
    """Return the mean loss of the averaged weights over the held-out images of all processes.

    Its noise and timesteps follow from the seed and the batch's number alone, so that every reading takes the same ones
    and two of them differ by the weights only.
    """
    total = torch.zeros(2, device=state.device)
    with state.ema.applied() if state.ema else contextlib.nullcontext():
        state.wrapped.eval()
        for number, batch in enumerate(loader.validation()):
            images = state.codec.encode(batch.images)
            draw = objective.draw(images, rng.generator(state.device, seed, "validation", number, loader.rank))
            losses = objective.loss(state.wrapped, images, state.network.labels_of(batch), draw)
            total += torch.stack([losses.sum(), torch.tensor(float(len(losses)), device=state.device)])
        state.wrapped.train()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, "sum")
    return float(total[0] / total[1].clamp_min(1))
