"""Classes of networks that pixel models are made of, one row each: UNet2DModel, and those of the courses.

A row says what the family has to know of a class before it is imported; importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A class of networks.

    Attributes:
        module: Where the class is.
        preset: The preset that stands for it where a recipe goes on from such a network; "" for any.
        halvings: How often it halves its samples; None: once less than it has `block_out_channels`.
        classes: Whether it takes class labels (`num_class_embeds` in its configuration).
        timed: Whether one of a configuration looks at its timestep.
        fixed_size: Whether its weights fit one size of samples only.
        first: Name of the convolution that takes the image.
        last: Name of the one that gives the image.
    """

    module: str
    preset: str = ""
    halvings: int | None = None
    classes: bool = True
    timed: Callable[[Mapping[str, Any]], bool] = lambda config: True
    fixed_size: bool = False
    first: str = "conv_in"
    last: str = "conv_out"


_OURS = "diffkit.models.course_networks"

KINDS: dict[str, Kind] = {
    "UNet2DModel": Kind("diffusers"),
    "CS180UNet": Kind(
        _OURS, "cs180", halvings=2, fixed_size=True, first="conv_in.0.0", last="conv_out.1",
        timed=lambda config: config.get("time", "none") != "none",
    ),
    "BasicUNet": Kind(_OURS, "basic-unet", classes=False, first="down.0", timed=lambda config: False),
}  # fmt: skip


# Networks of ours that other families have, and their modules.
_PIXNERD = "diffkit.models.pixnerd_network"
FURTHER: dict[str, str] = {"PixNerdTransformer2DModel": _PIXNERD, "PixNerdClassTransformer2DModel": _PIXNERD}


def module_of(kind: str) -> str:
    """Return the module of a network's class, of ours or of diffusers."""
    return KINDS[kind].module if kind in KINDS else FURTHER.get(kind, "diffusers")


def network_class(kind: str) -> Any:
    """Return a network's class by its name, of ours or of diffusers."""
    return getattr(import_module(module_of(kind)), kind)


def halvings(kind: str, config: Mapping[str, Any]) -> int:
    """Return how often a network halves its samples: their sides are multiples of 2 to this power."""
    fixed = KINDS[kind].halvings if kind in KINDS else None
    return len(config["block_out_channels"]) - 1 if fixed is None else fixed
