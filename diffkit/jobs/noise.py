"""`diffkit noise`: what noise makes of an image, timestep by timestep."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diffkit.errors import UsageError
from diffkit.jobs.base import Job, arg
from diffkit.jobs.fields import WITH_COMMAS, ImageFile, decimals, decimals_of, numbers, opt, whole_numbers
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
    times: Annotated[str | None, WITH_COMMAS, decimals("0.25,0.5,0.75")] = Field(
        None, description="In place of timesteps, those of a flow, 0 noise to 1 picture: (1 - t) noise + t picture."
    )
    sigma: Annotated[str | None, WITH_COMMAS, decimals("0,0.5,1")] = Field(
        None, description="In place of timesteps, noise of these deviations added to pixels from 0 to 1."
    )
    uniform: bool = Field(False, description="Noise spread evenly over black to white, in place of normal noise.")
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
        ways = [name for name in ("timesteps", "times", "sigma") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise UsageError(f"`{ways[0]}` and `{ways[1]}` both say how much noise", "Give one of them.")
        if ways and ways[0] != "timesteps" and self.model is not None:
            raise UsageError(f"`{ways[0]}` does not depend on a `model`", "Leave one of them out.")
        if self.times is not None and max(decimals_of(self.times)) > 1.0:
            raise UsageError(f"`times` {self.times}: 0 is noise, 1 the picture", "For example 0.25,0.5,0.75.")
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
        from diffkit.engine.settings import seeds_from
        from diffkit.jobs.output import Result
        from diffkit.pictures.files import Destination, file_digest
        from diffkit.pictures.metadata import versions, write_png

        began = time.perf_counter()
        name, levels = self.amounts()
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
            pictures.append(self.strip(levels, seed))
            pictures[-1].info["diffkit"] = own = {**recipe, "seed": seed, "index": k}
            if to is not None:
                write_png(to.path(seed), pictures[-1], own)
        paths = [str(to.path(seed)) for seed in seeds] if to is not None else []
        payload = {
            "images": paths, "schedule": name, "seeds": seeds, "timesteps": [one.t for one in levels], "unet_calls": 0,
            "signal": {str(one.t): one.signal for one in levels}, "noise": {str(one.t): one.noise for one in levels},
            "seconds": {"total": round(time.perf_counter() - began, 3)},
        }  # fmt: skip
        lines = [f"{one.said or one.label}: signal {one.signal:.3f}" for one in levels]
        return Result(payload, lines + [f"picture  {path}" for path in paths], pictures)

    def amounts(self) -> tuple[str, list[Amount]]:
        """Return what the levels are called, and how much signal and noise each has."""
        from diffkit.engine.levels import level, timestep_text
        from diffkit.jobs.denoise import check_levels

        if self.times is not None:
            return "flow", [Amount("t", t, t, 1.0 - t) for t in decimals_of(self.times)]
        if self.sigma is not None:  # pixels go from -1 to 1
            return "sigma", [Amount("sigma", sigma, 1.0, 2 * sigma) for sigma in decimals_of(self.sigma)]
        scheduler, name = self.scheduler()
        last = int(scheduler.config.num_train_timesteps) - 1
        levels = [last * k // 5 for k in range(6)] if self.timesteps is None else numbers(self.timesteps, "", "")
        check_levels(scheduler, levels)
        return name, [Amount("t", t, *level(scheduler, t), timestep_text(scheduler, t)) for t in levels]

    def strip(self, levels: list[Amount], seed: int) -> Image.Image:
        """Draw the image at every level, with the same noise."""
        import torch

        from diffkit.engine.sampling import fresh_noise, generators
        from diffkit.pictures.examples import example_image
        from diffkit.pictures.grids import grid
        from diffkit.pictures.images import cut_square
        from diffkit.pictures.tensors import from_tensor, to_tensor

        picture = opened(self.image)
        picture = example_image(3, self.size) if picture is None else picture
        image = to_tensor(cut_square(picture, self.size))
        random = generators([seed])
        noise = fresh_noise(image, random, "uniform") * 2 - 1 if self.uniform else fresh_noise(image, random)
        shown = torch.cat([one.signal * image + one.noise * noise for one in levels])
        return grid(from_tensor(shown), len(levels), labels=[one.label for one in levels])


@dataclass(frozen=True)
class Amount:
    """One level: what counts it (t or sigma), its number, its shares of picture and noise, and how it is printed."""

    name: str
    t: float
    signal: float
    noise: float
    said: str = ""

    @property
    def label(self) -> str:
        """What stands above its picture."""
        return f"{self.name}={self.t:g}"
