"""The words that a model's tokenizer knows, and the small model that ships inside the package.

Read from files alone: neither transformers nor torch is imported to find out whether a prompt is understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffkit.models.hub import Repo

BUNDLED = "tiny"
_FOLDER = Path(__file__).resolve().parent.parent / "assets" / BUNDLED


def bundled() -> Path | None:
    """Return the folder of the model that ships inside the package, or None where the package holds none."""
    return _FOLDER if (_FOLDER / "model_index.json").is_file() else None


def unknown_words(prompt: str, repo: Repo | None = None) -> list[str]:
    """Return the words of a prompt that a model does not know, in their order.

    Args:
        prompt: What it is to draw.
        repo: The model, one that diffkit trained on captions: of any other nothing can be said, and none are returned.
            The one inside the package when left out; without it all words are unknown.
    """
    known = _bundled_words() if repo is None else _own_words(repo)
    return [] if known is None else [word for word in re.findall(r"\w+", prompt.lower()) if word not in known]


def _own_words(repo: Repo) -> frozenset[str] | None:
    words = vocabulary(repo) if (repo.json("diffkit.json") or {}).get("conditioning") == "text" else None
    return None if words is None else frozenset(word.lower() for word in words)


@lru_cache(maxsize=1)
def _bundled_words() -> frozenset[str]:
    folder = bundled()
    words = vocabulary(Repo(BUNDLED, None, folder)) if folder else None
    return frozenset(word.lower() for word in words or [])


def vocabulary(repo: Repo) -> list[str] | None:
    """Return the words of a tokenizer without its special and byte tokens, sorted; None where no list is found."""
    data = repo.json("tokenizer/tokenizer.json")
    if data is None:
        plain = repo.json("tokenizer/vocab.json")
        return None if plain is None else sorted(_words(plain))
    listed = data.get("model", {}).get("vocab")
    special = {token.get("content") for token in data.get("added_tokens", []) if token.get("special")}
    entries = listed if isinstance(listed, Mapping) else [entry[0] for entry in listed or []]
    return sorted(_words(entry for entry in entries if entry not in special))


def _words(entries: Any) -> set[str]:
    """Entries as words: without the marks of a word's beginning and end."""
    return {word for entry in entries if (word := str(entry).removesuffix("</w>").lstrip("\u2581\u0120"))}
