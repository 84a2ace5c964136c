"""`diffkit interpolate`: the way from one picture to another, on the sphere of DDIM's noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.jobs.base import STABLE_DIFFUSION, arg
from diffkit.jobs.batch import Batch, Drawing, Drawn, Row
from diffkit.jobs.fields import ImageFile
from diffkit.jobs.images import fit_image, opened
from diffkit.jobs.shared import OnePrompt, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.types import Model, ModelInfo


class Interpolate(OnePrompt, Steps, name="interpolate", hub=STABLE_DIFFUSION):
    """Walk from one seed's picture to another's, or from one image to another, through DDIM's noise.

    Source: Song et al., arXiv:2010.02502, section 5.3.
    """

    per_picture = frozenset()

    image: Annotated[ImageFile, arg("[IMAGE_A]")] = Field(None, description="Where to begin; seeds when left out.")
    image_b: Annotated[ImageFile, arg("[IMAGE_B]")] = Field(None, description="Where to end.")
    to_seed: int | None = Field(None, ge=0, le=2**63 - 1, description="The last seed; the first one + 1 when left out.")
    frames: int = Field(9, ge=2, le=256, description="Pictures on the way, both ends among them.")
    refine: int = Field(3, ge=0, le=50, description="Further calls per step of the inversion.")

    def check_fields(self) -> None:
        """Ask for two images or none."""
        super().check_fields()
        if (self.image is None) != (self.image_b is None):
            raise UsageError("interpolation needs two images, got one", "Give two images, or none for seeds.")
        if self.image is not None and self.to_seed is not None:
            raise UsageError("`to_seed` has no place beside two images", "Leave it out.")
        opened(self.image), opened(self.image_b)

    def rows(self, info: ModelInfo) -> list[Row]:
        return [Row(self.seed, self.label_for(info))]

    def unguided(self) -> str | None:
        """Say that the way between two images is not guided."""
        return "between two images nothing is guided" if self.image is not None else None

    def check(self, info: ModelInfo) -> None:
        """Refuse samplers that add noise."""
        from diffkit.jobs.inversion import exact_sampler

        super().check(info)
        if self.image is not None:
            exact_sampler(info.scheduler, self.settings)
        elif self.scheduler not in (None, "ddim", "flow_euler"):
            raise UsageError("interpolation goes with `scheduler` ddim (flow_euler for flows) only", "Leave it out.")

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return those of the way up, where two images are inverted, and of the way down."""
        from diffkit.jobs.inversion import calls_of, exact_sampler

        if self.image is None:
            return super().sampling_timesteps(info)
        return calls_of(exact_sampler(info.scheduler, self.settings), self.refine)

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw all pictures of the way at once, as one strip."""
        import torch

        from diffkit.engine.sampling import denoise, generators, pure_noise
        from diffkit.jobs.inversion import exact_sampler, first_level, invert_steps
        from diffkit.jobs.sampling import make_scheduler, take
        from diffkit.models.conditioning import conditioned, finished
        from diffkit.pictures.grids import grid
        from diffkit.pictures.tensors import from_tensor

        label, settings = batch.labels[0], batch.settings
        if self.image is not None:
            plain = Settings(max_batch=settings.max_batch, guidance=1.0 if label else None)
            net, cond = conditioned(model, [label] * 2, plain)
            scheduler = exact_sampler(model.scheduler, settings)
            images = [opened(image) for image in (self.image, self.image_b)]
            x0 = torch.cat([model.codec.encode(fit_image(image, model)) for image in images if image is not None])
            a, b = invert_steps(net, x0, scheduler, cond, refine=self.refine).split(1)
            settings, start = plain, first_level(scheduler)
        else:
            seed = batch.seeds[0]
            ends = (seed, seed + 1 if self.to_seed is None else self.to_seed)
            a, b = (model.noise(generators([one])) for one in ends)
            scheduler, start = make_scheduler(model.scheduler, settings), 0
        net, cond = conditioned(model, [label] * self.frames, settings)
        way = torch.cat([slerp(a, b, k / (self.frames - 1)) for k in range(self.frames)])
        x = way if self.image is not None else pure_noise(scheduler, way)
        x = yield from take(denoise(net, x, scheduler, cond, start=start))
        pictures = from_tensor(finished(model, x))
        return Drawn([grid(pictures, self.frames)], frames=pictures + pictures[-2:0:-1])


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Go from a (weight 0) to b (weight 1) at constant angular speed; both ends are exact.

    Args:
        a: Any shape, seen as one vector.
        b: The same shape.
        weight: In [0, 1].

    Source: Shoemake, 1985, "Animating rotation with quaternion curves".
    """
    import torch

    if weight in (0.0, 1.0):
        return b if weight else a
    cosine = (a / a.norm() * (b / b.norm())).sum().clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    if float(torch.sin(angle)) < 1e-4:  # parallel, or opposite: there is no single arc
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
