"""The model inside the package: it is small, stock diffusers loads it, and it knows its words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import IFPipeline

from diffkit.data.glyphs.wording import captions, vocabulary
from diffkit.jobs.invert import invert
from diffkit.jobs.sample import Settings, effective_guidance, generate, guidance_of
from diffkit.models import load
from diffkit.models.vocabulary import BUNDLED, bundled, unknown_words
from diffkit.pictures.examples import example_image
from diffkit.pictures.images import to_tensor


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    found = bundled()
    assert found is not None
    return found


def test_it_is_small_and_has_a_card(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    card = (folder / "README.md").read_text()
    assert "Limits" in card
    assert "MNIST" in card


def test_it_knows_the_words_of_every_caption_and_no_other(folder: Path) -> None:
    assert {word for text in captions() for word in unknown_words(text)} == set()
    assert unknown_words(" ".join(vocabulary())) == []
    assert unknown_words("a purple castle") == ["purple", "castle"]
    # As the tokenizer cuts them: its tokens begin a word, and the rest of these is <unk>.
    for strange in ("red-heart", "heart's", "reddish", "dog", '"the', "\N{BALLOON}"):
        assert unknown_words(f"a {strange} star.") == [strange]


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
    how = Settings(scheduler="ddpm", steps=8, guidance=4.0)
    ours = torch.stack([picture.image for some in generate(model, [1], [prompt], how) for picture in some])
    torch.testing.assert_close(ours.clamp(-1, 1), theirs.clamp(-1, 1), rtol=0, atol=1e-5)


def test_what_diffkit_trained_is_guided_less(folder: Path) -> None:
    """At the 10 of the illusions' papers its lines ring."""
    model = load(BUNDLED, device="cpu")
    assert effective_guidance(model, Settings(), null=False) == guidance_of(model, 10.0) == 4.0
    model.repo = replace(model.repo, root=folder / "unet")  # nothing of diffkit's there
    assert effective_guidance(model, Settings(), null=False) == 7.0
    assert guidance_of(model, 10.0) == 10.0


def test_it_draws_what_it_is_asked_for(folder: Path) -> None:
    """Red is red, and a disc has the area of a disc: no judge is needed for that."""
    model = load(BUNDLED, device="cpu")
    prompts = ["a red disc", "a blue disc", "a green disc"]
    drawn = generate(model, [1, 2, 3], prompts, Settings(steps=15, guidance=4.0))
    images = torch.stack([picture.image for some in drawn for picture in some]) / 2 + 0.5
    for image, channel in zip(images, (0, 2, 1), strict=True):
        ink = image.min(0).values < 0.5
        assert 0.2 < float(ink.float().mean()) < 0.75
        mean = image[:, ink].mean(1)
        assert int(mean.argmax()) == channel
        assert float(image[:, 0, 0].min()) > 0.8  # the corner is paper


def test_the_example_survives_inversion(folder: Path) -> None:
    """Its red is one that the model draws; of a red that it cannot draw only the outline came back."""
    model = load(BUNDLED, device="cpu")
    image = to_tensor(example_image(3, 32))
    done = invert(model, image, [0], "a red heart", Settings(steps=10), refine=1)
    assert done.scores["round_trip_psnr"] > 25
