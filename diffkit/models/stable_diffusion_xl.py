"""Stable Diffusion XL: latent diffusion at 1024 px with two text encoders: the base model, and 9-channel inpainting.

The UNet is told, beside the prompt, a pooled embedding and six numbers: the size of the original, where it was cropped,
and the size to draw. What image to image changes is the start of the loop, and no part of the model. Source: Podell et
al., arXiv:2307.01952.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import ModelError
from diffkit.models.configuration import (
    check_unused,
    field_of,
    load_scheduler,
    read_network,
    read_record,
    read_size,
    whole_number,
    wrong,
)
from diffkit.models.latents import vae_config
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.stable_diffusion import inpaint_cond
from diffkit.models.text_encodings import MAX_TOKENS, LoadedPart, TextEncoding, TextPart
from diffkit.models.text_model import TextUNet
from diffkit.models.weights import load_config
from diffkit.types import Cond, ModelInfo

# Classifier-free guidance as its pipeline uses it; and for several prompts in one picture, of which each has to win.
GUIDANCE, ILLUSION_GUIDANCE = 5.0, 7.5
NUMBERS = 6  # numbers that its UNet is told of sizes; the refiner is told five
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": ("text_time",), "class_embed_type": (), "num_class_embeds": (), "time_cond_proj_dim": (),
    "encoder_hid_dim_type": (),
}  # fmt: skip


class TwoClips(TextEncoding):
    """The layer before the last of two CLIPs side by side, and the pooled embedding of the second one."""

    name = "sdxl"

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return both CLIPs."""
        second = TextPart("tokenizer_2", "text_encoder_2", encoder_class="CLIPTextModelWithProjection")
        return TextPart(), second

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (77, D1 + D2) and `text_embeds` (P,)."""
        one = parts["text_encoder"](prompt, MAX_TOKENS, hidden=True)
        two = parts["text_encoder_2"](prompt, MAX_TOKENS, hidden=True, quiet=True)
        # The last layer was trained for the pooled embedding; the one before says more of the words.
        words = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        return {"encoder_hidden_states": words[0], "text_embeds": two.text_embeds[0]}


TEXT_ENCODER = TwoClips()


class StableDiffusionXL(TextUNet):
    """Stable Diffusion XL (the `Model` protocol); arguments as of `TextModel`."""

    encoding = TEXT_ENCODER

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        self.codec = self.latent_codec(upcast=True)  # diffusers' default, which its pipeline follows
        self._zeros = (repo.json("model_index.json") or {}).get("force_zeros_for_empty_prompt", True)

    def at(self, height: int, width: int) -> StableDiffusionXL:
        """Return this model for latents of another size, sharing all weights."""
        return self._resized(height, width)

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """Turn prompts into a condition; the empty one is what its training had in the place of a prompt: zeros.

        A repository says so by `force_zeros_for_empty_prompt`; without it the empty prompt is encoded.

        Raises:
            ModelError: A prompt is not in the cache, and a text encoder is missing or broken.
        """
        cond = super().encode(prompts)
        if not self._zeros:
            return cond
        said = torch.tensor([bool(prompt) for prompt in prompts], device=self.device)
        return Cond({name: v * said.reshape(-1, *[1] * (v.ndim - 1)).to(v) for name, v in cond.tensors.items()})

    def added(self, cond: Cond) -> dict[str, Any]:
        """Return the pooled embedding and the six numbers: (height, width), no crop, (height, width), in pixels."""
        pooled = cond.tensors["text_embeds"].to(self.dtype)
        sizes = torch.tensor([*self.info.size, 0, 0, *self.info.size], device=self.device, dtype=self.dtype)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}}

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        """Condition a 9-channel UNet; see `Model.image_cond`.

        Raises:
            UsageError: It draws from noise alone.
        """
        if self.info.source == "mask" and mask is not None:
            return inpaint_cond(self.codec, images, mask)
        return super().image_cond(images, generators, mask=mask, noise_level=noise_level)


def info(repo: Repo) -> ModelInfo:
    """Say what a Stable Diffusion XL model is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one, or it is the refiner; the message names it.
    """
    network = read_network(repo, "unet", "UNet2DConditionModel")
    where, (record, _) = field_of(repo, network), read_record(repo)
    out, taken = (whole_number(network.config, key, where) for key in ("out_channels", "in_channels"))
    if taken - out not in (0, 5):
        raise wrong(where, "in_channels", taken, f"{out}, or {out + 5} for inpainting, for {out} out_channels")
    check_unused(network.config, where, _ALLOWED)
    _check_added(repo, network.config, where)
    height, width = read_size(network.config, where)
    _, factor = vae_config(repo, out)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="stable_diffusion_xl", pipeline=repo.pipeline, channels=3,
        size=(height * factor, width * factor), sample=(out, height, width), network=network,
        scheduler=load_scheduler(repo), conditioning="text", text_encoder=TEXT_ENCODER.name, null=True,
        guidance=GUIDANCE, illusion_guidance=ILLUSION_GUIDANCE, source="mask" if taken > out else "noise", latent=True,
        record=record, size_multiple=factor,
    )  # fmt: skip


def _check_added(repo: Repo, config: Mapping[str, Any], where: str) -> None:
    """Refuse a UNet that is told something else than the pooled embedding and six numbers."""
    if config.get("addition_embed_type") != "text_time":
        raise wrong(where, "addition_embed_type", config.get("addition_embed_type"), "'text_time'")
    each = whole_number(config, "addition_time_embed_dim", where)
    all_of_it = whole_number(config, "projection_class_embeddings_input_dim", where)
    encoder = load_config(repo, "text_encoder_2", "config.json")
    pooled = whole_number(encoder, "projection_dim", f"{repo.id}: text_encoder_2/config.json")
    if all_of_it == 5 * each + pooled:
        raise ModelError(
            f"{repo.id} is the refiner of Stable Diffusion XL, which finishes another model's pictures",
            "Give the base model.",
        )
    if all_of_it != NUMBERS * each + pooled:
        key, fits = "projection_class_embeddings_input_dim", NUMBERS * each + pooled
        raise wrong(where, key, all_of_it, f"{fits}: {NUMBERS} times addition_time_embed_dim, and {pooled}")


load = StableDiffusionXL  # (repo, info, options): its parts are loaded when they are first used
