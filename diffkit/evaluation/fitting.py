"""A classifier that is trained on a dataset for its features alone: offline, the same on every run, kept in the cache.

It is small and learns for a minute on a CPU at most: its features have to tell one picture from another, and its
answers are not asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.evaluation.classifier import SmallCNN, load_classifier, save_classifier
from diffkit.evaluation.pictures import Pictures
from diffkit.models.text import cache_folder
from diffkit.pictures.files import write_whole

LOG = logging.getLogger("diffkit.evaluation")


@dataclass(frozen=True)
class Settings:
    """All that the network depends on beside the pictures."""

    pictures: int = 20_000
    held_out: float = 0.1
    updates: int = 400
    batch_size: int = 64
    lr: float = 3e-3
    width: int = 16
    largest: int = 32  # pixels; larger pictures are scaled down
    shift: int = 1  # of 16 pixels, in each direction
    version: int = 1


def classifier_for(pictures: Pictures, settings: Settings | None = None) -> Path:
    """Return the file of the classifier of a dataset, trained now or earlier.

    Raises:
        UsageError: The dataset has no classes.
        DataError: A picture cannot be read.
    """
    settings = settings or Settings()
    told = json.dumps([pictures.identity, asdict(settings)], sort_keys=True)
    path = cache_folder("classifiers") / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        load_classifier(path)  # raises where it is broken
        return path
    names = pictures.classes()
    images, labels = pictures.labelled(settings.pictures)
    network, accuracy = fit(images, labels, len(names), settings)
    LOG.info(
        "features classifier: %d updates on %s, %.1f %% right of those held out; kept as %s",
        settings.updates, pictures.spec.name, 100 * accuracy, path,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_classifier(temporary, network, names, {"facts": json.dumps({"accuracy": accuracy, "dataset": told})})
    write_whole(path, temporary.read_bytes())
    temporary.unlink()
    return path


def side(resolution: int, settings: Settings) -> int:
    """Return the size at which pictures are learned: a multiple of four."""
    return max(4, min(resolution, settings.largest) // 4 * 4)


def fit(images: Tensor, labels: Tensor, classes: int, settings: Settings) -> tuple[SmallCNN, float]:
    """Train on the CPU, so that no device's arithmetic changes the features; no global random state is touched.

    Args:
        images: (N, C, R, R) in [-1, 1], in random order.
        labels: (N,).
        classes: Number of classes.
        settings: How.

    Returns:
        The network in evaluation mode, and its accuracy on the pictures held out.
    """
    size = side(images.shape[-1], settings)
    if images.shape[-1] != size:
        images = torch.cat([
            F.interpolate(part, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
            for part in images.split(256)
        ])  # fmt: skip
    held = max(1, round(settings.held_out * len(images)))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout
        torch.default_generator.manual_seed(0)
        network = SmallCNN(size, classes, channels=images.shape[1], width=settings.width).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.updates)
        for _ in range(settings.updates):
            rows = torch.randint(held, len(images), (settings.batch_size,), generator=generator)
            loss = F.cross_entropy(network(_moved(images[rows], settings, generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        said = torch.cat([network(part).argmax(1) for part in images[:held].split(256)])
    return network, float((said == labels[:held]).float().mean())


def _moved(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Shift a batch by some pixels, the same for all of it; the edge is repeated."""
    most = max(1, images.shape[-1] * settings.shift // 16)
    top, left = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, (most,) * 4, mode="replicate")[..., top : top + height, left : left + width]
