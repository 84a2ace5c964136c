"""What the names of a repository's files say of its components' weights; nothing is fetched or opened."""

from __future__ import annotations

from diffkit.models.repo import Repo

# How the weights of a component are called: of diffusers' classes, and of transformers'.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def _weight_files(repo: Repo, subfolder: str) -> list[str]:
    prefix = f"{subfolder}/" if subfolder else ""
    names = (f.removeprefix(prefix) for f in repo.files() if f.startswith(prefix))
    return [n for n in names if "/" not in n and n.startswith(STEMS) and n.endswith(_WEIGHTS)]


def stem_of(repo: Repo, subfolder: str) -> str:
    """Return what `find_weights` asks for, by the files of a component; "" where it has no weights (a tokenizer)."""
    found = _weight_files(repo, subfolder)
    if not found:
        return ""
    return STEMS[0] if any(name.startswith(STEMS[0]) for name in found) else STEMS[1]


def has_pickles_only(repo: Repo, subfolder: str) -> bool:
    """Say whether a component has weights, and pickled ones alone; nothing is fetched."""
    found = _weight_files(repo, subfolder)
    return bool(found) and not any(".safetensors" in name for name in found)


def has_plain_weights(repo: Repo, subfolder: str) -> bool:
    """Say whether a component has weights under their plain name, which loaders look for where no variant is named."""
    plain = {f"{stem}{end}" for stem in STEMS for end in _WEIGHTS}
    return bool(plain & set(_weight_files(repo, subfolder)))
