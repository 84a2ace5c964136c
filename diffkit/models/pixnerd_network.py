"""PixNerd's networks: a transformer over patches makes a neural field for each, and the field draws its pixels.

They predict the velocity of a flow from noise (t = 0) to the picture (t = 1) in pixels, without a VAE. Both are
diffusers models that take the published weights by their own names; how diffkit's conventions are turned into theirs is
the family's business (`pixnerd.py`). Source: Wang et al., PixNerd, arXiv:2507.23268.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffkit.models.pixnerd_blocks import (
    FREQUENCIES,
    Block,
    Embed,
    GatedMLP,
    JointAttention,
    LastLayer,
    PackedGatedMLP,
    PatchMLP,
    PixelEmbed,
    SelfAttention,
    TimeEmbed,
    cosine_table,
    join_patches,
    place_angles,
    split_patches,
)

_TEXT_RATIO = 2  # inner width of the text-conditional network's fields over their width; its weights know no other
_EXTENT = 16.0  # of a patch in the text-conditional decoder, of the grid in the class-conditional encoder


class _PatchPainter(ModelMixin, ConfigMixin):
    """What both networks share: the fields that draw patches of pixels."""

    x_embedder: PixelEmbed
    final_layer: LastLayer

    def _paint(
        self, x: Tensor, tokens: Tensor, patch: tuple[int, int], places: Tensor, fields: Iterable[nn.Module]
    ) -> Tensor:
        """Draw every patch by its own field.

        Args:
            x: (B, C, H, W), the noisy picture.
            tokens: (B, N, D), one per patch.
            patch: (height, width) of a patch.
            places: (P, 64), what tells its pixels apart.
            fields: One or more `PatchMLP`.
        """
        pixels = split_patches(x, patch).flatten(0, 1).transpose(1, 2)
        drawn, states = self.x_embedder(pixels, places.to(x.dtype)), tokens.flatten(0, 1)
        for field in fields:
            drawn = field(drawn, states)
        return join_patches(self.final_layer(drawn), (x.shape[2], x.shape[3]), patch)


def velocity(network: Callable[..., Tensor], x: Tensor, t: Tensor, told: Tensor, levels: int) -> Tensor:
    """Call a network in diffusers' convention: the velocity is noise minus picture, (B, C, H, W).

    Args:
        network: One of this module's.
        x: (B, C, H, W).
        t: The scheduler's timestep, from `levels` (noise) to 0 (picture), shape () or (B,).
        told: The text or the classes.
        levels: T of the scheduler.
    """
    # Both count along the same straight line, (1 - sigma) x0 + sigma eps with sigma = t / T, from opposite ends.
    return -network(x, 1 - t.float() / levels, told)


def _check_heads(hidden_size: int, num_groups: int) -> None:
    if hidden_size % num_groups or hidden_size // num_groups % 4:
        raise ValueError(
            f"num_groups is {num_groups}; needed: what divides hidden_size {hidden_size} into heads whose width is a "
            "multiple of 4"
        )


class PixNerdTransformer2DModel(_PatchPainter):
    """The text-conditional network; the defaults are those of PixNerd-XXL-P16-T2I (1.2 billion parameters).

    The encoder sees every picture at `sample_size`, so that its tokens are always as many; at other sizes the patches
    that the fields draw grow or shrink with the picture, in height and width each on its own.

    Args:
        in_channels: Of the picture.
        patch_size: Height and width of a patch at `sample_size`.
        num_groups: Heads of the attention.
        hidden_size: Width of the tokens.
        txt_embed_dim: Width of the text embedding.
        txt_max_length: Its tokens.
        num_text_blocks: Blocks that refine the text.
        decoder_hidden_size: Width of a pixel in the fields.
        num_encoder_blocks: Blocks of the picture's tokens.
        num_decoder_blocks: MLPs of a field.
        sample_size: Height and width at which patches are not scaled, a multiple of `patch_size`.

    Raises:
        ValueError: Heads of no usable width, or a `sample_size` that is no multiple of `patch_size`.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 16,
        num_groups: int = 24,
        hidden_size: int = 1536,
        txt_embed_dim: int = 2048,
        txt_max_length: int = 128,
        num_text_blocks: int = 4,
        decoder_hidden_size: int = 64,
        num_encoder_blocks: int = 16,
        num_decoder_blocks: int = 2,
        sample_size: int = 512,
    ) -> None:
        super().__init__()
        _check_heads(hidden_size, num_groups)
        if sample_size % patch_size:
            raise ValueError(f"sample_size is {sample_size}; needed: a multiple of patch_size {patch_size}")
        self.s_embedder = Embed(in_channels * patch_size**2, hidden_size)
        self.x_embedder = PixelEmbed(in_channels, decoder_hidden_size)
        self.t_embedder = TimeEmbed(hidden_size)
        self.y_embedder = Embed(txt_embed_dim, hidden_size, norm=True)
        self.y_pos_embedding = nn.Parameter(torch.randn(1, txt_max_length, hidden_size))
        self.final_layer = LastLayer(decoder_hidden_size, in_channels, norm=False)
        encoder: list[nn.Module] = [
            Block(hidden_size, JointAttention(hidden_size, num_groups), PackedGatedMLP(hidden_size))
            for _ in range(num_encoder_blocks)
        ]
        fields: list[nn.Module] = [
            PatchMLP(hidden_size, decoder_hidden_size, _TEXT_RATIO, normalize_both=False)
            for _ in range(num_decoder_blocks)
        ]
        self.blocks = nn.ModuleList(encoder + fields)
        self.text_refine_blocks = nn.ModuleList(
            Block(hidden_size, SelfAttention(hidden_size, num_groups), PackedGatedMLP(hidden_size))
            for _ in range(num_text_blocks)
        )

    def patch_at(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the patches of a picture.

        Raises:
            ValueError: It cannot be cut into whole patches.
        """
        side, patch = self.config.sample_size, self.config.patch_size
        unit = side // patch  # the tokens of a row, whatever the size
        if height % unit or width % unit:
            raise ValueError(f"the picture is {width}x{height} pixels; needed: sides that are multiples of {unit}")
        return height // unit, width // unit

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the velocity, picture minus noise.

        Args:
            x: (B, C, H, W), the picture and noise mixed; any size that `patch_at` takes.
            t: Shape () or (B,), from 0 (noise) to 1 (picture).
            y: (B, txt_max_length, txt_embed_dim), the text.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: A size that cannot be cut into patches.
        """
        config, size = self.config, (x.shape[2], x.shape[3])
        patch, side = self.patch_at(*size), config.sample_size
        seen = x if size == (side, side) else F.interpolate(x, (side, side))
        time = self.t_embedder(t.expand(len(x)), x.dtype)[:, None]
        condition = F.silu(time)
        words = self.y_embedder(y.to(x.dtype)) + self.y_pos_embedding
        for block in self.text_refine_blocks:
            words = block(words, condition)
        count = side // config.patch_size
        angles = place_angles((count, count), config.hidden_size // config.num_groups, float(count), x.device)
        rotation = angles.cos(), angles.sin()
        tokens = self.s_embedder(split_patches(seen, (config.patch_size,) * 2).flatten(2))
        for block in self.blocks[: config.num_encoder_blocks]:
            tokens = block(tokens, condition, words, rotation)
        places = place_angles(patch, 2 * FREQUENCIES**2, _EXTENT, x.device).cos()
        return self._paint(x, F.silu(time + tokens), patch, places, self.blocks[config.num_encoder_blocks :])


class PixNerdClassTransformer2DModel(_PatchPainter):
    """The class-conditional network; the defaults are those of PixNerd-XL-P16-C2I (ImageNet at 256 pixels).

    Patches have one size here, and larger pictures have more of them.

    Args:
        in_channels: Of the picture.
        patch_size: Height and width of a patch.
        num_groups: Heads of the attention.
        hidden_size: Width of the tokens.
        hidden_size_x: Width of a pixel in the fields.
        nerf_mlpratio: Inner width of a field's MLPs over `hidden_size_x`.
        num_blocks: Blocks of the tokens and MLPs of a field together.
        num_cond_blocks: How many of them are blocks of the tokens.
        num_classes: Classes; the null class comes after them.
        sample_size: Height and width that it was trained at.

    Raises:
        ValueError: Heads of no usable width.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 16,
        num_groups: int = 16,
        hidden_size: int = 1152,
        hidden_size_x: int = 64,
        nerf_mlpratio: int = 2,
        num_blocks: int = 30,
        num_cond_blocks: int = 26,
        num_classes: int = 1000,
        sample_size: int = 256,
    ) -> None:
        super().__init__()
        _check_heads(hidden_size, num_groups)
        self.x_embedder = PixelEmbed(in_channels, hidden_size_x)
        self.s_embedder = Embed(in_channels * patch_size**2, hidden_size)
        self.t_embedder = TimeEmbed(hidden_size)
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.final_layer = LastLayer(hidden_size_x, in_channels, norm=True)
        encoder: list[nn.Module] = [
            Block(hidden_size, SelfAttention(hidden_size, num_groups), GatedMLP(hidden_size))
            for _ in range(num_cond_blocks)
        ]
        fields: list[nn.Module] = [
            PatchMLP(hidden_size, hidden_size_x, nerf_mlpratio, normalize_both=True)
            for _ in range(num_cond_blocks, num_blocks)
        ]
        self.blocks = nn.ModuleList(encoder + fields)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the velocity, picture minus noise.

        Args:
            x: (B, C, H, W), the picture and noise mixed; sides are multiples of `patch_size`.
            t: Shape () or (B,), from 0 (noise) to 1 (picture).
            y: (B,) int64, classes; `num_classes` is the null class.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: A size that cannot be cut into patches.
        """
        config, side = self.config, self.config.patch_size
        height, width = x.shape[2:]
        if height % side or width % side:
            raise ValueError(f"the picture is {width}x{height} pixels; needed: sides that are multiples of {side}")
        time = self.t_embedder(t.expand(len(x)), x.dtype)[:, None]
        condition = F.silu(time + self.y_embedder["embedding_table"](y)[:, None])
        grid = (height // side, width // side)
        angles = place_angles(grid, config.hidden_size // config.num_groups, _EXTENT, x.device)
        rotation = angles.cos(), angles.sin()
        tokens = self.s_embedder(split_patches(x, (side, side)).flatten(2))
        for block in self.blocks[: config.num_cond_blocks]:
            tokens = block(tokens, condition, rotation)
        states, places = F.silu(time + tokens), cosine_table(side, x.device)
        return self._paint(x, states, (side, side), places, self.blocks[config.num_cond_blocks :])
