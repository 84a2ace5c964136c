"""A job drawn with a model at hand, tensors in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffkit.jobs.base import PictureJob, build
from diffkit.jobs.batch import Batch
from diffkit.jobs.options import Watch
from diffkit.jobs.run import draw
from diffkit.pictures.tensors import from_tensor, to_tensor
from diffkit.types import Model, Step


@dataclass
class Done:
    """What a job gave, with the network calls that it had announced."""

    pictures: list[Image.Image]
    timesteps: list[float]
    calls: int
    sheet: list[tuple[str, Image.Image]]
    scores: dict[str, Any]
    frames: list[Image.Image]

    @property
    def tensor(self) -> Tensor:
        """The pictures, (B, C, H, W) in [-1, 1]."""
        return to_tensor(self.pictures)


class Steps(Watch):
    """Keeps all steps."""

    def __init__(self) -> None:
        self.all: list[Step] = []

    def step(self, step: Step, positions: range) -> None:
        self.all.append(step)


def make_job(cls: type[PictureJob], model: Model, **fields: Any) -> PictureJob:
    """Make a job that fits a model; images may be tensors (1, C, H, W) in [-1, 1]."""
    values = {key: from_tensor(v)[0] if isinstance(v, Tensor) else v for key, v in fields.items()}
    job = build(cls, values).fitted(model.info)
    job.check(model.info)
    return job


def do(
    cls: type[PictureJob],
    model: Model,
    seeds: Sequence[int] = (0,),
    label: str | None = None,
    watch: Watch | None = None,
    **fields: Any,
) -> Done:
    """Draw one batch of a job."""
    if label is not None:
        fields["prompt" if model.info.text else "label"] = label
    job = make_job(cls, model, **fields)
    visited = job.sampling_timesteps(model.info)
    labels = [job.label_for(model.info)] * len(seeds)
    with torch.no_grad():
        drawn = draw(job, model, Batch(list(seeds), labels, job.settings), watch)
    return Done(drawn.pictures, visited, len(visited) + drawn.calls, drawn.sheet, drawn.scores, drawn.frames)
