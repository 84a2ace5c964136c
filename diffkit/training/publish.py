"""Pushing a run to the Hub: pipeline, card, previews; private unless told otherwise; never a token in a file."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from diffkit.errors import ModelError, UsageError
from diffkit.recipes.schema import Recipe

LOG = logging.getLogger(__name__)
_LEFT_OUT = [
    "checkpoints/**", ".lock", ".*", "**/.*", "trackers/**", "events.out.*", "diffkit/**", "wandb/**", "unet_raw/**",
    "best/**",
]  # fmt: skip


def push(folder: Path, recipe: Recipe) -> str:
    """Create the repository if need be, upload the run's folder without its checkpoints, and return the address.

    Args:
        folder: A finished run.
        recipe: `output.hub_id` names the repository (the folder's name under the user's account when left out), and
            `output.hub_private` says who sees it.

    Raises:
        UsageError: The name cannot be a repository's.
        ModelError: Not logged in, no network, or no right to write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    name = recipe.output.hub_id or re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.")
    if not re.fullmatch(r"([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+", name):
        raise UsageError(f"output.hub_id={name!r} is no repository name", "Write it as NAME or OWNER/NAME.")
    api = HfApi()
    hint = f"The run is complete in {folder}; log in with `hf auth login` and run the same command again to push it."
    try:
        repository = api.create_repo(name, private=recipe.output.hub_private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=_LEFT_OUT, commit_message=f"diffkit: {recipe.name}"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the run could not be pushed to {name}: {reason}", hint) from error
    LOG.info("pushed to %s%s", repository, " (private)" if recipe.output.hub_private else "")
    return str(commit.repo_url)
