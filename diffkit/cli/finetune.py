"""`diffkit finetune`: from pretrained weights to new pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from diffkit.cli import options, train
from diffkit.cli.runner import Output, command

Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="A Hub id or folder with a UNet2DModel: google/ddpm-celebahq-256.")
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", help="Parameters to leave as they are, by the start of their name: down_blocks.0."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "finetune")(finetune)


def finetune(
    recipe: options.RecipeName = None,
    pretrained: Pretrained = None,
    dataset: train.Dataset = None,
    resolution: train.Resolution = None,
    channels: train.Channels = None,
    steps: train.Updates = None,
    epochs: train.Epochs = None,
    batch_size: train.BatchSize = None,
    gradient_accumulation: train.Accumulate = None,
    lr: train.Rate = None,
    mixed_precision: train.Precision = None,
    seed: train.TrainSeed = None,
    freeze: Freeze = None,
    revision: options.Revision = None,
    variant: options.Variant = None,
    out: train.Folder = None,
    report_to: train.Report = None,
    push_to_hub: train.Push = None,
    set_: options.Set = None,
    force_resume: train.Force = False,
    dry_run: options.DryRun = False,
) -> Output:
    """Go on from pretrained weights; the schedule and prediction type stay the source's.

    Without a RECIPE: celebahq-finetune, at the size that the weights were made for unless --resolution gives another.
    The same command run again goes on where it stopped.
    """
    from diffkit.errors import UsageError
    from diffkit.recipes.reading import load_recipe

    flags = train.training_flags(
        dataset=dataset, resolution=resolution, channels=channels, steps=steps, epochs=epochs, batch_size=batch_size,
        gradient_accumulation=gradient_accumulation, lr=lr, mixed_precision=mixed_precision, seed=seed, out=out,
        report_to=report_to, push_to_hub=push_to_hub,
    )  # fmt: skip
    flags |= {
        "model.pretrained": pretrained, "model.freeze": freeze or None, "model.revision": revision,
        "model.variant": variant,
    }  # fmt: skip
    loaded = load_recipe(recipe or "celebahq-finetune", sets=set_ or (), flags=flags)
    if not loaded.model.pretrained:
        raise UsageError("finetune needs weights to start from", "Give --pretrained ID_OR_DIR.")
    return train.run(loaded, force_resume=force_resume, dry_run=dry_run)
