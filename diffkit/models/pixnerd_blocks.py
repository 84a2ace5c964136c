"""What PixNerd's two networks are built of; the networks are in `pixnerd_network.py`.

Attribute names are those of the published weights. Positions are rotated and embedded in real numbers, computed anew in
every call (a few thousand cosines), so that nothing is kept that belongs to one device or size.
Source: Wang et al., PixNerd, arXiv:2507.23268.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of every RMS normalization
FREQUENCIES = 8  # per side: a pixel's place in its patch is told by 8 x 8 numbers
_SLOWEST = 10000.0  # of the rotary embedding
_TIME_WIDTH, _TIME_PERIOD = 256, 10.0  # times lie in [0, 1], hence the short period


def split_patches(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut (B, C, H, W) into patches, (B, rows * columns, C, height * width of a patch)."""
    parts = x.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))  # (B, C, rows, height, columns, width)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def join_patches(pixels: Tensor, size: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Lay patches (B * rows * columns, height * width of a patch, C) into pictures, (B, C, H, W)."""
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    parts = pixels.unflatten(1, patch).unflatten(0, (-1, rows, columns))  # (B, rows, columns, height, width, C)
    return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def place_angles(grid: tuple[int, int], width: int, extent: float, device: torch.device) -> Tensor:
    """Return the angles that tell places apart, (rows * columns, width / 2) fp32: across and down by turns.

    Args:
        grid: (rows, columns).
        width: Numbers per place, a multiple of 4.
        extent: Where the last row and column lie; the first is at 0.
        device: Where to.

    Source: rotary embedding, arXiv:2104.09864, one half of the channels for each axis.
    """
    rates = 1.0 / _SLOWEST ** (torch.arange(0, width, 4, device=device).float() / width)
    down, across = (torch.linspace(0, extent, count, device=device)[:, None] * rates for count in grid)
    shape = (*grid, len(rates))
    return torch.stack([across.expand(shape), down[:, None].expand(shape)], dim=-1).flatten(2).flatten(0, 1)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighbouring channels of (B, heads, N, D) by its place's angle.

    Args:
        x: Queries or keys.
        rotation: Cosines and sines, (N, D / 2) fp32.
    """
    cos, sin = rotation
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def cosine_table(patch: int, device: torch.device) -> Tensor:
    """Return what tells the pixels of a square patch apart, (patch ** 2, 64) fp32: products of cosines in x and y.

    Source: arXiv:2507.23268, section 3 (the DCT basis); the higher the two frequencies, the less they weigh.
    """
    places = torch.linspace(0, 1, patch, device=device)
    rates = torch.linspace(0, FREQUENCIES, FREQUENCIES, device=device)
    waves = torch.cos(places[:, None] * rates * torch.pi)  # (patch, 8)
    weights = 1 / (1 + rates[:, None] * rates)
    table = waves[None, :, :, None] * waves[:, None, None, :] * weights  # (y, x, frequency in x, frequency in y)
    return table.flatten(2).flatten(0, 1)


class Embed(nn.Module):
    """A linear map, and a normalization where the text needs one."""

    def __init__(self, taken: int, given: int, norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(taken, given)
        self.norm = nn.RMSNorm(given, EPS) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(..., taken) -> (..., given)."""
        return self.norm(self.proj(x))


class TimeEmbed(nn.Module):
    """Times in [0, 1] as waves, and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) -> (B, width) of a type; the waves are computed in fp32."""
        half = _TIME_WIDTH // 2
        rates = torch.exp(-math.log(_TIME_PERIOD) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = t.float()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class PixelLinear(nn.Linear):
    """A linear map of a pixel's colours and its place in the patch, whose part of the place is worked out once."""

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        """(N, P, C) and (P, K) -> (N, P, given): the same map as of the two side by side."""
        channels = pixels.shape[-1]
        told = F.linear(places, self.weight[:, channels:], self.bias)
        return F.linear(pixels, self.weight[:, :channels]) + told


class PixelEmbed(nn.Module):
    """What the decoder sees of a pixel: colours and place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.embedder = nn.Sequential(PixelLinear(channels + FREQUENCIES**2, width))

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        """(N, P, C) and (P, 64) -> (N, P, width)."""
        embedded: Tensor = self.embedder[0](pixels, places)
        return embedded


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention among the tokens, queries and keys normalized; rotated where places are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, EPS) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.proj(_attended(q, k, v))


class JointAttention(nn.Module):
    """Attention of the picture's tokens to each other and to the text's, which have no place in the picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_x = nn.Linear(width, 3 * width, bias=False)
        self.kv_y = nn.Linear(width, 2 * width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, EPS) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, words: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) and (B, L, D) -> (B, N, D)."""
        q, k, v = self.qkv_x(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        text_k, text_v = self.kv_y(words).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        keys, values = torch.cat([k, self.k_norm(text_k)], dim=2), torch.cat([v, text_v], dim=2)
        return self.proj(_attended(q, keys, values))


class PackedGatedMLP(nn.Module):
    """SwiGLU whose gate and value come from one matrix. Source: Shazeer, arXiv:2002.05202."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 8 * width, bias=False)
        self.w3 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class GatedMLP(nn.Module):
    """SwiGLU with a matrix each for gate (w1) and value (w3), two thirds as wide. Source: arXiv:2002.05202."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(2 * (4 * width) / 3)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """A transformer block whose normalizations are shifted, scaled and gated by the condition (adaLN).

    Source: DiT, arXiv:2212.09748, with RMS normalization and without adaLN's SiLU, which the condition has had.
    """

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, EPS)
        self.attn = attention
        self.norm2 = nn.RMSNorm(width, EPS)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, *told: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Go on from x.

        Args:
            x: (B, N, D).
            condition: (B, 1, D).
            told: What the attention takes beside x.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, *told)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PatchMLP(nn.Module):
    """A small field per patch: its pixels go through an MLP whose two matrices the patch's token has made.

    Args:
        token_width: Width of the tokens.
        width: Of a pixel.
        ratio: Inner width of the MLP over `width`.
        normalize_both: Whether the columns of both matrices have length 1, else those of the first alone.

    Source: arXiv:2507.23268, section 3 (the neural field as patch decoder).
    """

    def __init__(self, token_width: int, width: int, ratio: int, normalize_both: bool) -> None:
        super().__init__()
        self.ratio, self.normalize_both = ratio, normalize_both
        self.param_generator1 = nn.Sequential(nn.Linear(token_width, 2 * ratio * width**2))
        self.norm = nn.RMSNorm(width, EPS)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(N, P, width) and (N, token_width), N patches of P pixels -> (N, P, width)."""
        inner = self.ratio * x.shape[-1]
        first, second = self.param_generator1(tokens).chunk(2, dim=-1)
        first = F.normalize(first.unflatten(-1, (-1, inner)), dim=-2)
        second = second.unflatten(-1, (inner, -1))
        if self.normalize_both:
            second = F.normalize(second, dim=-2)
        return x + torch.bmm(F.silu(torch.bmm(self.norm(x), first)), second)


class LastLayer(nn.Module):
    """From a pixel's channels to its velocity."""

    def __init__(self, width: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, EPS) if norm else nn.Identity()
        self.linear = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., channels)."""
        return self.linear(self.norm(x))
