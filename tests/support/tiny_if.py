"""Both stages of a DeepFloyd IF of the real sizes, 64 and 256 px, a few thousand random weights each.

The weights are drawn tensor by tensor in the order of their names, and the tokenizer knows single letters: nothing
depends on how a library initialises a layer or trains a vocabulary, so that numbers recorded once can be compared with.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch

from tests.models.conftest import CHARS, IF_UNET, if_scheduler, text_unet, write_index

SIZES = {1: 64, 2: 256}
_LETTERS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in CHARS)]


def fill(module: Any) -> Any:
    """Draw every parameter from a generator seeded with its name: matrices at unit gain, scales near 1.

    A UNet's last layer is small, so that the learned variance stays about [-1, 1] and guidance changes the picture
    without drowning it.
    """
    with torch.no_grad():
        for name, value in module.named_parameters():
            drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            if value.ndim > 1:
                value.copy_(drawn * (0.25 if name.startswith("conv_out") else 1.0) / value[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * drawn + float(name.endswith("weight")))
    return module


def make_tiny_if(folder: Path, stage: int, **unet: Any) -> Path:
    """Write the repository of a stage, with changes to its UNet; both stages have the same text encoder."""
    from diffusers import DDPMScheduler
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder.mkdir(parents=True)
    tokenizer = T5Tokenizer(vocab=_LETTERS, extra_ids=0)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = T5Config(vocab_size=len(_LETTERS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    changes = IF_UNET | {"sample_size": SIZES[stage]}
    if stage == 2:
        changes |= {"in_channels": 6, "class_embed_type": "timestep", "block_out_channels": (4, 8, 8)}
        # Attention at 64 px only, so that a call takes a fraction of a second.
        changes["down_block_types"] = ("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",)
        changes["up_block_types"] = ("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": fill(T5EncoderModel(config).eval()),
        "scheduler": if_scheduler(stage),
        "unet": fill(text_unet(**changes | unet)),
    }
    if stage == 2:
        parts["image_noising_scheduler"] = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    write_index(folder, "IFPipeline" if stage == 1 else "IFSuperResolutionPipeline", parts)
    return folder
