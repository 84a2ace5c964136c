"""`diffkit inspect`: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

Tokens = Annotated[str | None, typer.Option("--prompt", "-p", help="Also show the tokens of a prompt.")]
Picture = Annotated[Path | None, typer.Option("--image", help="Also send a picture through the VAE and back.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "inspect")(inspect)


def inspect(
    model: options.ModelArgument,
    prompt: Tokens = None,
    image: Picture = None,
    revision: options.Revision = None,
    out: options.Out = None,
) -> Output:
    """Show what a model is made of: parts, parameters, noise schedule, the words it knows."""
    from diffkit.models import inspect as task
    from diffkit.models import open_repo

    repo = open_repo(model, revision=revision)
    facts = task.describe(repo)
    if prompt is not None:
        facts["tokens"] = task.tokens(repo, prompt)
    if image is not None:
        from diffkit.pictures.files import Destination
        from diffkit.pictures.images import open_image

        task.check_vae(repo)
        path = Destination.of(out, "inspect").named("inspect-vae.png")
        loss, back = task.round_trip(model, revision, open_image(image))
        back.save(path)
        facts |= {"psnr": round(loss, 2), "images": [str(path)]}
    return Output(facts, _lines(facts))


def _lines(facts: dict[str, Any]) -> list[str]:
    about = facts["model"]
    lines = [f"{about['id']}: {facts['pipeline']}, family {about['family']}"]
    for name, part in facts["components"].items():
        size = f"{part['parameters']:>14,} parameters {part['megabytes']:>9.2f} MB" if "parameters" in part else ""
        lines.append(f"  {name:<24}{part['class']:<26}{size}".rstrip())
    for name in ("unet", "scheduler", "trained"):
        if facts.get(name):
            lines.append(f"{name:<10} " + ", ".join(f"{key} {_short(value)}" for key, value in facts[name].items()))
    if "vocabulary" in facts:
        lines.append(f"vocabulary {len(facts['vocabulary'])}: " + " ".join(facts["vocabulary"]))
    if "tokens" in facts:
        lines.append("tokens     " + " ".join(facts["tokens"]))
    if "psnr" in facts:
        lines.append(f"VAE        round trip {facts['psnr']:.2f} dB: {facts['images'][0]}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
