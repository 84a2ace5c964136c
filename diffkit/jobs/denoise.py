"""The forward process shown, and undone three ways: Gaussian blur, one step, many steps.

Sources: Ho et al., arXiv:2006.11239, eq. 4 (forward), eq. 15 (one step), algorithm 2 between grid points (many steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffkit.engine.levels import level, x0_of
from diffkit.engine.samplers import is_flow, make_sampler
from diffkit.engine.sampling import denoise, fresh_noise, generators, set_grid
from diffkit.errors import UsageError
from diffkit.jobs.edit import Edit, OnStep, label_list, psnr
from diffkit.jobs.sample import Settings, conditioned
from diffkit.pictures.files import grid
from diffkit.pictures.images import from_tensor

# Widths of the blur, in pixels of a 64-pixel picture; the one that serves a picture best is taken.
_WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def check_levels(scheduler: Any, timesteps: Sequence[int]) -> None:
    """Refuse timesteps that a model does not have.

    Raises:
        UsageError: Out of range, or none.
    """
    last = int(scheduler.config.num_train_timesteps) - 1
    if not timesteps or any(not 0 <= t <= last + is_flow(scheduler) for t in timesteps):
        raise UsageError(f"--timesteps {','.join(map(str, timesteps))}: give some of 0..{last}", "For example 250,500.")


def add_noise(image: Tensor, scheduler: Any, timesteps: Sequence[int], seeds: Sequence[int]) -> Edit:
    """Noise an image to several levels, with the same noise; one strip per seed.

    Args:
        image: (1, C, H, W) in [-1, 1].
        scheduler: Says how much noise there is at t.
        timesteps: Levels to show.
        seeds: One per strip.

    Raises:
        UsageError: A timestep that there is not.
    """
    check_levels(scheduler, timesteps)
    strips = []
    for noise in _noise(image, seeds):
        levels = [level(scheduler, t) for t in timesteps]
        shown = torch.cat([signal * image + share * noise for signal, share in levels])
        strips.append(grid(from_tensor(shown), len(timesteps), labels=[f"t={t}" for t in timesteps]))
    scores = {"signal": {str(t): level(scheduler, t)[0] for t in timesteps}}
    return Edit(strips, list(timesteps), 0, scores=scores)


def compare(
    model: Any,
    image: Tensor,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    timesteps: Sequence[int] = (250, 500, 750),
    stride: int = 30,
    on_step: OnStep | None = None,
) -> Edit:
    """Denoise an image from several levels by Gaussian blur, in one step, and step by step; one table per seed.

    Args:
        model: A loaded model.
        image: (1, C, H, W) in [-1, 1], of the model's size.
        seeds: One per table; the PSNR is their mean.
        labels: One class or prompt per table.
        settings: How; the sampler is ddpm when left out.
        timesteps: Levels to start from.
        stride: Timesteps from one iterative step to the next; any number.
        on_step: Called after each iterative step.

    Raises:
        UsageError: What does not fit the model.
    """
    settings, random = settings or Settings(), generators(seeds)
    check_levels(model.scheduler, timesteps)
    net, cond = conditioned(model, label_list(labels, len(seeds)), settings)
    x0 = model.codec.encode(image).expand(len(seeds), -1, -1, -1)
    noise = fresh_noise(x0, random)
    clean, scores = image.cpu(), {"blur": {}, "one_step": {}, "iterative": {}}  # type: ignore[var-annotated]
    rows: list[list[tuple[str, Tensor]]] = [[] for _ in seeds]
    visited: list[float] = []
    for t in timesteps:
        signal, share = level(model.scheduler, t)
        noisy = signal * x0 + share * noise
        with torch.no_grad():
            out = net(noisy, torch.tensor(t), cond).out
        found = {
            "blur": best_blur(_seen(model, noisy / max(signal, 1e-3)), clean),
            "one_step": _seen(model, x0_of(out, noisy, torch.tensor(t), model.scheduler)),
        }
        scheduler, stops = _grid(model, settings, t, stride)
        signal, share = level(scheduler, scheduler.timesteps[0])
        x = signal * x0 + share * noise
        for step in denoise(net, x, scheduler, cond, generators=random, eta=settings.eta):
            x = step.x
            if on_step is not None:
                on_step(step, range(len(seeds)))
        found["iterative"] = _seen(model, x)
        visited += [t, *stops]
        shown = _seen(model, noisy)
        for k, row in enumerate(rows):
            row.append((f"t={t}", shown[k]))
            row += [(f"{n.replace('_', ' ')} {psnr(p[k : k + 1], clean):.1f} dB", p[k]) for n, p in found.items()]
        for name, pictures in found.items():
            scores[name][str(t)] = sum(psnr(p[None], clean) for p in pictures) / len(seeds)
    return Edit([_table(row) for row in rows], visited, len(visited), scores={"psnr": scores})


def stops_of(model: Any, settings: Settings, timesteps: Sequence[int], stride: int) -> list[float]:
    """Return the timesteps of one batch, one per network call."""
    check_levels(model.scheduler, timesteps)
    return [s for t in timesteps for s in (t, *_grid(model, settings, t, stride)[1])]


def _grid(model: Any, settings: Settings, t: int, stride: int) -> tuple[Any, list[int]]:
    if stride < 1:
        raise UsageError(f"--stride {stride} is below 1")
    flow = is_flow(model.scheduler)
    scheduler = make_sampler(settings.scheduler or ("flow_euler" if flow else "ddpm"), model.scheduler)
    stops = list(range(t, -1 + flow, -stride)) or [max(t, 1)]
    set_grid(scheduler, None, stops)
    return scheduler, stops


def _noise(image: Tensor, seeds: Sequence[int]) -> list[Tensor]:
    return [fresh_noise(image, [g]) for g in generators(seeds)]


def _seen(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.codec.decode(x).float().cpu()


def _table(row: list[tuple[str, Tensor]]) -> Image.Image:
    return grid(from_tensor(torch.stack([p for _, p in row])), 4, labels=[name for name, _ in row], min_cell=144)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian of `sigma` pixels, mirrored at the edges."""
    radius = min(max(1, math.ceil(3 * sigma)), min(x.shape[-2:]) - 1)
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=x.dtype) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(x.device)
    channels = x.shape[1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    across = F.conv2d(padded, taps.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def best_blur(noisy: Tensor, clean: Tensor) -> Tensor:
    """Return each picture blurred by the width that comes nearest to the clean one: the baseline at its best."""
    scale = noisy.shape[-1] / 64
    best = []
    for one in noisy.split(1):
        tries = [gaussian_blur(one, width * scale) for width in _WIDTHS]
        best.append(max(tries, key=lambda blurred: psnr(blurred, clean)))
    return torch.cat(best)
