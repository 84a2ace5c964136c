"""Starting from pretrained weights: any pipeline of pixels, fitted to the channels, size and classes of new data.

The source's noise schedule and prediction type are kept, because the weights mean nothing under others. What must
change shape changes so that the network computes at first what it computed before: channels are folded or repeated, new
classes begin as no class at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffkit.engine.flows import noise_scale, predicts_clean
from diffkit.engine.samplers import is_flow
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import ModelError, UsageError
from diffkit.models import info, open_repo
from diffkit.models.configuration import find_scheduler
from diffkit.models.course_networks import CS180UNet
from diffkit.models.kinds import KINDS, halvings, network_class
from diffkit.models.network import CLASS_FILE, DDPMNetwork, PixelUNet, read_class_table
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component
from diffkit.recipes.schema import Recipe
from diffkit.types import ModelInfo

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger(__name__)
_KEPT = ("prediction", "schedule", "timesteps", "zero_terminal_snr")


def open_source(recipe: Recipe) -> tuple[Repo, ModelInfo]:
    """Open what a recipe starts from and say what it is, without its weights.

    Raises:
        ModelError: It cannot be read, or it is no model that can be fine-tuned.
    """
    repo = open_repo(str(recipe.model.pretrained), revision=recipe.model.revision)
    known = info(repo)
    if known.network.kind not in KINDS:
        raise ModelError(
            f"{repo.id} is a {known.network.kind}; finetune takes {', '.join(KINDS)} networks",
            "Give a DDPM or DDIM pipeline; models of captions are trained from nothing, `diffkit train glyphs-if`.",
        )
    if (outputs := int(known.network.config["out_channels"])) > known.channels:
        raise ModelError(
            f"{repo.id} predicts its variance as well ({outputs} channels); that is not fine-tuned here",
            "Give a model of fixed variance.",
        )
    return repo, known


def at_source_size(recipe: Recipe) -> Recipe:
    """Return a recipe with the size of the pictures that its source draws, where nobody gave another one.

    Raises:
        ModelError: See `open_source`.
        UsageError: The source's pictures are no squares.
    """
    if not recipe.model.pretrained or "resolution" in recipe.dataset.model_fields_set:
        return recipe
    repo, known = open_source(recipe)
    height, width = known.size
    if height != width:
        raise UsageError(
            f"{repo.id} draws pictures of {width}x{height} pixels, and training takes squares",
            "Set dataset.resolution.",
        )
    LOG.info("dataset.resolution is %d, the size of %s", height, repo.id)
    return recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"resolution": height})})


def load_pretrained(
    recipe: Recipe, shape: tuple[int, int, int], num_classes: int, opened: tuple[Repo, ModelInfo] | None = None
) -> tuple[DDPMNetwork, SchedulerMixin, str]:
    """Load the recipe's pretrained network and fit it to the data.

    Args:
        recipe: `model.pretrained` names the source.
        shape: (C, H, W) of the training images.
        num_classes: Classes of the target, 0 for none.
        opened: From `open_source`, where it was called already.

    Returns:
        The network, the scheduler to train and save with, and the name of the training objective.

    Raises:
        ModelError: The source cannot be read, or is no network of `kinds.py`.
        UsageError: A size that the network cannot take.
    """
    spec, (repo, source) = recipe.model, opened or open_source(recipe)
    size = _padded(source, shape[-1])
    scheduler, prediction = _scheduler(repo, source, recipe)
    unet = load_component(
        repo, network_class(source.network.kind), source.network.folder, variant=spec.variant, dtype=torch.float32
    )
    table = _class_table(repo, source)
    keep = table is not None and tuple(table.shape) == (num_classes + 1, spec.class_embed_dim)
    unet = _fit(unet, source, (shape[0], size), num_classes, recipe, keep)
    embedding = None
    if spec.class_conditioning == "concat":
        embedding = nn.Embedding(num_classes + 1, spec.class_embed_dim, _weight=table if keep else None)
    network = DDPMNetwork(unet, embedding, spec.class_conditioning, num_classes)
    LOG.info("starting from %s: %s, %d timesteps", repo.id, prediction, scheduler.config.num_train_timesteps)
    return network, scheduler, prediction


def _padded(source: ModelInfo, size: int) -> int:
    """Return the size of the network's samples for pictures of a size: the same, unless the source padded its own.

    Raises:
        UsageError: The network cannot halve it often enough.
    """
    unit = 2 ** halvings(source.network.kind, source.network.config)
    if size % unit == 0:
        return size
    if source.size == (size, size):
        return source.sample[-1]
    raise UsageError(
        f"{source.id} halves its images {unit.bit_length() - 1} times; dataset.resolution={size} is no multiple of "
        f"{unit}",
        f"Use {max(unit, round(size / unit) * unit)}.",
    )


def _scheduler(repo: Repo, source: ModelInfo, recipe: Recipe) -> tuple[SchedulerMixin, str]:
    """The source's scheduler as the one to train with, and its objective."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    own = find_scheduler(repo)
    if own is None:  # a bare UNet: the recipe says how it was trained
        LOG.info("%s has no scheduler: taking the recipe's (%s)", repo.id, recipe.noise.schedule)
        return make_noise_scheduler(recipe.noise), recipe.noise.prediction
    flow = is_flow(own)
    if flow and (predicts_clean(own) or noise_scale(own) != 1.0):
        raise UsageError(
            f"{source.id} is a flow that predicts x0 or has its noise scaled, which training does not know",
            "Fine-tune a flow that predicts the velocity, or a model of diffusion.",
        )
    scheduler = (FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler).from_config(own.config)
    prediction = str(source.record.get("prediction") or ("flow" if flow else scheduler.config.prediction_type))
    actual = {"prediction": prediction, "timesteps": scheduler.config.num_train_timesteps}
    unused = [
        f"noise.{name}={getattr(recipe.noise, name)}"
        for name in sorted(recipe.noise.model_fields_set.intersection(_KEPT))
        if name not in actual or getattr(recipe.noise, name) != actual[name]
    ]
    if unused:
        LOG.warning("%s keeps its own noise schedule and prediction type; not used: %s", repo.id, ", ".join(unused))
    return scheduler, prediction


def _class_table(repo: Repo, source: ModelInfo) -> Tensor | None:
    """The class embedding of a source that has its classes as input channels."""
    folder = source.network.folder
    return read_class_table(repo, folder) if repo.has(f"{folder}/{CLASS_FILE}" if folder else CLASS_FILE) else None


def _fit(
    unet: PixelUNet, source: ModelInfo, wanted: tuple[int, int], num_classes: int, recipe: Recipe, keep: bool
) -> PixelUNet:
    """Rebuild the UNet with the new channels, size and classes, and put the old weights into it."""
    (channels, size), conditioning, name = wanted, recipe.model.class_conditioning, source.id
    kind = KINDS[source.network.kind]
    extra = recipe.model.class_embed_dim if conditioning == "concat" else 0
    old_channels = source.channels
    changes: dict[str, int | None] = {"sample_size": size, "in_channels": channels + extra, "out_channels": channels}
    if kind.classes:
        changes["num_class_embeds"] = num_classes + 1 if conditioning == "embedding" else None
    elif conditioning == "embedding":
        raise UsageError(f"{name} takes no class embedding", "Set model.class_conditioning to concat.")
    if old_channels != channels:
        LOG.info("%s has %d channels, the data %d: its first and last layers are adapted", name, old_channels, channels)
    if source.sample[1:] != (size, size):
        height, width = source.sample[1:]
        made_for = str(width) if width == height else f"{width}x{height}"
        if kind.fixed_size:
            raise UsageError(
                f"{name} was made for {made_for} px, and its weights fit no other size",
                f"Set dataset.resolution={width}.",
            )
        LOG.info("%s was made for %s px; it goes on at %d px", name, made_for, size)
    fitted: PixelUNet = type(unet).from_config({**unet.config, **changes, **_plain_classes(unet)})
    weights = dict(unet.state_dict())
    first, last = f"{kind.first}.weight", kind.last
    weights[first] = fit_input(weights[first], old_channels, channels, extra, keep=keep and extra > 0)
    for part in (f"{last}.weight", f"{last}.bias"):
        weights[part] = fit_output(weights[part], channels)
    if isinstance(fitted, UNet2DModel):
        _fit_class_table(weights, fitted, conditioning)
    elif isinstance(fitted, CS180UNet):
        _fit_class_blocks(weights, fitted, source)
    fitted.load_state_dict(weights)
    return fitted


def _plain_classes(unet: PixelUNet) -> dict[str, None]:
    return {"class_embed_type": None} if isinstance(unet, UNet2DModel) else {}


def _fit_class_table(weights: dict[str, Tensor], fitted: UNet2DModel, conditioning: str) -> None:
    if conditioning == "embedding":
        weights["class_embedding.weight"] = _fit_classes(
            weights.get("class_embedding.weight"), fitted.class_embedding.weight.shape
        )
    elif (old := weights.pop("class_embedding.weight", None)) is not None:
        # No class is from here on always the source's null class, which is a constant beside the time embedding.
        weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + old[-1]


def _fit_class_blocks(weights: dict[str, Tensor], fitted: CS180UNet, source: ModelInfo) -> None:
    """The blocks of the classes: the source's, or such that every class is at first no class.

    Raises:
        UsageError: The source has classes, and the target none: what the null class multiplies has no other place.
    """
    own = fitted.state_dict()
    if "class1.0.weight" in weights and "class1.0.weight" not in own:
        raise UsageError(
            f"{source.id} is class-conditional, and its null class cannot be folded into the other weights",
            "Set model.class_conditioning to embedding.",
        )
    for block in ("class1", "class2"):
        first, last = f"{block}.0.weight", f"{block}.2"
        if first not in own:
            continue
        if first not in weights:  # multiplied by 1
            weights |= {key: value for key, value in own.items() if key.startswith(f"{block}.")}
            weights[f"{last}.weight"] = torch.zeros_like(own[f"{last}.weight"])
            weights[f"{last}.bias"] = torch.ones_like(own[f"{last}.bias"])
        elif weights[first].shape != own[first].shape:
            weights[first] = torch.zeros_like(own[first])


def fit_input(weight: Tensor, old: int, new: int, extra: int, *, keep: bool = False) -> Tensor:
    """Adapt the first convolution (O, I, k, k) from `old` to `new` image channels, then add `extra` class channels.

    These start at zero, or `keep` what the weight has for them. Three to one sums the channels, so that a grey image
    gives what it gave as RGB; one to three shares them out, likewise.
    """
    image = weight[:, :old]
    if old != new:
        image = image.sum(1, keepdim=True) if new == 1 else image.mean(1, keepdim=True).repeat(1, new, 1, 1) / new
    classes = weight[:, old:] if keep else torch.zeros(weight.shape[0], extra, *weight.shape[2:], dtype=weight.dtype)
    return torch.cat([image, classes], dim=1)


def fit_output(weight: Tensor, new: int) -> Tensor:
    """Adapt the last convolution's weight or bias (O, ...) to `new` channels: the mean for grey, copies for RGB."""
    if weight.shape[0] == new:
        return weight
    mean = weight.mean(0, keepdim=True)
    return mean.repeat(new, *[1] * (weight.dim() - 1))


def _fit_classes(old: Tensor | None, shape: torch.Size) -> Tensor:
    """Class rows for the target: the source's if it has as many, else its null class in each, else zero (no class)."""
    if old is not None and old.shape == shape:
        return old
    if old is None:
        return torch.zeros(shape)
    LOG.info("the source has %d classes, the target %d: the class embedding starts anew", len(old) - 1, shape[0] - 1)
    return old[-1:].repeat(shape[0], 1)


def fit_range(values: Sequence[float], channels: int) -> list[float]:
    """Return a source's shift or scale of pixels by channel for another number of channels: the mean, or copies."""
    if len(values) in (0, channels):
        return list(values)
    return [sum(values) / len(values)] * channels
