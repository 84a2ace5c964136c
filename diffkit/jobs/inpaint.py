"""`diffkit inpaint`: paint the white of a mask anew; what is black stays as it is, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from diffkit.errors import UsageError
from diffkit.jobs.base import arg
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.fields import ImageFile
from diffkit.jobs.guides import Guided
from diffkit.jobs.images import Masked, mask_in_space
from diffkit.jobs.shared import Eta, Many, OnePrompt, Steps

if TYPE_CHECKING:
    from diffkit.types import Model, ModelInfo


class Inpaint(
    Masked,
    OnePrompt,
    Many,
    Steps,
    Eta,
    Guided,
    name="inpaint",
    hub="stable-diffusion-v1-5/stable-diffusion-inpainting",
):
    """Paint the white of a mask anew; what is black stays as it is, bit for bit.

    RePaint for pixel models, blending in latents, and Stable Diffusion's own 9-channel networks. Source: Lugmayr et
    al., arXiv:2201.09865.
    """

    needs_mask: ClassVar[bool] = True
    sources: ClassVar[frozenset[str]] = frozenset({"noise", "mask"})

    mask: Annotated[ImageFile, arg("[MASK]")] = Field(
        None, description="A picture of the image's size: white is repainted, black is kept."
    )
    jump: int = Field(10, ge=1, description="RePaint: steps that are taken again.")
    resample: int | None = Field(
        None,
        ge=1,
        description="RePaint: how often; 10 when left out, 1 for models that take prompts, or learned uniform noise.",
    )
    invert_mask: bool = Field(False, description="Black is repainted, white is kept.")

    def check_fields(self) -> None:
        """Ask for a mask where there is an image."""
        if self.image is not None and self.mask is None:
            raise UsageError(
                "no `mask` for the image", "Give a picture of its size: white is repainted, black is kept."
            )
        super().check_fields()

    def resamplings(self, info: ModelInfo) -> int:
        """Return how often each stretch is walked: as is said, else 10, and 1 for prompts or noise of another kind."""
        from diffkit.engine.samplers import is_memoryless
        from diffkit.jobs.sampling import make_scheduler

        if self.resample is not None:
            return self.resample
        return (
            1
            if info.text or info.noise != "normal" or not is_memoryless(make_scheduler(info.scheduler, self.settings))
            else 10
        )

    def check(self, info: ModelInfo) -> None:
        """Refuse to go back up where noise cannot be added to noise."""
        super().check(info)
        # Two normal draws add up to a third one; two uniform ones to a triangle, which the network has never seen.
        if info.noise != "normal" and self.resamplings(info) > 1:
            raise UsageError(
                f"`resample` above 1 adds noise to noisy pictures, and {info.id} knows {info.noise} noise only, whose"
                " sums are of another kind",
                "Use `resample` 1.",
            )

    def path(self, info: ModelInfo, steps: int) -> list[int]:
        """Return the indices of a grid of so many steps as RePaint visits them."""
        from diffkit.engine.sampling import repaint_path

        return repaint_path(steps, self.jump, self.resamplings(info))

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return those of RePaint's path."""
        from diffkit.jobs.sampling import make_scheduler, numbers_of

        grid = numbers_of(make_scheduler(info.scheduler, self.settings).timesteps)
        return [grid[k] for k in self.path(info, len(grid))]

    def notices(self, info: ModelInfo) -> list[str]:
        """Say how many network calls RePaint takes."""
        often, calls = self.resamplings(info), len(self.sampling_timesteps(info))
        line = f"{calls} network calls (jump {self.jump}, resample {often})" if often > 1 else f"{calls} network calls"
        return [*super().notices(info), line]

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Fill the white of the mask, one picture per seed."""
        from diffkit.engine.constraints import composite, keep_known
        from diffkit.engine.sampling import denoise, pure_noise
        from diffkit.jobs.sampling import make_scheduler, take
        from diffkit.models.conditioning import conditioned, finished
        from diffkit.pictures.tensors import from_tensor

        random, image, mask = batch.generators, self.tensor(model), self.mask_tensor(model)
        assert mask is not None, "an example stands in for a mask that is left out"
        net, cond = conditioned(model, batch.labels, batch.settings)
        scheduler = make_scheduler(model.scheduler, batch.settings)
        net = self.steered(net, model, scheduler, batch.seeds)
        path = self.path(model.info, len(scheduler.timesteps))
        x = pure_noise(scheduler, model.noise(random))
        if model.info.source == "mask":  # the network sees the mask and the rest of the picture
            cond = cond.join(model.image_cond(image, random, mask=mask).expand(len(batch.seeds)))
        x0 = model.codec.encode(image).expand(len(batch.seeds), -1, -1, -1)
        hold = keep_known(scheduler, x0, mask_in_space(model, mask, x0), random, noise=model.info.noise)
        x = yield from take(denoise(
            net, x, scheduler, cond, path=path, constrain=hold, generators=random, eta=batch.settings.eta
        ))  # fmt: skip
        return Drawn(from_tensor(composite(image.cpu(), finished(model, x), mask.cpu())))
