"""`diffkit hybrid`: a picture that shows one thing from afar and another from near."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from diffkit.jobs.fields import ImageFile
from diffkit.jobs.illusion import Illusion
from diffkit.jobs.images import opened
from diffkit.models.bundled import BUNDLED

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.illusions.composition import Composition
    from diffkit.types import ModelInfo

# Of the model inside the package, whose strokes are a large part of its 32 pixels: 73 % of 128 hybrids read as wanted,
# where the usual split and guidance 4 gave 56 % of 64 (benchmarks/glyph_tricks.py).
SMALL_SPLIT, SMALL_GUIDANCE = "low_high:6", 8.0
_LARGEST = 1024  # of a reference: the last stage's pictures


class Hybrid(Illusion, name="hybrid"):
    """Draw a picture that shows --p1 from afar and --p2 from near, or by another --split; 30 steps.

    Guidance is 10 when left out; 4 for classes and for models that diffkit trained on captions, 8 for the small model.

    More than two parts: repeat --prompt. With --reference one part is taken from a photo and has no prompt.

    Source: Geng et al., arXiv:2404.11615.
    """

    sharing: ClassVar[tuple[str, ...]] = ("split", "views", "reference", "fixed", "latent")
    gaps: ClassVar[bool] = True  # the part of a reference has no prompt

    split: str | None = Field(
        None,
        description="How the picture is split: low_high:2 (left out, but for the small model inside the package),"
        " triple:1,2, grey_colour, ...",
    )
    reference: ImageFile = Field(None, description="A photo that one part is taken from; that part has no prompt.")
    fixed: int = Field(0, ge=0, description="Which part the reference gives: 0 is the first.")

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {
            "p1": "What the first part shows: from afar (low), in grey, ...",
            "p2": "What the second part shows: from near (high), in colour, ...",
            "c1": "Of models with classes: the first part.", "c2": "Of models with classes: the second part.",
        }  # fmt: skip

    @staticmethod
    def compose(prompts: int, **fields: Any) -> Composition:
        """Show every prompt in a part of the split, in the filter's order (low before high)."""
        from diffkit.illusions.composition import USUAL_SPLIT, Composition

        image, split = fields.pop("reference"), fields.pop("split") or USUAL_SPLIT
        return Composition.of_parts(prompts, split, reference=None if image is None else _reference(image), **fields)

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the split, which with the guidance suits the small pictures of the model inside the package."""
        from diffkit.illusions.composition import USUAL_SPLIT

        found = super().defaults(info)
        if info.id != BUNDLED or self.split is not None:
            return {**found, "split": USUAL_SPLIT}
        return {**found, "split": SMALL_SPLIT, "guidance": SMALL_GUIDANCE if any(self.labels) else None}

    def assumed(self, info: ModelInfo) -> list[str]:
        """Say that the small model has a split and a guidance of its own."""
        said = super().assumed(info)
        if info.id == BUNDLED and self.split is None:
            said.append(f"no `split`: {SMALL_SPLIT} suits the small model, and guidance {SMALL_GUIDANCE:g}")
        return said

    def notices(self, info: ModelInfo) -> list[str]:
        """Say which prompts the small model draws best."""
        said = super().notices(info)
        if info.id == BUNDLED and not any(" on " in prompt for prompt in self.prompts):
            said.append(
                "the small model draws hybrids best with prompts that leave a part open: 'a sign on a red heart' from"
                " afar, 'the letter K on a shape' from near"
            )
        return said


def _reference(image: Any) -> Tensor:
    """A photo's middle square, (1, 3, S, S) in [-1, 1]."""
    from diffkit.pictures.images import cut_square
    from diffkit.pictures.tensors import to_tensor

    picture = opened(image)
    assert picture is not None
    return to_tensor(cut_square(picture, min(_LARGEST, *picture.size)), 3)
