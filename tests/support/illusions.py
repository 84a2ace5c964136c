"""Illusions without a job: models whose answers are known, and one line that draws prompts by a composition."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.sampling import generators
from diffkit.engine.settings import Settings
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import Prompted, draw_steps, model_for
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.stages import Prompt
from diffkit.illusions.views import Look, parse_view
from diffkit.jobs import run
from diffkit.models.base import BaseModel
from diffkit.models.conditioning import guide_each
from diffkit.models.ddpm import PixelCodec
from diffkit.types import Cond, Model, ModelInfo, Network, Prediction, Step
from tests.engine.test_levels import base_of

IDENTITY, FLIP = parse_view("identity"), parse_view("flip")


def views(*names: str) -> tuple[Look, ...]:
    return tuple(parse_view(name) for name in names)


def plainly(count: int = 1, **more: Any) -> Composition:
    """So many prompts, all seen in the picture as it is."""
    return Composition((IDENTITY,) * count, **more)


def anagram(*names: str, **more: Any) -> Composition:
    return Composition(views(*names), **more)


def hybrid(split: str, count: int = 2, **more: Any) -> Composition:
    return Composition((IDENTITY,) * count, parse_filter(split), **more)


def info_of(shape: tuple[int, int, int], scheduler: Any, **more: Any) -> ModelInfo:
    """What a model of pixels says of itself, with changes."""
    about: dict[str, Any] = {
        "id": "known", "revision": None, "family": "none", "pipeline": "", "channels": shape[0], "size": shape[1:],
        "sample": shape, "network": Network("", "none"), "scheduler": scheduler,
    }  # fmt: skip
    return ModelInfo(**(about | more))


class Known(BaseModel):
    """Base of models whose answers are known; they run on the CPU."""

    device = torch.device("cpu")
    parameters = 0

    def uncond(self, batch: int) -> Cond:
        return self.encode([None] * batch)  # type: ignore[attr-defined, no-any-return]


class Gaussian(Known):
    """A model whose prompts are Gaussians around pictures of their own: the answer of every step is a formula."""

    spread = 0.2

    def __init__(self, means: dict[str, Tensor], kind: str = "epsilon") -> None:
        self.means, self.names = means, list(means)
        shape = tuple(next(iter(means.values())).shape)
        scheduler = base_of(kind)
        if kind != "flow":
            scheduler = type(scheduler).from_config(scheduler.config, clip_sample=False)
        self.info = info_of(shape, scheduler, conditioning="class", classes=tuple(means))
        self.codec = PixelCodec(shape[-1], shape[-1])

    def encode(self, prompts: list[str]) -> Cond:
        return Cond({"c": torch.tensor([self.names.index(p) for p in prompts])})

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(self.scheduler, t)
        mean = torch.stack([self.means[self.names[int(k)]] for k in cond.tensors["c"]])
        gain = signal * self.spread / (signal**2 * self.spread + noise**2)
        return Prediction(out_of(mean + gain * (x - signal * mean), x, t, self.scheduler))


def pictures(count: int = 2, channels: int = 3, side: int = 8) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(channels, side, side, generator=random).clamp(-1, 1) for _ in range(count)]


def follow(steps: Generator[Step, None, Tensor], on_step: Callable[[Step], None] | None = None) -> Tensor:
    """Take all steps; return what they end in."""
    listeners = () if on_step is None else (lambda step, _: on_step(step),)
    return run.follow(steps, range(0), *listeners)


def prompting(labels: Sequence[str], count: int) -> Prompt:
    """From a model and settings to its guided network and one condition per label, for so many pictures."""

    def prompt(model: Model, settings: Settings) -> Prompted:
        if settings.guidance is None and any(labels) and model.info.conditioning != "none":
            settings = replace(settings, guidance=model.info.illusion_guidance)
        return Prompted(*guide_each(model, list(labels), settings, count))

    return prompt


def draw(
    model: Model,
    labels: Sequence[str],
    composition: Composition,
    seeds: Sequence[int],
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Draw one picture per seed that shows all labels."""
    prompted = prompting(labels, len(seeds))(model, settings)
    steps = draw_steps(model_for(model, composition), composition, prompted, settings, generators(seeds))
    return follow(steps, on_step)
