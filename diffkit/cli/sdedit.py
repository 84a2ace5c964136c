"""`diffkit sdedit`: image to image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Image, Plan, picture_command

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"

Strength = Annotated[float, typer.Option("--strength", help="How much may change, above 0 to 1: 1 is pure noise.")]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="A picture of the image's size: white may change, black is kept.")
]
Invert = Annotated[bool, typer.Option("--invert-mask", help="Black may change, white is kept.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "sdedit", HUB)(sdedit)


def sdedit(
    image: Image = None,
    strength: Strength = 0.8,
    mask: Mask = None,
    invert_mask: Invert = False,
) -> Plan:
    """Draw an image anew: noise it up to --strength and denoise it, by class, by prompt or freely."""
    from diffkit.errors import UsageError
    from diffkit.jobs import sdedit as task
    from diffkit.jobs.edit import fit, fit_mask
    from diffkit.jobs.inputs import Given

    if not 0.0 < strength <= 1.0:
        raise UsageError(f"--strength {strength:g} is not in (0, 1]", "1 is pure noise, 0.1 keeps nearly everything.")
    given = Given(image, mask, invert_mask)

    def draw(model: Any, batch: Batch) -> Any:
        picture, kept = given.at(model)
        return task.sdedit(
            model, fit(model, picture), batch.seeds, batch.labels, batch.settings, strength=strength,
            mask=None if kept is None else fit_mask(model, kept), on_step=batch.on_step,
        )  # fmt: skip

    def say(model: Any, settings: Any) -> list[str]:
        return [f"strength {strength:g}: {len(task.visits(model, settings, strength))} steps are taken"]

    return Plan(
        draw,
        lambda m, s: task.visits(m, s, strength),
        {"image": image, "mask": mask},
        say,
        batched=True,
        example=image is None,
    )
