"""Which model a command that draws uses, how it is loaded, and how long that took."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from diffkit.cli.runner import settle
from diffkit.errors import ModelError, UsageError

LOG = logging.getLogger("diffkit")

DEFAULT_RUN = Path("runs/digits")


def default_model(hub: str, prompt: str | None) -> str:
    """Return the model used where none is named, and say which and why.

    Without a prompt it is the local run, where there is one; then the model inside the package, if it knows every word
    of the prompt; else the Hub's.

    Raises:
        ModelError: The model inside the package does not know the prompt, and the Hub's cannot be reached.
    """
    from diffkit.models.vocabulary import BUNDLED, bundled, unknown_words

    if not prompt and (DEFAULT_RUN / "model_index.json").is_file():
        return _chosen(str(DEFAULT_RUN), "the run that is there")
    if bundled() is None:
        return _chosen(hub, "it takes prompts" if prompt else f"there is no {DEFAULT_RUN}")
    strange = unknown_words(prompt or "")
    if not strange:
        return _chosen(BUNDLED, "it ships with diffkit" + (" and knows every word of the prompt" if prompt else ""))
    words = f"the model that ships with diffkit does not know {', '.join(map(repr, dict.fromkeys(strange)))}"
    _check_reach(hub, words)
    return _chosen(hub, words)


def _chosen(model: str, why: str) -> str:
    LOG.info("no --model: %s is used (%s)", model, why)
    return model


def _check_reach(hub: str, why: str) -> None:
    """Open the Hub's model, which loads nothing yet; where that fails there are two ways out."""
    from diffkit.models.hub import open_repo

    try:
        open_repo(hub)
    except ModelError as error:
        raise ModelError(
            f"{why}, and {error.message}",
            f"{error.hint} Or use only words that the small model knows: `diffkit inspect tiny` lists them.",
        ) from None


def load_model(
    source: str, *, device: str, dtype: str, revision: str | None, variant: str | None, allow_pickle: bool, raw: bool,
    memory: str, safety: str, prompts: list[str], compile: bool = False,
) -> Any:  # fmt: skip
    """Load a model; of one that takes prompts all are encoded at once, and its text encoder is gone before the UNet.

    Raises:
        UsageError: An option that the model's family does not have.
    """
    from importlib import import_module

    from diffkit.jobs.sample import TEXT_GUIDANCE
    from diffkit.models import family_of, load
    from diffkit.models.devices import keep_memory, pick_device
    from diffkit.models.hub import open_repo
    from diffkit.models.vocabulary import unknown_words

    pick_device(device)
    repo = open_repo(source, revision=revision)
    family = family_of(repo)
    text = family in TEXT_GUIDANCE
    if text and (strange := dict.fromkeys(unknown_words(" ".join(prompts), repo))):
        LOG.warning(
            "%s was never told what %s means: `diffkit inspect %s` lists its words",
            source, ", ".join(map(repr, strange)), source,
        )  # fmt: skip
    if text and raw:
        raise UsageError("--raw goes with runs that draw freely or by class, not by prompt", "Leave it out.")
    extra: dict[str, Any] = {"memory": memory, "safety": safety} if text else {"weights": "raw" if raw else "ema"}
    import_module(f"diffkit.models.{family}")
    settle()  # not later: of a text encoder nothing may stay
    model = load(
        source, device=device, dtype=dtype, revision=revision, variant=variant, allow_pickle=allow_pickle,
        compile=compile, **extra,
    )  # fmt: skip
    if text:
        model.encode(sorted(set(prompts)))
    if model.device.type == "cpu":
        keep_memory()  # from here on: a text encoder's memory went back to the system
    return model


def seconds(model: Any, began: float, loaded: float, drawn: float) -> dict[str, float]:
    """Return `--json`'s times from moments of `time.perf_counter`; prompts are encoded while the model is loaded."""
    encode = getattr(getattr(model, "prompts", None), "seconds", None)
    told = {"load": max(0.0, loaded - began - (encode or 0.0))}  # a prompt may also be encoded later
    if encode is not None:
        told["encode"] = encode
    told |= {"denoise": drawn - loaded, "total": time.perf_counter() - began}
    return {key: round(value, 3) for key, value in told.items()}
