"""Pictures at a size to look at, and what is written under them: wrapped and cut to the width, as dark as asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from diffkit.errors import UsageError
from diffkit.pictures.grids import font
from diffkit.pictures.images import resize

SIDE = 384
_INK, PAPER = (40, 40, 40), (255, 255, 255)
_LINES = 3
_CRISP = 32  # pictures up to this size are enlarged pixel by pixel: smoothing would be most of what is seen


def enlarge(image: Image.Image, side: int = SIDE, largest: int | None = None) -> Image.Image:
    """Return an RGB picture at a size to look at: at least `side`, a whole multiple of its own.

    A tiny one is enlarged pixel by pixel, a larger one by Lanczos; one that is large enough stays as it is.

    Args:
        image: The picture.
        side: Its longer side, at least.
        largest: What it must not be enlarged beyond, even to reach `side`.
    """
    image = image.convert("RGB")
    longer = max(image.size)
    factor = -(-side // longer)
    factor = max(1, factor if largest is None else min(factor, largest // longer))
    if factor == 1:
        return image
    way = Image.Resampling.NEAREST if longer <= _CRISP else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), way)


def reduced(image: Image.Image, largest: int | None) -> Image.Image:
    """Return a picture whose longer side is `largest` at most, reduced by Lanczos."""
    longer = max(image.size)
    if largest is None or longer <= largest:
        return image
    return resize(image, max(1, round(image.width * largest / longer)), max(1, round(image.height * largest / longer)))


class Label:
    """The strip of white under every frame, with room for the longest caption.

    Args:
        captions: All that will be written.
        width: Of the frames.
        gap: White above and below, in lines.
        size: Of the letters in pixels, at most; they grow with the width.
    """

    def __init__(self, captions: Sequence[str], width: int, gap: float = 0.5, size: int = 1000) -> None:
        self.font = font(min(size, max(12, round(width / 18))))
        self.width = width
        self.lines = [list(self._wrapped(caption)) for caption in captions]
        most = max(len(lines) for lines in self.lines)
        ascent, descent = self.font.getmetrics() if isinstance(self.font, ImageFont.FreeTypeFont) else (11, 3)
        self.step = ascent + descent
        margin = int(self.step * gap)
        self.height = most * self.step + 2 * margin if most else 0

    def under(self, image: Image.Image, weights: dict[int, float]) -> Image.Image:
        """Put the strip under a picture, each caption as dark as its weight in [0, 1] says."""
        return below(image, self.strip(image.width, weights))

    def strip(self, width: int, weights: dict[int, float]) -> Image.Image:
        """Return the strip alone, the captions in its middle."""
        made = Image.new("RGB", (width, self.height), PAPER)
        draw = ImageDraw.Draw(made)
        for k, weight in weights.items():
            ink = tuple(round(p + (i - p) * weight) for p, i in zip(PAPER, _INK, strict=True))
            if ink == PAPER:
                continue
            top = (self.height - len(self.lines[k]) * self.step) // 2
            for number, line in enumerate(self.lines[k]):
                left = round((width - draw.textlength(line, font=self.font)) / 2)
                draw.text((left, top + number * self.step), line, fill=ink, font=self.font)
        return made

    def _wrapped(self, text: str) -> Iterator[str]:
        """Break a caption into a few lines; what does not fit is cut off with an ellipsis."""
        words, line, made = " ".join(text.split()).split(" "), "", 0
        while words and words[0]:
            longer = f"{line} {words[0]}".strip()
            if self._fits(longer):
                line = longer
                words.pop(0)
            elif made < _LINES - 1 and line:
                yield line
                line, made = "", made + 1
            else:
                line = longer
                while line and not self._fits(line + "…"):
                    line = line[:-1]
                line += "…"
                break
        if line:
            yield line

    def _fits(self, text: str) -> bool:
        return self.font.getlength(text) <= self.width - 8


def below(image: Image.Image, strip: Image.Image) -> Image.Image:
    """Return a picture with a strip of the same width under it."""
    frame = Image.new("RGB", (image.width, image.height + strip.height), PAPER)
    frame.paste(image, (0, 0))
    frame.paste(strip, (0, image.height))
    return frame


def side_by_side(
    images: Sequence[Image.Image], captions: Sequence[str], *, side: int = SIDE, gap: int = 12
) -> Image.Image:
    """Return pictures side by side, each with its caption under it.

    Args:
        images: The views of an illusion, or the parts of a hybrid, all of one size.
        captions: One per picture; "" for none.
        side: Size of each, at least.
        gap: White between them.

    Raises:
        UsageError: No pictures, or not one caption for each.
    """
    if not images or len(images) != len(captions):
        raise UsageError(
            f"side_by_side() needs pictures and one caption for each, got {len(images)} and {len(captions)}"
        )
    large = [enlarge(image, side) for image in images]
    label = Label(captions, large[0].width)
    cells = [label.under(image, {k: 1.0}) for k, image in enumerate(large)]
    width, height = cells[0].size
    sheet = Image.new("RGB", (len(cells) * (width + gap) + gap, height + 2 * gap), PAPER)
    for k, cell in enumerate(cells):
        sheet.paste(cell, (gap + k * (width + gap), gap))
    return sheet
