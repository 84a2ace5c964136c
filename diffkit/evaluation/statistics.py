"""The features of real pictures, computed once and kept in the cache.

A file's name is a hash of the pictures (what they are and how they are prepared), of the features, and of the number of
pictures; its header says the same again and is believed rather than the name.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.evaluation.features import Features
from diffkit.evaluation.pictures import RESIZE, Pictures
from diffkit.models.caches import cache_folder
from diffkit.pictures.files import write_whole

LOG = logging.getLogger("diffkit.evaluation")
MOST = 10_000  # real pictures, where nobody says how many


def real_features(features: Features, pictures: Pictures, count: int | None = MOST) -> Tensor:
    """Return the features of up to `count` real pictures, (N, D) fp32 on the CPU, from the cache where they are there.

    Raises:
        UsageError: What the cache holds is of other features.
        DataError: A picture cannot be read.
    """
    count = len(pictures.chosen(count))
    about = {
        "pictures": pictures.identity, "features": features.hash, "name": type(features).name,
        "resize": f"{pictures.spec.resolution} to {features.size}, {RESIZE}", "count": str(count),
    }  # fmt: skip
    path = cache_folder("statistics") / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file() and (kept := _read(path, about)) is not None:
        return kept
    found = embedded(features, pictures, count)
    _write(path, found, about)
    return found


def embedded(features: Features, pictures: Pictures, count: int | None = None) -> Tensor:
    """Return the features of up to `count` pictures, (N, D) fp32 on the CPU."""
    return torch.cat([features.embed(part) for part in pictures.batches(pictures.chosen(count))])


def joined(parts: Sequence[tuple[int, Tensor]], world: int) -> Tensor:
    """Put the features together that several processes have made, in the order of their numbers; all have them then.

    Args:
        parts: Of this process: the number of the first picture, and features.
        world: Number of processes.
    """
    if world > 1:
        from accelerate.utils import gather_object

        parts = gather_object(list(parts))
    return torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0])])


def _read(path: Path, about: dict[str, str]) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            found: Tensor = file.get_tensor("features")
    except (SafetensorError, OSError) as error:  # a broken entry is made again, never an obstacle
        LOG.warning("%s is not readable (%s); the features are computed again", path, type(error).__name__)
        return None
    different = [
        f"{key} {header.get(key)!r}, not {value!r}" for key, value in about.items() if header.get(key) != value
    ]
    if different or len(found) != int(about["count"]):
        raise UsageError(
            f"{path} holds statistics of something else: {'; '.join(different) or 'another number of pictures'}",
            "Remove the file: it is no part of this cache.",
        )
    return found


def _write(path: Path, found: Tensor, about: dict[str, Any]) -> None:
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"features": found.contiguous()}, metadata=about))
    except OSError as error:
        LOG.warning("the cache %s cannot be written: %s", path.parent, error.strerror)
