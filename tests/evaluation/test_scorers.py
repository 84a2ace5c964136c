from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.classifier import SmallCNN, load_classifier, save_classifier
from diffkit.evaluation.scorers import (
    SCORERS,
    ClassifierScorer,
    ClipScorer,
    parse_scorer,
)
from diffkit.illusions.scoring import concealment, score_matrix
from tests.models.conftest import clip_tokenizer

NAMES = ["zero", "one", "two, three"]


def images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the registry


def test_names_and_errors() -> None:
    assert sorted(SCORERS) == ["classifier", "clip", "model"]
    with pytest.raises(UsageError, match="unknown scorer 'clap'") as caught:
        parse_scorer("clap:x")
    assert "clip" in caught.value.hint
    with pytest.raises(UsageError, match="no file named"):
        parse_scorer("classifier")


def test_a_missing_clip_says_how_to_fetch_it() -> None:
    with pytest.raises(ModelError, match="not in the local cache") as caught:
        parse_scorer("clip:someone/clip-that-is-not-here")
    assert "hf download someone/clip-that-is-not-here" in caught.value.hint
    with pytest.raises(ModelError, match="openai/clip"):  # the usual one, where none is named
        parse_scorer("clip")


# --- the classifier


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = SmallCNN(8, 3, width=4)
    with torch.no_grad():
        network.layers[-1].weight.mul_(20)
    path = tmp_path / "some, where" / "classifier.safetensors"
    path.parent.mkdir()
    save_classifier(path, network.eval(), NAMES, {"facts": "{}"})
    return path


def test_log_probabilities_of_all_classes(classifier: Path) -> None:
    scorer = parse_scorer(f"classifier:{classifier}")
    assert isinstance(scorer, ClassifierScorer)
    pictures = images(5, 1)
    logits = load_classifier(classifier)[0](pictures)
    got = scorer.score(pictures, ["two, three", "zero"])
    torch.testing.assert_close(got, logits.log_softmax(1)[:, [2, 0]].detach())
    assert got.std() > 0.1
    assert scorer.tau == 1.0


def test_a_softmax_over_the_prompts_is_the_probability_among_them(classifier: Path) -> None:
    scorer = ClassifierScorer(str(classifier))
    pictures = images(2, 1)
    matrix = score_matrix(scorer, [pictures, pictures.flip(-2)], ["zero", "one"])
    p = torch.stack([scorer.logits(v).softmax(1)[:, :2] for v in (pictures, pictures.flip(-2))], 1)
    rows, columns = p / p.sum(2, keepdim=True), p / p.sum(1, keepdim=True)
    both = (rows.diagonal(dim1=1, dim2=2).mean(1) + columns.diagonal(dim1=1, dim2=2).mean(1)) / 2
    torch.testing.assert_close(concealment(matrix, scorer.tau), both)


def test_classes_by_name_or_number_in_a_folder_with_a_comma(classifier: Path) -> None:
    scorer = parse_scorer(f"classifier:{classifier.parent}")
    pictures = images(4, 1)
    torch.testing.assert_close(scorer.score(pictures, ["2"]), scorer.score(pictures, ["two, three"]), rtol=0, atol=0)
    with pytest.raises(UsageError, match="prompt 'tow, three' is not one of the 3 classes") as caught:
        scorer.score(pictures, ["tow, three"])
    assert "two, three" in caught.value.hint
    with pytest.raises(UsageError, match="'3' is not one"):
        scorer.score(pictures, ["3"])


def test_pictures_of_another_size_and_colour_are_made_to_fit(classifier: Path) -> None:
    scorer = parse_scorer(f"classifier:{classifier}")
    grey = images(3, 1)
    torch.testing.assert_close(scorer.score(grey.expand(-1, 3, -1, -1), NAMES), scorer.score(grey, NAMES))
    large = grey.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert tuple(scorer.score(large, NAMES).shape) == (3, 3)
    flat = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(scorer.score(flat, NAMES), scorer.score(torch.full((1, 1, 8, 8), 0.25), NAMES))


def test_scores_do_not_depend_on_the_batch(classifier: Path) -> None:
    scorer = parse_scorer(f"classifier:{classifier}")
    pictures = images(70, 1)
    alone = torch.cat([scorer.score(pictures[k : k + 1], NAMES) for k in range(70)])
    torch.testing.assert_close(scorer.score(pictures, NAMES), alone)


def test_extra_metadata_and_a_wrong_number_of_names(classifier: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(classifier, "pt") as file:
        assert file.metadata()["facts"] == "{}"
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        save_classifier(tmp_path / "x.safetensors", SmallCNN(8, 3, width=4), ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "does not say"),
        ({"classes": "[]"}, "0 classes"),
        ({"classes": "{"}, "missing from its metadata"),
        ({"width": "wide"}, "missing from its metadata"),
        ({"width": "100000"}, "width 100000"),
        ({"shape": "[1, 8, 4]"}, "shape"),
        ({"shape": "[1, 12, 12]"}, "do not fit"),
    ],
)
def test_files_that_are_no_classifier(classifier: Path, change: dict[str, str], message: str) -> None:
    from safetensors import safe_open

    with safe_open(classifier, "pt") as file:
        about = file.metadata()
    save_file(load_file(classifier), classifier, metadata={**about, **change})
    with pytest.raises(ModelError, match=message):
        parse_scorer(f"classifier:{classifier}").score(images(1, 1), ["0"])


def test_no_file_and_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file") as caught:
        parse_scorer(f"classifier:{tmp_path / 'none.safetensors'}")
    assert "train-classifier" in caught.value.hint
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="no safetensors file"):
        parse_scorer(f"classifier:{tmp_path / 'junk.safetensors'}")


# --- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "m"
    tokenizer = clip_tokenizer(folder)
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 77, "bos_token_id": len(tokenizer) - 2,
            "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval().save_pretrained(folder)
    return folder


def test_clip_is_the_librarys_own_similarity(clip: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from diffkit.pictures.tensors import from_tensor, to_tensor

    scorer = parse_scorer(f"clip:{clip}")
    assert isinstance(scorer, ClipScorer)
    pictures = to_tensor(from_tensor(images(3, 3, 16)))
    prompts = ["a cat", "an oil painting of two ducks"]
    model = CLIPModel.from_pretrained(clip)
    process = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = process(images=from_tensor(pictures), return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(str(clip))(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    torch.testing.assert_close(scorer.score(pictures, prompts), out.logits_per_image * scorer.tau, atol=1e-5, rtol=1e-4)
    assert scorer.tau == pytest.approx(math.exp(-2.6592))


def test_clip_takes_any_size_grey_and_long_prompts(clip: Path) -> None:
    scorer = parse_scorer(f"clip:{clip}")
    grey = images(2, 1, 40)
    got = scorer.score(grey, ["a cat", "x " * 200])
    assert tuple(got.shape) == (2, 2)
    assert got.abs().max() <= 1.0 + 1e-5
    torch.testing.assert_close(scorer.score(grey.expand(-1, 3, -1, -1), ["a cat", "x " * 200]), got)


def test_the_middle_of_a_wide_picture_is_judged(clip: Path) -> None:
    scorer, pictures = parse_scorer(f"clip:{clip}"), images(2, 3, 16)
    sides = images(2, 3, 16, seed=1)
    wide = torch.cat([sides[..., :5], pictures, sides[..., :5]], -1)
    torch.testing.assert_close(scorer.score(wide, ["a cat"]), scorer.score(pictures, ["a cat"]))
    assert (scorer.score(sides, ["a cat"]) - scorer.score(pictures, ["a cat"])).abs().min() > 1e-3


def test_clip_does_not_depend_on_the_batch(clip: Path) -> None:
    scorer = parse_scorer(f"clip:{clip}")
    pictures = images(70, 3, 16)
    one = scorer.score(pictures[66:67], ["b"])
    torch.testing.assert_close(scorer.score(pictures, ["a cat", "b"])[66:67, 1:], one, atol=1e-5, rtol=1e-4)


def test_another_kind_of_model_is_refused_without_its_weights(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="bert, not CLIP"):
        parse_scorer(f"clip:{tmp_path}")


def test_a_clip_without_tokenizer_is_a_model_error(clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ModelError, match="tokenizer vocabulary"):
        parse_scorer(f"clip:{tmp_path}").score(images(1), ["a"])
