"""What is written under pictures: captions, wrapped and cut to the width, as dark as they are asked to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

_INK, PAPER = (40, 40, 40), (255, 255, 255)
_LINES = 3


class Label:
    """The strip of white under every frame, with room for the longest caption.

    Args:
        captions: All that will be written.
        width: Of the frames.
    """

    def __init__(self, captions: Sequence[str], width: int) -> None:
        self.font = ImageFont.load_default(max(12, round(width / 18)))
        self.width = width
        self.lines = [list(self._wrapped(caption)) for caption in captions]
        most = max(len(lines) for lines in self.lines)
        ascent, descent = self.font.getmetrics() if isinstance(self.font, ImageFont.FreeTypeFont) else (11, 3)
        self.step = ascent + descent
        self.margin = self.step // 2
        self.height = most * self.step + 2 * self.margin if most else 0

    def under(self, image: Image.Image, weights: dict[int, float]) -> Image.Image:
        """Put the strip under a picture, each caption as dark as its weight in [0, 1] says."""
        frame = Image.new("RGB", (image.width, image.height + self.height), PAPER)
        frame.paste(image, (0, 0))
        draw = ImageDraw.Draw(frame)
        for k, weight in weights.items():
            ink = tuple(round(p + (i - p) * weight) for p, i in zip(PAPER, _INK, strict=True))
            if ink == PAPER:
                continue
            top = image.height + (self.height - len(self.lines[k]) * self.step) // 2
            for number, line in enumerate(self.lines[k]):
                left = round((image.width - draw.textlength(line, font=self.font)) / 2)
                draw.text((left, top + number * self.step), line, fill=ink, font=self.font)
        return frame

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
