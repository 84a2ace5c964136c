"""What a report is made with: the model's configuration, pictures and words of one's own or drawn in code, the data.

Everything that can be wrong is found here, before weights are read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from diffkit.errors import UsageError
from diffkit.jobs.images import opened
from diffkit.lab import ALL_TRAINED
from diffkit.lab.section import Lab
from diffkit.lab.words import words_for
from diffkit.models import info, open_repo
from diffkit.models.bundled import BUNDLED
from diffkit.pictures.files import file_digest, output_folder, write_whole
from diffkit.pictures.images import open_image

if TYPE_CHECKING:
    from diffkit.types import ModelInfo

LOG = logging.getLogger("diffkit.lab")

_SIDE, _SCALE = 64, 4  # of drawings; they are drawn larger and reduced


@dataclass(frozen=True)
class Asked:
    """What somebody asks of a report.

    Attributes:
        course: Its name.
        year: Of courses that differ from year to year.
        model: What draws; the model inside the package when left out.
        images: Pictures of one's own, the photo first.
        prompts: Prompts, or classes.
        data: What is trained on: MNIST when left out, or the embedded digits.
        full: The course's numbers.
        only: Sections by name; all when left out.
        seed: Of the first picture.
        out: FILE.html, or a folder.
    """

    course: str
    year: int | None = None
    model: str | None = None
    images: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()
    data: str | None = None
    full: bool = False
    only: tuple[str, ...] = ()
    seed: int = 0
    out: Path | None = None

    @property
    def name(self) -> str:
        """The course with its year."""
        return f"{self.course}-{self.year}" if self.year else self.course

    def places(self) -> tuple[Path, Path]:
        """Return the report's file and the folder of the pieces, which all reports of a course in one place share.

        Raises:
            UsageError: Another kind of file.
        """
        out = Path("outputs") if self.out is None else self.out
        if out.suffix.lower() in (".html", ".htm") and not out.is_dir():
            return out, out.with_suffix("")
        if out.suffix and not out.is_dir():
            raise UsageError(f"`out` {out}: the report is HTML", "Name a file that ends in .html, or a folder.")
        alone = "-" + "-".join(self.only) if self.only else ""
        return out / f"lab-{self.name}{alone}.html", out / f"lab-{self.name}"


def set_up(asked: Asked) -> tuple[Lab, Path]:
    """Open what was asked for; return what all sections share, and the report's file.

    Raises:
        UsageError: What no section could use, or a place that cannot be written to.
        DataError: A picture that cannot be read.
        ModelError: The model is not there.
    """
    for path in asked.images:
        opened(path)
    file, folder = asked.places()
    source = asked.model or BUNDLED
    known = info(open_repo(source))
    if known.source != "noise" or known.one_step:
        raise UsageError(f"`model` {source} does not draw from noise", "Give a model that does, or leave it out.")
    words = words_for(known, asked.prompts)
    output_folder(file.parent), output_folder(folder)
    if asked.model is None and asked.course not in ALL_TRAINED:
        LOG.info("no `model`: %s is used (it ships with diffkit)", BUNDLED)
    photos, drawings = pictures(known, folder / "inputs", asked.images)
    lab = Lab(
        course=asked.name, model=source, info=known, images=photos, drawings=drawings, words=words, folder=folder,
        asked_data=asked.data, full=asked.full, seed=asked.seed, mark=weights_mark(known),
    )  # fmt: skip
    return lab, file


def weights_mark(known: ModelInfo) -> str:
    """Return what tells a model's weights from others: the revision, or the digest of a local file."""
    from diffkit.jobs.output import weights_file

    path = None if known.revision else weights_file(known)
    return known.revision or (file_digest(path) if path else known.id)


def pictures(known: ModelInfo, folder: Path, own: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return three pictures, the photo first, and three for the second set: one from elsewhere, two crude drawings.

    What is missing is drawn in code; of a model that knows more than drawings, the photos are scikit-learn's.
    """
    drawn = [write_input(folder, name, draw(known.channels)) for name, draw in DRAWINGS.items()]
    photos = [] if known.channels == 1 else _photos(folder)
    small = known.id == BUNDLED or known.channels == 1 or known.vocabulary is not None
    first = [*own, *([] if small else photos[:1]), *drawn]
    second = [*(own[3:]), *photos[0 if small else 1 :], *drawn[3:], *drawn]
    return tuple(dict.fromkeys(first))[:3], tuple(dict.fromkeys(second))[:3]


def _photos(folder: Path) -> list[Path]:
    """Copies of two photographs that come with scikit-learn: commands name them wherever that is installed."""
    package = find_spec("sklearn")
    there = Path(package.origin).parent / "datasets" / "images" if package and package.origin else Path()
    found = [there / f"{name}.jpg" for name in ("china", "flower")]
    return [write_input(folder, path.stem, open_image(path)) for path in found if path.is_file()]


def write_input(folder: Path, name: str, image: Image.Image) -> Path:
    """Write a picture that commands shall work on, unless it is there; return its file."""
    from io import BytesIO

    path, buffer = folder / f"{name}.png", BytesIO()
    image.save(buffer, "PNG")
    if not path.is_file() or path.read_bytes() != buffer.getvalue():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())
    return path


def _canvas(channels: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    mode = "L" if channels == 1 else "RGB"
    image = Image.new(mode, (_SIDE * _SCALE,) * 2, 0 if channels == 1 else "white")
    return image, ImageDraw.Draw(image), _SIDE * _SCALE


def _done(image: Image.Image) -> Image.Image:
    return image.resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _ink(channels: int, colour: tuple[int, int, int]) -> int | tuple[int, int, int]:
    return 255 if channels == 1 else colour


def _heart(channels: int) -> Image.Image:
    from diffkit.pictures.examples import example_image

    return example_image(channels, _SIDE)


def _star(channels: int) -> Image.Image:
    image, draw, big = _canvas(channels)
    points = []
    for k in range(10):
        radius, angle = (0.42 if k % 2 == 0 else 0.17) * big, math.radians(-90 + 36 * k)
        points.append((big / 2 + radius * math.cos(angle), big * 0.53 + radius * math.sin(angle)))
    draw.polygon(points, fill=_ink(channels, (235, 140, 30)))
    return _done(image)


def _letter(channels: int) -> Image.Image:
    image, draw, big = _canvas(channels)
    ink, pen = _ink(channels, (20, 20, 20)), big // 9
    for a, b in (((0.25, 0.2), (0.75, 0.22)), ((0.5, 0.2), (0.47, 0.82))):
        draw.line([(x * big, y * big) for x, y in (a, b)], fill=ink, width=pen)
    return _done(image)


def _house(channels: int) -> Image.Image:
    image, draw, big = _canvas(channels)
    draw.rectangle((0.24 * big, 0.48 * big, 0.78 * big, 0.85 * big), fill=_ink(channels, (40, 90, 200)))
    roof = [(0.14 * big, 0.5 * big), (0.5 * big, 0.14 * big), (0.88 * big, 0.48 * big)]
    draw.polygon(roof, fill=_ink(channels, (40, 90, 200)))
    return _done(image)


def _tree(channels: int) -> Image.Image:
    image, draw, big = _canvas(channels)
    ink = _ink(channels, (40, 150, 70))
    draw.rectangle((0.44 * big, 0.6 * big, 0.56 * big, 0.88 * big), fill=ink)
    draw.polygon([(0.18 * big, 0.66 * big), (0.48 * big, 0.1 * big), (0.85 * big, 0.64 * big)], fill=ink)
    return _done(image)


DRAWINGS = {"heart": _heart, "star": _star, "letter": _letter, "house": _house, "tree": _tree}
