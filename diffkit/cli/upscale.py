"""`diffkit upscale`: an image four times larger."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Image, Plan, picture_command

HUB = "DeepFloyd/IF-II-M-v1.0"

NoiseLevel = Annotated[
    int | None, typer.Option("--noise-level", min=0, help="Noise put on the image: 250 (stage II) or 20 (stage III).")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "upscale", HUB, without=("label",))(upscale)


def upscale(image: Image = None, noise_level: NoiseLevel = None) -> Plan:
    """Enlarge an image by DeepFloyd's stage II, or with -m stabilityai/stable-diffusion-x4-upscaler by stage III."""
    from diffkit.errors import UsageError
    from diffkit.jobs import upscale as task
    from diffkit.jobs.sample import takes_prompts, timesteps_of
    from diffkit.pictures.examples import example_image
    from diffkit.pictures.images import open_image

    picture = open_image(image) if image is not None else example_image(3, 64)

    def draw(model: Any, batch: Batch) -> Any:
        return task.upscale(
            model, picture, batch.seeds, batch.labels, batch.settings, noise_level=noise_level, on_step=batch.on_step
        )

    def say(model: Any, settings: Any) -> list[str]:
        if not takes_prompts(model):
            raise UsageError(f"{model.id} is no upscaler", "Give stage II of DeepFloyd IF, or an x4 upscaler.")
        width, height = task.upscaled_from(model, picture)
        drawn = "" if image is not None else "no IMAGE: a heart drawn in code is used; "
        return [f"{drawn}{width}x{height} -> {4 * width}x{4 * height} pixels"]

    return Plan(draw, timesteps_of, {"image": image}, say)
