"""Prompts to embeddings: encoded once, kept as safetensors, so that a text encoder is loaded once and then never again.

The cache's key is the model's commit (or its folder's fingerprint), the encoder, the prompt and the number type; the
files can be carried to another machine. Nothing of transformers is imported before a prompt is missing.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.models.memory import default_dtype, make_plan
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component, preferred, quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger("diffkit.models")

MAX_TOKENS = 77  # CLIP's context; T5 takes more, but DeepFloyd IF was trained with 77

# Files a tokenizer cannot do without; without them transformers makes up an empty vocabulary and says nothing.
_VOCABULARY = {
    "clip": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "t5": (("tokenizer.json",), ("spiece.model",)),
}


def cache_folder(kind: str = "embeddings") -> Path:
    """Return where things of a kind are kept: below DIFFKIT_CACHE, else the user's cache folder."""
    base = os.environ.get("DIFFKIT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "diffkit")
    return Path(base).expanduser() / kind


class EmbeddingCache:
    """Prompt embeddings on disk, one safetensors file each, written whole or not at all.

    Args:
        root: The folder; `cache_folder()` when left out.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_folder()

    def path(self, key: dict[str, str]) -> Path:
        """Return the file of a key."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.root / digest[:2] / f"{digest}.safetensors"

    def get(self, key: dict[str, str]) -> Tensor | None:
        """Return the embedding (L, D), or None where there is none that can be read."""
        path = self.path(key)
        if not path.is_file():
            return None
        from safetensors.torch import load_file

        try:
            return load_file(path)["embedding"]
        except Exception as error:  # a broken cache entry is encoded again, never an obstacle
            LOG.warning("%s is not readable (%s); the prompt is encoded again", path, type(error).__name__)
            return None

    def put(self, key: dict[str, str], embedding: Tensor) -> None:
        """Store an embedding (L, D); a cache that cannot be written is no error."""
        from safetensors.torch import save

        path = self.path(key)
        data = save({"embedding": embedding.detach().cpu().contiguous()}, metadata=key)
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
    """A model's tokenizer and text encoder, there only while a prompt is missing from the cache.

    Args:
        repo: The model.
        kind: "clip" (Stable Diffusion) or "t5" (DeepFloyd IF).
        device: Where to encode.
        dtype: Type of the embeddings.
        prefer: Weight variant to take where it is there.
        allow_pickle: Also read `.bin`.
        eight_bit: Load T5 in 8 bits (CUDA and bitsandbytes).
        cache: Where embeddings are kept.
    """

    def __init__(
        self,
        repo: Repo,
        kind: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prefer: str | None = None,
        allow_pickle: bool = False,
        eight_bit: bool = False,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.repo, self.kind, self.device, self.dtype = repo, kind, device, dtype
        self.prefer, self.allow_pickle, self.eight_bit = prefer, allow_pickle, eight_bit and kind == "t5"
        self.cache = cache if cache is not None else EmbeddingCache()
        self.loads = 0
        self.seconds = 0.0  # spent on encoding, the text encoder's loading included
        self._identity: str | None = None

    def key(self, prompt: str) -> dict[str, str]:
        """Return what an embedding depends on."""
        if self._identity is None:
            self._identity = self.repo.revision or fingerprint(self.repo.root, ("text_encoder", "tokenizer"))
        encoder = f"{self.kind}-{MAX_TOKENS}" + ("-8bit" if self.eight_bit else "")
        if self.kind == "t5":
            encoder += "-cleaned" if can_clean() else "-lower"
        # A folder is known by what is in it: its path says nothing on another machine.
        model = self.repo.id if self.repo.hub else ""
        return {
            "model": model, "revision": self._identity, "encoder": encoder, "prompt": prompt,
            "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts that are not in the cache, each once."""
        return [p for p in dict.fromkeys(prompts) if self.cache.get(self.key(p)) is None]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings (len(prompts), 77, D) on the device; the text encoder is loaded only for missing ones.

        Raises:
            ModelError: The text encoder or tokenizer is missing or broken.
        """
        began = time.perf_counter()
        known = {p: self.cache.get(self.key(p)) for p in dict.fromkeys(prompts)}
        todo = [p for p, embedding in known.items() if embedding is None]
        if todo:
            # One at a time: an embedding must not depend on what it was encoded with.
            tokenizer, encoder = self._load()
            for prompt in todo:
                known[prompt] = self._encode(tokenizer, encoder, prompt)
                self.cache.put(self.key(prompt), known[prompt])  # type: ignore[arg-type]
            del tokenizer, encoder
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.seconds += time.perf_counter() - began
        rows = [embedding for p in prompts if (embedding := known[p]) is not None]
        return torch.stack(rows).to(self.device, self.dtype)

    def _load(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        LOG.info("loading the text encoder of %s", self.repo.id)
        self.loads += 1
        tokenizer = self.tokenizer()
        from transformers import CLIPTextModel, T5EncoderModel

        options: dict[str, Any] = {}
        if self.eight_bit:
            from transformers import BitsAndBytesConfig

            options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": self.device}}
        # Half precision on the CPU is slow and, for T5, overflows.
        work = torch.float32 if self.device.type == "cpu" and self.dtype == torch.float16 else self.dtype
        encoder = load_component(
            self.repo, CLIPTextModel if self.kind == "clip" else T5EncoderModel, "text_encoder", prefer=self.prefer,
            dtype=work, allow_pickle=self.allow_pickle, **options,
        )  # fmt: skip
        return tokenizer, encoder if self.eight_bit else encoder.to(self.device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            ModelError: It is missing or broken.
        """
        names = [f for f in self.repo.files() if f.startswith("tokenizer/") and f.endswith((".json", ".txt", ".model"))]
        here = {name.removeprefix("tokenizer/") for name in names}
        ways = _VOCABULARY[self.kind]
        if not any(set(way) <= here for way in ways):
            raise self.repo.missing(
                "tokenizer vocabulary (" + " or ".join("tokenizer/" + "+".join(w) for w in ways) + ")"
            )
        if self.kind == "t5" and "tokenizer.json" not in here:
            lost = [m for m in ("sentencepiece", "google.protobuf") if not _installed(m)]
            if lost:
                raise ModelError(
                    f"the tokenizer of {self.repo.id} needs {', '.join(lost)}", "pip install 'diffkit[text]'"
                )
        for name in names:
            self.repo.file(name)
        from transformers import CLIPTokenizer, T5Tokenizer

        cls = CLIPTokenizer if self.kind == "clip" else T5Tokenizer
        with quiet_libraries():
            try:
                return cls.from_pretrained(str(self.repo.root), subfolder="tokenizer", local_files_only=True)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ModelError(
                    f"{self.repo.id}: the tokenizer cannot be loaded: {reason}", self.repo.fetch_hint()
                ) from error

    @torch.no_grad()
    def _encode(self, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, prompt: str) -> Tensor:
        text = clean_prompt(prompt) if self.kind == "t5" else prompt
        with quiet_libraries():
            tokens = tokenizer(text, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
            whole = tokenizer(text).input_ids
        if len(whole) > MAX_TOKENS:
            cut = tokenizer.decode(whole[MAX_TOKENS - 1 : -1])
            LOG.warning("the prompt is longer than %d tokens; this part is not seen: %s", MAX_TOKENS, cut)
        # Stable Diffusion attends to the padding unless its encoder says otherwise; IF never does.
        masked = self.kind == "t5" or getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        out = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return out[0].to(self.dtype).cpu()


def open_encoder(repo: Repo, kind: str, options: LoadOptions) -> PromptEncoder:
    """Make the prompt encoder of a model alone: neither its UNet nor anything else of it is fetched.

    Args:
        repo: The model.
        kind: What `models.text_encoder_kind` says of it.
        options: How it is loaded.

    Raises:
        UsageError: Unknown memory level, or a model that knows no prompts.
    """
    if not kind:
        raise UsageError(f"{repo.id} is a {repo.pipeline}, which knows no prompts", "Give a text-to-image model.")
    device = torch.device(options.device)
    dtype = options.dtype or default_dtype(device)
    plan = make_plan(options.memory, device)
    return PromptEncoder(
        repo, kind, device=device, dtype=dtype, prefer=options.variant or preferred(dtype),
        allow_pickle=options.allow_pickle, eight_bit=plan.text_8bit, cache=options.cache,
    )  # fmt: skip


def can_clean() -> bool:
    """Say whether captions are cleaned: diffusers does so where these two are installed, and so do we."""
    return _installed("bs4") and _installed("ftfy")


def clean_prompt(prompt: str) -> str:
    """Prepare a prompt as `IFPipeline.__call__` does by default: cleaned where possible, else lower-cased, stripped."""
    if not can_clean():
        return prompt.lower().strip()
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline

    # The rules are diffusers' own, or the embeddings would differ from what the model was trained on.
    pipeline = IFPipeline.__new__(IFPipeline)
    return str(pipeline._text_preprocessing(prompt, clean_caption=True)[0])


def fingerprint(root: Path, folders: Sequence[str]) -> str:
    """Hash what folders hold: names, sizes and contents, of a large file its start and 64 blocks spread over it."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in (root / folder).glob("*") if p.is_file()):
            size = path.stat().st_size
            total.update(f"{folder}/{path.name}:{size}:".encode())
            with path.open("rb") as file:
                if size <= 2**24:
                    total.update(file.read())
                    continue
                total.update(file.read(2**20))
                for k in range(1, 65):
                    file.seek(k * (size - 2**16) // 64)
                    total.update(file.read(2**16))
    return total.hexdigest()


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
