"""The network that training optimizes: a UNet2DModel, or a course's, with its classes; its files as diffusers' are.

Class conditioning is added to the time embedding, or laid over the image as further channels; the null class, for
guidance, is one row more (Ho & Salimans, arXiv:2207.12598). How the network's output is read is the family's business.
"""

from __future__ import annotations

import copy
import json
import logging
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffkit.errors import ModelError, UsageError
from diffkit.models import meta as meta_file
from diffkit.models.course_networks import BasicUNet, CS180UNet
from diffkit.models.kinds import KINDS, halvings, network_class
from diffkit.models.meta import RunMeta
from diffkit.models.presets import padded_size, preset_kind, unet_arguments
from diffkit.models.repo import Repo
from diffkit.recipes.schema import ModelSpec

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from torch.distributed.tensor import DTensor

    from diffkit.data.loader import Batch
    from diffkit.models.text_network import TextNetwork

LOG = logging.getLogger("diffkit.models")

PixelUNet: TypeAlias = UNet2DModel | CS180UNet | BasicUNet

CLASS_FILE = "class_embedding.safetensors"


class DDPMNetwork(nn.Module):
    """A UNet and its way of taking class labels.

    Args:
        unet: The network; with conditioning "embedding" it was built with `num_class_embeds`.
        class_embedding: "concat" only: (classes + 1, dim), its rows are laid over the image as further channels.
        conditioning: none, embedding or concat.
        num_classes: 0 for an unconditional network; the null class is one row more, with that very index.
    """

    def __init__(
        self,
        unet: PixelUNet,
        class_embedding: nn.Embedding | None = None,
        conditioning: str = "none",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedding = class_embedding
        self.conditioning = conditioning
        self.num_classes = num_classes

    @property
    def null_class(self) -> int:
        return self.num_classes

    @property
    def channels(self) -> int:
        extra = self.class_embedding.embedding_dim if self.class_embedding is not None else 0
        return int(self.unet.config.in_channels) - extra

    def labels_of(self, batch: Batch) -> Tensor | None:
        """Return a batch's labels, (B,), or None for an unconditional network."""
        return batch.labels if self.num_classes else None

    def hollow(self) -> DDPMNetwork:
        """Return a network of the same shape on the CPU, for weights that are gathered from several processes."""
        unet = type(self.unet).from_config(self.unet.config)
        table = copy.deepcopy(self.class_embedding).to_empty(device="cpu") if self.class_embedding else None
        return DDPMNetwork(unet, table, self.conditioning, self.num_classes)

    def forward(self, x: Tensor, t: Tensor | int, labels: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: (B, C, H, W), H and W divisible by 2^(levels - 1).
            t: Timestep, shape () or (B,).
            labels: (B,) int64 in 0..num_classes; None means the null class for every row.
        """
        if self.conditioning == "none":
            return self.unet(x, t, return_dict=False)[0]
        if labels is None:
            labels = torch.full((x.shape[0],), self.null_class, dtype=torch.long, device=x.device)
        if self.class_embedding is None:
            return self.unet(x, t, class_labels=labels, return_dict=False)[0]
        planes = self.class_embedding(labels)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.unet(torch.cat([x, planes.to(x.dtype)], dim=1), t, return_dict=False)[0]


def build_network(
    spec: ModelSpec,
    *,
    shape: tuple[int, int, int],
    num_classes: int = 0,
    learned_variance: bool = False,
    timesteps: int = 1000,
) -> DDPMNetwork:
    """Make a network with random weights from a preset.

    A resolution that the network cannot halve at every level is padded: the UNet's sample_size is the next size that
    works, and one line says so (`PixelCodec` pads and crops).

    Args:
        spec: Preset, overrides and conditioning.
        shape: (C, H, W) of the images, H == W.
        num_classes: Classes of the dataset; ignored when `spec.class_conditioning` is none.
        learned_variance: Whether the network predicts a variance as well, by as many output channels again.
        timesteps: T, for networks that are told the time as a part of it.

    Raises:
        UsageError: Unknown preset or override, arguments that do not fit together, or conditioning without classes.
    """
    channels, height, width = shape
    if height != width:
        raise UsageError(f"images of {height} x {width} pixels: the network takes squares")
    kind = spec.class_conditioning
    if kind != "none" and num_classes < 1:
        raise UsageError(
            f"model.class_conditioning is {kind!r}, but the dataset has no classes",
            "Set dataset.class_column, or model.class_conditioning to none.",
        )
    network_kind, arguments = preset_kind(spec.preset), unet_arguments(spec.preset, spec.overrides)
    size = padded_size(arguments, height, network_kind)
    if size != height:
        LOG.info("%s halves the image %d times: %d px images are padded to %d px, and cropped back in the pictures",
                 spec.preset, halvings(network_kind, arguments), height, size)  # fmt: skip
    extra = spec.class_embed_dim if kind == "concat" else 0
    out = 2 * channels if learned_variance else channels
    given = {"sample_size": size, "in_channels": channels + extra, "out_channels": out}
    if "timesteps" in signature(network_class(network_kind).__init__).parameters:
        given["timesteps"] = timesteps
    if kind == "embedding":
        if not KINDS[network_kind].classes:
            raise UsageError(
                f"model.preset {spec.preset} takes no class embedding", "Set model.class_conditioning to concat."
            )
        given["num_class_embeds"] = num_classes + 1
    try:
        unet = network_class(network_kind)(**given, **arguments)
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        raise UsageError(f"model.preset {spec.preset} with model.overrides {spec.overrides}: {error}") from None
    table = nn.Embedding(num_classes + 1, extra) if kind == "concat" else None
    return DDPMNetwork(unet, table, kind, num_classes if kind != "none" else 0)


def is_spread(value: Tensor) -> TypeGuard[DTensor]:
    """Say whether a tensor lies in pieces on several processes (FSDP)."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(value: Tensor) -> Tensor:
    """Return a tensor with its pieces gathered from all processes, each of which must call this; any other as it is."""
    return value.full_tensor() if is_spread(value) else value


def save_network(folder: Path, network: DDPMNetwork | TextNetwork) -> None:
    """Write a network's weights and configuration into `folder` (`unet/` of a pipeline, or `unet_raw/`)."""
    network.unet.save_pretrained(folder)
    if network.class_embedding is not None:
        from safetensors.torch import save_file

        save_file({"weight": network.class_embedding.weight.detach().cpu().contiguous()}, folder / CLASS_FILE)


def read_class_table(repo: Repo, folder: str) -> Tensor:
    """Read the classes that a network lays over the image, (classes + 1, dim).

    Raises:
        ModelError: The file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = f"{folder}/{CLASS_FILE}" if folder else CLASS_FILE
    path = repo.file(name)
    if path is None:
        raise repo.missing(name)
    try:
        weight = load_file(path)["weight"]
    except (SafetensorError, KeyError, OSError) as error:
        raise ModelError(f"{repo.id}: {name} cannot be read: {error}", repo.fetch_hint()) from None
    if weight.ndim != 2:
        raise ModelError(f"{repo.id}: {name} is no table of classes", repo.fetch_hint())
    return weight


def save_pipeline(folder: Path, network: DDPMNetwork, scheduler: SchedulerMixin, meta: RunMeta) -> None:
    """Write a pipeline in the diffusers layout, which stock `DDPMPipeline.from_pretrained` loads.

    It finds the class of a course's network in this package, by its name in model_index.json; diffkit itself takes no
    class from a repository.

    Args:
        folder: Made if it does not exist; holds model_index.json, unet/, scheduler/ and diffkit.json.
        network: Where conditioning is "concat", the class table goes beside the UNet's weights.
        scheduler: A diffusers scheduler, or a subclass of one (saved as the class that diffusers knows).
        meta: What diffusers' files do not say.
    """
    import diffusers

    folder.mkdir(parents=True, exist_ok=True)
    save_network(folder / "unet", network)
    known: type[SchedulerMixin] = next(c for c in type(scheduler).__mro__ if c.__module__.startswith("diffusers."))
    known.from_config(scheduler.config).save_pretrained(folder / "scheduler")
    kind = type(network.unet).__name__
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", known.__name__],
        "unet": [KINDS[kind].module, kind],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / meta_file.FILE).write_text(meta.to_json(), encoding="utf-8")
