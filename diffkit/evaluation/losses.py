"""Losses that guide sampling and need a model of their own: a text by CLIP, a class by an image classifier.

The rows stand beside those of `engine.losses`, in the same registry. Nothing is loaded before a picture is drawn, and
importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from diffkit.engine.losses import LOSSES, Loss
from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.clip import CLIP_ID, kept_clip, open_clip
from diffkit.evaluation.image_classifiers import class_names, class_number, classifier_file, load_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST_CUT = 0.5  # of a picture's shorter side
ROWS = 64  # most cutouts in one call of CLIP


@LOSSES.register("clip")
@dataclass(frozen=True)
class ClipText(Loss):
    """Squared great-circle distance of cutouts to a text in CLIP's space, their mean, 0 to pi^2 / 2.

    Attributes:
        text: What the picture is to show, in words.
        model: A CLIP of transformers, by id or folder.
        cuts: Random squares that are looked at in every step.

    Source: the Hugging Face diffusion course, unit 2, after Crowson's CLIP-guided diffusion; CLIP: arXiv:2103.00020.
    """

    scale: ClassVar[float] = 100.0
    text: str
    model: str = CLIP_ID
    cuts: int = 4

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("guide clip: no text", 'Give clip:"a red rose".')
        if not 1 <= self.cuts <= 1024:
            raise UsageError(f"guide clip: cuts {self.cuts} is not in 1..1024")

    def check(self) -> None:
        """Find CLIP, and that it has weights.

        Raises:
            ModelError: It is not there.
        """
        from diffkit.models.weights import find_weights

        try:
            find_weights(open_clip(self.model, "guide clip"), "", "model")
        except ModelError as error:
            raise ModelError(
                f"guide clip:{self.text}: {error.message}",
                f"{error.hint} Or name another one, clip:TEXT,model=ID_OR_FOLDER; color, image and classifier need"
                " none.",
            ) from None

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """See `Loss`."""
        import torch

        clip = kept_clip(self.model, str(images.device))
        wanted = clip.text(self.text)
        cuts = torch.cat([cutouts(image, self.cuts, clip.size, g) for image, g in zip(images, random, strict=True)])
        seen = torch.cat([clip.images(part) for part in cuts.split(ROWS)])
        return great_circle(seen, wanted).reshape(len(images), self.cuts).mean(1)


def cutouts(image: Tensor, count: int, size: int, random: torch.Generator) -> Tensor:
    """Cut random squares out of a picture and resample them; gradients flow.

    Args:
        image: (1 or 3, H, W) in [-1, 1].
        count: How many.
        size: Their side in the end.
        random: Draws each one's side, from half of the shorter one up to all of it, and its place.

    Returns:
        (count, 3, size, size) in [0, 1], as far as the picture is in its own range.
    """
    import torch
    import torch.nn.functional as F

    from diffkit.pictures.tensors import in_channels

    whole = in_channels(image[None], 3) / 2 + 0.5
    height, width = whole.shape[-2:]
    short = min(height, width)
    found = []
    for share, down, right in torch.rand(count, 3, generator=random).tolist():
        side = max(1, round(short * (SMALLEST_CUT + (1 - SMALLEST_CUT) * share)))
        top, left = round(down * (height - side)), round(right * (width - side))
        part = whole[..., top : top + side, left : left + side]
        found.append(F.interpolate(part, (size, size), mode="bilinear", antialias=True))
    return torch.cat(found)


def great_circle(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 arcsin(|a - b| / 2)^2, half the squared angle, of rows (N, D) and (1, D) of length 1: (N,)."""
    import torch

    # The slope of arcsin is infinite at opposite points, that of the norm at equal ones: both ends are held off.
    half = (a - b).square().sum(1).clamp(min=1e-12).sqrt() / 2
    return 2 * torch.asin(half.clamp(max=1 - 1e-6)).square()


@LOSSES.register("classifier")
@dataclass(frozen=True)
class Classified(Loss):
    """Minus the log-probability of a class, by an image classifier: at scale 1, Bayes' rule.

    Attributes:
        source: A file that `diffkit train-classifier` wrote, or an image classifier of transformers, by id or folder.
        label: The class, by name or number.

    Source: Dhariwal & Nichol, arXiv:2105.05233; the classifier sees the clean estimate and not the noisy sample.
    """

    scale: ClassVar[float] = 10.0
    source: str
    label: str = field(default="", metadata={"spelled": False})

    @classmethod
    def read(cls, value: str) -> Self:  # type: ignore[override]
        """Take SOURCE=CLASS apart."""
        source, equals, label = value.rpartition("=")
        if not equals or not source or not label:
            raise UsageError(f"guide classifier:{value}: no class", "Give classifier:FILE=CLASS, by name or number.")
        return cls(source, label)

    @property
    def value(self) -> str:
        """SOURCE=CLASS."""
        return f"{self.source}={self.label}"

    def check(self) -> None:
        """Read the names of the classes.

        Raises:
            ModelError: There is no such classifier.
            UsageError: It does not know the class.
        """
        self._number()

    def _number(self) -> int:
        return class_number(class_names(self.source), self.label, "guide classifier: class", self.source)

    def files(self) -> list[Path]:
        """Return the classifier's file, of one that diffkit trained."""
        file = classifier_file(self.source)
        return [] if file is None else [file]

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """See `Loss`."""
        return -load_logits(self.source, str(images.device))(images).log_softmax(1)[:, self._number()]
