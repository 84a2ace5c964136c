"""`diffkit velocity`: the velocity from noise to picture that a model predicts, beside the true one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffkit.errors import UsageError
from diffkit.jobs.base import DEEPFLOYD
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.fields import WITH_COMMAS, decimals, decimals_of
from diffkit.jobs.images import OneImage
from diffkit.jobs.shared import Many, OnePrompt

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from diffkit.types import Model, ModelInfo

_TIMES = "0.25,0.5,0.75"
# A heat map's colours from nothing to the most, as they are interpolated: black, violet, red, yellow, white.
_HEAT = ((0.0, 0.0, 0.0), (0.35, 0.05, 0.45), (0.85, 0.2, 0.2), (0.98, 0.75, 0.2), (1.0, 1.0, 0.9))


class Velocity(OneImage, OnePrompt, Many, name="velocity", hub=DEEPFLOYD):
    """Show at some times of a flow, 0 noise to 1 picture, the way to the picture that a model predicts: (1 - t) v.

    Beside it stand the true way x1 - x_t and where they differ. A model that predicts noise, or the picture, gives a
    velocity by the same arithmetic: its noisy picture, divided by the sum of signal and noise, is that of a flow.

    Source: Liu et al., arXiv:2209.03003, eq. 1.
    """

    per_picture = frozenset()

    times: Annotated[str | None, WITH_COMMAS, decimals(_TIMES)] = Field(
        None, description=f"Times between 0 (noise) and 1 (picture), with commas; {_TIMES} when left out."
    )

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the times; no sampler takes part."""
        return {**super().defaults(info), "times": _TIMES}

    def check_fields(self) -> None:
        """Refuse times that are not on the way."""
        super().check_fields()
        if any(not 0.0 < t < 1.0 for t in self.moments()):
            raise UsageError(f"`times` {self.times}: give numbers above 0 (noise) and below 1 (picture)", _TIMES)

    def check(self, info: ModelInfo) -> None:
        """Refuse models without a way from noise to picture, and such whose pictures are latents."""
        super().check(info)
        if info.one_step:
            raise UsageError("this model is a one-step denoiser: it predicts no velocity", "Use `diffkit denoise`.")
        if info.latent:
            raise UsageError("velocities are shown of models that draw pixels", "Give another `model`.")

    def moments(self) -> list[float]:
        """Return the times."""
        return decimals_of(self.times or _TIMES)

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return the model's timestep at every time."""
        from diffkit.engine.levels import timestep_at

        return [timestep_at(info.scheduler, t) for t in self.moments()]

    def notices(self, info: ModelInfo) -> list[str]:
        """Say that a velocity is computed where none is predicted."""
        from diffkit.engine.levels import parameterization

        kind = parameterization(info.scheduler)
        return [*super().notices(info), *([] if kind == "flow" else [f"{info.id} predicts {kind}: converted"])]

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw one table per seed: a row per time, all heat maps with the same scale of colours."""
        import torch

        from diffkit.engine.levels import level, parameterization, timestep_at
        from diffkit.engine.predictions import velocity_from
        from diffkit.engine.sampling import fresh_noise
        from diffkit.models.conditioning import conditioned
        from diffkit.types import Step

        image, count, kind = self.tensor(model), len(batch.seeds), parameterization(model.scheduler)
        net, cond = conditioned(model, batch.labels, batch.settings)
        x0 = model.codec.encode(image).expand(count, -1, -1, -1)
        noise, found = fresh_noise(x0, batch.generators, model.info.noise), []
        for number, time in enumerate(self.moments()):
            t = timestep_at(model.scheduler, time)
            signal, share = level(model.scheduler, t)
            x = signal * x0 + share * noise
            with torch.no_grad():
                out = net(x, torch.tensor(t), cond).out
            velocity = velocity_from(kind, out, x, signal, share)
            there = x / (signal + share)  # what a flow would hold
            left = share / (signal + share)  # 1 - t
            yield Step(number, len(self.moments()), torch.tensor(t), there, there + left * velocity)
            found.append((f"t={time:g}", there.cpu(), (left * velocity).float().cpu(), (x0 - there).cpu()))
        errors = [(predicted - truth).square().mean(1, keepdim=True).sqrt() for _, _, predicted, truth in found]
        most = max(float(error.max()) for error in errors)
        rms = [float(error.square().mean().sqrt()) / 2 for error in errors]
        tables = []
        for k in range(count):
            mine = [(name, noisy[k], predicted[k], truth[k]) for name, noisy, predicted, truth in found]
            tables.append(_table(mine, [error[k, 0] for error in errors], most))
        scores = {f"{time:g}": value for time, value in zip(self.moments(), rms, strict=True)}
        return Drawn(tables, scores={"velocity_rms": scores, "heat_scale": most / 2})


def _table(rows: list[tuple[str, Tensor, Tensor, Tensor]], errors: list[Tensor], most: float) -> Image.Image:
    """One picture's rows: noisy, predicted way, true way (grey is none), and where they differ."""
    from diffkit.pictures.grids import grid
    from diffkit.pictures.tensors import from_tensor

    pictures, labels = [], []
    for (name, noisy, predicted, truth), error in zip(rows, errors, strict=True):
        shown = [noisy, predicted / 2, truth / 2, _heat(error / max(most, 1e-9))]
        pictures += [from_tensor(part)[0] for part in shown]
        labels += [name, "(1 - t) v", "x1 - x_t", f"RMS {float(error.square().mean().sqrt()) / 2:.3f}"]
    return grid(pictures, 4, labels=labels, min_cell=144)


def _heat(share: Tensor) -> Tensor:
    """(H, W) in [0, 1] -> colours, (3, H, W) in [-1, 1]."""
    import torch

    stops = torch.tensor(_HEAT)
    place = share.clamp(0, 1) * (len(_HEAT) - 1)
    low = place.floor().long().clamp(max=len(_HEAT) - 2)
    weight = (place - low)[..., None]
    return (torch.lerp(stops[low], stops[low + 1], weight) * 2 - 1).permute(2, 0, 1)
