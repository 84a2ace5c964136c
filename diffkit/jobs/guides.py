"""Guidance by losses, for the jobs that draw along one path: their fields, what they cost, and the wrapped denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from diffkit.errors import UsageError
from diffkit.jobs.base import PictureJob
from diffkit.jobs.fields import opt

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from diffkit.engine.losses import Guide
    from diffkit.types import Denoiser, Model, ModelInfo

GUIDE_FILE = "guide "  # before the name of a guide's own file, among a picture's inputs


def parse_guides(texts: Sequence[str]) -> list[Guide]:
    """Make guides of texts; of all rows, those that need a model among them.

    Raises:
        UsageError: An unknown name, or a value that is none.
    """
    from diffkit.engine.losses import parse_guide
    from diffkit.evaluation import losses as losses  # registers its rows

    return [parse_guide(text) for text in texts]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _spelled(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What was left out is written down, so that a later default changes no old picture."""
    return tuple(guide.spec for guide in parse_guides(value)) if value else None


class Guided(PictureJob):
    """Guidance by the gradients of losses."""

    renamed: ClassVar[Mapping[str, str]] = {**PictureJob.renamed, "guide": "guides"}

    guides: Annotated[
        tuple[str, ...] | None,
        opt("guide", metavar="LOSS:VALUE@SCALE"),
        BeforeValidator(_several),
        AfterValidator(_spelled),
    ] = Field(
        None,
        description="Pull the pictures towards clip:TEXT, color:#rrggbb, image:FILE or classifier:FILE=CLASS; may be"
        " repeated.",
    )
    guide_through: Literal["x0", "network"] = Field(
        "x0",
        description="How far gradients of guides go: to the clean estimate, or through the network, too: exact, and"
        " about three times the work.",
    )
    guide_weight: Literal["signal", "index", "score"] = Field(
        "signal",
        description="How guides count over time: by sqrt(abar) of the timestep, by that of the step's number (notebook"
        " 2.1 of the Hugging Face course), or by 1 - abar: Bayes' rule for a likelihood exp(-SCALE loss).",
    )

    @cached_property
    def losses(self) -> list[Guide]:
        """The guides that have a weight."""
        return [guide for guide in parse_guides(self.guides or ()) if guide.scale]

    def check(self, info: ModelInfo) -> None:
        """Refuse guides that lack a file, a model or a class, and models that have no steps to guide."""
        super().check(info)
        check_guides(self, info)

    def notices(self, info: ModelInfo) -> list[str]:
        """Say what guides cost."""
        return [*super().notices(info), *cost_of_guides(self, info)]

    def inputs(self) -> dict[str, Path]:
        """Add the guides' files."""
        return {**super().inputs(), **{f"{GUIDE_FILE}{file}": file for g in self.losses for file in g.loss.files()}}

    def extra_calls(self, info: ModelInfo, timesteps: Sequence[float], *, searching: bool = False) -> dict[str, int]:
        """Count gradients and passes back; nothing where there are no guides."""
        return calls_of_guides(self, info, len(timesteps))

    def steered(self, net: Denoiser, model: Model, scheduler: SchedulerMixin, seeds: Sequence[int]) -> Denoiser:
        """Wrap a denoiser in the guides; the same one where there are none.

        Args:
            net: With its views and its classifier-free guidance.
            model: What draws.
            scheduler: Its grid set.
            seeds: One per picture.
        """
        if not self.losses:
            return net
        from diffkit.engine.gradients import gradient, unit, weight
        from diffkit.engine.guidance import place_of
        from diffkit.engine.losses import total

        def place(t: Any) -> int:
            return place_of(scheduler.timesteps, t)

        return gradient(
            net, total(self.losses, seeds, place), unit(self.guide_weight, model.info), scheduler,
            decode=model.codec.decode, through=self.guide_through == "network",
            weight=weight(self.guide_weight, scheduler, place), limit=None if model.info.latent else 1.0,
        )  # fmt: skip


def check_guides(job: Guided, info: ModelInfo) -> None:
    """As `Guided.check`, of its own fields alone."""
    if job.guides and info.one_step:
        raise UsageError("`guides`: a one-step denoiser has no steps to guide", "Leave it out.")
    for guide in job.losses:
        guide.loss.check()


def calls_of_guides(job: Guided, info: ModelInfo, steps: int, above: int = 0) -> dict[str, int]:
    """Return what guides take beside network calls, by name; nothing where there are none.

    Args:
        job: Whose guides.
        info: The model.
        steps: Its steps.
        above: Steps on pixels by a further model.
    """
    if not job.losses:
        return {}
    return {
        "loss_gradients": len(job.losses) * (steps + above),
        "backward_passes": steps + above if job.guide_through == "network" else 0,
        "vae_backward_passes": steps if info.latent else 0,
    }


def cost_of_guides(job: Guided, info: ModelInfo, beyond: str | None = None) -> list[str]:
    """As `Guided.notices`, of its own fields alone; `beyond` is an upscaler that guides do not reach."""
    if not job.losses:
        return []
    parts = ["the gradient of the loss"]
    parts += ["a pass back through the VAE's decoder, as the loss sees pictures"] if info.latent else []
    parts += ["a pass back through the network"] if job.guide_through == "network" else []
    said = [f"guides: every step takes {', and '.join(parts)}"]
    said += [f"guides: {beyond} is not guided; it keeps to the picture that it enlarges"] if beyond else []
    return said
