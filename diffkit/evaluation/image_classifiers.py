"""Image classifiers by source: a file that `diffkit train-classifier` wrote, or one of transformers, by id or folder.

Both are asked in the same way, (N, 1 or 3, H, W) in [-1, 1] of any size -> logits, and gradients flow. Importing this
module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import ModelError, UsageError, did_you_mean
from diffkit.evaluation.clip import pixel_scale

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.models.repo import Repo

CLASSIFIER_FILE = "classifier.safetensors"
_USUAL = ((0.5,) * 3,) * 2  # mean and deviation of pixels where a repository names none

Logits = Callable[["Tensor"], "Tensor"]


def classifier_file(source: str) -> Path | None:
    """Return the file of a classifier that diffkit trained; None for one of transformers.

    Args:
        source: A file, a folder that holds `classifier.safetensors`, or a folder or Hub id of transformers.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path / CLASSIFIER_FILE if (path / CLASSIFIER_FILE).is_file() else None
    # A name that cannot be a Hub id is meant as a file, also where there is none.
    return path if path.suffix == ".safetensors" or path.exists() or source.count("/") > 1 else None


def class_names(source: str) -> list[str]:
    """Return the names of a classifier's classes, in label order; no weights are read.

    Raises:
        ModelError: There is none, or its file is not of the format.
    """
    file = classifier_file(source)
    if file is not None:
        from diffkit.evaluation.classifier import read_names

        return read_names(file)
    return _names(_open(source))


def class_number(names: Sequence[str], text: str, what: str, whose: str) -> int:
    """Return the class that a text names: by its name, by one of several names with commas, or by its number.

    Args:
        names: In label order.
        text: The name.
        what: What the text is, for the error.
        whose: Who knows the classes.

    Raises:
        UsageError: There is no such class.
    """
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    for k, name in enumerate(names):  # ImageNet's: "tabby, tabby cat"
        if text in (part.strip() for part in name.split(",")):
            return k
    raise UsageError(
        f"{what} {text!r} is not one of the {len(names)} classes that {whose} knows", did_you_mean(text, names)
    )


def load_logits(source: str, device: str) -> Logits:
    """Load a classifier, or return one from before: guides of several batches share it.

    Raises:
        ModelError: There is none, or its weights are missing or broken.
    """
    file = classifier_file(source)
    return _kept(source, device, file.stat().st_mtime_ns if file is not None and file.is_file() else 0)


@lru_cache(maxsize=2)
def _kept(source: str, device: str, stamp: int) -> Logits:
    file = classifier_file(source)
    if file is None:
        return _of_transformers(_open(source), device)
    from diffkit.evaluation.classifier import load_classifier

    network = load_classifier(file)[0].requires_grad_(False).to(device)
    channels, height, width = network.shape
    return lambda images: network(_fitted(images.to(device), channels, height, width))


def _open(source: str) -> Repo:
    from diffkit.models.hub import open_repo

    repo = open_repo(source)
    kinds = (repo.json("config.json") or {}).get("architectures") or [""]
    if not str(kinds[0]).endswith("ForImageClassification"):
        raise ModelError(
            f"classifier {repo.id}: it is a {kinds[0] or 'model of no named class'}, no image classifier",
            f"Give a file that train-classifier wrote, a folder with {CLASSIFIER_FILE}, or a model of transformers.",
        )
    return repo


def _names(repo: Repo) -> list[str]:
    config = repo.json("config.json") or {}
    labels = config.get("id2label")
    if not isinstance(labels, dict) or not labels:
        return [str(k) for k in range(int(config.get("num_labels", 2)))]
    try:
        return [str(labels[str(k)]) for k in range(len(labels))]
    except KeyError:
        raise ModelError(f"{repo.id}: config.json numbers its classes with gaps", repo.fetch_hint()) from None


def _of_transformers(repo: Repo, device: str) -> Logits:
    import torch
    from transformers import AutoModelForImageClassification

    from diffkit.models.weights import load_component

    model = load_component(repo, AutoModelForImageClassification).requires_grad_(False).to(device)
    config = repo.json("preprocessor_config.json") or {}
    height, width = _size(config, repo.json("config.json") or {})
    mean, std = (torch.tensor(row, device=device).reshape(1, -1, 1, 1) for row in pixel_scale(repo, _USUAL))

    def logits(images: Tensor) -> Tensor:
        pixels = _fitted(images.to(device), mean.shape[1], height, width) / 2 + 0.5
        found: Tensor = model(pixel_values=(pixels - mean) / std).logits
        return found

    return logits


def _size(config: dict[str, Any], network: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of its pictures: what is cut out, else what they are resized to, else the network's own."""
    for key in ("crop_size", "size"):
        size = config.get(key)
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    side = int(network.get("image_size", 224))
    return side, side


def _fitted(images: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Whole pictures at a classifier's size: nothing is cut off, so that every pixel has a gradient."""
    import torch.nn.functional as F

    from diffkit.pictures.tensors import in_channels

    pixels = in_channels(images.float(), channels)
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
