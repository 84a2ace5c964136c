"""`diffkit finetune`: from pretrained weights to new pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffkit.cli import options, train
from diffkit.cli.runner import Output, command
from diffkit.errors import UsageError

FLAGS: dict[str, tuple[str, Any]] = {
    "pretrained": (
        "model.pretrained",
        Annotated[
            str | None, typer.Option(help="A Hub id or folder with a UNet2DModel: google/ddpm-celebahq-256.")
        ],
    ),
    "freeze": (
        "model.freeze",
        Annotated[
            list[str] | None,
            typer.Option(help="Parameters to leave as they are, by the start of their name: down_blocks.0."),
        ],
    ),
    "revision": ("model.revision", options.Revision),
    "variant": ("model.variant", options.Variant),
    **train.FLAGS,
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "finetune", train.options_of(FLAGS))(finetune)


def finetune(
    recipe: options.RecipeName = None,
    set_: options.Set = None,
    force_resume: train.Force = False,
    dry_run: options.DryRun = False,
    **flags: Any,
) -> Output:
    """Go on from pretrained weights; the schedule and prediction type stay the source's.

    Without a RECIPE: celebahq-finetune, at the size that the weights were made for unless --resolution gives another.
    The same command run again goes on where it stopped.
    """
    from diffkit.recipes.reading import load_recipe

    fields = train.recipe_fields(FLAGS, flags)
    loaded = load_recipe(recipe or "celebahq-finetune", sets=set_ or (), flags=fields)
    if not loaded.model.pretrained:
        raise UsageError("finetune needs weights to start from", "Give --pretrained ID_OR_DIR.")
    return train.run(loaded, force_resume=force_resume, dry_run=dry_run)
