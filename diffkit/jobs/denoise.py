"""`diffkit denoise`: Gaussian blur, one step and many steps side by side, with the PSNR of each."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffkit.errors import UsageError, did_you_mean
from diffkit.jobs.base import DEEPFLOYD
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.fields import WITH_COMMAS, decimals, decimals_of, numbers, opt, whole_numbers
from diffkit.jobs.images import OneImage
from diffkit.jobs.shared import Eta, Many, OnePrompt

if TYPE_CHECKING:
    import torch
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from PIL import Image
    from torch import Tensor

    from diffkit.types import Cond, Denoiser, Model, ModelInfo, Step

_SIGMAS = "0,0.2,0.4,0.5,0.6,0.8,1"
METHODS = ("blur", "one_step", "iterative")

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
    flow_step: float | None = Field(
        None,
        gt=0,
        le=1,
        description="In place of `stride`: the same share of flow time, 0 noise to 1 picture, in every step.",
    )
    methods: Annotated[tuple[str, ...], opt("method")] = Field(
        METHODS, description="What is shown: blur, one_step, iterative; may be repeated."
    )
    every: int | None = Field(None, ge=1, description="Also show the state before every N-th step.")
    sigma: Annotated[str | None, WITH_COMMAS, decimals("0,0.2,0.5")] = Field(
        None, description="Of one-step denoisers: deviations of the noise on pixels from 0 to 1, with commas."
    )

    def check_fields(self) -> None:
        """Refuse methods that there are not."""
        super().check_fields()
        for name in self.methods:
            if name not in METHODS:
                raise UsageError(f"`methods` {name!r} is unknown", did_you_mean(name, METHODS))

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the levels, and the sampler that algorithm 2 is."""
        from diffkit.engine.samplers import is_flow

        if info.one_step:
            return {**super().defaults(info), "sigma": _SIGMAS}
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
        if not info.one_step:
            if self.sigma is not None:
                raise UsageError("`sigma` belongs to one-step denoisers", "Give `timesteps`.")
            check_levels(info.scheduler, self.levels())
            return
        if self.timesteps is not None or self.flow_step is not None or self.every is not None:
            raise UsageError(
                "this model is a one-step denoiser: it has no timesteps",
                "Give `sigma`, and leave `timesteps`, `flow_step`, `every` out.",
            )

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return each level, and the grid of the steps from there."""
        if info.one_step:
            return [0.0] * len(self.sigmas())
        found: list[float] = []
        for t in self.levels():
            found += [t] if "one_step" in self.methods else []
            found += self.grid(info.scheduler, t)[1] if "iterative" in self.methods else []
        return found

    def sigmas(self) -> list[float]:
        """Return the deviations of the noise for a one-step denoiser."""
        return decimals_of(self.sigma or _SIGMAS)

    def grid(self, base: SchedulerMixin, t: int) -> tuple[SchedulerMixin, list[int]]:
        """Return the scheduler from level t down, and its timesteps."""
        from diffkit.engine.levels import flow_grid
        from diffkit.engine.samplers import is_flow, make_sampler
        from diffkit.engine.sampling import set_grid

        flow = is_flow(base)
        scheduler = make_sampler(self.settings.scheduler or ("flow_euler" if flow else "ddpm"), base)
        if self.flow_step is None:
            stops = list(range(t, -1 + flow, -self.stride)) or [max(t, 1)]
        else:
            stops = flow_grid(base, t, self.flow_step)
        set_grid(scheduler, None, stops)
        return scheduler, stops

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw one table per seed; the PSNR is their mean."""
        from diffkit.engine.levels import level, timestep_text
        from diffkit.engine.sampling import fresh_noise
        from diffkit.models.conditioning import conditioned
        from diffkit.pictures.quality import psnr

        image, count = self.tensor(model), len(batch.seeds)
        work = _Work(model, *conditioned(model, batch.labels, batch.settings), batch)
        x0 = model.codec.encode(image).expand(count, -1, -1, -1)
        noise, clean = fresh_noise(x0, work.random, model.info.noise), image.cpu()
        if model.info.one_step:
            white = _white(model, image)  # of the network's samples, what 1 is of pixels from 0 to 1
            levels = [(f"sigma={sigma:g}", f"{sigma:g}", 0, 1.0, white * sigma) for sigma in self.sigmas()]
        else:
            base = model.scheduler
            levels = [(timestep_text(base, t), str(t), t, *level(base, t)) for t in self.levels()]
        scores: dict[str, dict[str, float]] = {name: {} for name in self.shown(model.info)}
        rows: list[list[tuple[str, Tensor]]] = [[] for _ in batch.seeds]
        for label, key, t, signal, share in levels:
            noisy = signal * x0 + share * noise
            found, between = yield from self.cleaned(work, t, noisy, (x0, noise, clean))
            _add(rows, [(label, work.seen(noisy)), *between], found, clean)
            for name, pictures in found.items():
                scores[name][key] = sum(psnr(p[None], clean) for p in pictures) / count
        width = None if self.every is not None else 1 + len(scores)
        return Drawn([_table(row, width) for row in rows], scores={"psnr": scores})

    def shown(self, info: ModelInfo) -> list[str]:
        """Return the methods that are shown; a one-step denoiser knows no steps."""
        return [name for name in METHODS if name in self.methods and not (info.one_step and name == "iterative")]

    def cleaned(
        self, work: _Work, t: int, noisy: Tensor, parts: tuple[Tensor, Tensor, Tensor]
    ) -> Generator[Step, None, tuple[dict[str, Tensor], list[tuple[str, Tensor]]]]:
        """Denoise by every method: the pictures by method, and the states on the way of many steps."""
        import torch

        from diffkit.engine.levels import level, x0_of
        from diffkit.engine.sampling import denoise
        from diffkit.jobs.sampling import take

        model, (x0, noise, clean) = work.model, parts
        found: dict[str, Tensor] = {}
        between: list[tuple[str, Tensor]] = []
        if "blur" in self.methods:
            signal = 1.0 if model.info.one_step else level(model.scheduler, t)[0]
            found["blur"] = best_blur(work.seen(noisy / max(signal, 1e-3)), clean)
        if "one_step" in self.methods:
            with torch.no_grad():
                out = work.net(noisy, torch.tensor(t), work.cond).out
            found["one_step"] = work.seen(
                out if model.info.one_step else x0_of(out, noisy, torch.tensor(t), model.scheduler)
            )
        if "iterative" in self.shown(model.info):
            scheduler, stops = self.grid(model.scheduler, t)
            signal, share = level(scheduler, scheduler.timesteps[0])
            x = signal * x0 + share * noise
            eta = work.batch.settings.eta
            steps = denoise(work.net, x, scheduler, work.cond, generators=work.random, eta=eta)
            found["iterative"] = work.seen((yield from take(self._watched(steps, stops, work, between))))
        return found, between

    def _watched(
        self, steps: Iterator[Step], stops: Sequence[int], work: _Work, between: list[tuple[str, Tensor]]
    ) -> Iterator[Step]:
        """Pass steps on, and keep the sample before every `every`-th one."""
        for step in steps:
            number = step.index + 1
            if self.every is not None and number % self.every == 0 and number < len(stops):
                between.append((f"t={stops[number]}", work.seen(step.x)))
            yield step


@dataclass(frozen=True)
class _Work:
    """What all levels of a batch share: the guided network, its condition, the noise to come."""

    model: Model
    net: Denoiser
    cond: Cond
    batch: Batch

    @cached_property
    def random(self) -> list[torch.Generator]:
        """One generator per picture, which goes on from level to level."""
        return self.batch.generators

    def seen(self, x: Tensor) -> Tensor:
        """Return pictures of samples, (B, C, H, W) in [-1, 1] on the CPU."""
        import torch

        with torch.no_grad():
            return self.model.codec.decode(x).float().cpu()


def _white(model: Model, image: Tensor) -> float:
    """How far white lies from black in the network's samples: 2 where it sees pixels from -1 to 1."""
    return float((model.codec.encode(image * 0 + 1) - model.codec.encode(image * 0 - 1)).mean())


def _add(
    rows: list[list[tuple[str, Tensor]]], first: list[tuple[str, Tensor]], found: dict[str, Tensor], clean: Tensor
) -> None:
    """Put one level's pictures on the tables, each with its PSNR."""
    from diffkit.pictures.quality import psnr

    for k, row in enumerate(rows):
        row += [(name, pictures[k]) for name, pictures in first]
        row += [(f"{n.replace('_', ' ')} {_decibels(psnr(p[k : k + 1], clean))}", p[k]) for n, p in found.items()]


def _decibels(value: float) -> str:
    """A PSNR in dB; above 60 hardly a pixel differs when it is written in 8 bits."""
    return "over 60 dB" if value > 60 else f"{value:.1f} dB"


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


def _table(row: list[tuple[str, Tensor]], width: int | None) -> Image.Image:
    import torch

    from diffkit.pictures.grids import grid
    from diffkit.pictures.tensors import from_tensor

    pictures, labels = from_tensor(torch.stack([p for _, p in row])), [name for name, _ in row]
    return grid(pictures, width, labels=labels, min_cell=144)


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
