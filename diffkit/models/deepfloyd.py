"""DeepFloyd IF, stages I and II: pixel diffusion with a learned variance, prompts by T5.

Stage II takes the upscaled, noised picture of stage I as three more input channels and the noise level as its class.
Stage III is Stable Diffusion's x4 upscaler (`stable_diffusion.py`). Source: Imagen, arXiv:2205.11487.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.models.configuration import (
    check_record,
    check_unused,
    field_of,
    load_noising,
    load_scheduler,
    read_network,
    read_record,
    read_size,
    whole_number,
    whole_numbers,
    wrong,
)
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import T5_77
from diffkit.models.text_model import TextUNet, noise_levels
from diffkit.models.vocabulary import tokens_of
from diffkit.types import Cond, ModelInfo

TEXT_ENCODER = T5_77
# Classifier-free guidance as the authors use it: stage I, stage II, several prompts in one picture.
GUIDANCE, UPSCALING_GUIDANCE, ILLUSION_GUIDANCE = 7.0, 4.0, 10.0
# Small models with a small vocabulary tell their captions apart at once; more guidance only makes their lines ring.
OWN_GUIDANCE = 4.0
UPSCALING_NOISE = 250  # timesteps
NOISING = "image_noising_scheduler"


class Pixels:
    """The identity: IF runs on pixels."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1] -> the same, grey as RGB."""
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def decode(self, x0: Tensor) -> Tensor:
        """Return x0."""
        return x0


class DeepFloyd(TextUNet):
    """One stage of DeepFloyd IF (the `Model` protocol); arguments as of `TextModel`.

    The UNet's six output channels come apart as `Prediction.out` (what it was trained to predict: epsilon in the
    published models) and `Prediction.var`.
    """

    encoding = T5_77

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        self.codec = Pixels()
        second = info.source == "small"
        self._image_noising_scheduler = load_noising(repo, NOISING) if second else None

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        """Condition stage II: the small picture at the sample's size, noised, and the noise level.

        Raises:
            UsageError: This is stage I, or the level is out of range.

        Source: arXiv:2205.11487, section 2.3 (noise conditioning augmentation).
        """
        if self._image_noising_scheduler is None:
            return super().image_cond(images, generators, mask=mask, noise_level=noise_level)
        limit = int(self._image_noising_scheduler.config.num_train_timesteps)
        levels = noise_levels(noise_level, len(images), self.device, limit)
        images = self.codec.encode(images).to(self.device, torch.float32)
        large = F.interpolate(images, self.info.sample[1:], mode="bilinear", align_corners=True)
        noisy = self._image_noising_scheduler.add_noise(large, self.noise(generators), levels)
        return Cond({"channels": noisy, "class_labels": levels})


def info(repo: Repo) -> ModelInfo:
    """Say what a stage of DeepFloyd IF is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = read_network(repo, "unet", "UNet2DConditionModel")
    where, (record, _), scheduler = field_of(repo, network), read_record(repo), load_scheduler(repo)
    out, taken = (whole_number(network.config, key, where) for key in ("out_channels", "in_channels"))
    if out not in (3, 6):
        raise wrong(where, "out_channels", out, "3, or 6 with a learned variance: else it is no stage of IF")
    if taken not in (3, 6):
        raise wrong(where, "in_channels", taken, "3 (stage I) or 6 (stage II): else it is no stage of IF")
    size, second, channels = read_size(network.config, where), taken == 6, 3
    noise_level = ("timestep",) if second else ()
    check_unused(network.config, where, {
        "class_embed_type": noise_level, "num_class_embeds": (), "addition_embed_type": ("text",),
        "encoder_hid_dim_type": ("text_proj",), "time_cond_proj_dim": (),
    })  # fmt: skip
    if second:
        load_noising(repo, NOISING)
    levels = whole_numbers(network.config, "block_out_channels", where)
    check_record(repo, record, size, 2 ** (len(levels) - 1), channels, scheduler)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="deepfloyd", pipeline=repo.pipeline, channels=3, size=size,
        sample=(channels, *size), network=network, scheduler=scheduler, conditioning="text",
        text_encoder=TEXT_ENCODER.name, null=True,
        guidance=OWN_GUIDANCE if record else UPSCALING_GUIDANCE if second else GUIDANCE,
        illusion_guidance=OWN_GUIDANCE if record else ILLUSION_GUIDANCE, source="small" if second else "noise",
        noise_level=UPSCALING_NOISE if second else 0, record=record, vocabulary=tokens_of(repo, record),
    )  # fmt: skip


load = DeepFloyd  # (repo, info, options): its parts are loaded when they are first used
