"""The networks that courses have their students write, as diffusers models: saved as safetensors with a config.json.

They are called as UNet2DModel is, `(sample, timestep, class_labels)`, so that training, sampling and `DDPMPipeline`
take them for one; the table of such networks is in `kinds.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

TIMES = ("none", "add", "multiply")


class Conv(nn.Sequential):
    """3x3 convolution, batch normalization, GELU; the size stays, or is halved where `stride` is 2."""

    def __init__(self, taken: int, given: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(taken, given, 3, stride, padding=1), nn.BatchNorm2d(given), nn.GELU())


class UpConv(nn.Sequential):
    """4x4 transposed convolution of stride 2, batch normalization, GELU: the size is doubled."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__(nn.ConvTranspose2d(taken, given, 4, 2, padding=1), nn.BatchNorm2d(given), nn.GELU())


class Unflatten(nn.Sequential):
    """Transposed convolution from 1x1 to the size of its kernel, batch normalization, GELU."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(nn.ConvTranspose2d(channels, channels, size, size), nn.BatchNorm2d(channels), nn.GELU())


class FCBlock(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__(nn.Linear(taken, given), nn.GELU(), nn.Linear(given, given))


def conv_block(taken: int, given: int) -> nn.Sequential:
    """Return two `Conv` in a row."""
    return nn.Sequential(Conv(taken, given), Conv(given, given))


def down_block(taken: int, given: int) -> nn.Sequential:
    """Return a halving and a `conv_block`."""
    return nn.Sequential(Conv(taken, given, stride=2), conv_block(given, given))


def up_block(taken: int, given: int) -> nn.Sequential:
    """Return a doubling and a `conv_block`."""
    return nn.Sequential(UpConv(taken, given), conv_block(given, given))


class CS180UNet(ModelMixin, ConfigMixin):
    """The UNet of CS180's part B: two levels of D and 2D channels, a vector at the bottom, skips by concatenation.

    Time and class come in at two places, the unflattened vector and the first level on the way up, each through an
    `FCBlock` of its own: h becomes c h + t (the page of 2024), or c h t (2025), where one that the network is not told
    drops out. The page of 2024 prints `c2 * up1 + t1`; t2 is meant, which has the channels of that level.

    Batch normalization averages over the batch while it trains, and uses its running statistics in evaluation mode.

    Args:
        sample_size: Height and width, a multiple of 4; the average pool is a quarter of it (7 at 28 px).
        in_channels: Of the input.
        out_channels: Of the output.
        hidden: D.
        time: none, add (2024) or multiply (2025).
        timesteps: T; the FCBlock is given timestep / T, in [0, 1].
        num_class_embeds: Classes and the null class, whose one-hot vector is zero; None without classes.

    Source: CS180 / CS280A, "Fun with Diffusion Models" (2024), "Flow Matching from Scratch" (2025), part B.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        hidden: int = 64,
        time: str = "none",
        timesteps: int = 1000,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        if sample_size % 4 or sample_size < 4:
            raise ValueError(f"sample_size is {sample_size}; needed: a multiple of 4, since the size is halved twice")
        if time not in TIMES:
            raise ValueError(f"time is {time!r}; needed: {', '.join(TIMES)}")
        wide, pooled = 2 * hidden, sample_size // 4
        self.conv_in = conv_block(in_channels, hidden)
        self.down1 = down_block(hidden, hidden)
        self.down2 = down_block(hidden, wide)
        self.flatten = nn.Sequential(nn.AvgPool2d(pooled), nn.GELU())
        self.unflatten = Unflatten(wide, pooled)
        self.up1 = up_block(2 * wide, hidden)
        self.up2 = up_block(2 * hidden, hidden)
        self.conv_out = nn.Sequential(conv_block(2 * hidden, hidden), nn.Conv2d(hidden, out_channels, 3, padding=1))
        if time != "none":
            self.time1, self.time2 = FCBlock(1, wide), FCBlock(1, hidden)
        if num_class_embeds is not None:
            classes = num_class_embeds - 1
            self.class1, self.class2 = FCBlock(classes, wide), FCBlock(classes, hidden)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict.

        Args:
            sample: (B, C, H, W) of its size.
            timestep: Shape () or (B,), in 0..T.
            class_labels: (B,) int64 in 0..classes; None is the null class.
            return_dict: Return diffusers' output class, else a tuple.
        """
        first = self.conv_in(sample)
        second = self.down1(first)
        third = self.down2(second)
        t, one_hot = self._time(sample, timestep), self._one_hot(sample, class_labels)
        h = self._told(self.unflatten(self.flatten(third)), "1", t, one_hot)
        h = self._told(self.up1(torch.cat([h, third], dim=1)), "2", t, one_hot)
        h = self.up2(torch.cat([h, second], dim=1))
        out = self.conv_out(torch.cat([h, first], dim=1))
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def _time(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """The normalized time, (B, 1)."""
        t = torch.as_tensor(timestep, device=sample.device).float() / self.config.timesteps
        return t.expand(len(sample))[:, None].to(sample.dtype)

    def _one_hot(self, sample: Tensor, labels: Tensor | None) -> Tensor | None:
        """The class as a one-hot vector, (B, classes); zero for the null class."""
        if (rows := self.config.num_class_embeds) is None:
            return None
        if labels is None:
            return sample.new_zeros(len(sample), rows - 1)
        return F.one_hot(labels, rows)[:, :-1].to(sample.dtype)

    def _told(self, h: Tensor, place: str, t: Tensor, one_hot: Tensor | None) -> Tensor:
        if one_hot is not None:
            h = self.get_submodule(f"class{place}")(one_hot)[:, :, None, None] * h
        if self.config.time == "none":
            return h
        told = self.get_submodule(f"time{place}")(t)[:, :, None, None]
        return h + told if self.config.time == "add" else h * told


class BasicUNet(ModelMixin, ConfigMixin):
    """The minimal UNet of the Hugging Face course: 5x5 convolutions, max pool, nearest upsampling, skips added.

    It is told neither time nor class. SiLU follows every convolution, the last one too: its output is never far below
    0, so that it predicts pictures in [0, 1] (`dataset.normalize: unit`).

    Args:
        sample_size: Height and width, divisible by 2 once for each level but the last.
        in_channels: Of the input.
        out_channels: Of the output.
        block_out_channels: Channels after each convolution on the way down.

    Source: Hugging Face diffusion course, unit 1, notebook 2, "Diffusion models from scratch".
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        self.down = nn.ModuleList(_wide(a, b) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(_wide(a, b) for a, b in pairwise(reversed(widths)))
        self.conv_out = _wide(widths[0], out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict from (B, C, H, W); neither time nor class is looked at."""
        h, kept = sample, []
        for level, conv in enumerate(self.down):
            h = F.silu(conv(h))
            if level < len(self.down) - 1:
                kept.append(h)
                h = F.max_pool2d(h, 2)
        for level, conv in enumerate((*self.up, self.conv_out)):
            if level > 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest") + kept.pop()
            h = F.silu(conv(h))
        return UNet2DOutput(sample=h) if return_dict else (h,)


def _wide(taken: int, given: int) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 5, padding=2)
