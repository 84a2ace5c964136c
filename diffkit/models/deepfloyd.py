"""DeepFloyd IF, stages I and II: pixel diffusion with a learned variance, prompts by T5.

Stage II takes the upscaled, noised picture of stage I as three more input channels and the noise level as its class.
Stage III is Stable Diffusion's x4 upscaler (`stable_diffusion.py`). Source: Imagen, arXiv:2205.11487.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.models.hub import Repo, load_config
from diffkit.models.text_unet import TextModel, noise_levels
from diffkit.types import Cond


class Pixels:
    """The identity: IF runs on pixels."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1] -> the same, grey as RGB."""
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def decode(self, x0: Tensor) -> Tensor:
        """Return x0."""
        return x0


class DeepFloyd(TextModel):
    """One stage of DeepFloyd IF (the `Model` protocol); arguments as of `TextModel`.

    The UNet's six output channels come apart as `Prediction.out` (what it was trained to predict: epsilon in the
    published models) and `Prediction.var`.
    """

    family = "deepfloyd"

    def __init__(self, repo: Repo, **options: Any) -> None:
        super().__init__(repo, "t5", **options)
        if self.extra_channels not in (0, 3):
            raise ModelError(f"{repo.id}: a UNet with {self.config['in_channels']} input channels is no stage of IF")
        self.codec = Pixels()
        self.image_noising_scheduler: Any = None
        if self.stage == 2:
            from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

            config = load_config(repo, "image_noising_scheduler", "scheduler_config.json")
            self.image_noising_scheduler = DDPMScheduler.from_config(config)

    @property
    def sample_channels(self) -> int:
        """Half of the outputs where the variance is learned (what the scheduler's class cannot say, the UNet does)."""
        out = int(self.config["out_channels"])
        return out // 2 if out == 6 else out

    @property
    def stage(self) -> int:
        """1 (from noise) or 2 (from a small picture), by the UNet's input."""
        return 2 if self.extra_channels else 1

    def upscale_cond(self, images: Tensor, generators: Sequence[torch.Generator], noise_level: int = 250) -> Cond:
        """Condition stage II: the picture at the sample's size, noised, and the noise level.

        Args:
            images: (B, 3, h, w) in [-1, 1].
            generators: One per image.
            noise_level: Timestep of the noise.

        Raises:
            UsageError: This is stage I, or the level is out of range.

        Source: arXiv:2205.11487, section 2.3 (noise conditioning augmentation).
        """
        if self.image_noising_scheduler is None:
            raise UsageError(f"{self.id} is stage I of IF and takes no image", "Give a stage II model.")
        limit = int(self.image_noising_scheduler.config.num_train_timesteps)
        levels = noise_levels(noise_level, len(images), self.device, limit)
        images = self.codec.encode(images).to(self.device, torch.float32)
        large = F.interpolate(images, self.shape[1:], mode="bilinear", align_corners=True)
        noisy = self.image_noising_scheduler.add_noise(large, self._noise(generators, self.shape), levels)
        return Cond({"channels": noisy, "class_labels": levels})


def from_repo(repo: Repo, **options: Any) -> DeepFloyd:
    """Load a stage of DeepFloyd IF from an opened repository; options as of `TextModel`.

    Raises:
        ModelError: Missing or broken files, or a UNet of another kind.
    """
    return DeepFloyd(repo, **options)
