"""The choice of the attention kernel by device and head size; shared by training and sampling.

On the CPU, scaled_dot_product_attention at 8 channels per head (UNet2DModel's default) takes 45 % of a training step
and plain matrix products are faster; on a GPU it is the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

_SMALL_HEAD = 16
_CACHED = 1 << 19  # scores (fp32) that are made at a time, 2 MiB: about a core's second-level cache


class _Blocked(torch.autograd.Function):
    """softmax(scale q^T k) applied to v, for (N, d, L) tensors, a block of N at a time; no scores are kept.

    The narrow side comes first throughout: a product with d = 8 rows takes a third of the time of one with 8 columns.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(q)
        for rows in _blocks(q):
            torch.bmm(v[rows], _weights(q[rows], k[rows], scale).transpose(1, 2), out=out[rows])
        ctx.save_for_backward(q, k, v, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out = ctx.saved_tensors
        grad = grads[0].contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        # d softmax: w * (dw - sum(w dw)), and that sum over a row of scores is the one of grad * out over d.
        inner = (grad * out).sum(1).unsqueeze(-1)
        for rows in _blocks(q):
            weights = _weights(q[rows], k[rows], ctx.scale)
            torch.bmm(grad[rows], weights, out=dv[rows])
            back = torch.bmm(grad[rows].transpose(1, 2), v[rows]).sub_(inner[rows]).mul_(weights)
            torch.bmm(k[rows], back.transpose(1, 2), out=dq[rows])
            torch.bmm(q[rows], back, out=dk[rows])
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None


def _blocks(q: Tensor) -> list[slice]:
    size = max(1, _CACHED // q.shape[2] ** 2)
    if type(q) is not Tensor:  # the memory estimate's fake tensors: what is kept does not depend on the blocks
        size = q.shape[0]
    return [slice(start, start + size) for start in range(0, q.shape[0], size)]


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(N, d, L) queries and keys -> (N, L, L), the rows being queries."""
    return torch.bmm(q.transpose(1, 2), k * scale).softmax(-1)


class BlockedAttnProcessor:
    """Self-attention over the pixels of a feature map (B, C, H, W) with the blocked kernel; no masks, no prompts."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return what `attn`'s own processor would."""
        from diffusers.models.attention_processor import AttnProcessor

        plain = encoder_hidden_states is None and attention_mask is None and attn.spatial_norm is None
        if not plain or hidden_states.ndim != 4:
            return AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        batch, channels, height, width = hidden_states.shape
        tokens = hidden_states.flatten(2)
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens)
        tokens = tokens.transpose(1, 2)
        q, k, v = (self._heads(to(tokens), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v))
        with torch.autocast(q.device.type, enabled=False):  # in fp32, whatever the rest is in
            mixed = _Blocked.apply(q.float(), k.float(), v.float(), attn.scale).to(tokens.dtype)
        mixed = mixed.reshape(batch, -1, height * width).transpose(1, 2)
        for layer in attn.to_out:
            mixed = layer(mixed)
        picture = mixed.transpose(1, 2).reshape(batch, channels, height, width)
        if attn.residual_connection:
            picture = picture + hidden_states
        return picture / attn.rescale_output_factor

    @staticmethod
    def _heads(tokens: Tensor, heads: int) -> Tensor:
        """(B, L, heads d) -> (B heads, d, L), contiguous."""
        batch, length, width = tokens.shape
        return tokens.transpose(1, 2).reshape(batch * heads, width // heads, length).contiguous()


def set_attention(unet: nn.Module, kind: str = "auto", device: torch.device | str = "cpu") -> str:
    """Set the attention kernel of every attention layer of `unet`, and return what was chosen for the most of them.

    Args:
        unet: A diffusers network.
        kind: "sdpa", "plain" (baddbmm and softmax), "blocked" (the same in the cache), or "auto": blocked on the CPU
            for heads of 16 channels or fewer, else sdpa.
        device: Where the network runs.

    Raises:
        UsageError: Another kind.
    """
    from diffusers.models.attention_processor import (
        Attention,
        AttnAddedKVProcessor,
        AttnAddedKVProcessor2_0,
        AttnProcessor,
        AttnProcessor2_0,
    )

    if kind not in ("auto", "sdpa", "plain", "blocked"):
        raise UsageError(f"attention {kind!r} is not one of auto, sdpa, plain, blocked")
    on_cpu = torch.device(device).type == "cpu"
    layers = [m for m in unet.modules() if isinstance(m, Attention)]
    processors: dict[str, Any] = {"sdpa": AttnProcessor2_0, "plain": AttnProcessor, "blocked": BlockedAttnProcessor}
    chosen = []
    for layer in layers:
        if getattr(layer, "add_k_proj", None) is not None:  # text and pixels in one attention, as DeepFloyd IF has it
            # On the CPU the backward pass of SDPA takes four times as long as plain products.
            chosen.append(("plain" if on_cpu else "sdpa") if kind == "auto" else kind)
            layer.set_processor(AttnAddedKVProcessor2_0() if chosen[-1] == "sdpa" else AttnAddedKVProcessor())
            continue
        small = on_cpu and _head_size(layer) <= _SMALL_HEAD
        chosen.append(("blocked" if small else "sdpa") if kind == "auto" else kind)
        layer.set_processor(processors[chosen[-1]]())
    return max(set(chosen), key=chosen.count, default="sdpa")


def _head_size(layer: nn.Module) -> int:
    return int(layer.to_q.out_features // layer.heads)  # type: ignore[union-attr, operator]
