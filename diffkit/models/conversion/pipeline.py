"""A pipeline, or a network alone, whose weights are pickled or of another number type: the same in safetensors.

The tensors keep their names: what diffusers converts when it loads old repositories, it converts afterwards, too.
"""

from __future__ import annotations

from diffkit import models
from diffkit.errors import UsageError
from diffkit.models.conversion.files import has_pickles_only, has_plain_weights, stem_of
from diffkit.models.conversion.parts import Plan, components, small_files, weights_of
from diffkit.models.conversion.source import Options
from diffkit.models.repo import Repo


def plan(repo: Repo, options: Options) -> Plan:
    """Plan the conversion of an opened repository; the layout stays as it is.

    Raises:
        UsageError: There is nothing to convert, or a pipeline is named that is not needed.
        ModelError: It is no model that can be loaded, or its weights are pickled and that is not allowed.
    """
    if options.config:
        raise UsageError(f"`config` is not asked for: {repo.id} is a whole model", "Leave `config` out.")
    known = models.info(repo)
    folders = component_folders(repo)
    weighted = [folder for folder in folders if stem_of(repo, folder)]
    if not options.dtype and all(
        has_plain_weights(repo, folder) and not has_pickles_only(repo, folder) for folder in weighted
    ):
        raise UsageError(
            f"`source` {repo.id} is a diffusers folder in safetensors already: there is nothing to convert",
            "Use it as it is, or give the `dtype` that it is to have.",
        )
    weights = [part for folder in weighted if (part := weights_of(repo, folder, options)) is not None]
    return Plan("pipeline", (small_files(repo, folders), *weights), known.pipeline)


def component_folders(repo: Repo) -> list[str]:
    """Return the folders of a pipeline's components; "" is the root, where the network of a flat repository lies."""
    files = repo.files()
    named = [name for name, (_, cls) in components(repo).items() if cls is not None]
    folders = [name for name in named if any(file.startswith(f"{name}/") for file in files)]
    return folders if repo.has("config.json") is False else [*folders, ""]
