"""`diffkit noise`: what noise makes of an image, timestep by timestep."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffkit.jobs.base import Job, arg
from diffkit.jobs.fields import WITH_COMMAS, ImageFile, numbers, opt, whole_numbers
from diffkit.jobs.images import opened
from diffkit.jobs.shared import MOST_PICTURES

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from PIL import Image

    from diffkit.jobs.options import Again, Run
    from diffkit.jobs.output import Result

LOG = logging.getLogger("diffkit.jobs")


class Noise(Job, name="noise"):
    """Show what noise makes of an image, timestep by timestep: the forward process.

    Source: Ho et al., arXiv:2006.11239, eq. 4.
    """

    image: Annotated[ImageFile, arg("[IMAGE]")] = Field(None, description="A picture; a drawn example when left out.")
    timesteps: Annotated[str | None, opt("timesteps", "t"), WITH_COMMAS, whole_numbers("250,500,750")] = Field(
        None, description="Levels to show, with commas."
    )
    schedule: str = Field("linear", description="Noise schedule, where no model is given: linear, cosine, ...")
    size: int = Field(64, ge=8, le=1024, description="Side of each picture.")
    model: Annotated[str | None, opt("model", "m")] = Field(
        None, description="Show this model's own noise levels: a Hub id or a folder."
    )
    revision: str | None = Field(None, description="The model's revision on the Hub.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the first picture; the next has seed + 1.")
    num: Annotated[int, opt("num", "n")] = Field(1, ge=1, le=MOST_PICTURES, description="How many pictures.")

    def check_fields(self) -> None:
        """Open the image, so that a broken one is said first."""
        opened(self.image)

    def scheduler(self) -> tuple[SchedulerMixin, str]:
        """Return the scheduler whose noise levels are shown, and what it is called."""
        if self.model is not None:
            from diffkit.models import info, open_repo

            return info(open_repo(self.model, revision=self.revision)).scheduler, self.model
        from diffkit.engine.schedules import make_noise_scheduler
        from diffkit.recipes.schema import NoiseSpec

        return make_noise_scheduler(NoiseSpec(schedule=self.schedule)), self.schedule

    def execute(self, options: Run, again: Again) -> Result:
        """Write one strip per seed."""
        from diffkit.engine.levels import level
        from diffkit.engine.settings import seeds_from
        from diffkit.jobs.denoise import check_levels
        from diffkit.jobs.output import Result
        from diffkit.pictures.files import Destination, file_digest
        from diffkit.pictures.metadata import versions, write_png

        began = time.perf_counter()
        scheduler, name = self.scheduler()
        last = int(scheduler.config.num_train_timesteps) - 1
        levels = [last * k // 5 for k in range(6)] if self.timesteps is None else numbers(self.timesteps, "", "")
        check_levels(scheduler, levels)
        signal = {str(t): level(scheduler, t)[0] for t in levels}
        if self.image is None:
            LOG.info("no `image`: a heart drawn in code is used")
        seeds = seeds_from(self.seed, self.num)
        seeds = seeds if again.index is None else seeds[again.index : again.index + 1]
        to = Destination.of(options.out, self.name, len(seeds)) if options.files else None
        recipe: dict[str, Any] = {
            "command": self.name, "arguments": self.arguments(), "versions": versions(), "device": "cpu",
            "inputs": {key: file_digest(path) for key, path in self.inputs().items()},
        }  # fmt: skip
        pictures = []
        for k, seed in enumerate(seeds, again.index or 0):
            pictures.append(self.strip(scheduler, levels, seed))
            pictures[-1].info["diffkit"] = own = {**recipe, "seed": seed, "index": k}
            if to is not None:
                write_png(to.path(seed), pictures[-1], own)
        paths = [str(to.path(seed)) for seed in seeds] if to is not None else []
        payload = {
            "images": paths, "schedule": name, "seeds": seeds, "timesteps": levels, "unet_calls": 0, "signal": signal,
            "seconds": {"total": round(time.perf_counter() - began, 3)},
        }  # fmt: skip
        lines = [f"t={t}: signal {signal[str(t)]:.3f}" for t in levels]
        return Result(payload, lines + [f"picture  {path}" for path in paths], pictures)

    def strip(self, scheduler: SchedulerMixin, levels: list[int], seed: int) -> Image.Image:
        """Draw the image at every level, with the same noise."""
        import torch

        from diffkit.engine.levels import level
        from diffkit.engine.sampling import fresh_noise, generators
        from diffkit.pictures.examples import example_image
        from diffkit.pictures.grids import grid
        from diffkit.pictures.images import cut_square
        from diffkit.pictures.tensors import from_tensor, to_tensor

        picture = opened(self.image)
        picture = example_image(3, self.size) if picture is None else picture
        image = to_tensor(cut_square(picture, self.size))
        noise = fresh_noise(image, generators([seed]))
        amounts = [level(scheduler, t) for t in levels]
        shown = torch.cat([signal * image + share * noise for signal, share in amounts])
        return grid(from_tensor(shown), len(levels), labels=[f"t={t}" for t in levels])
