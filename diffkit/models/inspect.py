"""What a pipeline is made of, read from its configurations and the headers of its weight files, without loading it.

Two things do load a part: the tokens of a prompt (the tokenizer) and the round trip through a VAE (the VAE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffkit import models
from diffkit.errors import ModelError, UsageError
from diffkit.models.repo import Repo
from diffkit.models.vocabulary import vocabulary
from diffkit.types import ModelInfo

LARGEST_VOCABULARY = 1000  # entries; beyond, the words are counted, not listed

_NETWORK = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim",
    "num_layers", "patch_size", "num_attention_heads", "attention_head_dim",
)  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalizations
_SCHEDULER = (
    "num_train_timesteps", "beta_schedule", "prediction_type", "variance_type", "timestep_spacing", "shift",
    "use_dynamic_shifting", "noise_scale",
)  # fmt: skip


def describe(repo: Repo) -> dict[str, Any]:
    """Describe a repository.

    Args:
        repo: An opened one.

    Returns:
        `model` (id, revision, family), `pipeline`, `components` (by name: class, library, parameters, megabytes,
        dtypes; those that were not fetched have no numbers), `parameters` of all, `unet` (the network) and `scheduler`
        (what of their configuration matters), `trained` (a diffkit run's own record) and `vocabulary` (its words, where
        it is small).

    Raises:
        ModelError: No family can load it, or a file is broken.
    """
    known = models.info(repo)
    components = {name: _component(repo, known, name, *kind) for name, kind in _parts(repo, known).items()}
    counts = [c["parameters"] for c in components.values() if c.get("parameters")]
    found: dict[str, Any] = {
        "model": {"id": repo.id, "revision": repo.revision, "family": known.family},
        "pipeline": repo.pipeline,
        "components": components,
        "parameters": sum(counts),
        "unet": _some(known.network.config, _NETWORK),
        "scheduler": _some(
            repo.json("scheduler/scheduler_config.json") or repo.json("scheduler_config.json"), _SCHEDULER
        ),
    }
    if known.record:
        found["trained"] = {key: value for key, value in known.record.items() if value not in (None, [], "")}
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
    from diffkit.models.text import open_encoder

    encoder = open_encoder(repo, models.text_encoding(repo), models.LoadOptions())
    tokenizer = encoder.tokenizer()
    text = encoder.encoding.clean(prompt)
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

    from diffkit.pictures.images import cut
    from diffkit.pictures.quality import psnr
    from diffkit.pictures.tensors import from_tensor, to_tensor

    model = models.load(source, revision=revision, device="cpu", safety="off")
    factor = model.info.factor
    width, height = (max(factor, side // factor * factor) for side in image.size)
    given = to_tensor(cut(image, width, height), 3)
    with torch.no_grad():
        back = model.codec.decode(model.codec.encode(given)).float()
    return psnr(back, given), from_tensor(back)[0]


def check_vae(repo: Repo) -> None:
    """Refuse a model without a VAE.

    Raises:
        UsageError: It works on pixels.
    """
    if not models.info(repo).latent:
        raise UsageError(f"{repo.id} works on pixels and has no VAE to send an image through", "Leave the image out.")


def _parts(repo: Repo, known: ModelInfo) -> dict[str, tuple[str, str]]:
    index = repo.json("model_index.json")
    if index is None:
        return {"unet": ("diffusers", known.network.kind)}
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }


def _component(repo: Repo, known: ModelInfo, name: str, library: str, kind: str) -> dict[str, Any]:
    described: dict[str, Any] = {"class": kind, "library": library}
    # The network's folder has another name in a checkpoint, and in a flat repository it is the root.
    folder = repo.root / (known.network.folder if kind == known.network.kind else name)
    files = [p for p in sorted(folder.glob("*.safetensors")) if p.name.count(".") == 1 or "-of-" in p.name]
    if files:
        shapes = [header for path in files for header in _header(path)]
        described["parameters"] = sum(math.prod(shape) for shape, _ in shapes)
        described["megabytes"] = round(sum(p.stat().st_size for p in files) / 1e6, 2)
        described["dtypes"] = sorted({dtype for _, dtype in shapes})
    return described


def _header(path: Path) -> list[tuple[list[int], str]]:
    """Shapes and types of a safetensors file's parameters, from its header alone; statistics are none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if not name.endswith(_STATISTICS)]  # noqa: SIM118
            parts = [file.get_slice(name) for name in names]
            return [(part.get_shape(), part.get_dtype()) for part in parts]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error})", "Fetch or write it again.") from None


def _some(config: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: config[key] for key in keys if config is not None and config.get(key) is not None}
