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
_BEGINNING = "\u2581"  # sentencepiece's mark of a word's beginning
_FOLDER = Path(__file__).resolve().parent.parent / "assets" / BUNDLED


def bundled() -> Path | None:
    """Return the folder of the model that ships inside the package, or None where the package holds none."""
    return _FOLDER if (_FOLDER / "model_index.json").is_file() else None


def unknown_words(prompt: str, repo: Repo | None = None) -> list[str]:
    """Return the words of a prompt that a model does not know, in their order.

    Words are what stands between spaces, as its tokenizer cuts them: "red-heart" is none though both halves are words.
    Marks behind a word say nothing.

    Args:
        prompt: What it is to draw.
        repo: The model, one that diffkit trained on captions: of any other nothing can be said, and none are returned.
            The one inside the package when left out; without it all words are unknown.
    """
    known = _bundled_tokens() if repo is None else _own_tokens(repo)
    return [] if known is None else [word for text in prompt.lower().split() if (word := _strange(text, known))]


def _strange(text: str, known: frozenset[str]) -> str:
    """The word in a piece of text without spaces, or nothing where all of its tokens are known."""
    first, *more = re.findall(r"\w+|[^\w\s]", text) or [text]
    while more and not re.match(r"\w", more[-1]):
        text = text.removesuffix(more.pop())
    return "" if _BEGINNING + first in known and all(part in known for part in more) else text


def _own_tokens(repo: Repo) -> frozenset[str] | None:
    return _tokens(repo) if (repo.json("diffkit.json") or {}).get("conditioning") == "text" else None


@lru_cache(maxsize=1)
def _bundled_tokens() -> frozenset[str]:
    folder = bundled()
    return (_tokens(Repo(BUNDLED, None, folder)) if folder else None) or frozenset()


def _tokens(repo: Repo) -> frozenset[str] | None:
    """Tokens in small letters, those that begin a word with their mark; all do, where none is marked."""
    entries = _entries(repo)
    if entries is None:
        return None
    marked = any(entry.startswith(_BEGINNING) for entry in entries)
    return frozenset((entry if marked else _BEGINNING + entry).lower() for entry in entries)


def vocabulary(repo: Repo) -> list[str] | None:
    """Return the words of a tokenizer without its special and byte tokens, sorted; None where no list is found."""
    entries = _entries(repo)
    return None if entries is None else sorted(_words(entries))


def _entries(repo: Repo) -> list[str] | None:
    data = repo.json("tokenizer/tokenizer.json")
    if data is None:
        plain = repo.json("tokenizer/vocab.json")
        return None if plain is None else list(plain)
    listed = data.get("model", {}).get("vocab")
    special = {token.get("content") for token in data.get("added_tokens", []) if token.get("special")}
    entries = listed if isinstance(listed, Mapping) else [entry[0] for entry in listed or []]
    return [entry for entry in entries if entry not in special]


def _words(entries: Any) -> set[str]:
    """Entries as words: without the marks of a word's beginning and end."""
    return {word for entry in entries if (word := str(entry).removesuffix("</w>").lstrip("\u2581\u0120"))}
