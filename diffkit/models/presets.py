"""Network shapes by name, one row each; what a recipe's `model.preset` chooses.

A row holds arguments of its class (UNet2DModel, or one of `kinds.py`) and nothing of the data: size, channels and
classes are filled in by `build_network`; `overrides` replace single arguments of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from diffkit.errors import UsageError, did_you_mean
from diffkit.models.kinds import halvings, network_class

_D, _A, _U, _V = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"


def _row(channels: tuple[int, ...], attention: str, layers: int, groups: int, **more: Any) -> dict[str, Any]:
    """`attention` has one character per level, from the finest: "a" attends, "." does not."""
    return {
        "block_out_channels": channels,
        "down_block_types": tuple(_A if mark == "a" else _D for mark in attention),
        "up_block_types": tuple(_V if mark == "a" else _U for mark in reversed(attention)),
        "layers_per_block": layers,
        "norm_num_groups": groups,
        **more,
    }


# Parameters are counted without classes, with one grey channel (from unet32 on: RGB).
PRESETS: dict[str, dict[str, Any]] = {
    # 18 thousand; for tests, any even size.
    "tiny": _row((8, 8), ".a", 1, 4),
    # 1.8 M; the embedded digits at 16 px, 16 -> 8 -> 4, attention at 4.
    "digits16": _row((32, 64, 96), "..a", 1, 8),
    # 1.7 M; the Hugging Face course's class-conditional MNIST net: 28 -> 14 -> 7, attention at 14 and 7.
    "course28": _row((32, 64, 64), ".aa", 2, 32),
    # 9.3 M; small colour images, 32 -> 16 -> 8 -> 4, attention at 16 and 8.
    "unet32": _row((64, 128, 128, 128), ".aa.", 2, 32),
    # 4.9 M; the widths and depth of the Keras DDIM example at 64 px, 64 -> 32 -> 16 -> 8, without attention.
    "keras64": _row((32, 64, 96, 128), "....", 2, 32, add_attention=False),
    # 18.5 M; the Hugging Face course's butterflies net at 64 px, attention at 16 and 8.
    "butterflies64": _row((64, 128, 128, 256), "..aa", 2, 32),
    # 113.67 M; google/ddpm-celebahq-256, argument for argument: one head, attention at 16 px only.
    "celebahq256": _row(
        (128, 128, 256, 256, 512, 512),
        "....a.",
        2,
        32,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        mid_block_scale_factor=1,
        norm_eps=1e-6,
        attention_head_dim=None,
        act_fn="silu",
    ),
}

# Other classes than UNet2DModel; parameters with one grey channel.
COURSE_PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    # 2.0 M at D = 64, 7.9 M at D = 128 (`hidden`); `time` add (2024) or multiply (2025) tells it the time.
    "cs180": ("CS180UNet", {"hidden": 64, "time": "none"}),
    # 309,057; the Hugging Face course's network without time.
    "basic-unet": ("BasicUNet", {"block_out_channels": (32, 64, 64)}),
}

_T, _S = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"


def _text_row(channels: tuple[int, ...], down: str, up: str, groups: int, head: int, width: int) -> dict[str, Any]:
    """`down` and `up` have one character per level, in the network's order: "a" attends to text and pixels."""
    return {
        "block_out_channels": channels,
        "down_block_types": tuple(_T if mark == "a" else _D for mark in down),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": tuple(_S if mark == "a" else _U for mark in up),
        "layers_per_block": 1,
        "norm_num_groups": groups,
        "attention_head_dim": head,
        "cross_attention_dim": width,
        "cross_attention_norm": "group_norm",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "silu",
    }


# UNet2DConditionModel in DeepFloyd IF's layout: RGB in, image and variance out. Counted without the text encoder.
TEXT_PRESETS: dict[str, dict[str, Any]] = {
    # 40 thousand; for tests, any even size.
    "tiny_if": _text_row((8, 16), ".a", "a.", 4, 8, 32),
    # 3.3 M; 32 -> 16 -> 8, attention at 16 on the way down and at 8. On the way up at 16 it costs a fifth of the speed.
    "if32": _text_row((32, 64, 128), ".aa", "a..", 8, 64, 128),
}

# build_network sets these from the data, the conditioning and the noise; an override would contradict them.
_RESERVED = frozenset(
    {"sample_size", "in_channels", "out_channels", "num_class_embeds", "class_embed_type", "timesteps"}
)


def preset_kind(preset: str) -> str:
    """Return the class of a preset's network.

    Raises:
        UsageError: Unknown preset, or one that draws from captions.
    """
    if preset in TEXT_PRESETS:
        raise UsageError(f"model.preset {preset!r} draws from captions", "Set model.text to t5.")
    if preset not in PRESETS and preset not in COURSE_PRESETS:
        raise UsageError(f"unknown model.preset {preset!r}", did_you_mean(preset, [*PRESETS, *COURSE_PRESETS]))
    return COURSE_PRESETS[preset][0] if preset in COURSE_PRESETS else "UNet2DModel"


def unet_arguments(preset: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of a preset's class with `overrides` in place.

    Raises:
        UsageError: Unknown preset; an override that is no argument of that class, or that is set from the data.
    """
    cls = network_class(preset_kind(preset))
    _check_overrides(overrides or {}, cls, _RESERVED)
    row = COURSE_PRESETS[preset][1] if preset in COURSE_PRESETS else PRESETS[preset]
    return {**row, **(overrides or {})}


def source_overrides(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a network's configuration replaces a whole preset: all but what the data sets."""
    names = signature(network_class(kind).__init__).parameters
    return {key: config[key] for key in names if key in config.keys() - _RESERVED}


def text_unet_arguments(preset: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a text preset's `UNet2DConditionModel` arguments with `overrides` in place.

    Raises:
        UsageError: No text preset of that name; an override that is no argument, or that is set otherwise.
    """
    if preset not in TEXT_PRESETS:
        known = ", ".join(TEXT_PRESETS)
        raise UsageError(f"model.preset {preset!r} knows no captions (model.text is set)", f"Choose one of: {known}.")
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    _check_overrides(overrides or {}, UNet2DConditionModel, _RESERVED | {"encoder_hid_dim", "encoder_hid_dim_type"})
    return {**TEXT_PRESETS[preset], **(overrides or {})}


def _check_overrides(overrides: Mapping[str, Any], cls: type[Any], reserved: frozenset[str]) -> None:
    allowed = set(signature(cls.__init__).parameters) - {"self"} - reserved
    for key in overrides:
        if key in reserved:
            raise UsageError(
                f"model.overrides.{key} is set from the dataset and the conditioning, and cannot be overridden",
                "Use dataset.resolution, dataset.channels, model.class_conditioning or noise.timesteps.",
            )
        if key not in allowed:
            raise UsageError(f"model.overrides.{key} is no argument of {cls.__name__}", did_you_mean(key, allowed))


def padded_size(preset_or_config: str | Mapping[str, Any], resolution: int, kind: str = "UNet2DModel") -> int:
    """Return the smallest size >= `resolution` that the network can halve at every level.

    Args:
        preset_or_config: A preset's name, arguments of the network's class, or its configuration.
        resolution: Height and width of the images, pixels.
        kind: The network's class, where no preset is named.
    """
    if isinstance(preset_or_config, str):
        unit = 2 ** halvings(preset_kind(preset_or_config), unet_arguments(preset_or_config))
    else:
        unit = 2 ** halvings(kind, preset_or_config)
    return -(-resolution // unit) * unit
