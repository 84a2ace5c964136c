"""What the families with a UNet and prompts share: how it is called, with an image or a noise level beside x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.text_model import TextModel
from diffkit.types import Cond


class TextUNet(TextModel):
    """A `TextModel` whose network is a UNet2DConditionModel; arguments as there."""

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the UNet.

        Raises:
            UsageError: The condition lacks the image that this UNet was trained with.
        """
        tensors = cond.tensors
        extra = tensors.get("channels")
        wanted = int(self.info.network.config["in_channels"]) - self.info.sample[0]
        if (0 if extra is None else extra.shape[1]) != wanted:
            raise UsageError(
                f"the UNet of {self.info.id} takes {wanted} channels beside the sample,"
                f" got {0 if extra is None else extra.shape[1]}",
                "It is an inpainting or upscaling model: give it its image." if wanted else "",
            )
        sample = x if extra is None else torch.cat([x, extra.to(x)], dim=1)
        out: Tensor = self.network(
            sample, t, encoder_hidden_states=tensors["encoder_hidden_states"].to(self.dtype),
            class_labels=tensors.get("class_labels"), return_dict=False, **self.added(cond),
        )[0]  # fmt: skip
        return out

    def added(self, cond: Cond) -> dict[str, Any]:
        """Return what a family's UNet is given beside prompts and labels."""
        return {}


def noise_levels(level: int, batch: int, device: torch.device, limit: int) -> Tensor:
    """Return a noise level as the UNet's class labels, (batch,).

    Raises:
        UsageError: Outside 0..limit-1.
    """
    if not 0 <= level < limit:
        raise UsageError(f"`noise_level` {level} is outside 0..{limit - 1}")
    return torch.full((batch,), level, dtype=torch.long, device=device)
