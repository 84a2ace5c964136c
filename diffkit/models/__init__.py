"""Model families, one file each: what a model is (`info`), and the model itself (`load`).

A family is a module with `info(repo) -> ModelInfo`, which reads configurations alone, and
`load(repo, info, options) -> Model`. Its `TEXT_ENCODER` is how prompts are encoded, by pipeline class where its
pipelines differ. It is found by what model_index.json or config.json says; nothing heavy is
imported before a model is asked for, and then only its own family.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffkit.errors import ModelError
from diffkit.models.hub import open_repo
from diffkit.models.kinds import KINDS
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo

if TYPE_CHECKING:
    from diffkit.models.text_encodings import TextEncoding
    from diffkit.types import Model, ModelInfo

__all__ = ["FAMILIES", "LoadOptions", "Repo", "info", "load", "load_opened", "open_repo", "text_encoding"]

# The family's module, and the pipeline classes (or, of a bare network, the model class) that it loads.
FAMILIES = {
    "ddpm": ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", *KINDS, "UNetUnconditionalModel"),
    "stable_diffusion": (
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy", "StableDiffusionUpscalePipeline",
    ),
    "deepfloyd": (
        "IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline", "IFSuperResolutionPipeline",
        "IFImg2ImgSuperResolutionPipeline", "IFInpaintingSuperResolutionPipeline",
    ),
    "dit": ("DiTPipeline",),
    "stable_diffusion_xl": (
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    ),
    "stable_diffusion_3": (
        "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
    ),
    "pixnerd": ("PixNerdPipeline", "PixNerdTransformer2DModel"),
    "pixnerd_class": ("PixNerdClassPipeline", "PixNerdClassTransformer2DModel"),
    "prx": ("PRXPipeline", "PRXPixelPipeline"),
}  # fmt: skip

# Networks of known pipelines that cannot draw without the rest of them.
_ALONE = (
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "Transformer2DModel",
    "SD3Transformer2DModel",
    "PRXTransformer2DModel",
    "AutoencoderKL",
)


def _family(repo: Repo) -> Any:
    name = repo.pipeline
    for family, classes in FAMILIES.items():
        if name in classes:
            return import_module(f"diffkit.models.{family}")
    known = ", ".join(sorted(cls for classes in FAMILIES.values() for cls in classes))
    raise ModelError(
        f"{repo.id} is a {name or 'model of no named class'}, which diffkit cannot load",
        "It is a network alone: give the whole pipeline, with its model_index.json."
        if name in _ALONE
        else f"Known: {known}.",
    )


def info(repo: Repo) -> ModelInfo:
    """Say what an opened repository's model is, from its configuration alone.

    Raises:
        ModelError: No family can load it, or a field of its configuration is missing or contradicts another one.
    """
    known: ModelInfo = _family(repo).info(repo)
    return known


def text_encoding(repo: Repo) -> TextEncoding | None:
    """Say how a repository's pipeline encodes prompts, by its class alone; None where it takes none.

    Raises:
        ModelError: No family can load it.
    """
    found = _family(repo).TEXT_ENCODER
    encoding: TextEncoding | None = found[repo.pipeline] if isinstance(found, Mapping) else found
    return encoding


def load_opened(repo: Repo, known: ModelInfo, options: LoadOptions) -> Model:
    """Load the model of an opened repository, of which `info` was asked before.

    Raises:
        UsageError: An option that its family does not have.
        ModelError: The model is gated or broken.
    """
    model: Model = import_module(f"diffkit.models.{known.family}").load(repo, known, options)
    return model


def load(
    id_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    scheduler: str | None = None,
    **options: Any,
) -> Model:
    """Load a model from a run folder, a model folder or the Hub.

    Args:
        id_or_path: "tiny" (the model inside the package), a folder that exists, else a Hub id.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16.
        revision: Branch, tag or commit on the Hub.
        scheduler: A sampler's name; the model's own scheduler when left out.
        options: Further fields of `LoadOptions`: variant, allow_pickle, compile, memory, safety, raw, ...

    Raises:
        UsageError: Unknown device, type or scheduler.
        ModelError: The model is missing, gated, broken or of an unknown family.
    """
    repo = open_repo(id_or_path, revision=revision)  # first: a model out of reach is said before torch is imported
    known = info(repo)
    from diffkit.models.devices import pick_device, pick_dtype

    if dtype != "auto":  # else the family's own choice
        options["dtype"] = pick_dtype(dtype)
    if scheduler is not None:
        from dataclasses import replace

        from diffkit.engine.samplers import make_sampler

        known = replace(known, scheduler=make_sampler(scheduler, known.scheduler))
    return load_opened(repo, known, LoadOptions(device=pick_device(device), **options))
