"""Tiny PixNerd networks whose weights are made by name, and the inputs for which their authors' code was recorded."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

TEXT = {
    "in_channels": 3, "patch_size": 4, "num_groups": 2, "hidden_size": 16, "txt_embed_dim": 12, "txt_max_length": 6,
    "num_text_blocks": 1, "decoder_hidden_size": 8, "num_encoder_blocks": 2, "num_decoder_blocks": 2,
}  # fmt: skip
CLASSES = {
    "in_channels": 3, "patch_size": 4, "num_groups": 2, "hidden_size": 24, "hidden_size_x": 8, "nerf_mlpratio": 2,
    "num_blocks": 4, "num_cond_blocks": 2, "num_classes": 5,
}  # fmt: skip
SIDE = 32  # the size at which the text-conditional network's patches are not scaled
SIZES = ((32, 32), (64, 64), (32, 64), (64, 32), (16, 48))
CLASS_SIZES = ((32, 32), (16, 32))
EVERY = 11  # of the outputs every 11th number is recorded: no stride of a patch, a row or a channel
TIMES = (0.3, 0.85)


def numbers(name: str, *shape: int) -> Tensor:
    """Normal numbers that depend on a name alone; this generator of numpy's is frozen for good."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(drawn).float()


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Give every parameter its numbers: matrices keep the variance, gains lie around 1, biases around 0."""
    for name, value in network.named_parameters():
        drawn = numbers(name, *value.shape)
        if value.ndim > 1:
            drawn = drawn * value.shape[-1] ** -0.5
        elif "norm" in name:
            drawn = 1 + 0.2 * drawn
        else:
            drawn = 0.2 * drawn
        value.copy_(drawn)


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t, the text and the classes of a batch of two."""
    x = numbers(f"x{height}x{width}", 2, 3, height, width)
    return x, torch.tensor(TIMES), numbers("y", 2, 6, 12), torch.tensor([3, 5])


def toy(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A smooth velocity with a state and a time in it, for samplers: no network is needed to tell them apart."""
    when = t.reshape(-1, 1, 1, 1)
    return torch.tanh(x * (1 + when)) - 0.5 * x + torch.cos(5 * when) * y.reshape(-1, 1, 1, 1)
