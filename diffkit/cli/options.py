"""The options that several commands share, as Annotated aliases; a command gives the default.

The options that every command has (`--json`, `--quiet`, `--debug`, `--offline`) are added by `runner.command`; those of
picture commands are made of their jobs' fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A Hub id or a folder: a pipeline, or a run of `diffkit train`.")
]
ModelArgument = Annotated[str, typer.Argument(help="A Hub id or a folder: a pipeline, or a run of `diffkit train`.")]
Revision = Annotated[str | None, typer.Option("--revision", help="The model's revision on the Hub.")]
Variant = Annotated[str | None, typer.Option("--variant", help="The model's weight variant, for example fp16.")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read .bin weights, by torch's restricted unpickler, where nothing else is."),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the first picture; the next has seed + 1.")
]
Num = Annotated[int, typer.Option("--num", "-n", min=1, help="How many pictures.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[
    Literal["auto", "fp32", "fp16", "bf16"], typer.Option("--dtype", help="The weights' type; auto: by device.")
]
Memory = Annotated[
    Literal["auto", "low", "lowest"], typer.Option("--memory", help="How hard to save memory, at the price of time.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder for the pictures, or FILE.png for one.")]
RecipeName = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe's name or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a recipe's field: training.lr=2e-4; may be repeated."),
]
