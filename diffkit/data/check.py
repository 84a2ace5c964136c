"""What is in a dataset, image by image: broken files, sizes, modes, classes, duplicates; what training would read."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from diffkit.data.datasets import Dataset, open_images
from diffkit.data.sources import Source
from diffkit.data.store import fits
from diffkit.data.streaming import Examples
from diffkit.errors import DataError, UsageError
from diffkit.pictures.images import image_info, is_grey, open_image, parse_color
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")


@dataclass
class Report:
    """The findings of `check`; counts are of images.

    Attributes:
        images: How many there are.
        broken: (where, reason) of every one that cannot be read, in order.
        sizes: "WIDTHxHEIGHT" -> count, of the readable ones; so also `modes` (Pillow's, as stored), `formats`.
        colour: How many have colour.
        classes: Class name -> count, over all images; empty without classes.
        captioned: How many have a caption.
        duplicates: Groups of images whose files are the same, byte by byte.
        training: What training would read, or {"error": why it would not start}.
    """

    images: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    colour: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    captioned: int = 0
    duplicates: list[list[str]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it in JSON's types, what is frequent first."""
        counts = {name: dict(getattr(self, name).most_common()) for name in ("sizes", "modes", "formats")}
        broken = [{"file": where, "reason": reason} for where, reason in self.broken]
        return {**vars(self), "readable": self.images - len(self.broken), "broken": broken, **counts}


@dataclass
class _Finding:
    digest: str = ""
    size: str = ""
    mode: str = ""
    format: str = ""
    colour: bool = False
    problem: str = ""


def check(spec: DatasetSpec, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every image of a dataset once.

    Args:
        spec: The recipe's dataset section; what it says of unreadable images does not matter here.
        progress: Called with (done, total) now and then.

    Raises:
        DataError: No dataset, or no images in it.
        UsageError: A streamed dataset.
    """
    fill = parse_color(spec.background)
    problem = ""
    try:
        source = open_images(spec)
    except (
        DataError
    ) as error:  # metadata may name files that are not there: training stops, but the images are looked at
        problem = error.message
        source = open_images(spec.model_copy(update={"on_error": "skip"}))
    if isinstance(source, Examples):
        raise UsageError(
            f"dataset {spec.name!r} is streamed and has no end to check", "Check it without dataset.streaming."
        )
    total = min(len(source), spec.limit or len(source))
    report = Report(images=total)
    groups: dict[str, list[str]] = {}
    with ThreadPoolExecutor(max(1, spec.workers)) as pool:  # Pillow lets go of the interpreter while it decodes
        findings = pool.map(lambda k: _examine(source, k, fill), range(total))
        for index, finding in enumerate(findings):
            _add(report, groups, source, index, finding)
            if progress is not None and (index % 100 == 99 or index == total - 1):
                progress(index + 1, total)
    report.duplicates = [group for group in groups.values() if len(group) > 1]
    if source.class_names is not None and source.labels is not None:
        counts = Counter(source.labels[:total].tolist())
        report.classes = {name: counts[k] for k, name in enumerate(source.class_names)}
    report.training = {"error": problem} if problem else _training(spec, source, report)
    return report


def _examine(source: Source, index: int, fill: tuple[int, int, int]) -> _Finding:
    finding = _Finding()
    try:
        data = source.blob(index)
        finding.digest = hashlib.sha256(data).hexdigest() if data else ""
        width, height, finding.mode, finding.format = image_info(data, source.where(index))
        finding.size = f"{width}x{height}"
        finding.colour = not is_grey(open_image(data, fill, name=source.where(index), notices=False))
    except DataError as error:
        finding.problem = error.message.removeprefix(f"{source.where(index)}: ")
    except OSError as error:
        finding.problem = error.strerror or type(error).__name__
    return finding


def _add(report: Report, groups: dict[str, list[str]], source: Source, index: int, finding: _Finding) -> None:
    where = source.where(index)
    report.captioned += bool(source.caption(index))
    if finding.digest:
        groups.setdefault(finding.digest, []).append(where)
    if finding.problem:
        report.broken.append((where, finding.problem))
        return
    report.sizes[finding.size] += 1
    report.modes[finding.mode] += 1
    report.formats[finding.format] += 1
    report.colour += finding.colour


def _training(spec: DatasetSpec, source: Source, report: Report) -> dict[str, Any]:
    if report.broken and spec.on_error == "error":
        advice = "Remove them, or set dataset.on_error to skip."
        return {"error": f"stops at the first of {len(report.broken)} broken images. {advice}"}
    try:
        dataset = Dataset(spec, source)
    except DataError as error:
        return {"error": error.message}
    readable = report.images - len(report.broken)
    held = max(1, round(spec.validation * readable)) if spec.validation else 0
    if report.colour and dataset.channels == 1 and spec.channels is None:
        LOG.warning("%d images have colour, but none of the sample that decides: `dataset.channels=3`", report.colour)
    return {
        "images": readable - held,
        "validation": held,
        "channels": dataset.channels,
        "resolution": spec.resolution,
        "classes": len(dataset.class_names or []),
        "captions": dataset.has_captions,
        "where": fits(readable, dataset.channels, spec, torch.device("cpu"))[1],
    }
