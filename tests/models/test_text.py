"""Prompt embeddings: what diffusers' pipelines would compute, encoded once, and never again."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffkit.errors import ModelError
from diffkit.models import text_encodings
from diffkit.models.hub import open_repo
from diffkit.models.text import EmbeddingCache, PromptEncoder, fingerprint
from diffkit.models.text_encodings import CLIP, T5_77, clean_prompt
from tests.models.conftest import drop_tensor, make_if, make_sd
from tests.models.fakehub import FakeHub

CPU = torch.device("cpu")


class Single:
    """A prompt encoder, and the one tensor that its encoding gives."""

    def __init__(self, inner: PromptEncoder) -> None:
        self.inner = inner

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        (embedding,) = self.inner.encode(prompts).values()
        return embedding


def encoder(folder: Path, kind: str = "clip", dtype: torch.dtype = torch.float32) -> Single:
    encoding = {"clip": CLIP, "t5": T5_77}[kind]
    return Single(PromptEncoder(open_repo(folder), encoding, device=CPU, dtype=dtype))


def test_clip_parity(tmp_path, embeddings):
    from diffusers import StableDiffusionPipeline

    parts = make_sd(tmp_path / "m")
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    for prompt in ("a cat, 2 dogs.", "", "a " * 100):
        want, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(encoder(tmp_path / "m").encode([prompt]), want, rtol=0, atol=0)


@pytest.mark.parametrize("prompt", ["A Photo of a CAT ", "", "two ducks " * 60])
def test_t5_parity(tmp_path, embeddings, prompt):
    """With what IFPipeline.__call__ does (clean_caption=True), from the sentencepiece file."""
    from diffusers import IFPipeline

    parts = make_if(tmp_path / "m")
    pipe = IFPipeline(**parts, safety_checker=None, feature_extractor=None, watermarker=None)
    want, _ = pipe.encode_prompt(prompt, False, device=CPU, clean_caption=True)
    got = encoder(tmp_path / "m", "t5").encode([prompt])
    assert got.shape == (1, 77, 16)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_cleaning_is_the_pipelines_own(monkeypatch):
    """Where the two optional packages are installed captions are cleaned, as diffusers does; else only lower-cased."""
    from diffusers import IFPipeline

    monkeypatch.setattr(text_encodings, "can_clean", lambda: False)
    assert clean_prompt("  A #Cat! ") == "a #cat!"
    monkeypatch.setattr(text_encodings, "can_clean", lambda: True)
    monkeypatch.setattr(IFPipeline, "_text_preprocessing", lambda self, p, clean_caption: [f"{p}|{clean_caption}"])
    assert clean_prompt("A Cat") == "A Cat|True"


def test_tensor_names_of_real_clip_checkpoints(tmp_path, embeddings):
    """Weights saved before transformers 5.6: one more prefix, and position_ids among the tensors."""
    make_sd(tmp_path / "m")
    want = encoder(tmp_path / "m").encode(["a cat"])
    path = tmp_path / "m" / "text_encoder" / "model.safetensors"
    state = {"text_model." + name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, path, metadata={"format": "pt"})
    again = encoder(tmp_path / "m")
    torch.testing.assert_close(again.encode(["a cat"]), want, rtol=0, atol=0)
    assert again.loads == 1
    drop_tensor(path, "text_model.final_layer_norm.weight")
    with pytest.raises(ModelError, match="tensors are missing"):
        encoder(tmp_path / "m").encode(["a cat"])


def test_second_time_reads_the_cache(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    first = encoder(tmp_path / "m")
    assert first.missing(["a", "b", "a"]) == ["a", "b"]
    out = first.encode(["a", "b", "a"])
    torch.testing.assert_close(out[0], out[2], rtol=0, atol=0)
    assert first.loads == 1
    assert len(list(embeddings.rglob("*.safetensors"))) == 2
    second = encoder(tmp_path / "m")
    torch.testing.assert_close(second.encode(["b", "a"]), out[[1, 0]], rtol=0, atol=0)
    assert second.loads == 0
    assert second.missing(["a", "c"]) == ["c"]
    assert not list(embeddings.rglob("*.tmp"))


def test_an_embedding_does_not_depend_on_its_company(tmp_path, embeddings, monkeypatch):
    make_sd(tmp_path / "m")
    together = encoder(tmp_path / "m").encode(["a cat", "a", "b"])
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "other"))
    torch.testing.assert_close(encoder(tmp_path / "m").encode(["a cat"])[0], together[0], rtol=0, atol=0)


def test_key_holds_everything_it_depends_on(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    key = encoder(tmp_path / "m").key("a")
    assert encoder(tmp_path / "m").key("b") != key
    assert encoder(tmp_path / "m", dtype=torch.float16).key("a") != key
    assert encoder(tmp_path / "m", "t5").key("a") != key
    shutil.copytree(tmp_path / "m", tmp_path / "moved")
    assert encoder(tmp_path / "moved").key("a") == key
    path = tmp_path / "moved" / "text_encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert encoder(tmp_path / "moved").key("a") != key


def test_fingerprint_sees_a_large_file(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    path = tmp_path / "text_encoder" / "model.safetensors"
    data = bytearray(2**24 + 1000)
    path.write_bytes(data)
    before = fingerprint(tmp_path, ("text_encoder",))
    data[-1] = 1
    path.write_bytes(data)
    assert fingerprint(tmp_path, ("text_encoder",)) != before


def test_dtype(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    half = encoder(tmp_path / "m", dtype=torch.float16)
    out = half.encode(["a"])
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), encoder(tmp_path / "m").encode(["a"]), rtol=1e-3, atol=1e-3)


def test_broken_entry_is_encoded_again(tmp_path, embeddings, caplog):
    make_sd(tmp_path / "m")
    want = encoder(tmp_path / "m").encode(["a"])
    (entry,) = embeddings.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:50])
    again = encoder(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "diffkit"):
        torch.testing.assert_close(again.encode(["a"]), want, rtol=0, atol=0)
    assert again.loads == 1
    assert "encoded again" in caplog.text
    assert encoder(tmp_path / "m").missing(["a"]) == []


def test_cache_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file" / "below")
    with caplog.at_level(logging.WARNING, "diffkit"):
        cache.put({"prompt": "a"}, {"encoder_hidden_states": torch.zeros(2, 2)})
    assert "cannot be written" in caplog.text
    assert cache.get({"prompt": "a"}) is None


def test_truncation_is_said(tmp_path, embeddings, caplog):
    make_sd(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "diffkit"):
        encoder(tmp_path / "m").encode(["a " * 75])
        assert "not seen" not in caplog.text
        encoder(tmp_path / "m").encode(["a " * 75 + "b c d"])
    assert "not seen" in caplog.text


@pytest.mark.parametrize(("make", "kind", "lost"), [(make_sd, "clip", "vocab.json"), (make_if, "t5", "spiece.model")])
def test_missing_vocabulary_is_an_error(tmp_path, embeddings, make, kind, lost):
    make(tmp_path / "m")
    (tmp_path / "m" / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    (tmp_path / "m" / "tokenizer" / lost).unlink()
    with pytest.raises(ModelError, match="tokenizer vocabulary"):
        encoder(tmp_path / "m", kind).encode(["a"])


def test_hub_text_encoder_comes_only_when_needed(tmp_path, embeddings, fake_hub: FakeHub):
    make_if(tmp_path / "m")
    fake_hub.repos["DeepFloyd/tiny"] = tmp_path / "m"
    make = lambda: Single(PromptEncoder(open_repo("DeepFloyd/tiny"), T5_77, device=CPU, dtype=torch.float32))  # noqa: E731
    first = make()
    assert first.key("a")["revision"] == fake_hub.commit("DeepFloyd/tiny")
    first.encode(["a"])
    assert {"text_encoder/model.safetensors", "tokenizer/spiece.model"} <= set(fake_hub.fetched())
    assert not any(f.startswith("unet/") for f in fake_hub.fetched())
    shutil.rmtree(tmp_path / "m" / "text_encoder")
    shutil.rmtree(tmp_path / "cache")
    fake_hub.requests.clear()
    make().encode(["a"])
    assert fake_hub.fetched() == ["model_index.json"]
    with pytest.raises(ModelError, match="text_encoder"):
        make().encode(["b"])


# diffusers' own models import the base of transformers; the encoders and their tokenizers are what counts. Modules
# without a spec were never imported: transformers 5.6 puts empty ones in the place of names that it has given up.
HEAVY = ("transformers.models.t5", "transformers.models.clip", "diffusers.pipelines")
RUN = f"""
import sys, torch
from diffkit.models import load
model = load(sys.argv[1], device="cpu")
cond = model.encode(["a cat", ""])
x = torch.randn(2, *model.info.sample)
model.codec.decode(model(x, torch.tensor(500), cond).out)
print(model.prompts.loads, sorted(m for m, at in sys.modules.items() if m.startswith({HEAVY}) and at.__spec__))
"""


@pytest.mark.parametrize(("make", "kind"), [(make_sd, "clip"), (make_if, "t5")])
def test_second_run_never_imports_the_text_encoder(tmp_path, embeddings, make, kind):
    make(tmp_path / "m")
    encoder(tmp_path / "m", kind).encode(["a cat", ""])
    assert sys.modules[f"transformers.models.{kind}.modeling_{kind}"].__spec__  # what the other process must not show
    env = os.environ | {"DIFFKIT_CACHE": str(embeddings.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "m")], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "0 []\n", done.stderr
