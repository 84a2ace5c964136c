"""Model families, one file each; `load` picks the family by what model_index.json or config.json says.

Nothing heavy is imported before a model is loaded, and then only its own family.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from diffkit.errors import ModelError

# Pipeline class (or, of a bare network, model class) -> the family's module.
FAMILIES = {
    "DDPMPipeline": "ddpm",
    "DDIMPipeline": "ddpm",
    "PNDMPipeline": "ddpm",
    "UNet2DModel": "ddpm",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionImg2ImgPipeline": "stable_diffusion",
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionInpaintPipelineLegacy": "stable_diffusion",
    "StableDiffusionUpscalePipeline": "stable_diffusion",
    "IFPipeline": "deepfloyd",
    "IFImg2ImgPipeline": "deepfloyd",
    "IFInpaintingPipeline": "deepfloyd",
    "IFSuperResolutionPipeline": "deepfloyd",
    "IFImg2ImgSuperResolutionPipeline": "deepfloyd",
    "IFInpaintingSuperResolutionPipeline": "deepfloyd",
}


def family_of(repo: Any) -> str:
    """Return the name of the family that can load an opened repository.

    Raises:
        ModelError: None can.
    """
    name = repo.pipeline
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"{repo.id} is a {name or 'model of no named class'}, which diffkit cannot load", f"Known: {known}."
        )
    return FAMILIES[name]


def load(
    id_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    variant: str | None = None,
    scheduler: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> Any:
    """Load a model from a run folder, a model folder or the Hub.

    Args:
        id_or_path: A folder that exists, else a Hub id.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, fp32, bf16 or fp16.
        revision: Branch, tag or commit on the Hub.
        variant: Weight variant, for example fp16.
        scheduler: A sampler's name; the model's own scheduler when left out.
        allow_pickle: Also read `.bin` weights, through torch's restricted unpickler.
        options: What only one family knows (`weights="raw"` of the ddpm family).

    Returns:
        A `diffkit.types.Model`.

    Raises:
        UsageError: Unknown device, type or scheduler.
        ModelError: The model is missing, gated, broken or of an unknown family.
    """
    from diffkit.models.hub import open_repo

    repo = open_repo(id_or_path, revision=revision)  # first: a model out of reach is said before torch is imported
    name = family_of(repo)
    from diffkit.models.devices import pick_device, pick_dtype

    place = pick_device(device)
    if dtype != "auto":  # else the family's own choice
        options["dtype"] = pick_dtype(dtype)
    family = import_module(f"diffkit.models.{name}")
    model = family.from_repo(repo, device=place, variant=variant, allow_pickle=allow_pickle, **options)
    if scheduler is not None:
        from diffkit.engine.samplers import make_sampler

        model.scheduler = make_sampler(scheduler, model.scheduler)
    return model
