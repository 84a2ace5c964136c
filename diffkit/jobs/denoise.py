"""`diffkit denoise`: Gaussian blur, one step and many steps side by side, with the PSNR of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffkit.errors import UsageError
from diffkit.jobs.base import DEEPFLOYD
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.fields import WITH_COMMAS, numbers, opt, whole_numbers
from diffkit.jobs.images import OneImage
from diffkit.jobs.shared import Eta, Many, OnePrompt

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from PIL import Image
    from torch import Tensor

    from diffkit.engine.settings import Settings
    from diffkit.types import Model, ModelInfo

# Widths of the blur, in pixels of a 64-pixel picture; the one that serves a picture best is taken.
_WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Denoise(OneImage, OnePrompt, Many, Eta, name="denoise", hub=DEEPFLOYD):
    """Noise an image and remove it again by Gaussian blur, in one step and iteratively, with the PSNR of each.

    Sources: Ho et al., arXiv:2006.11239, eq. 15 (one step), algorithm 2 between grid points (many steps).
    """

    per_picture = frozenset()

    timesteps: Annotated[str | None, opt("timesteps", "t"), WITH_COMMAS, whole_numbers("250,500,750")] = Field(
        None,
        description="Levels to start from, with commas; a quarter, a half and three quarters of all when left out.",
    )
    stride: int = Field(30, ge=1, description="Timesteps from one step to the next; any number.")

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the levels, and the sampler that algorithm 2 is."""
        from diffkit.engine.samplers import is_flow

        quarters = ",".join(str(info.timesteps * k // 4) for k in (1, 2, 3))
        name = "flow_euler" if is_flow(info.scheduler) else None if self.eta else "ddpm"
        return {**super().defaults(info), "timesteps": quarters, "scheduler": name}

    def warnings(self) -> list[str]:
        """Say that the sampler of algorithm 2 has no eta."""
        line = "`eta` has no effect: the sampler here is ddpm; give `scheduler` ddim"
        return [*super().warnings(), *([line] if self.eta and self.scheduler is None else [])]

    def levels(self) -> list[int]:
        """Return the levels to start from."""
        assert self.timesteps is not None, "filled in by the model's number of levels"
        return numbers(self.timesteps, "timesteps", "")

    def check(self, info: ModelInfo) -> None:
        """Refuse levels that the model does not have."""
        super().check(info)
        check_levels(info.scheduler, self.levels())

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return each level, and the grid of the steps from there."""
        grids = [_grid(info.scheduler, self.settings, t, self.stride)[1] for t in self.levels()]
        return [s for t, grid in zip(self.levels(), grids, strict=True) for s in (t, *grid)]

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw one table per seed; the PSNR is their mean."""
        import torch

        from diffkit.engine.levels import level, x0_of
        from diffkit.engine.sampling import denoise, fresh_noise
        from diffkit.jobs.sampling import take
        from diffkit.models.conditioning import conditioned
        from diffkit.pictures.quality import psnr

        def seen(x: Tensor) -> Tensor:
            with torch.no_grad():
                return model.codec.decode(x).float().cpu()

        random, image, count = batch.generators, self.tensor(model), len(batch.seeds)
        net, cond = conditioned(model, batch.labels, batch.settings)
        x0 = model.codec.encode(image).expand(count, -1, -1, -1)
        noise, clean = fresh_noise(x0, random), image.cpu()
        scores: dict[str, dict[str, float]] = {"blur": {}, "one_step": {}, "iterative": {}}
        rows: list[list[tuple[str, Tensor]]] = [[] for _ in batch.seeds]
        for t in self.levels():
            signal, share = level(model.scheduler, t)
            noisy = signal * x0 + share * noise
            with torch.no_grad():
                out = net(noisy, torch.tensor(t), cond).out
            found = {
                "blur": best_blur(seen(noisy / max(signal, 1e-3)), clean),
                "one_step": seen(x0_of(out, noisy, torch.tensor(t), model.scheduler)),
            }
            scheduler, _ = _grid(model.scheduler, batch.settings, t, self.stride)
            signal, share = level(scheduler, scheduler.timesteps[0])
            x = signal * x0 + share * noise
            x = yield from take(denoise(net, x, scheduler, cond, generators=random, eta=batch.settings.eta))
            found["iterative"] = seen(x)
            shown = seen(noisy)
            for k, row in enumerate(rows):
                row.append((f"t={t}", shown[k]))
                row += [(f"{n.replace('_', ' ')} {psnr(p[k : k + 1], clean):.1f} dB", p[k]) for n, p in found.items()]
            for name, pictures in found.items():
                scores[name][str(t)] = sum(psnr(p[None], clean) for p in pictures) / count
        return Drawn([_table(row) for row in rows], scores={"psnr": scores})


def check_levels(scheduler: SchedulerMixin, timesteps: Sequence[int]) -> None:
    """Refuse timesteps that a model does not have.

    Raises:
        UsageError: Out of range, or none.
    """
    from diffkit.engine.samplers import is_flow

    last = int(scheduler.config.num_train_timesteps) - 1
    if not timesteps or any(not 0 <= t <= last + is_flow(scheduler) for t in timesteps):
        shown = ",".join(map(str, timesteps))
        raise UsageError(f"`timesteps` {shown}: give some of 0..{last}", f"For example {last // 4},{last // 2}.")


def _grid(base: SchedulerMixin, settings: Settings, t: int, stride: int) -> tuple[SchedulerMixin, list[int]]:
    """The scheduler from level t down, and its timesteps."""
    from diffkit.engine.samplers import is_flow, make_sampler
    from diffkit.engine.sampling import set_grid

    flow = is_flow(base)
    scheduler = make_sampler(settings.scheduler or ("flow_euler" if flow else "ddpm"), base)
    stops = list(range(t, -1 + flow, -stride)) or [max(t, 1)]
    set_grid(scheduler, None, stops)
    return scheduler, stops


def _table(row: list[tuple[str, Tensor]]) -> Image.Image:
    import torch

    from diffkit.pictures.grids import grid
    from diffkit.pictures.tensors import from_tensor

    return grid(from_tensor(torch.stack([p for _, p in row])), 4, labels=[name for name, _ in row], min_cell=144)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian of `sigma` pixels cut at three sigmas, mirrored at the edges."""
    import torch
    import torch.nn.functional as F

    radius = min(max(1, math.ceil(3 * sigma)), min(x.shape[-2:]) - 1)
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=x.dtype) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(x.device)
    channels = x.shape[1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    across = F.conv2d(padded, taps.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def best_blur(noisy: Tensor, clean: Tensor) -> Tensor:
    """Return each picture blurred by the width that comes nearest to the clean one: the baseline at its best."""
    import torch

    from diffkit.pictures.quality import psnr

    scale = noisy.shape[-1] / 64
    best = []
    for one in noisy.split(1):
        tries = [gaussian_blur(one, width * scale) for width in _WIDTHS]
        best.append(max(tries, key=lambda blurred: psnr(blurred, clean)))
    return torch.cat(best)
