"""`diffkit noise`: the forward process as a strip."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.pictures import COMMANDS, Image, digest
from diffkit.cli.runner import Output, command
from diffkit.errors import UsageError

Timesteps = Annotated[str | None, typer.Option("--timesteps", "-t", help="Levels to show, with commas.")]
Schedule = Annotated[
    str, typer.Option("--schedule", help="Noise schedule, where no --model is given: linear, cosine, ...")
]
Size = Annotated[int, typer.Option("--size", min=8, max=1024, help="Side of each picture, where no --model is given.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    COMMANDS["noise"] = noise
    command(app, "noise")(noise)


def noise(
    image: Image = None,
    timesteps: Timesteps = None,
    schedule: Schedule = "linear",
    size: Size = 64,
    model: options.Model = None,
    revision: options.Revision = None,
    seed: options.Seed = 0,
    num: options.Num = 1,
    out: options.Out = None,
) -> Output:
    """Show what noise makes of an image, timestep by timestep."""
    from diffkit.engine.settings import seeds_from
    from diffkit.jobs import denoise as degrade
    from diffkit.jobs.album import Album
    from diffkit.pictures.examples import example_image
    from diffkit.pictures.files import versions, write_png
    from diffkit.pictures.images import cut_square, open_image, to_tensor

    began = time.perf_counter()
    scheduler, name = _scheduler(model, revision, schedule)
    last = int(scheduler.config.num_train_timesteps) - 1
    levels = whole_numbers(timesteps) if timesteps else [last * k // 5 for k in range(6)]
    degrade.check_levels(scheduler, levels)
    picture = open_image(image) if image is not None else example_image(3, size)
    if image is None:
        _say("no IMAGE: a heart drawn in code is used")
    seeds = seeds_from(seed, num)
    album = Album("noise", out, num)
    edit = degrade.add_noise(to_tensor(cut_square(picture, size)), scheduler, levels, seeds)
    arguments = {
        "image": None if image is None else str(image), "timesteps": timesteps, "schedule": schedule, "size": size,
        "model": model, "revision": revision, "seed": seed, "num": num,
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "command": "noise", "arguments": {k: v for k, v in arguments.items() if v is not None},
        "inputs": {"image": digest(image)} if image is not None else {}, "versions": versions(), "device": "cpu",
    }  # fmt: skip
    paths: list[Path] = []
    for k, strip in enumerate(edit.pictures):
        paths.append(album.path(seeds[k]))
        write_png(paths[-1], strip, {**recipe, "seed": seeds[k], "index": k})
    payload = {
        "images": [str(p) for p in paths], "schedule": name, "seeds": seeds, "timesteps": levels, "unet_calls": 0,
        "signal": edit.scores["signal"], "seconds": {"total": round(time.perf_counter() - began, 3)},
    }  # fmt: skip
    lines = [f"t={t}: signal {edit.scores['signal'][str(t)]:.3f}" for t in levels]
    return Output(payload, lines + [f"picture  {p}" for p in paths])


def _scheduler(model: str | None, revision: str | None, schedule: str) -> tuple[Any, str]:
    if model is None:
        from diffkit.engine.schedules import make_noise_scheduler
        from diffkit.recipes.schema import NoiseSpec

        return make_noise_scheduler(NoiseSpec(schedule=schedule)), schedule
    from diffkit.models.ddpm import load_scheduler
    from diffkit.models.hub import open_repo

    return load_scheduler(open_repo(model, revision=revision)), model


def whole_numbers(text: str) -> list[int]:
    """Read whole numbers with commas.

    Raises:
        UsageError: Something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--timesteps {text!r}: give whole numbers with commas, 250,500,750") from None


def _say(text: str) -> None:
    import logging

    logging.getLogger("diffkit").info(text)
