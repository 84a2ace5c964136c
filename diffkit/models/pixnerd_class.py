"""PixNerd by class: a flow in pixels, of the classes of ImageNet by number; the text-conditional one is `pixnerd.py`.

The last row of its class table is the null class. The authors draw with Euler's method, 100 steps, no shift and
guidance 3.5 from 0.1 of the way on (`guidance_interval` 0.1:1). Source: Wang et al., arXiv:2507.23268.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.base import BaseModel, class_cond
from diffkit.models.class_names import class_names
from diffkit.models.configuration import field_of, load_flow, read_network, read_record, whole_number
from diffkit.models.memory import count_parameters, default_dtype, make_plan, place
from diffkit.models.options import LoadOptions
from diffkit.models.pixels import PixelCodec
from diffkit.models.pixnerd import check_pixels
from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel, velocity
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component
from diffkit.types import Cond, ModelInfo, Prediction

TEXT_ENCODER = None
GUIDANCE, STEPS = 3.5, 100
FIELDS = (
    "in_channels", "patch_size", "num_groups", "hidden_size", "hidden_size_x", "nerf_mlpratio", "num_blocks",
    "num_cond_blocks", "num_classes",
)  # fmt: skip


class PixNerdByClass(BaseModel):
    """A class-conditional PixNerd (the `Model` protocol).

    Args:
        network: The transformer, where it is to run.
        info: What it is.
        options: How it is loaded.
        dtype: Type of the weights; the sample stays fp32.
        row_limit: Most rows in one network call.
    """

    def __init__(
        self,
        network: PixNerdClassTransformer2DModel,
        info: ModelInfo,
        options: LoadOptions,
        dtype: torch.dtype,
        row_limit: int | None,
    ) -> None:
        self.info, self.device, self.dtype = info, torch.device(options.device), dtype
        self.row_limit, self.options = row_limit, options
        self.codec = PixelCodec(info.size, info.size)
        self.network = network.requires_grad_(False)
        self._called: Any = torch.compile(self.network) if options.compile else self.network

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """See `class_cond`."""
        return class_cond(prompts, self.info, self.device)

    def uncond(self, batch: int) -> Cond:
        """Return the null class for `batch` rows, what guidance needs."""
        return self.encode([None] * batch)

    def at(self, height: int, width: int) -> Self:
        """Return this model for pictures of another size, sharing all weights: they have more or fewer patches.

        Raises:
            UsageError: A side that is not made of whole patches.
        """
        other = copy.copy(self)
        other.info = self.info.resized(height, width)
        other.codec = PixelCodec(other.info.size, other.info.size)
        return other

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from x (B, C, H, W) at t (shape () or (B,)); see `velocity`."""
        t, labels = t.to(self.device, non_blocking=True), cond.tensors["class_labels"]
        return Prediction(velocity(self._called, x.to(self.dtype), t, labels, self.info.timesteps).float())


def info(repo: Repo) -> ModelInfo:
    """Say what a class-conditional PixNerd is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = read_network(repo, "transformer", "PixNerdClassTransformer2DModel")
    where, config = field_of(repo, network), network.config
    for key in FIELDS:
        whole_number(config, key, where)
    side = check_pixels(config, where)
    names, further = class_names((repo.json("model_index.json") or {}).get("id2label"), config["num_classes"], repo.id)
    record, _ = read_record(repo)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="pixnerd_class", pipeline=repo.pipeline, channels=3,
        size=(side, side), sample=(3, side, side), network=network, scheduler=load_flow(repo), conditioning="class",
        classes=names, synonyms=further, null=True, guidance=GUIDANCE, illusion_guidance=GUIDANCE, steps=STEPS,
        size_multiple=config["patch_size"], record=record,
    )  # fmt: skip


def load(repo: Repo, info: ModelInfo, options: LoadOptions) -> PixNerdByClass:
    """Load a class-conditional PixNerd from an opened repository.

    Raises:
        UsageError: An option that it does not have.
        ModelError: Missing or broken files.
    """
    if options.raw:
        raise UsageError(f"`raw` goes with runs of diffkit, and {repo.id} is none", "Leave `raw` out.")
    device = torch.device(options.device)
    dtype = options.dtype or default_dtype(device, torch.bfloat16)
    size = torch.empty((), dtype=dtype).element_size()
    plan = make_plan(options.memory, device, count_parameters(info.network) * size if device.type == "cuda" else 0)
    network = load_component(
        repo, PixNerdClassTransformer2DModel, info.network.folder, variant=options.variant, dtype=dtype,
        allow_pickle=options.allow_pickle,
    )  # fmt: skip
    placed: Any = place(network, device, plan)
    return PixNerdByClass(placed, info, options, dtype, plan.max_batch)
