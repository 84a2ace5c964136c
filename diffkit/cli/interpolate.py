"""`diffkit interpolate`: the way from one picture to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Plan, picture_command

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"

First = Annotated[Path | None, typer.Argument(metavar="[IMAGE_A]", help="Where to begin; seeds when left out.")]
Second = Annotated[Path | None, typer.Argument(metavar="[IMAGE_B]", help="Where to end.")]
ToSeed = Annotated[int | None, typer.Option("--to-seed", min=0, help="The last seed; --seed + 1 when left out.")]
Frames = Annotated[int, typer.Option("--frames", min=2, max=256, help="Pictures on the way, both ends among them.")]
Refine = Annotated[int, typer.Option("--refine", min=0, max=50, help="Further calls per step of the inversion.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "interpolate", HUB, without=("num", "eta", "batch_size"))(interpolate)


def interpolate(
    image: First = None, image_b: Second = None, to_seed: ToSeed = None, frames: Frames = 9, refine: Refine = 3
) -> Plan:
    """Walk from one seed's picture to another's, or from one image to another, through DDIM's noise."""
    from diffkit.errors import UsageError
    from diffkit.jobs import interpolate as task
    from diffkit.jobs.edit import fit
    from diffkit.jobs.inputs import Given
    from diffkit.jobs.invert import exact_sampler
    from diffkit.jobs.invert import visits as inversion

    if (image is None) != (image_b is None):
        raise UsageError("one image alone is no way", "Give two images, or none for seeds.")
    if image is not None and to_seed is not None:
        raise UsageError("--to-seed has no place beside two images", "Leave it out.")
    given = [Given(path) for path in (image, image_b) if path is not None]

    def draw(model: Any, batch: Batch) -> Any:
        ends: Any = [fit(model, one.at(model)[0]) for one in given]
        if not ends:
            ends = (batch.seeds[0], batch.seeds[0] + 1 if to_seed is None else to_seed)
        return task.interpolate(
            model, tuple(ends), batch.labels[0], batch.settings, frames=frames, refine=refine, on_step=batch.on_step
        )

    def visits(model: Any, settings: Any) -> list[float]:
        from diffkit.jobs.sample import timesteps_of

        if not given:
            return timesteps_of(model, settings)
        exact_sampler(model.scheduler, settings)
        return inversion(model, settings, refine, False)

    silent = "between two images nothing is guided" if given else None
    return Plan(draw, visits, {"image": image, "image_b": image_b}, unguided=silent)
