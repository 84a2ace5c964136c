"""The text-conditional network and its small text encoder: what a caption is to it, in training and at sampling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import DataError, UsageError
from diffkit.models.hub import open_repo
from diffkit.models.meta import RunMeta
from diffkit.models.presets import TEXT_PRESETS
from diffkit.models.text import EmbeddingCache, PromptEncoder
from diffkit.models.text_encoder import EOS, PAD, UNK, pieces, tokenize, vocabulary, word_tokenizer
from diffkit.models.text_encodings import T5_77
from diffkit.models.text_network import build_text_network, save_text_pipeline
from diffkit.recipes.schema import ModelSpec, NoiseSpec

CAPTIONS = ["a Red heart", "the letter A", "a heart, on a red disc", "a three", ""]
SHAPE = (3, 8, 8)


def build(captions=CAPTIONS, shape=SHAPE, **changes):
    torch.manual_seed(0)
    spec = {"text": "t5", "preset": "tiny_if", "text_width": 16, "text_layers": 2} | changes
    return build_text_network(ModelSpec(**spec), shape=shape, captions=captions)


def test_a_tokenizer_knows_whole_words_and_says_what_it_does_not_know(tmp_path):
    from transformers import T5Tokenizer

    made = word_tokenizer(CAPTIONS)
    made.save_pretrained(tmp_path / "tokenizer")
    loaded = T5Tokenizer.from_pretrained(str(tmp_path / "tokenizer"), local_files_only=True)
    for tokenizer in (made, loaded):
        assert vocabulary(tokenizer) == sorted({",", "a", "disc", "heart", "letter", "on", "red", "the", "three"})
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (PAD, EOS, UNK)
        ids, mask = tokenize(tokenizer, ["the letter A", "The heart, a zebra", ""])
        assert ids.shape == mask.shape == (3, 77)
        words = [tokenizer.convert_ids_to_tokens(row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)]
        assert words == [
            ["▁the", "▁letter", "▁a", "</s>"], ["▁the", "▁heart", ",", "▁a", "<unk>", "</s>"], ["</s>"],
        ]  # fmt: skip


def test_frequent_words_stay_where_there_are_too_many():
    tokenizer = word_tokenizer(["red disc", "red square", "red disc", "blue tree"], limit=2)
    assert vocabulary(tokenizer) == ["disc", "red"]
    assert pieces("m/w it's") == ["▁m", "/", "w", "▁it", "'", "s"]


def test_a_frozen_encoder_gives_in_training_what_a_prompt_gives_at_sampling(tmp_path):
    network = build()
    save_text_pipeline(tmp_path / "m", network, make_noise_scheduler(NoiseSpec(variance="learned")), RunMeta())
    encoder = PromptEncoder(
        open_repo(str(tmp_path / "m")), T5_77, device=torch.device("cpu"), dtype=torch.float32,
        cache=EmbeddingCache(tmp_path / "cache"),
    )  # fmt: skip
    trained_on = network.embed(torch.arange(network.num_classes + 1))
    drawn_with = encoder.encode([*network.captions, ""])["encoder_hidden_states"]
    assert torch.equal(trained_on, drawn_with)
    # Different captions are told apart, and the scale is T5's: unit mean square.
    assert torch.pdist(trained_on.flatten(1)).min() > 1
    torch.testing.assert_close(trained_on.square().mean((1, 2)), torch.ones(len(trained_on)), atol=1e-3, rtol=0)


def test_a_table_too_large_is_made_anew_for_every_batch(monkeypatch):
    labels = torch.tensor([2, 0, 2, 4])
    small, large = build(), build()
    monkeypatch.setattr("diffkit.models.text_network._TABLE_BYTES", 0)
    assert not large._fits()
    anew = large.embed(labels)
    monkeypatch.undo()
    torch.testing.assert_close(small.embed(labels), anew, atol=1e-6, rtol=0)
    assert not anew.requires_grad


@pytest.mark.parametrize("trained", [False, True])
def test_the_gradient_reaches_the_encoder_only_where_it_is_trained(trained):
    network = build(text_encoder="trained" if trained else "frozen")
    out = network(torch.randn(3, *SHAPE), torch.tensor([1, 500, 999]), torch.tensor([0, 1, 4]))
    assert out.shape == (3, 6, 8, 8)
    out.square().mean().backward()
    gradients = [p.grad is not None and bool(p.grad.any()) for p in network.encoder.parameters()]
    assert all(gradients) if trained else not any(gradients)
    assert all(p.requires_grad == trained for p in network.encoder.parameters())


def test_no_label_is_the_empty_caption_and_captions_matter():
    network = build().eval()
    x, t = torch.randn(2, *SHAPE), torch.tensor(700)
    null = network(x, t, torch.full((2,), network.null_class))
    torch.testing.assert_close(network(x, t), null, atol=0, rtol=0)
    assert (network(x, t, torch.tensor([0, 1])) - null).abs().max() > 1e-4


def test_labels_are_the_captions_of_the_batch():
    network = build()
    batch = SimpleNamespace(captions=["the letter A", "", "a three"], images=torch.zeros(3, *SHAPE))
    assert [[*network.captions, ""][k] for k in network.labels_of(batch).tolist()] == batch.captions
    with pytest.raises(DataError, match="'a dragon'"):
        network.labels_of(SimpleNamespace(captions=["a dragon"], images=torch.zeros(1, *SHAPE)))


def test_a_hollow_copy_has_the_same_shape():
    network, copy = build(), build().hollow()
    assert {k: v.shape for k, v in copy.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    copy.load_state_dict(network.state_dict())
    labels = torch.tensor([1])
    assert torch.equal(copy.embed(labels), network.embed(labels))


def test_the_large_preset_is_as_large_as_it_says():
    network = build(preset="if32", shape=(3, 32, 32), text_width=64)
    size = sum(p.numel() for p in network.unet.parameters())
    assert 3.2e6 < size < 3.4e6
    assert network.unet.config.in_channels == 3
    assert network.unet.config.out_channels == 6
    assert set(TEXT_PRESETS) == {"tiny_if", "if32"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"captions": ["", ""]}, "no captions"),
        ({"shape": (1, 8, 8)}, "RGB"),
        ({"shape": (3, 9, 9)}, "resolution=9"),
        ({"shape": (3, 8, 16)}, "squares"),
        ({"preset": "course28"}, "course28"),
        ({"overrides": {"encoder_hid_dim": 3}}, "encoder_hid_dim"),
        ({"overrides": {"layers_per_blok": 2}}, "layers_per_blok"),
        ({"overrides": {"norm_num_groups": 7}}, "norm_num_groups"),
    ],
)
def test_what_does_not_fit_is_refused(changes, named):
    with pytest.raises(UsageError, match=named):
        build(**changes)
