"""DiT: class-conditional latent diffusion by a transformer with a learned variance, at one square size.

The last row of its class table is the null class. Source: Peebles & Xie, arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.base import BaseModel, class_cond, unpacked
from diffkit.models.class_names import class_names
from diffkit.models.configuration import (
    check_multiple,
    field_of,
    load_scheduler,
    read_network,
    read_record,
    read_size,
    whole_number,
    wrong,
)
from diffkit.models.latents import FOLDER, LatentCodec, load_vae, make_codec, vae_config, vae_scaling
from diffkit.models.memory import count_parameters, default_dtype, make_plan, place
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.weights import find_weights, load_component, preferred
from diffkit.types import Cond, ModelInfo, Prediction

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

TEXT_ENCODER = None
GUIDANCE = 4.0  # classifier-free guidance as its pipeline and its authors use it


class DiT(BaseModel):
    """The denoiser of a DiT, with its scheduler, codec and class encoder (the `Model` protocol).

    Args:
        network: The transformer, where it is to run.
        info: What it is.
        codec: Its VAE.
        options: How it is loaded.
        dtype: Type of the weights; the sample stays fp32.
        row_limit: Most rows in one network call.
    """

    def __init__(
        self,
        network: DiTTransformer2DModel,
        info: ModelInfo,
        codec: LatentCodec,
        options: LoadOptions,
        dtype: torch.dtype,
        row_limit: int | None,
    ) -> None:
        self.info, self.codec, self.device, self.dtype = info, codec, torch.device(options.device), dtype
        self.row_limit, self.options = row_limit, options
        self.network = network.requires_grad_(False)
        self._called: Any = torch.compile(self.network) if options.compile else self.network

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """See `class_cond`."""
        return class_cond(prompts, self.info, self.device)

    def uncond(self, batch: int) -> Cond:
        """Return the null class for `batch` rows, what guidance needs."""
        return self.encode([None] * batch)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from x (B, C, h, w), already scaled as the scheduler asks, at t (shape () or (B,))."""
        t = t.to(self.device, non_blocking=True).expand(len(x))
        labels = cond.tensors["class_labels"]
        return unpacked(self._called(x.to(self.dtype), timestep=t, class_labels=labels, return_dict=False)[0], x)


def info(repo: Repo) -> ModelInfo:
    """Say what a DiT is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = read_network(repo, "transformer", "DiTTransformer2DModel", "Transformer2DModel")
    where, config = field_of(repo, network), network.config
    taken, count, patch = (whole_number(config, k, where) for k in ("in_channels", "num_embeds_ada_norm", "patch_size"))
    if config.get("out_channels", taken) not in (None, taken, 2 * taken):
        raise wrong(where, "out_channels", config["out_channels"], f"{taken}, or {2 * taken} with a learned variance")
    side, width = read_size(config, where)
    if side != width or not isinstance(config["sample_size"], int):
        raise wrong(where, "sample_size", config["sample_size"], "one number: it draws squares")
    check_multiple((side, side), patch, where, "it cuts them into patches of that size")
    _, factor = vae_config(repo, taken)
    names, further = class_names((repo.json("model_index.json") or {}).get("id2label"), count, repo.id)
    record, _ = read_record(repo)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="dit", pipeline=repo.pipeline, channels=3,
        size=(side * factor, side * factor), sample=(taken, side, side), network=network,
        scheduler=load_scheduler(repo), conditioning="class", classes=names, synonyms=further, null=True,
        guidance=GUIDANCE, illusion_guidance=GUIDANCE, latent=True, record=record,
    )  # fmt: skip


def load(repo: Repo, info: ModelInfo, options: LoadOptions) -> DiT:
    """Load a DiT from an opened repository; its VAE comes when it is first used.

    Raises:
        UsageError: An option that it does not have.
        ModelError: Missing or broken files.
    """
    from diffusers import DiTTransformer2DModel

    if options.raw:
        raise UsageError(f"`raw` goes with runs of diffkit, and {repo.id} is none", "Leave `raw` out.")
    device = torch.device(options.device)
    dtype = options.dtype or default_dtype(device)
    size = torch.empty((), dtype=dtype).element_size()
    plan = make_plan(options.memory, device, count_parameters(info.network) * size if device.type == "cuda" else 0)
    prefer = options.variant or preferred(dtype)
    config, _ = vae_config(repo, info.sample[0])
    find_weights(repo, FOLDER, "diffusion_pytorch_model", prefer=prefer, allow_pickle=options.allow_pickle)
    network = load_component(
        repo, DiTTransformer2DModel, info.network.folder, variant=options.variant, dtype=dtype,
        allow_pickle=options.allow_pickle,
    )  # fmt: skip

    @cache
    def vae() -> AutoencoderKL:
        return load_vae(repo, options, plan, device, dtype, prefer)

    codec = make_codec(info, vae, vae_scaling(repo, config), plan, device)
    return DiT(place(network, device, plan), info, codec, options, dtype, plan.max_batch)
