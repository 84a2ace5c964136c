"""The image and the mask of an edit: opened and checked before any model is loaded, or the drawn examples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from diffkit.jobs.edit import check_mask, picture_shape
from diffkit.pictures.examples import example_image, example_mask
from diffkit.pictures.images import open_image

LOG = logging.getLogger("diffkit.tasks")


class Given:
    """A user's image, with or without a mask.

    Args:
        image: The file; the example when left out.
        mask: The file of the mask, of the image's size.
        invert: Take black for white in the mask.
        need_mask: Use the example's mask where none is given.

    Raises:
        DataError: A file that is no usable picture.
        UsageError: A mask of another size than the image's.
    """

    def __init__(
        self, image: Path | None, mask: Path | None = None, invert: bool = False, need_mask: bool = False
    ) -> None:
        self.image = None if image is None else open_image(image)
        self.mask = None if mask is None else open_image(mask).convert("L")
        self.need_mask, self.invert, self._said = need_mask, invert, False
        if self.mask is not None:
            self.mask = ImageOps.invert(self.mask) if invert else self.mask
            if self.image is not None:
                check_mask(self.mask, self.image)

    def at(self, model: Any) -> tuple[Image.Image, Image.Image | None]:
        """Return the image and the mask for a model; the examples are drawn at its size."""
        channels, height, width = picture_shape(model)
        image, mask = self.image, self.mask
        if image is None:
            image = example_image(channels, min(height, width))
            self._say("no IMAGE: a %s drawn in code is used", "digit" if channels == 1 else "heart")
            if mask is not None:
                check_mask(mask, image)
        if mask is None and self.need_mask:
            mask = example_mask(*image.size)
            mask = ImageOps.invert(mask) if self.invert else mask
            self._say("no MASK: the %s half is repainted", "left" if self.invert else "right")
        self._said = True
        return image, mask

    def _say(self, text: str, value: str) -> None:
        if not self._said:
            LOG.info(text, value)
