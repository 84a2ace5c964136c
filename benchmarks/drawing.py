"""Pictures of a model at hand as tensors, for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from diffkit.engine.settings import Settings
from diffkit.jobs.base import build
from diffkit.jobs.batch import Batch
from diffkit.jobs.run import draw
from diffkit.jobs.sample import Sample
from diffkit.pictures.tensors import to_tensor
from diffkit.types import Model


@dataclass(frozen=True)
class Picture:
    """One finished picture: (C, H, W) in [-1, 1], with its seed and label."""

    seed: int
    label: str | None
    image: Tensor


def generate(
    model: Model,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    batch_size: int = 64,
) -> Iterator[list[Picture]]:
    """Draw one picture per seed, batch by batch; labels are classes or prompts."""
    job = build(Sample, {})
    names = list(labels) if labels is not None else [None] * len(seeds)
    for first in range(0, len(seeds), batch_size):
        some, said = list(seeds[first : first + batch_size]), names[first : first + batch_size]
        images = to_tensor(draw(job, model, Batch(some, said, settings or Settings())).pictures)
        yield [Picture(seed, label, image) for seed, label, image in zip(some, said, images, strict=True)]
