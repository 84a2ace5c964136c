"""Pixel diffusion: UNet2DModel and the networks of `kinds.py`, with classes or without; our runs, others' pipelines.

The denoiser that sampling uses, and how it is loaded; `network.py` holds the network itself. Source: Ho et al.,
arXiv:2006.11239.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkit.engine.samplers import is_flow
from diffkit.errors import ModelError, UsageError
from diffkit.models.attention import set_attention
from diffkit.models.base import BaseModel, class_cond, unpacked
from diffkit.models.configuration import (
    check_multiple,
    check_record,
    check_unused,
    field_of,
    find_scheduler,
    load_scheduler,
    picture_channels,
    read_network,
    read_record,
    read_size,
    whole_number,
    whole_numbers,
    wrong,
)
from diffkit.models.kinds import KINDS, halvings, network_class
from diffkit.models.meta import FILE, RunMeta
from diffkit.models.network import CLASS_FILE, DDPMNetwork, read_class_table
from diffkit.models.options import LoadOptions
from diffkit.models.pixels import PixelCodec as PixelCodec
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component
from diffkit.recipes.schema import ONE_STEP
from diffkit.types import Cond, ModelInfo, Network, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from diffkit.models.text_network import TrainedNetwork

LOG = logging.getLogger("diffkit.models")

TEXT_ENCODER = None
# With more guidance a small model's lines begin to ring; two prompts in one picture need more to be told apart.
GUIDANCE, ILLUSION_GUIDANCE = 2.0, 4.0


class DDPM(BaseModel):
    """The denoiser of a pixel model, with its scheduler, codec and class encoder (the `Model` protocol).

    Args:
        network: Of any device and type; it is moved. Training previews its text networks so, too.
        scheduler: The diffusers scheduler that it was trained with.
        meta: What it was trained to predict and on.
        info: What it is; made from the network, the scheduler and the meta when left out.
        device: Where to run.
        dtype: Type of the weights; the sample and the scheduler's arithmetic stay fp32.
        attention: Kernel: auto, sdpa or plain.
        compile: Compile the network at its first call.
    """

    network: TrainedNetwork

    def __init__(
        self,
        network: TrainedNetwork,
        scheduler: SchedulerMixin,
        meta: RunMeta,
        info: ModelInfo | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
        compile: bool = False,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.options = LoadOptions(device=self.device)
        # requires_grad stays as it is: torch's matmul takes another path without it, and the last bits with it.
        self.network = network.to(self.device, dtype).eval()
        set_attention(network.unet, attention, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._called: Callable[..., Tensor] = torch.compile(network) if compile else network
        self.info = info or _info_of(network, scheduler, meta)
        self.meta = meta
        self.codec = PixelCodec(self.info.size, self.info.sample[1:], meta.mean, meta.std)

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """Turn class names or numbers into a condition; None or "" is the null class.

        Raises:
            UsageError: Not a class of this model.
        """
        if not self.info.classes:
            wanted = [p for p in prompts if p not in (None, "")]
            if wanted:
                raise UsageError(
                    f"class {wanted[0]!r}: this model is unconditional and has no classes", "Leave `classes` out."
                )
            return Cond()
        return class_cond(prompts, self.info, self.device)

    def uncond(self, batch: int) -> Cond:
        """Return the null class for `batch` rows, what guidance needs.

        Raises:
            UsageError: The model has no classes, or was trained without a null class.
        """
        if not self.info.classes:
            raise UsageError(
                "guidance needs a class-conditional model; this one is unconditional", "Leave `guidance` out."
            )
        return self.encode([None] * batch)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict; `linear_mix` networks, which predict x0 from the picture alone, are turned into a velocity."""
        labels = cond.tensors.get("class_labels")
        # Asynchronously: a plain .to() would wait for the GPU once per step.
        t = t.to(self.device, non_blocking=True)
        blind = self.meta.prediction in ("linear_mix", *ONE_STEP)
        out = self._called(x.to(self.dtype), torch.zeros_like(t) if blind else t, labels)
        if self.meta.prediction == "linear_mix":
            # x_a = (1 - a) x0 + a noise, so noise - x0 = (x_a - x0) / a; a = t / T > 0 on every sampling grid.
            amount = (t / self.scheduler.config.num_train_timesteps).reshape(-1, 1, 1, 1)
            return Prediction((x - out.float()) / amount)
        return unpacked(out, x)


def info(repo: Repo) -> ModelInfo:
    """Say what a pixel model is, from its configuration alone.

    Raises:
        ModelError: A field is missing, unknown or contradicts another one; the message names it.
    """
    network = read_network(repo, "unet", "UNet2DModel", "UNetUnconditionalModel", others=KINDS)
    where, (record, meta), scheduler = field_of(repo, network), read_record(repo), load_scheduler(repo)
    config = network.config
    check_unused(config, where, {"class_embed_type": ()})  # classes by number, num_class_embeds, are known
    for key in ("in_channels", "out_channels"):
        whole_number(config, key, where)
    if KINDS[network.kind].halvings is None:
        whole_numbers(config, "block_out_channels", where)
    size, unit = read_size(config, where), 2 ** halvings(network.kind, config)
    check_multiple(size, unit, where, f"it halves its samples {unit.bit_length() - 1} times")
    if meta is not None and meta.conditioning not in ("none", "embedding", "concat"):
        raise wrong(f"{repo.id}: {FILE}", "conditioning", meta.conditioning, "none, embedding or concat")
    if meta is not None and meta.conditioning == "concat" and "channels" not in record:
        raise wrong(f"{repo.id}: {FILE}", "channels", None, "1 or 3, since classes are input channels, too")
    meta = meta or _guess(config, scheduler)
    classes = _count_classes(repo, network, meta, where)
    described = _describe(network, size, scheduler, meta, classes, where, repo=repo, record=record)
    check_record(repo, record, size, unit, described.channels, scheduler)
    return described


def _count_classes(repo: Repo, network: Network, meta: RunMeta, where: str) -> int:
    """Return the number of classes, the null class not counted; names and rows have to agree."""
    rows = network.config.get("num_class_embeds")
    if rows is not None:
        whole_number(network.config, "num_class_embeds", where)
    if (rows is not None) != (meta.conditioning == "embedding"):
        raise wrong(where, "num_class_embeds", rows, f"what fits conditioning {meta.conditioning!r} in {FILE}")
    if meta.conditioning == "none":
        return 0
    if meta.conditioning == "concat":  # `load` compares the number of names with the table's rows
        return len(meta.class_names) or len(read_class_table(repo, network.folder)) - 1
    null = int(meta.null_class)
    count = int(network.config["num_class_embeds"]) - null
    if meta.class_names and len(meta.class_names) != count:
        raise wrong(where, "num_class_embeds", rows, f"{len(meta.class_names) + null}, for the class_names in {FILE}")
    if count < 1:
        raise wrong(where, "num_class_embeds", rows, "one row per class, and one for the null class")
    return count


def load(repo: Repo, info: ModelInfo, options: LoadOptions) -> DDPM:
    """Load a pixel model from an opened repository.

    Raises:
        ModelError: Missing or broken files, or raw weights that are not there.
    """
    part = "unet_raw" if options.raw else info.network.folder
    if options.raw and not repo.has("unet_raw/config.json"):
        raise ModelError(f"{repo.id} holds no raw weights (unet_raw/)", "Leave `raw` out.")
    if find_scheduler(repo) is None:
        LOG.info("%s has no scheduler: DDPM's linear schedule, T = 1000, epsilon, is assumed", repo.id)
    meta = read_record(repo)[1] or _guess(info.network.config, info.scheduler)
    table = _class_table(repo, part, info) if meta.conditioning == "concat" else None
    dtype = options.dtype or torch.float32  # a pixel model is small, and its pictures should not change
    unet = load_component(
        repo, network_class(info.network.kind), part, variant=options.variant, dtype=dtype,
        allow_pickle=options.allow_pickle,
    )  # fmt: skip
    # The weights are still the mapped file, which a training run may replace under us.
    for tensor in (*unet.parameters(), *unet.buffers()):
        tensor.data = tensor.data.clone()
    kind = meta.conditioning if info.classes else "none"
    network = DDPMNetwork(unet, None if table is None else table.to(dtype), kind, len(info.classes))
    return DDPM(network, info.scheduler, meta, info, device=options.device, dtype=dtype, compile=options.compile)


def _guess(config: Mapping[str, Any], scheduler: SchedulerMixin) -> RunMeta:
    """What diffkit's own record would say of somebody else's model."""
    return RunMeta(
        prediction="flow" if is_flow(scheduler) else str(scheduler.config.get("prediction_type", "epsilon")),
        conditioning="none" if config.get("num_class_embeds") is None else "embedding",
        channels=int(config["in_channels"]),
        version="",
        null_class=False,
    )


def _info_of(network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta) -> ModelInfo:
    """Describe a network that is at hand, as `info` describes one on disk."""
    config = network.unet.config
    size = read_size(config, "the network's configuration")
    described = Network("", type(network.unet).__name__, config)
    return _describe(described, size, scheduler, meta, network.num_classes, "the network's configuration")


def _describe(
    network: Network,
    size: tuple[int, int],
    scheduler: SchedulerMixin,
    meta: RunMeta,
    classes: int,
    where: str,
    *,
    repo: Repo | None = None,
    record: Mapping[str, Any] | None = None,
) -> ModelInfo:
    # Classes that are laid over the image are input channels, too: there the record alone knows the picture's.
    taken = meta.channels if meta.conditioning == "concat" else int(network.config["in_channels"])
    channels = picture_channels(int(network.config["out_channels"]), taken, where)
    picture = (meta.resolution, meta.resolution) if meta.resolution else size
    null = bool(classes) and meta.null_class
    return ModelInfo(
        id=repo.id if repo else "", revision=repo.revision if repo else None, family="ddpm",
        pipeline=repo.pipeline if repo else "", channels=channels, size=picture, sample=(channels, *size),
        network=network, scheduler=scheduler, conditioning="class" if classes else "none",
        classes=tuple(meta.class_names or [str(k) for k in range(classes)]) if classes else (), null=null,
        guidance=GUIDANCE if null else 1.0, illusion_guidance=ILLUSION_GUIDANCE if null else 1.0,
        grey=tuple(-m / s for m, s in zip(meta.mean, meta.std, strict=True)) if any(meta.mean) else (),
        noise="uniform" if meta.noise == "uniform" else "normal",
        one_step=meta.prediction in ONE_STEP, record=record or {},
    )  # fmt: skip


def _class_table(repo: Repo, part: str, info: ModelInfo) -> nn.Embedding:
    """The classes that are laid over the image."""
    weight = read_class_table(repo, part)
    wanted = (len(info.classes) + 1, int(info.network.config["in_channels"]) - info.channels)
    if tuple(weight.shape) != wanted:
        raise ModelError(
            f"{repo.id}: {CLASS_FILE} holds {weight.shape[0]} rows of {weight.shape[1]} numbers; needed:"
            f" {wanted[0]} (class_names in {FILE}, and the null class) of {wanted[1]} (in_channels)",
            "Put the configuration right.",
        )
    return nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
