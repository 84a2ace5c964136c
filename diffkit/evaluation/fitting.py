"""A classifier that is trained on a dataset: for its features alone, kept in the cache, or as a file of the user's own.

Offline, the same on every run, and small: it learns for a minute on a CPU at most. Features have to tell one picture
from another; as a guide or a scorer it is asked for its answers, too, and learns longer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.evaluation.classifier import SmallCNN, load_classifier, save_classifier
from diffkit.evaluation.pictures import Pictures, resized
from diffkit.models.caches import cache_folder

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
    noisy: bool = False  # half of what is learned from is spoilt by noise, of a deviation up to half of the range
    seed: int = 0
    version: int = 1


# As a guide and a scorer: wider, longer, and at the pictures' own size.
OWN = Settings(pictures=100_000, updates=600, width=32, largest=1024)


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
    save_classifier(path, network, names, {"facts": json.dumps({"accuracy": accuracy, "dataset": told})})
    return path


def train_classifier(pictures: Pictures, path: Path, settings: Settings = OWN) -> dict[str, Any]:
    """Train a classifier on a dataset and write its file, for `classifier:FILE`.

    Args:
        pictures: The dataset, at the size at which the classifier is to look at pictures.
        path: The file, one of safetensors.
        settings: How.

    Returns:
        What the file's header says of it, too: the dataset and the hash of its pictures, classes, size, the accuracy on
        pictures held out, and how it was trained.

    Raises:
        UsageError: The dataset has no classes.
        DataError: A picture cannot be read.
    """
    names = pictures.classes()
    images, labels = pictures.labelled(settings.pictures)
    network, accuracy = fit(images, labels, len(names), settings)
    facts = {
        "dataset": pictures.spec.name, "split": pictures.spec.split, "data": pictures.identity, "classes": len(names),
        "channels": network.shape[0], "resolution": network.shape[1], "accuracy": accuracy,
        "held_out": _held(len(images), settings), "noisy": settings.noisy, "updates": settings.updates,
        "seed": settings.seed,
    }  # fmt: skip
    save_classifier(path, network, names, {"facts": json.dumps(facts)})
    return facts


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
        images = torch.cat([resized(part, size) for part in images.split(256)])
    held = _held(len(images), settings)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout
        torch.default_generator.manual_seed(settings.seed)
        network = SmallCNN(size, classes, channels=images.shape[1], width=settings.width).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.updates)
        for _ in range(settings.updates):
            rows = torch.randint(held, len(images), (settings.batch_size,), generator=generator)
            seen = _moved(images[rows], settings, generator)
            if settings.noisy:
                seen = _spoilt(seen, generator)
            loss = F.cross_entropy(network(seen), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        said = torch.cat([network(part).argmax(1) for part in images[:held].split(256)])
    return network, float((said == labels[:held]).float().mean())


def _held(count: int, settings: Settings) -> int:
    return max(1, round(settings.held_out * count))


def _spoilt(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise to the second half of a batch, to each picture as much as a draw says: guides see unfinished ones."""
    first, second = images.chunk(2)
    amount = torch.rand(len(second), 1, 1, 1, generator=generator)
    return torch.cat([first, second + amount * torch.randn(second.shape, generator=generator)])


def _moved(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Shift a batch by some pixels, the same for all of it; the edge is repeated."""
    most = max(1, images.shape[-1] * settings.shift // 16)
    top, left = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, (most,) * 4, mode="replicate")[..., top : top + height, left : left + width]
