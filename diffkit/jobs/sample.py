"""Pictures from noise: a plan of seeds, classes and batches, and the loop over it.

Batches are cut by the position of a picture in the whole list and dealt to processes as they are, so any number of
processes makes the same pictures, bit for bit. Writing files is the caller's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.guidance import cfg, chunked
from diffkit.engine.samplers import SAMPLERS, canonical, default_sampler, make_sampler
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.engine.settings import Settings as Settings
from diffkit.errors import NumericalError, UsageError
from diffkit.types import Cond, Denoiser, Step

LOG = logging.getLogger("diffkit.tasks")

DEFAULT_GUIDANCE = 2.0
# Families that take prompts, and their usual guidance.
TEXT_GUIDANCE = {"stable_diffusion": 7.5, "deepfloyd": 7.0}
# Small models with a small vocabulary tell their captions apart at once; more guidance only makes their lines ring.
OWN_GUIDANCE = 4.0


@dataclass(frozen=True)
class Picture:
    """One finished picture.

    Attributes:
        index: Position in the whole list.
        seed: Its seed.
        label: Its class or prompt, as it was asked for, or None.
        image: (C, H, W) fp32 on the CPU, about [-1, 1].
    """

    index: int
    seed: int
    label: str | None
    image: Tensor


def batches(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[range]:
    """Cut positions 0..count-1 into batches; process `rank` of `world` gets every world-th of them."""
    whole = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    return whole[rank::world]


def prepare(base: Any, settings: Settings, **options: Any) -> Any:
    """Make the scheduler with its grid set.

    Args:
        base: The model's own scheduler; not changed.
        settings: What was asked for.
        options: Further arguments of the scheduler's class.

    Raises:
        UsageError: The sampler or the grid does not fit the model.
    """
    name = canonical(settings.scheduler or default_sampler(base))
    scheduler = make_sampler(name, base, spacing=settings.spacing, **options)
    if settings.eta and name != "ddim":
        raise UsageError(f"--eta belongs to ddim; the scheduler is {name}", "Leave --eta out.")
    levels = int(base.config.num_train_timesteps)
    steps = None if settings.timesteps else settings.steps or min(SAMPLERS[name].steps or levels, levels)
    set_grid(scheduler, steps, settings.timesteps)
    return scheduler


def generate(
    model: Any,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
    on_step: Callable[[Step, range], None] | None = None,
) -> Iterator[list[Picture]]:
    """Draw one picture per seed; finished batches are yielded.

    Args:
        model: A loaded model.
        seeds: One per picture.
        labels: One class or prompt per picture, or None for the null class.
        settings: How.
        batch_size: Pictures per batch; a picture does not depend on it beyond rounding.
        rank: This process.
        world: Number of processes.
        on_step: Called after each step with the step and the positions of its batch.

    Raises:
        UsageError: Settings that do not fit the model.
        NumericalError: The result is not finite.
    """
    settings = settings or Settings()
    wanted = list(labels) if labels is not None else [None] * len(seeds)
    for positions in batches(len(seeds), batch_size, rank, world):
        some = [seeds[k] for k in positions]
        names = [wanted[k] for k in positions]
        x: Tensor | None = None
        for step in steps_of(model, some, names, settings):
            x = step.x
            if on_step is not None:
                on_step(step, positions)
        assert x is not None
        images = finished(model, x)
        yield [Picture(k, seeds[k], wanted[k], image) for k, image in zip(positions, images, strict=True)]


def finished(model: Any, x: Tensor) -> Tensor:
    """Return the pictures of finished samples, (B, C, H, W) fp32 on the CPU; a safety checker has judged them.

    Raises:
        NumericalError: They are not finite.
    """
    with torch.no_grad():
        images = model.codec.decode(x).float()
    if not torch.isfinite(images).all():
        raise NumericalError("the pictures are not finite numbers", "Try --dtype fp32, or another --scheduler.")
    if takes_prompts(model):
        images, _ = model.screen(images)
    return images.cpu()


def takes_prompts(model: Any) -> bool:
    """Say whether a model is conditioned by prompts, not by classes."""
    return model.family in TEXT_GUIDANCE


def _one_step(model: Any) -> bool:
    return not takes_prompts(model) and model.meta.prediction == "one_step"


def steps_of(model: Any, seeds: Sequence[int], labels: Sequence[str | None], settings: Settings) -> Iterator[Step]:
    """Draw one batch, step by step.

    A one-step denoiser is asked once, about pure noise: what it answers is the mean of the data.
    """
    random = generators(seeds)
    noise = model.noise(random)
    net, cond = conditioned(model, labels, settings)
    if _one_step(model):
        _check_one_step(settings)
        t = torch.zeros((), dtype=torch.long)
        with torch.no_grad():
            out = net(noise, t, cond).out
        yield Step(0, 1, t, out, out)
        return
    scheduler = prepare(model.scheduler, settings)  # a new one: a multistep solver remembers the batch before
    yield from denoise(
        net,
        pure_noise(scheduler, noise),
        scheduler,
        cond,
        generators=random,
        eta=settings.eta,
        stop_noise_after=settings.stop_noise_after,
    )


def _check_one_step(settings: Settings) -> None:
    asked = (settings.scheduler, settings.steps, settings.spacing, settings.timesteps, settings.stop_noise_after)
    if any(value is not None for value in asked) or settings.eta or settings.interval != Settings.interval:
        raise UsageError(
            "this model is a one-step denoiser: it has no sampling steps to choose",
            "Leave --scheduler, --steps, --spacing, --timesteps, --eta, --stop-noise-after, --guidance-interval out.",
        )


def conditioned(model: Any, labels: Sequence[str | None], settings: Settings) -> tuple[Denoiser, Cond]:
    """Return the (guided) denoiser and the condition of a batch."""
    limits = [n for n in (settings.max_batch, getattr(getattr(model, "memory", None), "max_batch", None)) if n]
    net = chunked(model, min(limits) if limits else None)
    scale = scales(model, labels, settings)
    if scale == 1.0:
        return net, model.encode(list(labels))
    # Together: the text encoder comes once.
    if takes_prompts(model):
        negative = settings.negative
        against = [n or "" for n in negative] if isinstance(negative, tuple) else [negative or ""]
        both = model.encode([*labels, *against])
        cond, uncond = both.rows(0, len(labels)), both.rows(len(labels), len(labels) + len(against))
    else:
        cond, uncond = model.encode(list(labels)), model.uncond(len(labels))
    return guided(net, uncond, scale, model, settings), cond


def guided(net: Denoiser, uncond: Cond, scale: float | tuple[float, ...], model: Any, settings: Settings) -> Denoiser:
    """Return the network with guidance of a scale, on the stretch of the way that the settings say."""
    start, stop = settings.interval
    return cfg(net, uncond, scale, start=start, stop=stop, levels=model.scheduler.config.num_train_timesteps)


def scales(model: Any, labels: Sequence[str | None], settings: Settings) -> float | tuple[float, ...]:
    """Return the guidance scale of a batch, or where its pictures differ one for each; see `effective_guidance`."""
    guidance, negative = settings.guidance, settings.negative
    if not isinstance(guidance, tuple) and not isinstance(negative, tuple):
        return effective_guidance(model, settings, all(label in (None, "") for label in labels))
    count = len(labels)
    scales = guidance if isinstance(guidance, tuple) else (guidance,) * count
    against = negative if isinstance(negative, tuple) else (negative,) * count
    each = [
        effective_guidance(model, replace(settings, guidance=scale, negative=other), label in (None, ""))
        for label, scale, other in zip(labels, scales, against, strict=True)
    ]
    return each[0] if len(set(each)) == 1 else tuple(each)


def effective_guidance(model: Any, settings: Settings, null: bool) -> float:
    """Return the scale that is used: 1 (no second pass) where there is nothing to guide.

    Raises:
        UsageError: Guidance was asked for, and the model or the missing class or prompt does not allow it.
    """
    guidance = settings.guidance
    assert not isinstance(guidance, tuple)
    if takes_prompts(model):
        if null and not settings.negative:
            if guidance not in (None, 0.0, 1.0):
                raise UsageError(f"--guidance {guidance:g} without a prompt guides nothing", "Give --prompt.")
            _whole_way(settings, "without a prompt")
            return 1.0
        return guidance_of(model, TEXT_GUIDANCE[model.family]) if guidance is None else guidance
    if settings.negative:
        raise UsageError("--negative-prompt: this model knows no prompts", "Leave it out.")
    if not model.num_classes:
        if guidance not in (None, 1.0):
            raise UsageError(
                f"--guidance {guidance:g}: this model is unconditional, there is nothing to guide", "Leave it out."
            )
        _whole_way(settings, "by an unconditional model")
        return 1.0
    if null:
        if guidance not in (None, 0.0, 1.0):
            raise UsageError(f"--guidance {guidance:g} without a class guides nothing", "Give --class.")
        _whole_way(settings, "without a class")
        return 1.0
    if not model.meta.null_class:
        _whole_way(settings, "by a model without a null class")
    if guidance is not None:
        return guidance
    return DEFAULT_GUIDANCE if model.meta.null_class else 1.0


def _whole_way(settings: Settings, where: str) -> None:
    """Refuse an interval where nothing is guided."""
    if settings.interval != Settings.interval:
        raise UsageError(f"--guidance-interval: {where} nothing is guided", "Leave it out.")


def guidance_of(model: Any, usual: float) -> float:
    """Return the guidance of a model that takes prompts: the usual one, or that of models that diffkit trained."""
    repo = getattr(model, "repo", None)
    return OWN_GUIDANCE if repo is not None and repo.has("diffkit.json") else usual


def timesteps_of(model: Any, settings: Settings) -> list[float]:
    """Return the timesteps that will be visited; [0] for a one-step denoiser, which is said."""
    if _one_step(model):
        _check_one_step(settings)
        LOG.info("a one-step denoiser is asked once, about pure noise: its answer is near the mean of the data")
        return [0]
    return numbers(prepare(model.scheduler, settings).timesteps)


def numbers(timesteps: Tensor) -> list[float]:
    """Return timesteps for people and JSON: whole numbers as such."""
    return [int(t) if float(t).is_integer() else float(t) for t in timesteps]
