"""`diffkit invert`: the noise that DDIM makes an image of, the way back, and edits on that way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.jobs.base import STABLE_DIFFUSION
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.images import OneImage
from diffkit.jobs.shared import Eta, Many, OnePrompt, Steps, check_label

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from diffkit.types import Cond, Denoiser, Model, ModelInfo, Step


class Invert(OneImage, OnePrompt, Many, Steps, Eta, name="invert", hub=STABLE_DIFFUSION):
    """Find the noise that DDIM makes an image of, come back, and say how exactly; or come back to something else.

    --prompt or --class says what the image shows; --guidance is that of the edit. Sources: Song et al.,
    arXiv:2010.02502, eq. 13 backwards; the fixed point: Pan et al., arXiv:2309.04907 (AIDI).
    """

    per_picture = frozenset()

    edit_prompt: str | None = Field(None, description="What to come back to, in words.")
    edit_class: str | None = Field(None, description="The class to come back to.")
    refine: int = Field(3, ge=0, le=50, description="Further calls per step that make the inversion more exact.")

    @property
    def edit(self) -> str | None:
        """What to come back to."""
        return self.edit_prompt if self.edit_prompt is not None else self.edit_class

    def words(self) -> list[str]:
        return [*([self.edit_prompt] if self.edit_prompt else []), *super().words()]

    def unguided(self) -> str | None:
        """Say that the way back alone is not guided."""
        return "without `edit_prompt` or `edit_class` nothing is guided" if self.edit is None else None

    def check(self, info: ModelInfo) -> None:
        """Refuse edits that the model does not take, and samplers that cannot be walked backwards."""
        from diffkit.jobs.inversion import exact_sampler

        super().check(info)
        if self.edit_prompt is not None and self.edit_class is not None:
            raise UsageError("`edit_prompt` and `edit_class` exclude each other", "Give one of them.")
        if self.edit is not None and info.text != (self.edit_prompt is not None):
            wanted = "`edit_prompt`" if info.text else "`edit_class`"
            raise UsageError(f"the edit {self.edit!r} does not fit this model", f"Give it as {wanted}.")
        check_label(info, None, self.edit_class, "edit_class")
        exact_sampler(info.scheduler, self.settings)

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return those of the way up, with the refinements, and of the ways back."""
        from diffkit.jobs.inversion import calls_of, exact_sampler

        ways = 1 if self.edit is None else 2
        return calls_of(exact_sampler(info.scheduler, self.settings), self.refine, ways)

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Invert the image, come back, and, if an edit is asked for, come back to something else."""
        from diffkit.jobs.inversion import exact_sampler, invert_steps
        from diffkit.models.conditioning import conditioned
        from diffkit.pictures.quality import psnr
        from diffkit.pictures.tensors import from_tensor

        image, label, settings = self.tensor(model), batch.labels[0], batch.settings
        plain = Settings(max_batch=settings.max_batch, guidance=1.0 if label else None)
        net, cond = conditioned(model, [label], plain)
        scheduler = exact_sampler(model.scheduler, settings)
        latent = invert_steps(net, model.codec.encode(image), scheduler, cond, refine=self.refine)
        again = yield from self._back(model, latent, net, cond)
        scores = {"round_trip_psnr": psnr(again, image.cpu()), "latent_std": float(latent.std())}
        rows = [("input", image.cpu()), (f"round trip {scores['round_trip_psnr']:.1f} dB", again)]
        if self.edit is not None:
            edited = yield from self._back(model, latent, *conditioned(model, [self.edit], settings))
            rows.append((self.edit, edited))
        sheet = [(name, from_tensor(picture)[0]) for name, picture in rows]
        return Drawn([sheet[-1][1].copy() for _ in batch.seeds], sheet=sheet, scores=scores)

    def _back(self, model: Model, latent: Tensor, net: Denoiser, cond: Cond) -> Generator[Step, None, Tensor]:
        from diffkit.engine.sampling import denoise
        from diffkit.jobs.inversion import exact_sampler, first_level
        from diffkit.jobs.sampling import take
        from diffkit.models.conditioning import finished

        scheduler = exact_sampler(model.scheduler, self.settings)
        x = yield from take(denoise(net, latent, scheduler, cond, start=first_level(scheduler)))
        return finished(model, x)
