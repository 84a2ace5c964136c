"""`diffkit upscale`: an image four times larger."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from diffkit.errors import UsageError
from diffkit.jobs.batch import Batch, Drawing, Drawn
from diffkit.jobs.images import OneImage, opened
from diffkit.jobs.shared import Eta, Many, Prompted, Steps

if TYPE_CHECKING:
    from PIL import Image

    from diffkit.types import Model, ModelInfo

_FACTOR = 4


class Upscale(OneImage, Prompted, Many, Steps, Eta, name="upscale", hub="DeepFloyd/IF-II-M-v1.0"):
    """Enlarge an image by DeepFloyd's stage II, or with -m stabilityai/stable-diffusion-x4-upscaler by stage III.

    Sources: Saharia et al., arXiv:2205.11487; Rombach et al., arXiv:2112.10752.
    """

    per_picture: ClassVar[frozenset[str]] = frozenset()
    sources: ClassVar[frozenset[str]] = frozenset({"small"})

    noise_level: int | None = Field(None, ge=0, description="Noise put on the image: 250 (stage II) or 20 (stage III).")

    def picture(self, info: ModelInfo) -> Image.Image:
        """Return the image, or the example at 64 pixels."""
        from diffkit.pictures.examples import example_image

        image = opened(self.image)
        return example_image(3, 64) if image is None else image

    def taken(self, info: ModelInfo) -> tuple[int, int]:
        """Return the (width, height) at which the model takes the image in."""
        if not info.input_multiple:
            return info.size[1] // _FACTOR, info.size[0] // _FACTOR
        image, unit = self.picture(info), info.input_multiple
        return max(unit, image.width // unit * unit), max(unit, image.height // unit * unit)

    @classmethod
    def check_source(cls, info: ModelInfo) -> None:
        """Refuse models that take no small image."""
        if info.source not in cls.sources:
            raise UsageError(f"{info.id} is no upscaler", "Give stage II of DeepFloyd IF, or an x4 upscaler.")

    def notices(self, info: ModelInfo) -> list[str]:
        """Say from which size to which."""
        width, height = self.taken(info)
        return [*super().notices(info), f"{width}x{height} -> {4 * width}x{4 * height} pixels"]

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw the image four times larger, one picture per seed."""
        from diffkit.engine.sampling import denoise, pure_noise
        from diffkit.jobs.sampling import make_scheduler, take
        from diffkit.models.conditioning import finished, guided, limited, negatives
        from diffkit.pictures.images import cut
        from diffkit.pictures.tensors import from_tensor, to_tensor

        random, settings, info, count = batch.generators, batch.settings, model.info, len(batch.seeds)
        width, height = self.taken(info)
        if info.input_multiple:
            model = model.at(height, width)
        small = to_tensor(cut(self.picture(info), width, height), 3).expand(count, -1, -1, -1).to(model.device)
        scheduler = make_scheduler(model.scheduler, settings)
        x = pure_noise(scheduler, model.noise(random))
        level = info.noise_level if self.noise_level is None else self.noise_level
        extra = model.image_cond(small, random, noise_level=level)
        both = model.encode([*batch.labels, *negatives(settings)])
        # Guided with the empty prompt as well: what is in the image is told by the image itself.
        scale = info.guidance if settings.guidance is None else settings.guidance
        assert not isinstance(scale, tuple), "no field differs from picture to picture"
        net = guided(limited(model, settings), both.rows(count, count + 1), scale, info, settings)
        x = yield from take(
            denoise(net, x, scheduler, both.rows(0, count).join(extra), generators=random, eta=settings.eta)
        )
        return Drawn(from_tensor(finished(model, x)))
