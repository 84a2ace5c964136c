"""`diffkit embed`: fills the prompt-embedding cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command
from diffkit.errors import DataError, UsageError

DEFAULT_MODEL = "DeepFloyd/IF-I-M-v1.0"

Words = Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What will be drawn, in words.")]
Negatives = Annotated[
    list[str] | None, typer.Option("--negative-prompt", help="What to stay away from; may be repeated.")
]
File = Annotated[Path | None, typer.Option("--file", "-f", help="A text file with one prompt per line.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "embed")(embed)


def embed(
    prompts: Words = None,
    model: options.Model = None,
    negative: Negatives = None,
    file: File = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "auto",
    revision: options.Revision = None,
    variant: options.Variant = None,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
) -> Output:
    """Encode prompts now, so that the text encoder is never needed again; the empty prompt comes along.

    The cache is a folder of safetensors that can be carried to another machine; give --dtype the type used there.
    """
    import logging
    import time

    wanted = [*(prompts or []), *_lines(file), *(negative or [])]
    if not wanted:
        raise UsageError("no prompt to embed", 'Give at least one: diffkit embed "an oil painting of a pond".')
    wanted = list(dict.fromkeys([*wanted, ""]))
    if model is None:
        model = DEFAULT_MODEL
        logging.getLogger("diffkit").info("no `model`: %s, the one that anagrams and hybrids use", model)
    from diffkit.models import LoadOptions, open_repo, text_encoding

    began = time.perf_counter()
    repo = open_repo(model, revision=revision)
    from diffkit.models.devices import pick_device, pick_dtype
    from diffkit.models.text import open_encoder

    loading = LoadOptions(
        device=pick_device(device), dtype=None if dtype == "auto" else pick_dtype(dtype), memory=memory,
        variant=variant, allow_pickle=allow_pickle,
    )  # fmt: skip
    encoder = open_encoder(repo, text_encoding(repo), loading)
    missing = encoder.missing(wanted)
    if not dry_run and missing:
        encoder.encode(missing)
    payload = {
        "model": {"id": encoder.repo.id, "revision": encoder.repo.revision, "encoder": encoder.key("")["encoder"]},
        "dtype": encoder.key("")["dtype"],
        "encoded": missing,
        "cached": [p for p in wanted if p not in missing],
        "cache": str(encoder.cache.root),
        "dry_run": dry_run,
        "seconds": {"total": round(time.perf_counter() - began, 3)},
    }
    done = "would be encoded" if dry_run else "encoded"
    lines = [f"{done if p in missing else 'in the cache'}: {p!r}" for p in wanted]
    return Output(payload, [*lines, f"embeddings in {encoder.cache.root}"])


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"--file {file}: {reason}", "Give a text file with one prompt per line.") from None
