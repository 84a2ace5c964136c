"""`diffkit denoise`: Gaussian blur, one step and many steps side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Image, Plan, picture_command

HUB = "DeepFloyd/IF-I-M-v1.0"

Timesteps = Annotated[str, typer.Option("--timesteps", "-t", help="Levels to start from, with commas.")]
Stride = Annotated[int, typer.Option("--stride", min=1, help="Timesteps from one step to the next; any number.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "denoise", HUB, without=("steps", "spacing"))(denoise)


def denoise(image: Image = None, timesteps: Timesteps = "250,500,750", stride: Stride = 30) -> Plan:
    """Noise an image and remove it again by Gaussian blur, in one step and iteratively, with the PSNR of each."""
    from diffkit.cli.noise import whole_numbers
    from diffkit.jobs import denoise as degrade
    from diffkit.jobs.edit import fit
    from diffkit.jobs.inputs import Given

    levels, given = whole_numbers(timesteps), Given(image)

    def draw(model: Any, batch: Batch) -> Any:
        picture, _ = given.at(model)
        return degrade.compare(
            model, fit(model, picture), batch.seeds, batch.labels, batch.settings, timesteps=levels, stride=stride,
            on_step=batch.on_step,
        )  # fmt: skip

    return Plan(draw, lambda m, s: degrade.stops_of(m, s, levels, stride), {"image": image})
