"""Pictures that show one prompt in each view (anagrams) or in each part of a split (hybrids), or both.

Holds how a batch is drawn at a model's own size; how prompts share a picture stands in `composition.py`. Views and
filters are in their own files, larger sizes in `stages.py`, the search for good seeds in `search.py`. Sources: Visual
Anagrams, arXiv:2311.17919; Factorized Diffusion, arXiv:2404.11615.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.engine.constraints import component_of, keep_component, with_component
from diffkit.engine.grids import scheduler_for
from diffkit.engine.guidance import mix, multiview
from diffkit.engine.samplers import default_sampler
from diffkit.engine.sampling import Constraint, denoise, pure_noise
from diffkit.engine.settings import Settings
from diffkit.illusions.checks import latent_way, reference_for, view_in
from diffkit.illusions.composition import Composition
from diffkit.illusions.latents import Instances, synced
from diffkit.models.conditioning import decoded
from diffkit.types import Cond, Denoiser, Model, ModelInfo, Step

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

STEPS = 30


@dataclass(frozen=True)
class Prompted:
    """A network with its guidance, and what it is told of each view or part.

    Attributes:
        net: The guided network.
        conds: One per prompt, of batch size 1.
        around: From the denoiser of the shared picture, its model and its scheduler to one that is guided by losses.
    """

    net: Denoiser
    conds: Sequence[Cond]
    around: Callable[[Denoiser, Model, SchedulerMixin], Denoiser] | None = None


def filled(info: ModelInfo, settings: Settings) -> Settings:
    """Fill in what was not asked for: 30 steps or what suits the model, and DDPM where the variance was learned."""
    changes: dict[str, Any] = {}
    if settings.steps is None and settings.timesteps is None:
        changes["steps"] = min(info.steps or STEPS, info.timesteps)
    learned = str(info.scheduler.config.get("variance_type", "")).startswith("learned")
    if settings.scheduler is None and not settings.eta:
        changes["scheduler"] = "ddpm" if learned else default_sampler(info.scheduler)
    return replace(settings, **changes)


def make_scheduler(info: ModelInfo, settings: Settings) -> SchedulerMixin:
    """Make a scheduler for sampling, with its grid set.

    Raises:
        UsageError: The sampler or the grid does not fit the model.
    """
    return scheduler_for(info.scheduler, filled(info, settings))


def model_for(model: Model, composition: Composition) -> Model:
    """Return the model that draws a composition: itself, or one with a latent for each view where that is needed."""
    if isinstance(model, Instances) or latent_way(composition, model.info) != "decode":
        return model
    reference = None
    if composition.reference is not None:
        reference = reference_for(composition, model.info, model.device)
    return Instances(model, composition.views, lambda parts, place: _joined(composition, parts, place, reference))


def shared_net(model: Model, composition: Composition, prompted: Prompted, scheduler: SchedulerMixin) -> Denoiser:
    """Return the denoiser of a composition: one call for all views, both halves of guidance and all pictures."""
    shared = _shared(model, composition, prompted, scheduler)
    return shared if prompted.around is None else prompted.around(shared, model, scheduler)


def _shared(model: Model, composition: Composition, prompted: Prompted, scheduler: SchedulerMixin) -> Denoiser:
    net, conds, grid = prompted.net, prompted.conds, scheduler.timesteps
    if isinstance(model, Instances):
        return synced(net, conds, model, scheduler, grid)
    views = [view_in(view, model.info) for view in composition.views]
    if composition.split is None:
        return multiview(net, conds, views, composition.reduce, timesteps=grid, weights=composition.weights)
    known = None
    if composition.reference is not None:
        known = component_of(model.codec.encode(reference_for(composition, model.info, model.device)), scheduler)
    turned = None if composition.plain else views
    return mix(net, conds, composition.split, views=turned, known=known, fixed=composition.fixed)


def _joined(composition: Composition, pictures: list[Tensor], place: int | None, reference: Tensor | None) -> Tensor:
    """One picture from those that the views were decoded to, turned back already.

    With `place`, the step's number, views may take turns; without, all count.
    """
    if composition.split is not None:
        pairs = zip(composition.parts(), pictures, strict=True)
        total = sum((composition.split.part(one, k) for k, one in pairs), torch.zeros_like(pictures[0]))
        return total if reference is None else total + composition.split.part(reference.to(total), composition.fixed)
    if composition.reduce == "alternate" and place is not None:
        return pictures[place % len(pictures)]
    weights = composition.weights or (1.0,) * len(pictures)
    total = sum((w * one for w, one in zip(weights, pictures, strict=True)), torch.zeros_like(pictures[0]))
    return total / sum(weights)


def draw_steps(
    model: Model,
    composition: Composition,
    prompted: Prompted,
    settings: Settings,
    generators: list[torch.Generator],
    noise: Tensor | None = None,
    extra: Cond | None = None,
) -> Generator[Step, None, Tensor]:
    """Draw one batch at the model's own size: a generator of steps that returns the pictures.

    The noise, one row of N(0, I) per picture, is drawn when left out. `extra` is joined to every prompt's
    condition: the picture that a later stage enlarges, which turns with the views.

    With a latent for each view, the sample of a step is that of the first.

    Returns:
        Pictures (B, C, H, W) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: What the model cannot do.
        NumericalError: The result is not finite.
    """
    noise = model.noise(generators) if noise is None else noise
    scheduler = make_scheduler(model.info, settings)
    net = shared_net(model, composition, prompted, scheduler)
    several = len(model.views) if isinstance(model, Instances) else 0
    x = noise
    for step in denoise(
        net, pure_noise(scheduler, noise), scheduler, extra, constrain=reference_constraint(model, composition),
        generators=generators, eta=settings.eta, stop_noise_after=settings.stop_noise_after,
    ):  # fmt: skip
        x = step.x
        yield replace(step, x=x.chunk(several, dim=1)[0], x0=None) if several else step
    return finished_pictures(model, composition, x)


def reference_constraint(model: Model, composition: Composition) -> Constraint | None:
    """Return what keeps a sample to the part that a reference fixes; None with a latent for each view, or without."""
    if composition.reference is None or composition.split is None or isinstance(model, Instances):
        return None
    reference = reference_for(composition, model.info, model.device)
    return keep_component(model.codec.encode(reference), composition.split, composition.fixed)


def finished_pictures(model: Model, composition: Composition, x: Tensor, *, estimate: bool = False) -> Tensor:
    """Return the pictures of samples.

    Samples are kept to the reference already; clean estimates (`estimate`) are not.

    Returns:
        (B, C, H, W) fp32 on the CPU, with the reference's part as it is.

    Raises:
        NumericalError: A picture is not finite.
    """
    images = decoded(model, x)
    changed = estimate or images.shape != x.shape  # by the codec
    if changed and composition.reference is not None and composition.split is not None:
        reference = reference_for(composition, model.info, model.device)
        images = with_component(images, reference, composition.split, composition.fixed)
    return images.cpu()
