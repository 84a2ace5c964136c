"""`diffkit inpaint`: paint the white of a mask anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Image, Plan, picture_command

HUB = "stable-diffusion-v1-5/stable-diffusion-inpainting"

Mask = Annotated[
    Path | None,
    typer.Argument(metavar="[MASK]", help="A picture of the image's size: white is repainted, black is kept."),
]
Jump = Annotated[int, typer.Option("--jump", min=1, help="RePaint: steps that are taken again.")]
Resample = Annotated[
    int | None,
    typer.Option("--resample", min=1, help="RePaint: how often; 10 when left out, 1 for models that take prompts."),
]
Invert = Annotated[bool, typer.Option("--invert-mask", help="Black is repainted, white is kept.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "inpaint", HUB)(inpaint)


def inpaint(
    image: Image = None,
    mask: Mask = None,
    jump: Jump = 10,
    resample: Resample = None,
    invert_mask: Invert = False,
) -> Plan:
    """Paint the white of a mask anew; what is black stays as it is, bit for bit."""
    from diffkit.errors import UsageError
    from diffkit.jobs import inpaint as task
    from diffkit.jobs.edit import fit, fit_mask
    from diffkit.jobs.inputs import Given

    if image is not None and mask is None:
        raise UsageError("no MASK for the image", "Give a picture of its size: white is repainted, black is kept.")
    given = Given(image, mask, invert_mask, need_mask=True)

    def draw(model: Any, batch: Batch) -> Any:
        picture, white = given.at(model)
        assert white is not None
        return task.inpaint(
            model, fit(model, picture), fit_mask(model, white), batch.seeds, batch.labels, batch.settings, jump=jump,
            resample=resample, on_step=batch.on_step,
        )  # fmt: skip

    def visits(model: Any, settings: Any) -> list[float]:
        return task.visits(model, settings, jump, resample)

    def say(model: Any, settings: Any) -> list[str]:
        often = task.resamplings(model, settings, resample)
        calls = len(visits(model, settings))
        return [f"{calls} UNet calls (jump {jump}, resample {often})" if often > 1 else f"{calls} UNet calls"]

    return Plan(draw, visits, {"image": image, "mask": mask}, say, batched=True, example=image is None)
