"""The parts of a run that are built before the first update: the network, its scheduler, and the state around it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from diffkit.data import Loader
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.models.attention import set_attention
from diffkit.models.kinds import KINDS
from diffkit.models.meta import RunMeta
from diffkit.models.network import build_network
from diffkit.models.pixels import PixelCodec
from diffkit.models.presets import preset_kind, unet_arguments
from diffkit.models.text_network import TrainedNetwork, build_text_network
from diffkit.recipes.schema import ONE_STEP, Recipe
from diffkit.training import fast, rng
from diffkit.training.ema import EMA
from diffkit.training.finetune import fit_range, load_pretrained, open_source
from diffkit.training.loop import TrainState
from diffkit.training.normalize import pixel_range
from diffkit.training.optim import Plateau, make_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from diffkit.data.datasets import Dataset

LOG = logging.getLogger(__name__)


def network(
    recipe: Recipe, dataset: Dataset, shape: tuple[int, int, int]
) -> tuple[TrainedNetwork, SchedulerMixin, RunMeta]:
    """Build the network, new or from pretrained weights, with the scheduler and the record that are saved beside it.

    The initial weights are a function of the recipe's seed alone.

    Raises:
        UsageError: Conditioning on the classes of a dataset that has none, or a network that does not fit the images.
        ModelError: The pretrained weights cannot be read.
    """
    names, record = _class_names(recipe, dataset), None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive_seed(recipe.training.seed, "weights"))
        if recipe.model.pretrained:
            net: TrainedNetwork
            scheduler: SchedulerMixin
            opened = open_source(recipe)
            record = opened[1].record
            net, scheduler, prediction = load_pretrained(recipe, shape, len(names), opened)
        else:
            captions = dataset.captions() if recipe.model.text != "none" else []
            net = new_network(recipe, shape, len(names), captions)
            scheduler, prediction = make_noise_scheduler(recipe.noise), recipe.noise.prediction
    meta = RunMeta(
        prediction=prediction,
        conditioning=net.conditioning,
        class_names=names,
        resolution=shape[-1],
        channels=shape[0],
        sigma=recipe.noise.sigma if prediction == "one_step" else None,
        recipe=recipe.name,
        text_encoder=recipe.model.text_encoder if recipe.model.text != "none" else "none",
        noise=recipe.noise.distribution,
    )
    return net, scheduler, meta if record is None else _as_source(meta, record, recipe)


def _as_source(meta: RunMeta, source: Mapping[str, Any], recipe: Recipe) -> RunMeta:
    """Take over the source's kind of noise, and the range in which its network sees pixels."""
    if "normalize" in recipe.dataset.model_fields_set:
        LOG.warning("%s keeps the range of its pixels; dataset.normalize is not used", recipe.model.pretrained)
    mean, std = (fit_range(source.get(key) or [], meta.channels) for key in ("mean", "std"))
    return meta.model_copy(update={"mean": mean, "std": std, "noise": source.get("noise", "normal")})


def in_range(meta: RunMeta, recipe: Recipe, loader: Loader) -> RunMeta:
    """Add the range in which a new network sees pixels, which may have to be measured; a source has its own."""
    if recipe.model.pretrained:
        return meta
    mean, std = pixel_range(recipe.dataset.normalize, loader)
    return meta.model_copy(update={"mean": mean, "std": std})


def _class_names(recipe: Recipe, dataset: Dataset) -> list[str]:
    kind = recipe.model.class_conditioning
    if kind == "none":
        return []
    if not dataset.class_names:
        raise UsageError(
            f"model.class_conditioning is {kind!r}, but the dataset {recipe.dataset.name} has no classes",
            "Name the column with dataset.class_column, or put the images into one sub-folder per class.",
        )
    return list(dataset.class_names)


def new_network(
    recipe: Recipe, shape: tuple[int, int, int], num_classes: int, captions: Sequence[str]
) -> TrainedNetwork:
    """Build a network with random weights, as the recipe's model and noise sections ask.

    Raises:
        UsageError: A network that is not told the time, for an objective that needs it; see `build_network` and
            `build_text_network`.
    """
    if recipe.model.text != "none":
        return build_text_network(recipe.model, shape=shape, captions=captions)
    spec, noise = recipe.model, recipe.noise
    kind, arguments = preset_kind(spec.preset), unet_arguments(spec.preset, spec.overrides)
    if noise.prediction not in (*ONE_STEP, "linear_mix") and not KINDS[kind].timed(arguments):
        raise UsageError(
            f"model.preset {spec.preset} is not told the time, and noise.prediction {noise.prediction} needs it",
            "Use one_step, pure_noise or linear_mix" + (", or set model.overrides.time" * (kind == "CS180UNet")) + ".",
        )
    return build_network(
        spec, shape=shape, num_classes=num_classes, learned_variance=noise.variance == "learned",
        timesteps=noise.timesteps,
    )  # fmt: skip


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse a dataset without what the network is conditioned on, before its images are read.

    Raises:
        UsageError: No classes, no captions, or grey images for a text-conditional network.
    """
    _class_names(recipe, dataset)
    if recipe.model.text == "none":
        return
    if not dataset.has_captions:
        raise UsageError(
            f"model.text is {recipe.model.text!r}, but the dataset {recipe.dataset.name} has no captions",
            "Name the column with dataset.caption_column, or put a metadata.jsonl with file_name and caption into the "
            "folder, or a .txt beside each image.",
        )
    if dataset.channels != 3:
        raise UsageError(
            f"model.text is {recipe.model.text!r}, whose layout takes RGB images; those of {recipe.dataset.name} are "
            "grey",
            "Set dataset.channels to 3.",
        )


def set_up(net: TrainedNetwork, recipe: Recipe, device: torch.device) -> None:
    """Freeze what the recipe freezes, and choose checkpointing and the attention kernel."""
    spec = recipe.training
    for name, param in net.named_parameters():
        if any(name.startswith((prefix, f"unet.{prefix}")) for prefix in recipe.model.freeze):
            param.requires_grad_(False)
    if spec.gradient_checkpointing:
        if not net.unet._supports_gradient_checkpointing:
            raise UsageError(
                f"{type(net.unet).__name__} has no gradient checkpointing", "Set training.gradient_checkpointing=false."
            )
        net.unet.enable_gradient_checkpointing()
    set_attention(net.unet, recipe.model.attention, device)


def state(recipe: Recipe, net: TrainedNetwork, meta: RunMeta, accelerator: Accelerator) -> TrainState:
    """Put a network on its device with optimizer, average and learning-rate state, prepared by Accelerate."""
    spec = recipe.training
    net.to(accelerator.device)
    set_up(net, recipe, accelerator.device)
    called = fast.prepare_network(net, accelerator.device, channels_last=spec.channels_last, compile_it=spec.compile)
    wrapped = accelerator.prepare(called)
    optimizer = accelerator.prepare(make_optimizer(wrapped, spec, accelerator.device))
    built = TrainState(
        network=net,
        wrapped=wrapped,
        optimizer=optimizer,
        ema=EMA(net, spec.ema_decay) if spec.ema else None,
        codec=PixelCodec(recipe.dataset.resolution, net.unet.config.sample_size, meta.mean, meta.std),
        device=accelerator.device,
    )
    if spec.lr_schedule == "plateau":
        built.plateau = Plateau(gamma=spec.lr_gamma or 0.5, patience=spec.plateau_patience)
    return built
