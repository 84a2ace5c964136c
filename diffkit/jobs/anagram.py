"""`diffkit anagram`: a picture that changes its meaning with the view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from diffkit.jobs.fields import opt
from diffkit.jobs.illusion import Illusion

if TYPE_CHECKING:
    from diffkit.illusions.composition import Composition


class Anagram(Illusion, name="anagram"):
    """Draw a picture that shows --p1 as it is and --p2 in the --view (flipped when left out); 30 steps.

    Guidance is 10 when left out; 4 for classes and for models that diffkit trained on captions.

    Any number of views: repeat --prompt and --view in pairs. Models with classes take --c1 and --c2, or --class.

    Source: Geng et al., arXiv:2311.17919.
    """

    sharing: ClassVar[tuple[str, ...]] = ("views", "weights", "reduce", "latent")

    weights: Annotated[tuple[float, ...], opt("weight")] = Field(
        (), description="How much a view counts; once per view, in order."
    )
    reduce: Literal["mean", "alternate"] = Field("mean", description="Average the views, or take turns step by step.")

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {
            "p1": "What the picture shows as it is.", "p2": "What it shows in the view.",
            "c1": "Of models with classes: as it is.", "c2": "Of models with classes: in the view.",
        }  # fmt: skip

    @staticmethod
    def compose(prompts: int, **fields: Any) -> Composition:
        """Show every prompt in a view of its own, or one in all of them."""
        from diffkit.illusions.composition import Composition

        return Composition.of_views(prompts, **fields)
