"""Tiny PRX and PRXPixel pipelines on disk, random weights and all; tokenizers that know single letters and bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TOKENS = 12
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,&;#▁"
NETWORK = {
    "in_channels": 4, "patch_size": 2, "context_in_dim": 16, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2,
    "depth": 2, "axes_dim": [4, 4],
}  # fmt: skip
PIXELS = {"in_channels": 3, "patch_size": 4, "bottleneck_size": 8, "resolution_embeds": True}


def network(**changes: Any) -> Any:
    """A transformer whose gates are open: the stock initialisation lets nothing through its blocks."""
    from diffusers import PRXTransformer2DModel

    torch.manual_seed(0)
    made = PRXTransformer2DModel(**NETWORK | changes).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape) * 0.2)
        made.final_layer.linear.weight.mul_(0.25)  # what it draws stays near the range of pictures
        for block in made.blocks:
            block.attention.txt_kv_proj.weight.mul_(4)  # and prompts are told apart
    return made


def autoencoder(deep: bool = False) -> Any:
    from diffusers import AutoencoderDC, AutoencoderKL

    torch.manual_seed(3)
    if deep:
        blocks, widths = ("ResBlock", "EfficientViTBlock"), (8, 8)
        return AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
            decoder_block_types=blocks, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
            encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1), upsample_block_type="interpolate", downsample_block_type="stride_conv",
            decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
        ).eval()  # fmt: skip
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def t5gemma() -> tuple[Any, Any]:
    from transformers import GemmaTokenizer
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaModel

    known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LETTERS]
    tokenizer = GemmaTokenizer(
        vocab={token: k for k, token in enumerate(known)}, merges=[], model_max_length=TOKENS,
    )  # fmt: skip
    torch.manual_seed(1)
    layers = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
        "query_pre_attn_scalar": 8, "initializer_range": 0.3,
    }  # fmt: skip
    halves = {"encoder": T5GemmaModuleConfig(**layers), "decoder": T5GemmaModuleConfig(**layers)}
    # As the published ones were written: the half of a whole model, with that half's configuration.
    return T5GemmaModel(T5GemmaConfig(**halves, vocab_size=len(tokenizer))).encoder.eval(), tokenizer


def qwen(kind: str = "Qwen3VLTextModel") -> tuple[Any, Any]:
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer = transformers.Qwen2Tokenizer(
        vocab={char: k for k, char in enumerate(bytes_to_unicode().values())}, merges=[]
    )
    torch.manual_seed(1)
    cls = getattr(transformers, kind)
    config = cls.config_class(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    if kind == "Qwen3VLTextModel":
        config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return cls(config).eval(), tokenizer


def write(folder: Path, name: str, parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.39.0", **more}
    for part, module in parts.items():
        module.save_pretrained(folder / part)
        index[part] = [type(module).__module__.split(".")[0], type(module).__name__]
    index["text_encoder"][0] = "prx" if name == "PRXPipeline" else "transformers"
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts


def make_prx(folder: Path, *, deep: bool = False, size: int = 16, **changes: Any) -> dict[str, Any]:
    """Write a PRX of pictures of so many pixels; return its parts."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    encoder, tokenizer = t5gemma()
    parts = {
        "transformer": network(**changes), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": encoder, "tokenizer": tokenizer, "vae": autoencoder(deep),
    }  # fmt: skip
    return write(folder, "PRXPipeline", parts, default_sample_size=size)


def make_prx_pixel(folder: Path, *, size: int = 16, kind: str = "Qwen3VLTextModel", **index: Any) -> dict[str, Any]:
    """Write a PRXPixel; return its parts."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    encoder, tokenizer = qwen(kind)
    parts = {
        "transformer": network(**PIXELS), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": encoder, "tokenizer": tokenizer,
    }  # fmt: skip
    index = {"default_sample_size": size, "prompt_max_tokens": TOKENS, "noise_scale": 2.0, **index}
    return write(folder, "PRXPixelPipeline", parts, **index)
