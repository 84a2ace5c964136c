"""A small Stable Diffusion pipeline as one file, by the names that its first authors gave the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = re.sub(rf"(^|\.){re.escape(old)}\.", rf"\1{new}.", name)
    return name


def unet_name(name: str, layers: int) -> str:
    """Return the first authors' name of a tensor of a UNet with so many layers per level."""
    plain = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip
    for old, new in plain.items():
        if name.startswith(f"{old}."):
            return name.replace(old, new, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        resnet = found[1] == "resnets"
        rest = _renamed(found[3], _RESNET) if resnet else found[3]
        return f"middle_block.{2 * int(found[2]) if resnet else 1}.{rest}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    assert found, name
    level, layer, what, rest = int(found[2]), int(found[4]), found[3], found[5]
    if found[1] == "down":
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{level * (layers + 1) + 1 + layer}"
    else:
        place = f"output_blocks.{level * (layers + 1) + (layers if what == 'upsamplers' else layer)}"
        if what == "upsamplers":
            return f"{place}.UP.{rest}"
    return f"{place}.0.{_renamed(rest, _RESNET)}" if what == "resnets" else f"{place}.1.{rest}"


def unet_state(unet: Any) -> dict[str, Tensor]:
    named = {
        unet_name(name, unet.config.layers_per_block): value.clone().contiguous()
        for name, value in unet.state_dict().items()
    }
    done = {}
    for name, value in named.items():  # an upsampler follows the attention, where there is one
        place = name.partition(".UP.")[0]
        done[name.replace(".UP.", ".2." if any(other.startswith(f"{place}.1.") for other in named) else ".1.")] = value
    return done


def vae_state(vae: Any) -> dict[str, Tensor]:
    levels = len(vae.config.block_out_channels)
    done = {}
    for name, value in vae.state_dict().items():
        made = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        made = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", made)
        made = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", made)
        made = re.sub(r"resnets\.(\d+)", r"block.\1", made).replace("upsamplers.0", "upsample")
        made = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", made)
        if "mid_block.attentions.0." in made:
            head, _, rest = made.partition("mid_block.attentions.0.")
            made = f"{head}mid.attn_1.{_renamed(rest, _ATTENTION)}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        made = made.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        done[made] = value.clone().contiguous()
    return done


def single_file(parts: Mapping[str, Any], *, ema: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a Stable Diffusion 1 pipeline as its authors' file has them.

    Args:
        parts: Its unet, vae and text_encoder.
        ema: Put the network under its average's names, and zeros where the last weights are.
    """
    unet = {f"model.diffusion_model.{name}": value for name, value in unet_state(parts["unet"]).items()}
    state = {f"first_stage_model.{name}": value for name, value in vae_state(parts["vae"]).items()}
    for name, value in parts["text_encoder"].state_dict().items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        state[f"cond_stage_model.transformer.{name}"] = value.clone()
    if ema:
        state |= {f"model_ema.{name.removeprefix('model.').replace('.', '')}": v for name, v in unet.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
        unet = {name: torch.zeros_like(value) for name, value in unet.items()}
    return state | unet


def open_clip_state(encoder: Any) -> dict[str, Tensor]:
    """Return a CLIP text encoder's tensors by OpenCLIP's names, whose projections of q, k and v are one."""
    table = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    state, done = encoder.state_dict(), {}
    for name, value in state.items():
        made = name.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn")
        made = re.sub(r"layer_norm(\d)", r"ln_\1", made).replace(".fc1.", ".c_fc.").replace(".fc2.", ".c_proj.")
        if found := re.match(r"(.*attn)\.[qkv]_proj\.(weight|bias)", made):
            three = [state[re.sub(r"\.[qkv]_proj\.", f".{one}_proj.", name)] for one in "qkv"]
            done[f"{found[1]}.in_proj_{found[2]}"] = torch.cat(three)
        elif name == "text_projection.weight":
            done["text_projection"] = value.T.contiguous()
        elif not name.endswith("position_ids"):
            done[table.get(name, made)] = value.clone()
    return done


def sdxl_file(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a Stable Diffusion XL pipeline as its authors' file has them."""
    state = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): value
        for name, value in single_file(parts).items()
    }
    second = open_clip_state(parts["text_encoder_2"])
    return state | {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}


def _swapped(value: Tensor) -> Tensor:
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def sd3_file(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a Stable Diffusion 3 pipeline as its authors' file without text encoders has them."""
    state = {f"first_stage_model.{name}": value for name, value in vae_state(parts["vae"]).items()}
    source = parts["transformer"].state_dict()
    last = parts["transformer"].config.num_layers - 1
    plain = {
        "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0", "proj_out": "final_layer.linear",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }  # fmt: skip
    block = {
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    }  # fmt: skip
    for name, value in source.items():
        made = name
        for old, new in plain.items():
            made = new + made.removeprefix(old) if made == old or made.startswith(f"{old}.") else made
        if found := re.match(r"transformer_blocks\.(\d+)\.(.*)\.(weight|bias)", name):
            place, inner, end = f"joint_blocks.{found[1]}", found[2], found[3]
            if inner in ("attn.to_q", "attn.add_q_proj"):
                three = [source[name.replace("_q", f"_{one}")] for one in "qkv"]
                made = f"{place}.{'x' if inner == 'attn.to_q' else 'context'}_block.attn.qkv.{end}"
                value = torch.cat(three)
            elif inner in block:
                made = f"{place}.{block[inner]}.{end}"
            else:
                continue
        if name.startswith(("norm_out.linear", f"transformer_blocks.{last}.norm1_context")):
            value = _swapped(value)
        state[f"model.diffusion_model.{made}"] = value.clone().contiguous()
    return state
