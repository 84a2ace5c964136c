"""Prompts to embeddings: encoded once, kept in the prompt cache, so that text encoders are loaded once and never again.

The cache's key is the model's commit (or its folder's fingerprint), the encoding, the prompt and the number type. What
a family's encoding is, is in `text_encodings.py`. Nothing of transformers is imported before a prompt is missing.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.models.caches import cache_folder, fingerprint
from diffkit.models.memory import default_dtype, make_plan
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import LoadedPart, TextEncoding, TextPart, encoder_class, installed
from diffkit.models.weights import load_component, preferred, quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger("diffkit.models")

# The name that cache files have for the first tensor of every encoding, from the time when there was no other one.
_FIRST, _IN_FILES = "encoder_hidden_states", "embedding"
_TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")


class EmbeddingCache:
    """Prompt embeddings on disk, one safetensors file for each prompt, written whole or not at all.

    Args:
        root: The folder; `cache_folder()` when left out.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_folder()

    def path(self, key: dict[str, str]) -> Path:
        """Return the file of a key."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.root / digest[:2] / f"{digest}.safetensors"

    def get(self, key: dict[str, str]) -> dict[str, Tensor] | None:
        """Return a prompt's tensors by name, without a batch axis, or None where there are none that can be read."""
        path = self.path(key)
        if not path.is_file():
            return None
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            return {_FIRST: found.pop(_IN_FILES), **found}
        except Exception as error:  # a broken cache entry is encoded again, never an obstacle
            LOG.warning("%s is not readable (%s); the prompt is encoded again", path, type(error).__name__)
            return None

    def put(self, key: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
        """Store a prompt's tensors; a cache that cannot be written is no error."""
        from safetensors.torch import save

        path = self.path(key)
        named = {_IN_FILES if name == _FIRST else name: value for name, value in tensors.items()}
        data = save({name: value.detach().cpu().contiguous() for name, value in named.items()}, metadata=key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
        except OSError as error:
            LOG.warning("the embedding cache %s cannot be written: %s", self.root, error.strerror)
            with suppress(OSError, UnboundLocalError):
                os.unlink(file.name)


class PromptEncoder:
    """A model's tokenizers and text encoders, there only while a prompt is missing from the cache.

    Args:
        repo: The model.
        encoding: How its family's prompts become tensors.
        device: Where to encode.
        dtype: Type of the embeddings.
        prefer: Weight variant to take where it is there.
        allow_pickle: Also read `.bin`.
        eight_bit: Load encoders as large as T5 in 8 bits (CUDA and bitsandbytes).
        cache: Where embeddings are kept.
    """

    def __init__(
        self,
        repo: Repo,
        encoding: TextEncoding,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prefer: str | None = None,
        allow_pickle: bool = False,
        eight_bit: bool = False,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.repo, self.encoding, self.device, self.dtype = repo, encoding, device, dtype
        self.parts = encoding.parts(repo)
        self.prefer, self.allow_pickle = prefer, allow_pickle
        self.eight_bit = eight_bit and any(part.eight_bit for part in self.parts)
        self.cache = cache if cache is not None else EmbeddingCache()
        self.loads = 0
        self.seconds = 0.0  # spent on encoding, the text encoders' loading included
        self._identity: str | None = None
        self._others: dict[str, Repo] = {}

    def key(self, prompt: str) -> dict[str, str]:
        """Return what an embedding depends on."""
        if self._identity is None:
            self._identity = self._identify()
        # A folder is known by what is in it: its path says nothing on another machine.
        model = self.repo.id if self.repo.hub else ""
        return {
            "model": model, "revision": self._identity, "encoder": self.encoding.label(self.repo, self.eight_bit),
            "prompt": prompt, "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts that are not in the cache, each once."""
        return [p for p in dict.fromkeys(prompts) if self.cache.get(self.key(p)) is None]

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of prompts by name, each (len(prompts), ...), on the device.

        The text encoders are loaded only for prompts that the cache lacks.

        Raises:
            ModelError: A text encoder or tokenizer is missing or broken.
        """
        began = time.perf_counter()
        known = {p: self.cache.get(self.key(p)) for p in dict.fromkeys(prompts)}
        todo = [p for p, tensors in known.items() if tensors is None]
        if todo:
            # One at a time: an embedding must not depend on what it was encoded with.
            parts = self._load()
            for prompt in todo:
                known[prompt] = self._encode(parts, prompt)
                self.cache.put(self.key(prompt), known[prompt] or {})
            del parts
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.seconds += time.perf_counter() - began
        rows = [tensors for p in prompts if (tensors := known[p]) is not None]
        stacked = {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}
        return {name: v.to(self.dtype) if v.is_floating_point() else v for name, v in stacked.items()}

    def tokenizer(self, part: TextPart | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a part; of the first one when left out.

        Raises:
            ModelError: It is missing or broken.
        """
        part = part or self.parts[0]
        repo, folder = self._home(part, part.tokenizer)
        prefix = f"{folder}/" if folder else ""
        names = [f for f in repo.files() if f.startswith(prefix) and f.endswith(_TOKENIZER_FILES)]
        names = [name for name in names if "/" not in name.removeprefix(prefix)]
        here = {name.removeprefix(prefix) for name in names}
        ways = [way for way in part.vocabularies if set(way) <= here]
        if not ways:
            wanted = " or ".join(prefix + "+".join(way) for way in part.vocabularies)
            raise repo.missing(f"tokenizer vocabulary ({wanted})")
        if all(way == ("spiece.model",) for way in ways):
            lost = [m for m in ("sentencepiece", "google.protobuf") if not installed(m)]
            if lost:
                raise ModelError(f"the tokenizer of {repo.id} needs {', '.join(lost)}", "pip install 'diffkit[text]'")
        for name in names:
            repo.file(name)
        import transformers

        cls = getattr(transformers, part.tokenizer_class)
        with quiet_libraries():
            try:
                loaded: PreTrainedTokenizerBase = cls.from_pretrained(
                    str(repo.root), subfolder=folder, local_files_only=True
                )
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ModelError(f"{repo.id}: the tokenizer cannot be loaded: {reason}", repo.fetch_hint()) from error
        return loaded

    def _load(self) -> dict[str, LoadedPart]:
        LOG.info("loading the text encoder%s of %s", "s" * (len(self.parts) > 1), self.repo.id)
        self.loads += 1
        return {part.encoder: self._load_part(part) for part in self.parts}

    def _load_part(self, part: TextPart) -> LoadedPart:
        tokenizer = self.tokenizer(part)
        import transformers

        options: dict[str, Any] = {}
        eight = self.eight_bit and part.eight_bit
        if eight:
            quantized = transformers.BitsAndBytesConfig(load_in_8bit=True)
            options = {"quantization_config": quantized, "device_map": {"": self.device}}
        # Half precision on the CPU is slow and, for T5, overflows; elsewhere fp16 is, where that overflows, bf16.
        wide = torch.float32 if self.device.type == "cpu" else self.encoding.half
        work = wide if self.dtype == torch.float16 else self.dtype
        repo, folder = self._home(part, part.encoder)
        kind = encoder_class(part.encoder_class)
        if kind is None:
            raise ModelError(
                f"{repo.id}: transformers {transformers.__version__} has no {part.encoder_class.rpartition('.')[2]}",
                "pip install -U transformers",
            )
        encoder = load_component(
            repo, kind, folder, prefer=self.prefer, dtype=work,
            allow_pickle=self.allow_pickle, **options,
        )  # fmt: skip
        return LoadedPart(tokenizer, encoder if eight else encoder.to(self.device), self.device)

    def _home(self, part: TextPart, folder: str) -> tuple[Repo, str]:
        """Return the repository of a part, and its folder there: the model's own, or the one that it was made with."""
        if not self._is_elsewhere(part):
            return self.repo, folder
        if part.elsewhere not in self._others:
            from diffkit.models.hub import open_repo

            self._others[part.elsewhere] = open_repo(part.elsewhere)
        return self._others[part.elsewhere], ""

    def _is_elsewhere(self, part: TextPart) -> bool:
        return bool(part.elsewhere) and not any(name.startswith(f"{part.encoder}/") for name in self.repo.files())

    def _identify(self) -> str:
        # An encoder that lies elsewhere is known by its name: its commit could be asked for only where the Hub is in
        # reach, and then embeddings could not be carried to a machine without a network.
        others = [_name(part.elsewhere) for part in self.parts if self._is_elsewhere(part)]
        own = [name for part in self.parts if not self._is_elsewhere(part) for name in (part.encoder, part.tokenizer)]
        known = [] if not own else [self.repo.revision or fingerprint(self.repo.root, own)]
        return "+".join([*known, *others])

    @torch.no_grad()
    def _encode(self, parts: dict[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        with quiet_libraries():
            tensors = self.encoding.embed(self.repo, parts, prompt)
        return {name: (v.to(self.dtype) if v.is_floating_point() else v).cpu() for name, v in tensors.items()}


def _name(source: str) -> str:
    """Return what an encoder's repository is known by: a folder by what is in it, another one by its name."""
    return fingerprint(Path(source), [""]) if Path(source).is_dir() else source


def open_encoder(repo: Repo, encoding: TextEncoding | None, options: LoadOptions) -> PromptEncoder:
    """Make the prompt encoder of a model alone: neither its network nor anything else of it is fetched.

    Args:
        repo: The model.
        encoding: What `models.text_encoding` says of it.
        options: How it is loaded.

    Raises:
        UsageError: Unknown memory level, or a model that knows no prompts.
    """
    if encoding is None:
        raise UsageError(f"{repo.id} is a {repo.pipeline}, which knows no prompts", "Give a text-to-image model.")
    device = torch.device(options.device)
    dtype = options.dtype or default_dtype(device, encoding.half)
    plan = make_plan(options.memory, device)
    return PromptEncoder(
        repo, encoding, device=device, dtype=dtype, prefer=options.variant or preferred(dtype),
        allow_pickle=options.allow_pickle, eight_bit=plan.text_8bit, cache=options.cache,
    )  # fmt: skip
