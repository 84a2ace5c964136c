"""`diffkit convert`: a foreign checkpoint as a diffusers folder in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A .ckpt or .safetensors file, a training's checkpoint-500, a folder, or a Hub id."
    ),
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FOLDER_OR_ID",
        help="The pipeline that lends what SOURCE has not: configurations, tokenizers, VAE; PixNerd: its text encoder.",
    ),
]
NoEma = Annotated[bool, typer.Option("--no-ema", help="Take the last weights, not their average.")]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", min=16, max=4096, help="Side of a PixNerd's pictures: 512 with text, 256 by class when left out."
    ),
]
Kind = Annotated[
    Literal["fp32", "fp16", "bf16"] | None,
    typer.Option("--dtype", help="The type of the weights that are written; as in SOURCE when left out."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is at OUT.")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .ckpt, .pt and .bin too, by torch's restricted unpickler.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "convert")(convert)


def convert(
    source: Source,
    out: Target,
    config: Config = None,
    size: Size = None,
    no_ema: NoEma = False,
    dtype: Kind = None,
    allow_pickle: Pickle = False,
    overwrite: Overwrite = False,
    revision: options.Revision = None,
    dry_run: options.DryRun = False,
) -> Output:
    """Write a foreign checkpoint as a diffusers folder in safetensors.

    A checkpoint of PixNerd; a file of Stable Diffusion, SDXL or SD3 (with --config; its original YAML is not taken,
    since diffusers would then ask the network); a checkpoint of diffusers' training scripts; or a pipeline of .bin
    weights. OUT is written whole or not at all.
    """
    import time

    from diffkit.models import conversion

    began = time.perf_counter()
    how = conversion.Options(
        config=config or "",
        revision=revision,
        size=size or 0,
        ema=not no_ema,
        dtype=dtype or "",
        allow_pickle=allow_pickle,
    )
    facts = conversion.convert(source, out, how, overwrite=overwrite, dry_run=dry_run)
    facts["seconds"] = {"total": round(time.perf_counter() - began, 3)}
    return Output(facts, _lines(facts))


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['source']}: {facts['kind']}, {facts['pipeline']}"]
    for part in facts["parts"]:
        name = "configurations" if part["name"] == "." else part["name"]
        lines.append(f"  {name:<20}{_size(part['bytes']):>14}  from {part['from']}")
    if facts["dry_run"]:
        return [*lines, f"would be written to {facts['output']}: {_size(facts['bytes'])}"]
    return [
        *lines,
        f"model      {facts['output']} ({_size(facts['bytes'])}, {facts['dtype']}, family {facts['family']})",
        f"next       diffkit sample {facts['output']}",
    ]


def _size(count: int | None) -> str:
    return "not fetched" if count is None else f"{count / 1e6:,.2f} MB"
