"""The choice of the attention kernel by device and head size; shared by training and sampling.

On the CPU, scaled_dot_product_attention at 8 channels per head (UNet2DModel's default) takes 45 % of a training step
and plain matrix products are faster; on a GPU it is the other way round.
"""

from __future__ import annotations

import torch
from torch import nn

from diffkit.errors import UsageError

_SMALL_HEAD = 16


def set_attention(unet: nn.Module, kind: str = "auto", device: torch.device | str = "cpu") -> str:
    """Set the attention kernel of every attention layer of `unet`, and return what was chosen for the most of them.

    Args:
        unet: A diffusers network.
        kind: "sdpa", "plain" (baddbmm and softmax), or "auto": plain on the CPU for heads of 16 channels or fewer.
        device: Where the network runs.

    Raises:
        UsageError: Another kind.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    if kind not in ("auto", "sdpa", "plain"):
        raise UsageError(f"attention {kind!r} is not one of auto, plain, sdpa")
    on_cpu = torch.device(device).type == "cpu"
    layers = [m for m in unet.modules() if isinstance(m, Attention)]
    plain = [kind == "plain" or (kind == "auto" and on_cpu and _head_size(layer) <= _SMALL_HEAD) for layer in layers]
    for layer, is_plain in zip(layers, plain, strict=True):
        layer.set_processor(AttnProcessor() if is_plain else AttnProcessor2_0())
    return "plain" if plain and sum(plain) * 2 > len(plain) else "sdpa"


def _head_size(layer: nn.Module) -> int:
    return int(layer.to_q.out_features // layer.heads)  # type: ignore[union-attr, operator]
