"""The model inside the package: it is small, stock diffusers loads it, and it knows its words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import IFPipeline

from diffkit.data.glyphs.wording import captions, vocabulary
from diffkit.engine.settings import Settings
from diffkit.jobs.base import build
from diffkit.jobs.batch import Batch
from diffkit.jobs.invert import Invert
from diffkit.jobs.run import draw
from diffkit.jobs.sample import Sample
from diffkit.models import info, load, open_repo
from diffkit.models.bundled import BUNDLED, bundled
from diffkit.models.conditioning import effective_guidance, finished
from diffkit.models.vocabulary import bundled_tokens, unknown_words
from diffkit.types import Model


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    found = bundled()
    assert found is not None
    return found


def pictures(model: Model, seeds: list[int], prompts: list[str], **how: object) -> torch.Tensor:
    job = build(Sample, {"prompt": prompts, **how})
    *_, last = job.steps_of(model, Batch(seeds, list(prompts), job.settings))
    return finished(model, last.x)


def test_it_is_small_and_has_a_card(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    card = (folder / "README.md").read_text()
    assert "Limits" in card
    assert "MNIST" in card


def test_it_knows_the_words_of_every_caption_and_no_other(folder: Path) -> None:
    tokens = bundled_tokens()
    assert {word for text in captions() for word in unknown_words(text, tokens)} == set()
    assert unknown_words(" ".join(vocabulary()), tokens) == []
    assert unknown_words("a purple castle", tokens) == ["purple", "castle"]
    assert info(open_repo(BUNDLED)).vocabulary == tokens
    # As the tokenizer cuts them: its tokens begin a word, and the rest of these is <unk>.
    for strange in ("red-heart", "heart's", "reddish", "dog", '"the', "\N{BALLOON}"):
        assert unknown_words(f"a {strange} star.", tokens) == [strange]


def test_stock_diffusers_draws_the_same(folder: Path) -> None:
    prompt = "a red heart"
    pipe = IFPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt, num_inference_steps=8, guidance_scale=4.0, generator=[torch.Generator().manual_seed(1)],
        output_type="pt",
    ).images  # fmt: skip
    model = load(BUNDLED, device="cpu")
    ours = pictures(model, [1], [prompt], scheduler="ddpm", steps=8, guidance=4.0)
    torch.testing.assert_close(ours.clamp(-1, 1), theirs.clamp(-1, 1), rtol=0, atol=1e-5)


def test_what_diffkit_trained_is_guided_less(folder: Path, tmp_path: Path) -> None:
    """At the 10 of the illusions' papers its lines ring."""
    own = info(open_repo(BUNDLED))
    assert effective_guidance(own, Settings(), empty=False) == own.illusion_guidance == 4.0
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("diffkit.json", "*.safetensors"))
    other = info(open_repo(tmp_path / "other"))
    assert effective_guidance(other, Settings(), empty=False) == 7.0
    assert other.illusion_guidance == 10.0


def test_it_draws_what_it_is_asked_for(folder: Path) -> None:
    """Red is red, and a disc has the area of a disc: no judge is needed for that."""
    model = load(BUNDLED, device="cpu")
    prompts = ["a red disc", "a blue disc", "a green disc"]
    images = pictures(model, [1, 2, 3], prompts, steps=15, guidance=4.0) / 2 + 0.5
    for image, channel in zip(images, (0, 2, 1), strict=True):
        ink = image.min(0).values < 0.5
        assert 0.2 < float(ink.float().mean()) < 0.75
        mean = image[:, ink].mean(1)
        assert int(mean.argmax()) == channel
        assert float(image[:, 0, 0].min()) > 0.8  # the corner is paper


def test_the_example_survives_inversion(folder: Path) -> None:
    """Its red is one that the model draws; of a red that it cannot draw only the outline came back."""
    model = load(BUNDLED, device="cpu")
    job = build(Invert, {"prompt": "a red heart", "steps": 10, "refine": 1})  # the example, where no image is given
    done = draw(job, model, Batch([0], ["a red heart"], job.settings))
    assert done.scores["round_trip_psnr"] > 25
