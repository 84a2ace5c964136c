"""Tiny PixNerd pipelines on disk, with a Qwen3 of random weights whose tokenizer knows single bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_pixnerd import CLASSES, SIDE, TEXT, fill

from diffkit.models.pixnerd_checkpoint import write_pipeline
from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel, PixNerdTransformer2DModel

TOKENS = 16


def text_parts() -> tuple:
    """A text encoder and its tokenizer."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer = Qwen2Tokenizer(vocab={char: k for k, char in enumerate(bytes_to_unicode().values())}, merges=[])
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return Qwen3Model(config).eval(), tokenizer


def text_network(**changes: int) -> PixNerdTransformer2DModel:
    network = PixNerdTransformer2DModel(**{**TEXT, "txt_max_length": TOKENS, "sample_size": SIDE, **changes})
    fill(network)
    return network.eval()


def class_network(**changes: int) -> PixNerdClassTransformer2DModel:
    network = PixNerdClassTransformer2DModel(**{**CLASSES, "sample_size": SIDE, **changes})
    fill(network)
    return network.eval()


def make_pixnerd(folder: Path, **changes: int) -> dict:
    """Write the text-conditional pipeline, text encoder and all; return its parts."""
    network, (encoder, tokenizer) = text_network(**changes), text_parts()
    write_pipeline(folder, network, text_encoder=encoder, tokenizer=tokenizer)
    return {"transformer": network, "text_encoder": encoder, "tokenizer": tokenizer}


def make_pixnerd_class(
    folder: Path, id2label: dict[int, str] | None = None, **changes: int
) -> PixNerdClassTransformer2DModel:
    """Write the class-conditional pipeline, of five classes."""
    network = class_network(**changes)
    write_pipeline(folder, network, id2label=id2label)
    return network
