"""The parts of a model beside its network, counted from their configurations: autoencoder and text encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffkit.models import text_encoding
from diffkit.models.kinds import network_class
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import encoder_class
from diffkit.models.weights import quiet_libraries
from diffkit.types import ModelInfo

_VAE = "vae"  # its folder


def count_parts(repo: Repo, info: ModelInfo) -> dict[str, int]:
    """Return the number of parameters of each part by its folder, without reading weights or making any.

    Args:
        repo: The model's repository.
        info: What it is.

    Returns:
        In the order in which they are used: text encoders, autoencoder. A part whose configuration is not at hand, or
        cannot be built by the versions installed, is left out.
    """
    counted = {}
    encoding = text_encoding(repo)
    for part in encoding.parts(repo) if encoding else ():
        config = repo.json(f"{part.encoder}/config.json")
        if config is not None and (count := _count_encoder(part.encoder_class, config)):
            counted[part.encoder] = count
    config = repo.json(f"{_VAE}/config.json") if info.latent else None
    if config is not None and (count := _count_vae(config)):
        counted[_VAE] = count
    return counted


def _count_encoder(name: str, config: dict[str, object]) -> int:
    kind = encoder_class(name)
    return 0 if kind is None else _count(lambda: kind(kind.config_class.from_dict(dict(config))))


def _count_vae(config: dict[str, Any]) -> int:
    kind = network_class(str(config.get("_class_name", "AutoencoderKL")))
    return _count(lambda: kind.from_config(config))


def _count(make: Callable[[], torch.nn.Module]) -> int:
    """Return the number of parameters of what `make` builds, 0 where it cannot be built."""
    try:
        with torch.device("meta"), quiet_libraries():
            return sum(p.numel() for p in make().parameters())
    except Exception:  # an estimate says what it knows; what is wrong with a configuration is said where it is loaded
        return 0
