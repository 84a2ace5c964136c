"""What the benchmarks of pictures share: jobs that are drawn with a model at hand, in batches, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffkit.engine.sampling import generators
from diffkit.engine.settings import Settings
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import Prompted, draw_steps, model_for
from diffkit.illusions.stages import enlarge
from diffkit.jobs.base import PictureJob, build
from diffkit.jobs.batch import Batch
from diffkit.jobs.illusion import Illusion
from diffkit.jobs.run import draw, follow
from diffkit.models.conditioning import guide_each
from diffkit.pictures.tensors import to_tensor
from diffkit.types import Model

J = TypeVar("J", bound=PictureJob)


def job_for(cls: type[J], model: Model, **fields: Any) -> J:
    """Make a job that fits a model; what is None is left out."""
    return build(cls, fields).fitted(model.info)


def pictures(
    model: Model, job: PictureJob, seeds: Sequence[int], labels: Sequence[str | None] = (), batch_size: int = 32
) -> Tensor:
    """Draw one picture per seed (and label): (N, C, H, W) in [-1, 1], as a PNG file keeps them."""
    wanted = list(labels) or [None] * len(seeds)
    found: list[Any] = []
    with torch.no_grad():
        for k in range(0, len(seeds), batch_size):
            some = slice(k, k + batch_size)
            found += draw(job, model, Batch(list(seeds[some]), wanted[some], job.settings)).pictures
    return to_tensor(found)


def illusions(model: Model, job: Illusion, seeds: Sequence[int]) -> Tensor:
    """Draw an illusion at the model's own size, one picture per seed: (N, C, H, W), not rounded to a file's levels."""
    prompted = job.prompted(model, job.settings, seeds)
    steps = draw_steps(model_for(model, job.composition), job.composition, prompted, job.settings, generators(seeds))
    return follow(steps, range(0))


def enlarged(
    upscaler: Model, composition: Composition, prompts: Sequence[str], small: Tensor, settings: Settings, level: int
) -> Tensor:
    """Enlarge pictures (N, 3, h, w) four times, all prompts at once: (N, 3, 4h, 4w)."""

    def prompted(model: Model, how: Settings) -> Prompted:
        return Prompted(*guide_each(model, prompts, how, len(small)))

    steps = enlarge(upscaler, composition, prompted, small, range(len(small)), settings, noise_level=level)
    return follow(steps, range(0))
