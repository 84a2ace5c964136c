"""Illusions: pictures that show one prompt in each view (anagrams) or in each part of a split (hybrids), or both.

Holds how a batch of one is drawn at a model's own size; what an illusion is stands in `motif.py`. Views and filters are
in their own rooms, larger sizes in `stages.py`, the search for good seeds in `search.py`. Sources: Visual Anagrams,
arXiv:2311.17919; Factorized Diffusion, arXiv:2404.11615.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.constraints import component_of, keep_component, with_component
from diffkit.engine.guidance import chunked, mix, multiview
from diffkit.engine.samplers import default_sampler
from diffkit.engine.sampling import Constraint, denoise, generators, pure_noise
from diffkit.errors import NumericalError, UsageError
from diffkit.illusions.checks import check_fit, latent_way, name_of, reference_for, space_of, view_in
from diffkit.illusions.composition import Illusion as Illusion
from diffkit.illusions.composition import seen as seen
from diffkit.illusions.latents import Instances, synced
from diffkit.jobs.edit import OnStep, walked
from diffkit.jobs.sample import Settings, guidance_of, guided, numbers, prepare, scales, takes_prompts
from diffkit.types import Cond, Denoiser, Step

STEPS = 30
GUIDANCE = 10.0
# Classes are told apart at once; more guidance makes both views fight where they could agree.
CLASS_GUIDANCE = 4.0


def usual(model: Any, settings: Settings) -> Settings:
    """Fill in what was not asked for: 30 steps, guidance 10 (less for classes), the papers' DDPM where it was learned.

    Args:
        model: A loaded model, or its preview.
        settings: What was asked for.
    """
    levels = int(model.scheduler.config.num_train_timesteps)
    changes: dict[str, Any] = {}
    if settings.steps is None and settings.timesteps is None:
        changes["steps"] = min(STEPS, levels)
    learned = str(model.scheduler.config.get("variance_type", "")).startswith("learned")
    if settings.scheduler is None and not settings.eta:
        changes["scheduler"] = "ddpm" if learned else default_sampler(model.scheduler)
    return replace(settings, **changes)


def visits(model: Any, settings: Settings) -> list[float]:
    """Return the timesteps of one batch, one per network call."""
    return numbers(prepare(model.scheduler, usual(model, settings)).timesteps)


def working(model: Any, illusion: Illusion) -> Any:
    """Return the model that draws an illusion: itself, or for latents that are seen as pictures one of several samples.

    `draw` does this by itself; a loop of one's own (`search`) starts from here.

    Raises:
        UsageError: The illusion cannot be drawn by this model.
    """
    if getattr(model, "instances", None):
        return model
    space = space_of(model)
    check_fit(illusion, space)
    if latent_way(illusion, space) != "decode":
        return model
    reference = None if illusion.reference is None else reference_for(model, illusion)
    return Instances(model, illusion.views, lambda pictures, place: _gathered(illusion, pictures, place, reference))


def illusion_net(
    model: Any,
    illusion: Illusion,
    settings: Settings,
    batch: int,
    timesteps: Sequence[float] | Tensor | None = None,
    scheduler: Any = None,
) -> tuple[Denoiser, Cond]:
    """Return the denoiser of an illusion, and the condition to call it with.

    One network call is made for all views, both halves of the guidance and all pictures.

    Args:
        model: What `working` returned.
        illusion: What to draw.
        settings: How.
        batch: Pictures.
        timesteps: The grid, for views that take turns; that of the scheduler when left out.
        scheduler: Its grid set; made from the settings when left out.

    Raises:
        UsageError: A prompt, class or guidance that the model does not take.
    """
    settings = usual(model, settings)
    scheduler = scheduler or prepare(model.scheduler, settings)
    grid = scheduler.timesteps if timesteps is None else timesteps
    net, conds = _guided(model, illusion, settings, batch)
    if getattr(model, "instances", None):
        return synced(net, conds, model, scheduler, grid), Cond()
    space = space_of(model)
    views = [view_in(view, space) for view in illusion.views]
    if illusion.split is None:
        return multiview(net, conds, views, illusion.reduce, timesteps=grid, weights=illusion.weights), Cond()
    known = None
    if illusion.reference is not None:
        known = component_of(model.codec.encode(reference_for(model, illusion)), scheduler)
    plain = all(name_of(view) == "identity" for view in illusion.views)
    return mix(net, conds, illusion.split, views=None if plain else views, known=known, fixed=illusion.fixed), Cond()


def _guided(model: Any, illusion: Illusion, settings: Settings, batch: int) -> tuple[Denoiser, list[Cond]]:
    """The network with its guidance, which may differ from picture to picture, and one condition per prompt."""
    limits = [n for n in (settings.max_batch, getattr(getattr(model, "memory", None), "max_batch", None)) if n]
    net = chunked(model, min(limits) if limits else None)
    labels = illusion.labels()
    null = not any(labels)
    count, text = len(labels), takes_prompts(model)
    if not null:
        classes = not text and model.num_classes and model.meta.null_class
        scale_left_out = guidance_of(model, GUIDANCE) if text else CLASS_GUIDANCE if classes else None
        if illusion.guidance is not None:
            scale_left_out = illusion.guidance
        asked = settings.guidance if isinstance(settings.guidance, tuple) else (settings.guidance,)
        filled = tuple(scale_left_out if one is None else one for one in asked)
        settings = replace(settings, guidance=filled if isinstance(settings.guidance, tuple) else filled[0])
    scale = scales(model, ["".join(labels)] * batch, settings)
    if not text and illusion.style:
        raise UsageError(f"--style {illusion.style!r}: this model knows no prompts", "Leave it out.")
    # Together: the text encoder comes once.
    negative = settings.negative if isinstance(settings.negative, tuple) else (settings.negative,)
    every = model.encode([*labels, *(word or "" for word in negative)] if text else labels)
    conds = [every.rows(k, k + 1) for k in range(count)]
    if scale == 1.0:
        return net, conds
    uncond = every.rows(count, count + len(negative)) if text else model.uncond(1)
    return guided(net, uncond, scale, model, settings), conds


def _gathered(illusion: Illusion, pictures: list[Tensor], place: int | None, reference: Tensor | None) -> Tensor:
    """One picture from those that the views were decoded to, turned back already.

    With `place`, the step's number, views may take turns; without, all are heard.
    """
    if illusion.split is not None:
        pairs = zip(illusion.parts(), pictures, strict=True)
        total = sum((illusion.split.part(one, k) for k, one in pairs), torch.zeros_like(pictures[0]))
        return total if reference is None else total + illusion.split.part(reference.to(total), illusion.fixed)
    if illusion.reduce == "alternate" and place is not None:
        return pictures[place % len(pictures)]
    weights = illusion.weights or (1.0,) * len(pictures)
    total = sum((w * one for w, one in zip(weights, pictures, strict=True)), torch.zeros_like(pictures[0]))
    return total / sum(weights)


def draw(
    model: Any,
    illusion: Illusion,
    seeds: Sequence[int],
    settings: Settings | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw one batch of an illusion at the model's own size.

    Args:
        model: A loaded model.
        illusion: What to draw.
        seeds: One per picture.
        settings: How; see `usual` for what is left out.
        on_step: Called after each step.

    Returns:
        Pictures (B, C, H, W) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: What the model cannot do.
        NumericalError: The result is not finite.
    """
    model = working(model, illusion)
    settings, random = usual(model, settings or Settings()), generators(seeds)
    return draw_from(model, illusion, model.noise(random), random, settings, on_step=on_step)


def draw_from(
    model: Any,
    illusion: Illusion,
    noise: Tensor,
    random: list[torch.Generator],
    settings: Settings,
    extra: Cond | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw one batch of an illusion from its noise; arguments and errors beyond these are those of `draw`.

    Args:
        model: What `working` returned.
        illusion: What to draw.
        noise: N(0, I) of the model's shape, one row per picture.
        random: One per picture, for the noise of the steps.
        settings: What `usual` returned.
        extra: Joined to every prompt's condition: the picture that a later stage enlarges, which turns with the views.
        on_step: Called after each step; with a latent for each view, its sample is that of the first.
    """
    scheduler = prepare(model.scheduler, settings)
    net, cond = illusion_net(model, illusion, settings, len(random), scheduler.timesteps, scheduler)
    several = getattr(model, "instances", 0)

    def shown(step: Step, place: range) -> None:
        if on_step is not None:
            on_step(replace(step, x=step.x.chunk(several, dim=1)[0], x0=None) if several else step, place)

    steps = denoise(
        net, pure_noise(scheduler, noise), scheduler, cond if extra is None else cond.join(extra),
        constrain=held(model, illusion), generators=random, eta=settings.eta,
        stop_noise_after=settings.stop_noise_after,
    )  # fmt: skip
    return decoded(model, illusion, walked(steps, len(random), shown))


def held(model: Any, illusion: Illusion) -> Constraint | None:
    """Return what a sample is held to: the part that a reference fixes; nothing with a latent for each view."""
    if illusion.reference is None or illusion.split is None or getattr(model, "instances", None):
        return None
    return keep_component(model.codec.encode(reference_for(model, illusion)), illusion.split, illusion.fixed)


def decoded(model: Any, illusion: Illusion, x: Tensor, *, estimate: bool = False) -> Tensor:
    """Return the pictures of samples.

    Args:
        model: What `working` returned.
        illusion: What they show.
        x: Samples, held to the reference.
        estimate: They are clean estimates, and were not.

    Returns:
        (B, C, H, W) fp32 on the CPU, with the reference's part as it is.

    Raises:
        NumericalError: A picture is not finite.
    """
    with torch.no_grad():
        images: Tensor = model.codec.decode(x).float()
    if not torch.isfinite(images).all():
        raise NumericalError("the pictures are not finite numbers", "Try --dtype fp32, or another --scheduler.")
    changed = estimate or images.shape != x.shape  # by the codec
    if changed and illusion.reference is not None and illusion.split is not None:
        images = with_component(images, reference_for(model, illusion), illusion.split, illusion.fixed)
    return images.cpu()
