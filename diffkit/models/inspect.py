"""What a pipeline is made of, read from its configurations and the headers of its weight files, without loading it.

Two things do load a part: the tokens of a prompt (the tokenizer) and the round trip through a VAE (the VAE).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffkit.errors import ModelError, UsageError
from diffkit.models.hub import Repo
from diffkit.models.vocabulary import vocabulary

LARGEST_VOCABULARY = 1000  # entries; beyond, the words are counted, not listed

_UNET = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
_SCHEDULER = ("num_train_timesteps", "beta_schedule", "prediction_type", "variance_type", "timestep_spacing")


def describe(repo: Repo) -> dict[str, Any]:
    """Describe a repository.

    Args:
        repo: An opened one.

    Returns:
        `model` (id, revision, family), `pipeline`, `components` (by name: class, library, parameters, megabytes,
        dtypes; those that were not fetched have no numbers), `parameters` of all, `unet` and `scheduler` (what of
        their configuration matters), `trained` (a diffkit run's own record) and `vocabulary` (its words, where it is
        small).

    Raises:
        ModelError: No family can load it, or a file is broken.
    """
    from diffkit.models import family_of

    family = family_of(repo)
    components = {name: _component(repo, name, *kind) for name, kind in _parts(repo).items()}
    known = [c["parameters"] for c in components.values() if c.get("parameters")]
    part = repo.part("unet")
    found: dict[str, Any] = {
        "model": {"id": repo.id, "revision": repo.revision, "family": family},
        "pipeline": repo.pipeline,
        "components": components,
        "parameters": sum(known),
        "unet": _some(repo.json(f"{part}/config.json" if part else "config.json"), _UNET),
        "scheduler": _some(repo.json("scheduler/scheduler_config.json"), _SCHEDULER),
    }
    trained = repo.json("diffkit.json")
    if trained is not None:
        found["trained"] = {key: value for key, value in trained.items() if value not in (None, [], "")}
    words = vocabulary(repo)
    if words is not None and len(words) <= LARGEST_VOCABULARY:
        found["vocabulary"] = words
    return found


def tokens(repo: Repo, prompt: str) -> list[str]:
    """Return the tokens that a model's tokenizer makes of a prompt, as its pipeline would.

    Raises:
        UsageError: The model knows no prompts.
        ModelError: The tokenizer is missing or broken.
    """
    from diffkit.models.text import clean_prompt, open_encoder

    encoder = open_encoder(repo)
    tokenizer = encoder.tokenizer()
    text = clean_prompt(prompt) if encoder.kind == "t5" else prompt
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)]


def round_trip(source: str, revision: str | None, image: Image.Image) -> tuple[float, Image.Image]:
    """Send an image through a latent model's VAE and back.

    Args:
        source: Hub id or folder.
        revision: Its revision.
        image: Any size; cut to whole latents.

    Returns:
        PSNR in dB, and what came back.

    Raises:
        UsageError: The model works on pixels.
    """
    import torch

    from diffkit.jobs.edit import psnr
    from diffkit.models import load
    from diffkit.pictures.images import cut, from_tensor, to_tensor

    model = load(source, revision=revision, device="cpu", safety="off")
    factor = getattr(model.codec, "factor", 1)
    width, height = (max(factor, side // factor * factor) for side in image.size)
    given = to_tensor(cut(image, width, height), 3)
    with torch.no_grad():
        back = model.codec.decode(model.codec.encode(given)).float()
    return psnr(back, given), from_tensor(back)[0]


def has_vae(repo: Repo) -> bool:
    """Say whether a model works on latents."""
    return "vae" in _parts(repo)


def check_vae(repo: Repo) -> None:
    """Refuse a model without a VAE.

    Raises:
        UsageError: It works on pixels.
    """
    if not has_vae(repo):
        raise UsageError(f"--image: {repo.id} works on pixels and has no VAE", "Leave --image out.")


def _parts(repo: Repo) -> dict[str, tuple[str, str]]:
    index = repo.json("model_index.json")
    if index is None:
        return {"unet": ("diffusers", repo.pipeline)}
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }


def _component(repo: Repo, name: str, library: str, kind: str) -> dict[str, Any]:
    told: dict[str, Any] = {"class": kind, "library": library}
    folder = repo.root / name if (repo.root / name).is_dir() else repo.root
    files = [p for p in sorted(folder.glob("*.safetensors")) if p.name.count(".") == 1 or "-of-" in p.name]
    if folder == repo.root and name != "unet":
        files = []
    if files:
        shapes = [header for path in files for header in _header(path)]
        told["parameters"] = sum(math.prod(shape) for shape, _ in shapes)
        told["megabytes"] = round(sum(p.stat().st_size for p in files) / 1e6, 2)
        told["dtypes"] = sorted({dtype for _, dtype in shapes})
    return told


def _header(path: Path) -> list[tuple[list[int], str]]:
    """Shapes and types of a safetensors file, from its header alone."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            table = json.loads(file.read(length))
        return [(entry["shape"], entry["dtype"]) for name, entry in table.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error})", "Fetch or write it again.") from None


def _some(config: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: config[key] for key in keys if config is not None and config.get(key) is not None}
