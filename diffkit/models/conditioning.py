"""From a model, what its pictures are to show and the settings to a guided denoiser and the condition for it.

Classes and prompts, guidance scales that differ from picture to picture, negative prompts, and where nothing can be
guided. Source: Ho & Salimans, arXiv:2207.12598 (classifier-free guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffkit.engine.guidance import cfg, chunked
from diffkit.engine.settings import Settings, within
from diffkit.errors import NumericalError, UsageError
from diffkit.types import Cond, Denoiser, Model, ModelInfo


def conditioned(model: Model, labels: Sequence[str | None], settings: Settings) -> tuple[Denoiser, Cond]:
    """Return the (guided) denoiser and the condition of a batch.

    Args:
        model: A loaded model.
        labels: One class or prompt per picture; None for the empty one.
        settings: How pictures are drawn.

    Raises:
        UsageError: A class, a prompt or guidance that the model does not take.
    """
    scale = scales(model.info, labels, settings)
    net = limited(model, settings)
    if scale == 1.0:
        return net, model.encode(list(labels))
    if not model.info.text:
        return guided(net, model.uncond(len(labels)), scale, model.info, settings), model.encode(list(labels))
    # Together: the text encoder comes once.
    negative = negatives(settings)
    both = model.encode([*labels, *negative])
    uncond = both.rows(len(labels), len(labels) + len(negative))
    return guided(net, uncond, scale, model.info, settings), both.rows(0, len(labels))


def guide_each(model: Model, labels: Sequence[str], settings: Settings, count: int) -> tuple[Denoiser, list[Cond]]:
    """Return the (guided) denoiser of pictures that each show several labels, and one condition per label.

    Args:
        model: A loaded model.
        labels: Classes or prompts that share every picture; all of them may be empty.
        settings: How pictures are drawn; guidance and negative prompt may differ from picture to picture.
        count: Pictures.

    Raises:
        UsageError: A class, a prompt or guidance that the model does not take.
    """
    info, net = model.info, limited(model, settings)
    scale = scales(info, ["".join(labels)] * count, settings)
    negative = negatives(settings)
    # Together: the text encoder comes once.
    every = model.encode([*labels, *negative] if info.text else list(labels))
    conds = [every.rows(k, k + 1) for k in range(len(labels))]
    if scale == 1.0:
        return net, conds
    uncond = every.rows(len(labels), len(labels) + len(negative)) if info.text else model.uncond(1)
    start, stop = settings.interval
    return cfg(net, uncond, scale, start=start, stop=stop, levels=info.timesteps), conds


def limited(model: Model, settings: Settings) -> Denoiser:
    """Return the model with its calls cut to the rows that the settings and its memory plan allow."""
    return chunked(model, settings.max_batch, model.row_limit)


def negatives(settings: Settings) -> list[str]:
    """Return the negative prompts of a batch: one, or one per picture; "" where there is none."""
    given = settings.negative
    return [n or "" for n in given] if isinstance(given, tuple) else [given or ""]


def guided(
    net: Denoiser, uncond: Cond, scale: float | tuple[float, ...], info: ModelInfo, settings: Settings
) -> Denoiser:
    """Return a denoiser with guidance of a scale, on the noise levels that the settings name."""
    start, stop = settings.interval
    return cfg(net, uncond, scale, start=start, stop=stop, levels=info.timesteps)


def scales(info: ModelInfo, labels: Sequence[str | None], settings: Settings) -> float | tuple[float, ...]:
    """Return the guidance scale of a batch, or where its pictures differ one for each; see `effective_guidance`."""
    guidance, negative = settings.guidance, settings.negative
    if not isinstance(guidance, tuple) and not isinstance(negative, tuple):
        return effective_guidance(info, settings, all(label in (None, "") for label in labels))
    count = len(labels)
    wanted = guidance if isinstance(guidance, tuple) else (guidance,) * count
    against = negative if isinstance(negative, tuple) else (negative,) * count
    each = [
        effective_guidance(info, replace(settings, guidance=scale, negative=other), label in (None, ""))
        for label, scale, other in zip(labels, wanted, against, strict=True)
    ]
    return each[0] if len(set(each)) == 1 else tuple(each)


def effective_guidance(info: ModelInfo, settings: Settings, empty: bool) -> float:
    """Return the scale that is used: 1 (no second pass) where there is nothing to guide.

    Args:
        info: What the model is.
        settings: What was asked for; `guidance` and `negative` of one picture.
        empty: The picture has neither a class nor a prompt.

    Raises:
        UsageError: Guidance was asked for, and the model or the missing class or prompt does not allow it.
    """
    guidance = settings.guidance
    assert not isinstance(guidance, tuple)
    if settings.negative and not info.text:
        raise UsageError("`negative_prompt`: this model knows no prompts", "Leave it out.")
    if info.conditioning == "none":
        if guidance not in (None, 1.0):
            raise UsageError(
                f"`guidance` {guidance:g}: this model is unconditional, there is nothing to guide", "Leave it out."
            )
        _refuse_interval(settings, "an unconditional model is not guided")
        return 1.0
    if empty and not settings.negative:
        kind, option = ("prompt", "`prompt`") if info.text else ("class", "`classes`")
        if guidance not in (None, 0.0, 1.0):
            raise UsageError(f"`guidance` {guidance:g} has no effect without a {kind}", f"Give {option}.")
        _refuse_interval(settings, f"without a {kind} nothing is guided")
        return 1.0
    if not info.null:
        _refuse_interval(settings, "a model without a null class is not guided")
    return info.guidance if guidance is None else guidance


def _refuse_interval(settings: Settings, why: str) -> None:
    if settings.interval != Settings.interval:
        raise UsageError(f"`guidance_interval`: {why}", "Leave it out.")


def interval_missed(settings: Settings, timesteps: Sequence[float], levels: int) -> str | None:
    """Say that no step lies where guidance was asked for; None where one does.

    Args:
        settings: With the interval.
        timesteps: Those of the steps.
        levels: T, the number of timesteps of the noise schedule.
    """
    if any(within(*settings.interval, t, levels) for t in timesteps):
        return None
    ends = ":".join(f"{end:g}" for end in settings.interval)
    first, last = (f"{(levels - t) / levels:.3g}" for t in (timesteps[0], timesteps[-1]))
    return f"`guidance_interval` {ends}: no step lies there, and nothing is guided; the steps go from {first} to {last}"


def decoded(model: Model, x: Tensor) -> Tensor:
    """Return the pictures of finished samples, (B, C, H, W) fp32 on the model's device, about [-1, 1].

    Raises:
        NumericalError: They are not finite.
    """
    with torch.no_grad():
        images = model.codec.decode(x).float()
    if not torch.isfinite(images).all():
        raise NumericalError("the pictures are not finite numbers", "Try `dtype` fp32, or another `scheduler`.")
    return images


def finished(model: Model, x: Tensor) -> Tensor:
    """Return the pictures of finished samples as `decoded` does, on the CPU, judged by a safety checker.

    Raises:
        NumericalError: They are not finite.
    """
    images, _ = model.screen(decoded(model, x))
    return images.cpu()
