"""A CLIP of a few thousand random weights that looks at 16 pixels and knows single letters."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.models.conftest import clip_tokenizer


def make_clip(folder: Path) -> Path:
    """Write it as transformers has it."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(4)
    tokenizer = clip_tokenizer(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    count = len(tokenizer)
    text = small | {
        "vocab_size": count, "bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1
    }  # fmt: skip
    vision = small | {"image_size": 16, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval().save_pretrained(folder)
    return folder


def make_vit(folder: Path, names: tuple[str, ...] = ("tabby, tabby cat", "goldfish", "pond")) -> Path:
    """Write an image classifier of transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(5)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        id2label=dict(enumerate(names)), label2id={name: k for k, name in enumerate(names)},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.save_pretrained(folder)
    preparation = {"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder
