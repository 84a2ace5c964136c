"""`diffkit sdedit`: draw an image anew, noised up to a strength and denoised again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from diffkit.engine.sampler_names import SAMPLERS, canonical
from diffkit.jobs.base import STABLE_DIFFUSION
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.guides import Guided
from diffkit.jobs.images import Masked, mask_in_space
from diffkit.jobs.shared import Eta, Grid, Many, OnePrompt

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from diffkit.types import Model, ModelInfo


class SDEdit(Masked, OnePrompt, Many, Grid, Eta, Guided, name="sdedit", hub=STABLE_DIFFUSION):
    """Draw an image anew: noise it up to a strength and denoise it, by class, by prompt or freely.

    Source: Meng et al., arXiv:2108.01073.
    """

    leading: ClassVar[tuple[str, ...]] = ("strength", "mask", "invert_mask")

    strength: float = Field(0.8, gt=0, le=1, description="How much may change, above 0 to 1: 1 is pure noise.")

    def make_scheduler(self, info: ModelInfo) -> tuple[SchedulerMixin, int]:
        """Return the scheduler and the index of the first step: one that ends as near to the image as the levels go.

        Below strength 1 the grid need not start at T, so it is laid down to the first level ("leading") where nothing
        else is asked for; and Stable Diffusion's DDIM, whose own last step stops at that level's noise, goes on to the
        image. So a small strength is a small change.
        """
        import torch

        from diffkit.engine.samplers import default_sampler, is_flow, zero_terminal_snr
        from diffkit.engine.sampling import sdedit_start
        from diffkit.jobs.sampling import make_scheduler

        base, settings = info.scheduler, self.settings
        options: dict[str, Any] = {}
        if self.strength < 1.0 and not is_flow(base):
            if SAMPLERS[canonical(settings.scheduler or default_sampler(base))].cls == "DDIMScheduler":
                options["set_alpha_to_one"] = True
            free = settings.spacing is None and settings.timesteps is None and not zero_terminal_snr(base)
            scheduler = make_scheduler(base, settings, **options)
            if free and len(scheduler.timesteps) > 1 and "timestep_spacing" in scheduler.config:
                settings = replace(settings, spacing="leading")
        scheduler = make_scheduler(base, settings, **options)
        nothing = torch.zeros(1, 1, 1, 1)
        return scheduler, sdedit_start(scheduler, nothing, nothing, self.strength)[1]

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return those from the strength's level on."""
        from diffkit.jobs.sampling import numbers_of

        scheduler, start = self.make_scheduler(info)
        return numbers_of(scheduler.timesteps)[start:]

    def notices(self, info: ModelInfo) -> list[str]:
        """Say how many steps the strength really gives."""
        return [
            *super().notices(info),
            f"strength {self.strength:g}: {len(self.sampling_timesteps(info))} steps are taken",
        ]

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw variations of the image, one per seed."""
        from diffkit.engine.constraints import composite, keep_known
        from diffkit.engine.sampling import denoise, sdedit_start
        from diffkit.jobs.sampling import take
        from diffkit.models.conditioning import conditioned, finished
        from diffkit.pictures.tensors import from_tensor

        random, image, mask = batch.generators, self.tensor(model), self.mask_tensor(model)
        net, cond = conditioned(model, batch.labels, batch.settings)
        scheduler, _ = self.make_scheduler(model.info)
        net = self.steered(net, model, scheduler, batch.seeds)
        x0 = model.codec.encode(image).expand(len(batch.seeds), -1, -1, -1)
        x, start, _ = sdedit_start(scheduler, x0, model.noise(random), self.strength)
        hold = None
        if mask is not None:
            hold = keep_known(scheduler, x0, mask_in_space(model, mask, x0), random, noise=model.info.noise)
        x = yield from take(denoise(
            net, x, scheduler, cond, start=start, constrain=hold, generators=random, eta=batch.settings.eta
        ))  # fmt: skip
        images = finished(model, x)
        if mask is not None:
            images = composite(image.cpu(), images, mask.cpu())
        return Drawn(from_tensor(images))
