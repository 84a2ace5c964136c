"""The parts of a run that are built before the first update: the network, its scheduler, and the state around it."""

from __future__ import annotations

from typing import Any

import torch

from diffkit.errors import UsageError
from diffkit.models.attention import set_attention
from diffkit.models.ddpm import DDPMNetwork, PixelCodec, build_network
from diffkit.models.meta import RunMeta
from diffkit.schedules import make_noise_scheduler
from diffkit.schema import Recipe
from diffkit.training import fast, rng
from diffkit.training.ema import EMA
from diffkit.training.loop import TrainState
from diffkit.training.optim import Plateau, make_optimizer


def network(recipe: Recipe, dataset: Any, shape: tuple[int, int, int]) -> tuple[DDPMNetwork, Any, RunMeta]:
    """Build the network, new or from pretrained weights, with the scheduler and the record that are saved beside it.

    The initial weights are a function of the recipe's seed alone.

    Raises:
        UsageError: Conditioning on the classes of a dataset that has none, or a network that does not fit the images.
        ModelError: The pretrained weights cannot be read.
    """
    names = _class_names(recipe, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive_seed(recipe.training.seed, "weights"))
        if recipe.model.pretrained:
            from diffkit.training.finetune import load_pretrained

            net, scheduler, prediction = load_pretrained(recipe, shape, len(names))
        else:
            net = build_network(recipe.model, shape=shape, num_classes=len(names))
            scheduler, prediction = make_noise_scheduler(recipe.noise), recipe.noise.prediction
    meta = RunMeta(
        prediction=prediction,
        conditioning=net.conditioning,
        class_names=names,
        resolution=shape[-1],
        channels=shape[0],
        sigma=recipe.noise.sigma if prediction == "one_step" else None,
        recipe=recipe.name,
    )
    return net, scheduler, meta


def _class_names(recipe: Recipe, dataset: Any) -> list[str]:
    kind = recipe.model.class_conditioning
    if kind == "none":
        return []
    if not dataset.class_names:
        raise UsageError(
            f"model.class_conditioning is {kind!r}, but the dataset {recipe.dataset.name} has no classes",
            "Name the column with dataset.class_column, or put the images into one sub-folder per class.",
        )
    return list(dataset.class_names)


def set_up(net: DDPMNetwork, recipe: Recipe, device: torch.device) -> None:
    """Freeze what the recipe freezes, and choose checkpointing and the attention kernel."""
    spec = recipe.training
    for name, param in net.named_parameters():
        if any(name.startswith((prefix, f"unet.{prefix}")) for prefix in recipe.model.freeze):
            param.requires_grad_(False)
    if spec.gradient_checkpointing:
        net.unet.enable_gradient_checkpointing()
    set_attention(net.unet, recipe.model.attention, device)


def state(recipe: Recipe, net: DDPMNetwork, accelerator: Any) -> TrainState:
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
        codec=PixelCodec(recipe.dataset.resolution, net.unet.config.sample_size),
        device=accelerator.device,
    )
    if spec.lr_schedule == "plateau":
        built.plateau = Plateau(gamma=spec.lr_gamma or 0.5, patience=spec.plateau_patience)
    return built
