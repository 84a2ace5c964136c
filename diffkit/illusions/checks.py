"""Whether an illusion fits a model: sizes, colours and latents, known from a model's configuration before its weights.

Also how a view acts where a network works on a frame around the picture, or on latents. Nothing is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.jobs.edit import picture_shape
from diffkit.types import View

if TYPE_CHECKING:
    from diffkit.illusions.drawing import Illusion
    from diffkit.models.hub import Repo

_LATENTS = 4
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


@dataclass(frozen=True)
class Space:
    """Where a model draws.

    Attributes:
        name: The model's id.
        channels: Of its pictures, 1 or 3.
        size: Height and width of the sample, as the network has it.
        picture: Height and width of its pictures.
        text: It takes prompts, not classes.
        whole: It draws from noise alone; it is no inpainting or upscaling model.
        classes: It takes classes.
    """

    name: str
    channels: int
    size: tuple[int, int]
    picture: tuple[int, int]
    text: bool
    whole: bool = True
    classes: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent; 1 for models of pixels."""
        return max(1, self.picture[0] // self.size[0])


def space_of(model: Any) -> Space:
    """Return where a loaded model draws."""
    from diffkit.jobs.sample import takes_prompts

    channels, *picture = picture_shape(model)
    return Space(
        model.id, channels, (model.shape[1], model.shape[2]), (picture[0], picture[1]), takes_prompts(model),
        classes=bool(getattr(model, "num_classes", 0)),
    )  # fmt: skip


def space_in(repo: Repo) -> Space:
    """Return where the model of an opened repository draws, from its configuration.

    Raises:
        ModelError: No family can load it, or a file is missing.
    """
    from diffkit.jobs.sample import TEXT_GUIDANCE
    from diffkit.models import family_of
    from diffkit.models.hub import load_config

    family = family_of(repo)
    config = load_config(repo, repo.part("unet"), "config.json")
    side = config.get("sample_size") or 64
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    out = int(config["out_channels"])
    if family not in TEXT_GUIDANCE:
        side = (repo.json("diffkit.json") or {}).get("resolution")
        channels = out // 2 if out in (2, 6) else out  # a learned variance
        classes = bool(config.get("num_class_embeds") or (repo.json("diffkit.json") or {}).get("class_names"))
        return Space(repo.id, channels, size, (int(side), int(side)) if side else size, False, classes=classes)
    factor = 1
    if family == "stable_diffusion":
        factor = 2 ** (len(load_config(repo, "vae", "config.json")["block_out_channels"]) - 1)
    elif out == 6:
        out = 3
    return Space(repo.id, 3, size, (size[0] * factor, size[1] * factor), True, int(config["in_channels"]) == out)


def check_fit(illusion: Illusion, space: Space) -> None:
    """Refuse what a model cannot draw; before its weights are read, with `space_in`.

    Raises:
        UsageError: A view or filter that cannot act at the model's size, on its colours or on its latents; an
            inpainting or upscaling model; a style for classes.
    """
    if not space.whole:
        raise UsageError(
            f"{space.name} needs a picture to start from (inpainting or upscaling)",
            "Give a model that draws from noise: stage I of DeepFloyd IF, or a plain Stable Diffusion.",
        )
    if illusion.style and not space.text:
        raise UsageError(f"--style {illusion.style!r}: {space.name} knows no prompts", "Leave it out.")
    if illusion.latent != "auto" and space.factor == 1:
        raise UsageError(f"--latent {illusion.latent}: {space.name} draws pixels, not latents", "Leave it out.")
    check_sizes(illusion, space)


def check_sizes(illusion: Illusion, space: Space) -> None:
    """Refuse views that cannot act on a model's pictures (or latents), and a split of colours that it does not have.

    Raises:
        UsageError: They cannot; the message names a size that works.
    """
    direct = latent_way(illusion, space) == "direct"
    height, width = space.size if direct else space.picture
    moving = [view for view in illusion.views if getattr(view, "name", "") != "identity"]
    if moving and height != width:
        raise UsageError(f"{space.name} draws {width}x{height}: views are of squares", "Give a square model.")
    for view in moving:
        if direct and not getattr(view, "spatial", True):
            raise UsageError(
                f"--latent direct: {name_of(view)} cannot act on latents (-z is no negative)", "Use --latent decode."
            )
        getattr(view, "check", lambda size: None)(height)
    if illusion.split is not None:
        getattr(illusion.split, "check", lambda channels, size: None)(*_split_at(illusion, space))


def about(illusion: Illusion, space: Space) -> list[str]:
    """Return what has to be said before an illusion is drawn: what is approximate, and parts that are nearly empty."""
    said = about_latents(illusion, space)
    if illusion.split is not None:
        said += getattr(illusion.split, "about", lambda channels, size: [])(*_split_at(illusion, space))
    return said


def _split_at(illusion: Illusion, space: Space) -> tuple[int, int]:
    """Channels and height of what is split."""
    if latent_way(illusion, space) == "direct":
        return _LATENTS, space.size[0]
    return space.channels, space.picture[0]


def latent_way(illusion: Illusion, space: Space) -> str:
    """Return how views and filters act: "pixels", "direct" on latents, or "decode".

    Flips and quarter turns nearly commute with a convolutional VAE, and so does a blur; colours are no matter of
    single latents, and nothing else commutes.
    """
    if space.factor == 1:
        return "pixels"
    if illusion.latent != "auto":
        return illusion.latent
    near = all(getattr(view, "latent", "decode") == "close" for view in illusion.views)
    return "direct" if near and _takes_latents(illusion.split) else "decode"


def _takes_latents(split: Any) -> bool:
    try:
        getattr(split, "check", lambda channels: None)(_LATENTS)
    except UsageError:
        return False
    return True


def about_latents(illusion: Illusion, space: Space) -> list[str]:
    """Return what has to be said about the way an illusion is drawn in latents; nothing for models of pixels."""
    way = latent_way(illusion, space)
    if way == "pixels" or (illusion.split is None and all(name_of(view) == "identity" for view in illusion.views)):
        return []
    if way == "direct":
        return ["approximate: views and filters act on latents, with which the VAE commutes only nearly"]
    return [
        "approximate: every view has its own latent; they are brought together through the VAE at each step"
        f" ({len(illusion.views)} decodings and {2 * len(illusion.views)} encodings per picture and step)"
    ]


@dataclass(frozen=True)
class Inside:
    """A view of the picture in the middle of a padded sample; the frame stays where it is."""

    view: Any
    before: int
    side: int

    def _within(self, x: Tensor, turn: Any) -> Tensor:
        inside = (..., slice(self.before, self.before + self.side), slice(self.before, self.before + self.side))
        out = x.clone()
        out[inside] = turn(x[inside])
        return out

    def apply(self, x: Tensor) -> Tensor:
        """Look at the middle in this way."""
        return self._within(x, self.view.apply)

    def invert(self, x: Tensor) -> Tensor:
        """Undo `apply`."""
        return self._within(x, self.view.invert)

    def invert_var(self, v: Tensor) -> Tensor:
        """Undo `apply` for a learned variance."""
        return self._within(v, self.view.invert_var)

    @property
    def spec(self) -> str:
        """The view's own."""
        return name_of(self.view)

    def frame(self, image: Any, progress: float) -> Any:
        """As the view draws it: animations are made of finished pictures."""
        return self.view.frame(image, progress)


def view_in(view: View, space: Space) -> View:
    """Return a view as it acts on the sample: where that is padded, on the picture in its middle.

    What turns the whole square about its centre may turn the padding, too, if that is even on all sides; a change of
    sign may in any case.
    """
    pad = space.size[0] - space.picture[0]
    if pad <= 0 or not getattr(view, "spatial", True):
        return view
    if getattr(view, "latent", "decode") == "close" and (pad % 2 == 0 or name_of(view) == "identity"):
        return view
    return Inside(view, pad // 2, space.picture[0])


def name_of(row: Any) -> str:
    """Return the full name of a view or a filter, arguments included."""
    return str(getattr(row, "spec", None) or getattr(row, "name", type(row).__name__))


def reference_for(model: Any, illusion: Illusion) -> Tensor:
    """Return the reference at the size and in the colours of a model's pictures, (1, C, H, W) in [-1, 1]."""
    assert illusion.reference is not None, "there is none"
    channels, height, width = picture_shape(model)
    picture = illusion.reference.to(model.device)
    if picture.shape[1] == 3 and channels == 1:
        picture = (picture * picture.new_tensor(_GREY).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    picture = picture.expand(-1, channels, -1, -1)
    if tuple(picture.shape[-2:]) != (height, width):
        picture = F.interpolate(picture, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return picture
