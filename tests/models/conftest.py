"""Tiny repositories of every shape that exists on the Hub, built on the spot with random weights, and a fake Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.fakehub import FakeHub, serve

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def tiny_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def old_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the attention parameters to what diffusers 0.1 called them."""
    out = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            if ".attentions." in key:
                key = key.replace(f".{new}.", f".{old}.")
        out[key] = value.contiguous()
    return out


def make_flat(folder: Path, *, weights: str = "safetensors", old: bool = True):
    """Write a flat repository as `google/ddpm-*`: everything at the root, old configuration keys and parameter names."""
    unet = tiny_unet()
    folder.mkdir(parents=True, exist_ok=True)
    keep = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
            "down_block_types", "up_block_types", "act_fn", "freq_shift", "flip_sin_to_cos", "center_input_sample",
            "downsample_padding", "mid_block_scale_factor", "norm_eps", "time_embedding_type", "attention_head_dim")  # fmt: skip
    config = {key: unet.config[key] for key in keep}
    config |= {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "resnet_input_channels": 3}
    (folder / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1", "scheduler": ["diffusers", "DDPMScheduler"],
             "unet": ["diffusers", "UNet2DModel"]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_start": 0.0001, "beta_end": 0.02,
                 "beta_schedule": "linear", "clip_predicted_image": True, "clip_sample": True,
                 "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_small"}  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    state = old_state(unet.state_dict()) if old else unet.state_dict()
    if weights == "safetensors":
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    elif weights == "bin":
        torch.save(state, folder / "diffusion_pytorch_model.bin")
    return unet


def make_pipeline(folder: Path, *, variant: str | None = None, shard: str | None = None):
    """Write a DDPM pipeline in the usual layout."""
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = tiny_unet()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    if variant or shard:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        saved = unet.half() if variant == "fp16" else unet
        saved.save_pretrained(folder / "unet", variant=variant, **({"max_shard_size": shard} if shard else {}))
    return unet.float()


def drop_tensor(path: Path, name: str) -> None:
    state = load_file(path)
    del state[name]
    save_file(state, path, metadata={"format": "pt"})


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub of our own and an empty cache."""
    from huggingface_hub import constants

    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets when it is there at import
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
