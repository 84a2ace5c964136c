"""The words that a model's tokenizer knows.

Read from files alone: neither transformers nor torch is imported to find out whether a prompt is understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from diffkit.models.bundled import BUNDLED, bundled
from diffkit.models.repo import Repo

_BEGINNING = "\u2581"  # sentencepiece's mark of a word's beginning


def unknown_words(prompt: str, vocabulary: Sequence[str] | None) -> list[str]:
    """Return the words of a prompt that a model does not know, in their order.

    Words are what stands between spaces, as its tokenizer cuts them: "red-heart" is none though both halves are words.
    Punctuation behind a word is left out of account.

    Args:
        prompt: What it is to draw.
        vocabulary: Its tokens, as `tokens_of` or `bundled_tokens` return them; None where nothing is known of them: no
            word is unknown then.
    """
    if vocabulary is None:
        return []
    known = _marked(tuple(vocabulary))
    return [word for text in prompt.lower().split() if (word := _strange(text, known))]


def _strange(text: str, known: frozenset[str]) -> str:
    """The word in a piece of text without spaces, or nothing where all of its tokens are known."""
    first, *more = re.findall(r"\w+|[^\w\s]", text) or [text]
    while more and not re.match(r"\w", more[-1]):
        text = text.removesuffix(more.pop())
    return "" if _BEGINNING + first in known and all(part in known for part in more) else text


def tokens_of(repo: Repo, record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the tokens of a model of captions that diffkit trained; of any other nothing can be said.

    Args:
        repo: The model's repository.
        record: What diffkit wrote of it, `diffkit.json`.
    """
    entries = _entries(repo) if record.get("conditioning") == "text" else None
    return None if entries is None else tuple(entries)


@lru_cache(maxsize=1)
def bundled_tokens() -> tuple[str, ...]:
    """Return the tokens of the model inside the package; none where the package holds no model."""
    folder = bundled()
    return tuple(_entries(Repo(BUNDLED, None, folder)) or ()) if folder else ()


@lru_cache(maxsize=8)
def _marked(tokens: tuple[str, ...]) -> frozenset[str]:
    """Tokens in small letters, those that begin a word with their mark; all do, where none is marked."""
    marked = any(token.startswith(_BEGINNING) for token in tokens)
    return frozenset((token if marked else _BEGINNING + token).lower() for token in tokens)


def words_of(tokens: Sequence[str]) -> list[str]:
    """Return the words among tokens, sorted: without the marks of a word's beginning and end."""
    return sorted(_words(tokens))


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
