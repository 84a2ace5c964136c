"""Models that were taken off the Hub, and the copies there that hold the same files; imports nothing heavy.

Nothing is substituted: whoever asks for a model that is gone is told the name of its copy. Facts are as of 2026:
Runway left the Hub in August 2024, Stability AI withdrew Stable Diffusion 2 in November 2025 (huggingface/diffusers
issues 9421 and 12874). CompVis/stable-diffusion-* and stabilityai/stable-diffusion-x4-upscaler are where they were.
"""

from __future__ import annotations

_STABILITY = ("2", "2-base", "2-1", "2-1-base", "2-inpainting", "2-depth")

# The name that is gone -> its copy.
MIRRORS: dict[str, str] = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    **{f"stabilityai/stable-diffusion-{name}": f"sd2-community/stable-diffusion-{name}" for name in _STABILITY},
}
_FOLDED = {name.casefold(): copy for name, copy in MIRRORS.items()}


def mirror_of(repo_id: str) -> str:
    """Return the copy of a model that was taken off the Hub, whichever letters are capitals; "" for any other."""
    return _FOLDED.get(repo_id.casefold(), "")


def mirror_hint(repo_id: str, revision: str | None = None) -> str:
    """Return the next step for somebody who asked for a model that was taken off the Hub; "" for any other."""
    copy = mirror_of(repo_id)
    if not copy:
        return ""
    elsewhere = ", without `revision`: its commits are its own" if revision else ""
    return f"It was taken off the Hub; a copy is there as {copy}: give that name{elsewhere}."
