"""The image and the mask of an edit: opened and checked before any model is loaded, cut to what a model takes."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from diffkit.jobs.base import PictureJob, arg
from diffkit.jobs.fields import ImageFile
from diffkit.jobs.shared import Prompted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from diffkit.pictures.masks import Mask
    from diffkit.types import Model, ModelInfo

LOG = logging.getLogger("diffkit.jobs")


class OneImage(PictureJob):
    """An image to work on; the drawn example when left out."""

    image: Annotated[ImageFile, arg("[IMAGE]")] = Field(None, description="A picture; a drawn example when left out.")

    def check_fields(self) -> None:
        """Open the image, so that a broken one is said before anything is loaded."""
        super().check_fields()
        opened(self.image)

    def example(self) -> tuple[dict[str, Any], str] | None:
        """Tell the model inside the package what the drawn example shows."""
        if self.image is not None or not isinstance(self, Prompted) or self.prompt:
            return None
        from diffkit.pictures.examples import EXAMPLE_PROMPT

        return {"prompt": EXAMPLE_PROMPT}, f"the example is {EXAMPLE_PROMPT}"

    def notices(self, info: ModelInfo) -> list[str]:
        """Say which example stands in for an image that was left out."""
        said = super().notices(info)
        if self.image is None:
            said.append(f"no `image`: a {'digit' if info.channels == 1 else 'heart'} drawn in code is used")
        return said

    def picture(self, info: ModelInfo) -> Image.Image:
        """Return the image as it was opened, or the example at the model's size."""
        from diffkit.pictures.examples import example_image

        image = opened(self.image)
        return example_image(info.channels, min(info.size)) if image is None else image

    def tensor(self, model: Model) -> Tensor:
        """Return the image cut to what the model takes, (1, C, H, W) in [-1, 1] on its device."""
        return fit_image(self.picture(model.info), model)


class Masked(OneImage):
    """An image of which a mask says what changes: white does, black stays, or the other way round.

    Attributes:
        needs_mask: A half of the picture changes where no mask is given; else all of it.
    """

    needs_mask: ClassVar[bool] = False

    mask: ImageFile = Field(None, description="A picture of the image's size: white may change, black is kept.")
    invert_mask: bool = Field(False, description="Black may change, white is kept.")

    def check_fields(self) -> None:
        """Open the mask, too, and compare the sizes."""
        from diffkit.pictures.masks import check_mask_size

        super().check_fields()
        if self.mask is not None:
            shown, image = opened_mask(self.mask, self.invert_mask).image, opened(self.image)
            if image is not None:
                check_mask_size(shown, image)

    def notices(self, info: ModelInfo) -> list[str]:
        """Say how the mask was read, or what stands in for one that was left out."""
        said = super().notices(info)
        if self.mask is not None and (mask := opened_mask(self.mask, self.invert_mask)).line:
            said = [*([] if mask.ambiguous else [mask.line]), *said]
        if self.needs_mask and self.mask is None:
            said.append(f"no `mask`: the {'left' if self.invert_mask else 'right'} half is repainted")
        return said

    def warnings(self) -> list[str]:
        """Say where a mask asks for nothing or for everything, or can be read in two ways."""
        from diffkit.pictures.masks import one_sided

        said = super().warnings()
        if self.mask is not None:
            mask = opened_mask(self.mask, self.invert_mask)
            said += [mask.line] if mask.ambiguous else []
            said += [line] if (line := one_sided(mask.image)) else []
        return said

    def mask_tensor(self, model: Model) -> Tensor | None:
        """Return the mask cut as the image is, (1, 1, H, W) in [0, 1], white is repainted; None where there is none."""
        from diffkit.pictures.masks import check_mask_size, cut_mask

        if self.mask is not None:
            mask = opened_mask(self.mask, self.invert_mask).image
            if self.image is None:
                check_mask_size(mask, self.picture(model.info))
        elif self.needs_mask:
            from PIL import ImageOps

            from diffkit.pictures.examples import example_mask

            mask = example_mask(*self.picture(model.info).size)
            mask = ImageOps.invert(mask) if self.invert_mask else mask
        else:
            return None
        height, width = model.info.size
        return cut_mask(mask, width, height).to(model.device)


@lru_cache(maxsize=8)
def _open(path: Path, stamp: tuple[int, int]) -> Image.Image:
    from diffkit.pictures.images import open_image

    return open_image(path)


def opened(image: Path | Image.Image | None) -> Image.Image | None:
    """Return an image, opened once: 8-bit grey or RGB, the right way up.

    Raises:
        DataError: A file that is no usable picture.
    """
    if image is None:
        return None
    if isinstance(image, Path):
        return _open(image, _stamp(image))
    from io import BytesIO

    from diffkit.pictures.images import open_image

    buffer = BytesIO()
    image.save(buffer, "PNG")  # so that an image in memory goes through the same door as a file
    return open_image(buffer.getvalue(), name="`image`")


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a file from the one that was there before."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def fit_image(image: Image.Image, model: Model) -> Tensor:
    """Cut an image to what a model takes, (1, C, H, W) in [-1, 1] on its device."""
    from diffkit.pictures.images import cut, with_channels
    from diffkit.pictures.tensors import to_tensor

    height, width = model.info.size
    return to_tensor(with_channels(cut(image, width, height), model.info.channels)).to(model.device)


@lru_cache(maxsize=8)
def _read_mask(path: Path, inverted: bool, stamp: tuple[int, int]) -> Mask:
    from diffkit.pictures.masks import read_mask

    return read_mask(path, inverted)


def opened_mask(mask: Path | Image.Image, inverted: bool) -> Mask:
    """Return a mask, opened once, and how it was read.

    Raises:
        DataError: A file that is no usable picture.
    """
    from diffkit.pictures.masks import read_mask

    if isinstance(mask, Path):
        return _read_mask(mask, inverted, _stamp(mask))
    return read_mask(mask, inverted, name="`mask`")


def mask_in_space(model: Model, mask: Tensor, x0: Tensor) -> Tensor:
    """Return a picture's mask in the space the diffusion runs in: smaller for latents, padded where pictures are."""
    import torch

    from diffkit.engine.constraints import shrink_mask

    if x0.shape[-1] >= mask.shape[-1]:
        # The codec pads, and may shift and scale pixels: a mask's black and white are what they are encoded to.
        black, white = (model.codec.encode(torch.full_like(mask, level)) for level in (0.0, 1.0))
        padded = (model.codec.encode(mask) - black) / (white - black)
        return padded[:, :1].clamp(0.0, 1.0)
    return shrink_mask(mask, (x0.shape[-2], x0.shape[-1]))
