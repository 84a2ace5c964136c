"""Pixel diffusion: UNet2DModel networks, unconditional or class-conditional; diffkit's own runs and others' pipelines.

The denoiser that sampling uses, and how it is loaded; `network.py` holds the network itself. Source: Ho et al.,
arXiv:2006.11239.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from diffkit.errors import ModelError, UsageError, did_you_mean
from diffkit.models import meta as meta_file
from diffkit.models.attention import set_attention
from diffkit.models.hub import Repo, load_component, load_config
from diffkit.models.meta import RunMeta
from diffkit.models.network import CLASS_FILE, DDPMNetwork, build_network, save_network, save_pipeline
from diffkit.types import Cond, Prediction

__all__ = [
    "DDPM",
    "DDPMNetwork",
    "PixelCodec",
    "RunMeta",
    "build_network",
    "from_repo",
    "load_scheduler",
    "outline",
    "save_network",
    "save_pipeline",
]

LOG = logging.getLogger("diffkit.models")


class PixelCodec:
    """The identity between images and the network's space, but for the padding to a size that the network can halve.

    The image sits in the middle, and its edges are repeated outwards.
    """

    def __init__(self, resolution: int, size: int) -> None:
        self.resolution, self.size = resolution, size
        self.before = (size - resolution) // 2

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, resolution, resolution) -> (B, C, size, size)."""
        if self.size == self.resolution:
            return images
        after = self.size - self.resolution - self.before
        return F.pad(images, (self.before, after, self.before, after), mode="replicate")

    def decode(self, x0: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, C, resolution, resolution)."""
        inside = slice(self.before, self.before + self.resolution)
        return x0[..., inside, inside]


class DDPM:
    """The denoiser of a pixel model, with its scheduler, codec and class encoder (the `Model` protocol).

    Args:
        network: A DDPMNetwork (or what has its attributes: text networks are previewed so), any device and type; it is
            moved.
        scheduler: The diffusers scheduler that it was trained with.
        meta: What it was trained to predict and on.
        device: Where to run.
        dtype: Type of the weights; the sample and the scheduler's arithmetic stay fp32.
        attention: Kernel: auto, sdpa or plain.
        compile: Compile the network at its first call.
        source: Hub id or folder, for the record.
        revision: Its commit.
    """

    family = "ddpm"

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        meta: RunMeta,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
        compile: bool = False,
        source: str = "",
        revision: str | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        # requires_grad stays as it is: torch's matmul takes another path without it, and the last bits with it.
        self.network = network.to(self.device, dtype).eval()
        set_attention(network.unet, attention, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        self._called: Any = torch.compile(network) if compile else network
        self.scheduler, self.meta, self.id, self.revision = scheduler, meta, source, revision
        size = network.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.shape: tuple[int, int, int] = (network.channels, height, width)
        self.codec = PixelCodec(meta.resolution or height, height)

    @property
    def num_classes(self) -> int:
        """Number of classes, the null class not counted; 0 for an unconditional model."""
        return self.network.num_classes

    @property
    def class_names(self) -> list[str]:
        """Names in label order; the numbers where the model has no names."""
        return self.meta.class_names or [str(k) for k in range(self.num_classes)]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw N(0, I), (len(generators), C, H, W) fp32 on the model's device, one image per generator."""
        drawn = [torch.randn(1, *self.shape, generator=g, device=g.device) for g in generators]
        return torch.cat(drawn).to(self.device)

    def encode(self, prompts: Sequence[str | int | None]) -> Cond:
        """Turn class names or numbers into a condition; None or "" is the null class.

        Raises:
            UsageError: Not a class of this model.
        """
        if not self.num_classes:
            wanted = [p for p in prompts if p not in (None, "")]
            if wanted:
                raise UsageError(
                    f"class {wanted[0]!r}: this model is unconditional and has no classes", "Leave --class out."
                )
            return Cond()
        labels = torch.tensor([self._label(p) for p in prompts], dtype=torch.long)
        return Cond({"class_labels": labels.to(self.device)})

    def uncond(self, batch: int) -> Cond:
        """Return the null class for `batch` rows, what guidance needs.

        Raises:
            UsageError: The model has no classes, or was trained without a null class.
        """
        if not self.num_classes:
            raise UsageError(
                "guidance needs a class-conditional model; this one is unconditional", "Leave --guidance out."
            )
        return self.encode([None] * batch)

    def _label(self, prompt: str | int | None) -> int:
        if prompt is None or prompt == "":
            if not self.meta.null_class:
                raise UsageError("this model was trained without a null class: give --class, and leave --guidance out")
            return self.network.null_class
        names = self.class_names
        if str(prompt) in names:
            return names.index(str(prompt))
        if str(prompt).isdecimal() and int(prompt) < self.num_classes:
            return int(prompt)
        raise UsageError(
            f"class {prompt!r} is not one of the model's {self.num_classes}", did_you_mean(str(prompt), names)
        )

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict; `linear_mix` networks, which predict x0 from the picture alone, are turned into a velocity."""
        labels = cond.tensors.get("class_labels")
        # Asynchronously: a plain .to() would wait for the GPU once per step.
        t = t.to(self.device, non_blocking=True)
        blind = self.meta.prediction in ("linear_mix", "one_step")
        out = self._called(x.to(self.dtype), torch.zeros_like(t) if blind else t, labels).float()
        if self.meta.prediction == "linear_mix":
            # x_a = (1 - a) x0 + a noise, so noise - x0 = (x_a - x0) / a; a = t / T > 0 on every sampling grid.
            amount = (t / self.scheduler.config.num_train_timesteps).reshape(-1, 1, 1, 1)
            return Prediction((x - out) / amount)
        if out.shape[1] == 2 * x.shape[1]:
            return Prediction(*out.chunk(2, dim=1))
        return Prediction(out)


def from_repo(
    repo: Repo,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    allow_pickle: bool = False,
    weights: str = "ema",
    attention: str = "auto",
    compile: bool = False,
) -> DDPM:
    """Load a pixel model from an opened repository.

    Args:
        repo: Where from.
        device: Where to run.
        dtype: Type of the weights.
        variant: Weight variant.
        allow_pickle: Also read `.bin` through the restricted unpickler.
        weights: "ema" (unet/, what every pipeline has) or "raw" (unet_raw/, of a diffkit run).
        attention: Kernel: auto, sdpa or plain.
        compile: Compile the network at its first call.

    Raises:
        ModelError: Missing or broken files, or raw weights that are not there.
    """
    part = "unet_raw" if weights == "raw" else repo.part("unet")
    if weights == "raw" and not repo.has("unet_raw/config.json"):
        raise ModelError(f"{repo.id} holds no raw weights (unet_raw/)", "Leave --raw out.")
    unet = load_component(repo, UNet2DModel, part, variant=variant, dtype=dtype, allow_pickle=allow_pickle)
    # The weights are still the mapped file, which a training run may replace under us.
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()
    scheduler = load_scheduler(repo)
    data = repo.json(meta_file.FILE)
    meta = RunMeta.from_dict(data) if data is not None else _guess(unet.config, scheduler)
    return DDPM(
        _network(repo, part, unet, meta),
        scheduler,
        meta,
        device=device,
        dtype=dtype,
        attention=attention,
        compile=compile,
        source=repo.id,
        revision=repo.revision,
    )


@dataclass(frozen=True)
class Outline:
    """What is known of a model without its weights."""

    meta: RunMeta
    scheduler: Any
    parameters: int


def outline(repo: Repo) -> Outline:
    """Read a pixel model's configuration only, and count its parameters."""
    config = load_config(repo, repo.part("unet"), "config.json")
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
    scheduler = load_scheduler(repo)
    data = repo.json(meta_file.FILE)
    meta = RunMeta.from_dict(data) if data is not None else _guess(unet.config, scheduler)
    return Outline(meta, scheduler, sum(p.numel() for p in unet.parameters()))


def load_scheduler(repo: Repo) -> Any:
    """Load the scheduler of a pipeline: of its own class where diffusers has it, DDPM's defaults where there is none.

    Raises:
        ModelError: Its class is not one of diffusers' schedulers.
    """
    import diffusers

    config = repo.json("scheduler/scheduler_config.json") or repo.json("scheduler_config.json")
    if config is None:
        LOG.info("%s has no scheduler: DDPM's linear schedule, T = 1000, epsilon, is assumed", repo.id)
        return DDPMScheduler()
    index = repo.json("model_index.json") or {}
    entry = index.get("scheduler")
    name = str(config.get("_class_name") or (entry[1] if isinstance(entry, list) else "") or "DDPMScheduler")
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None or not hasattr(cls, "from_config"):
        raise ModelError(f"{repo.id}: its scheduler {name!r} is not one of diffusers'")
    return cls.from_config(config)


def _guess(config: Mapping[str, Any], scheduler: Any) -> RunMeta:
    size = config["sample_size"]
    classes = config.get("num_class_embeds")
    flow = type(scheduler).__name__.startswith("FlowMatch")
    return RunMeta(
        prediction="flow" if flow else str(scheduler.config.get("prediction_type", "epsilon")),
        conditioning="embedding" if classes else "none",
        resolution=size if isinstance(size, int) else size[0],
        channels=config["in_channels"],
        version="",
        null_class=False,
    )


def _network(repo: Repo, part: str, unet: UNet2DModel, meta: RunMeta) -> DDPMNetwork:
    if meta.conditioning == "concat":
        from safetensors.torch import load_file

        path = repo.file(f"{part}/{CLASS_FILE}" if part else CLASS_FILE)
        if path is None:
            raise repo.missing(f"{part}/{CLASS_FILE}")
        weight = load_file(path)["weight"]
        table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight.to(unet.dtype))
        return DDPMNetwork(unet, table, "concat", weight.shape[0] - 1)
    rows = unet.config.num_class_embeds
    return DDPMNetwork(unet, None, "embedding" if rows else "none", (rows - int(meta.null_class)) if rows else 0)
