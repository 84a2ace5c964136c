"""Text-conditional training from captions to a pipeline that stock diffusers loads."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from diffusers import DDPMPipeline, IFPipeline
from tiny_run import assert_same_run, final_tensors
from tiny_text import CAPTIONS, captioned_folder, text_recipe

from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import DataError, UsageError
from diffkit.models import load
from diffkit.recipes.reading import load_recipe
from diffkit.training import fit
from diffkit.training.estimate import estimate_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return captioned_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run with everything on."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    summary = fit(text_recipe(data, folder, "dataset.validation=0.2", "noise.snr_gamma=5"))
    return folder, summary


def stock(folder):
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe = IFPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, watermarker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_stock_ifpipeline_and_our_own_sampling_draw_the_same_pictures(finished, tmp_path, monkeypatch, scale):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    folder, _ = finished
    prompts, seeds = ["a blue Square", "a red disc", ""], [3, 4, 5]
    theirs = stock(folder)(
        prompts, generator=generators(seeds), guidance_scale=scale, num_inference_steps=7, output_type="pt"
    ).images
    model, made = load(str(folder), device="cpu"), generators(seeds)
    assert model.info.family == "deepfloyd"
    assert model.info.sample == (3, 8, 8)
    set_grid(model.scheduler, 7)
    x = pure_noise(model.scheduler, model.noise(made))
    for step in denoise(cfg(model, model.uncond(1), scale), x, model.scheduler, model.encode(prompts), generators=made):
        x = step.x
    print("largest difference", float((x - theirs).abs().max()))
    torch.testing.assert_close(x, theirs, atol=1e-6, rtol=0)
    assert theirs.isfinite().all()
    assert (theirs[0] - theirs[1]).abs().max() > 0.01


def test_what_a_run_leaves_behind(finished):
    folder, summary = finished
    assert summary["step"] == 9
    assert summary["validation_loss"] is not None
    for name in ("unet", "unet_raw", "text_encoder", "tokenizer", "scheduler", "samples", "checkpoints"):
        assert (folder / name).is_dir(), name
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "IFPipeline"
    assert all(index[part] == [None, None] for part in ("safety_checker", "watermarker", "feature_extractor"))
    meta = json.loads((folder / "diffkit.json").read_text())
    assert (meta["conditioning"], meta["prediction"], meta["text_encoder"]) == ("text", "sample", "frozen")
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["variance_type"], scheduler["prediction_type"]) == ("learned_range", "sample")
    card = (folder / "README.md").read_text()
    for said in ("text-to-image", "IFPipeline", "--prompt", "filled, red, square", "licence"):
        assert said in card


@pytest.mark.parametrize("variant", ["frozen", "trained", "bf16"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(data, tmp_path, variant):
    sets = {"bf16": ["training.mixed_precision=bf16", "training.gradient_accumulation=2"]}
    sets = sets.get(variant, [f"model.text_encoder={variant}"])
    fit(text_recipe(data, tmp_path / "whole", *sets))
    stopped = text_recipe(data, tmp_path / "parts", *sets)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step.step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(stopped, on_progress=kill)
    assert fit(stopped)["resumed_from"].endswith("step-0000003")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_encoder_learns_where_it_is_trained_and_stays_where_it_is_frozen(data, tmp_path):
    for kind in ("frozen", "trained"):
        fit(text_recipe(data, tmp_path / kind, f"model.text_encoder={kind}", "training.steps=3"))
        fit(text_recipe(data, tmp_path / f"{kind}-on", f"model.text_encoder={kind}", "training.steps=6"))
        early, late = (final_tensors(tmp_path / name) for name in (kind, f"{kind}-on"))
        moved = {n for n in early if n.startswith("network.encoder.") and not torch.equal(early[n], late[n])}
        assert bool(moved) == (kind == "trained")
        assert any(n.startswith("ema.encoder.") for n in early) == (kind == "trained")
    # The averaged encoder is the one that is written.
    written = stock(tmp_path / "trained").text_encoder.state_dict()["shared.weight"]
    torch.testing.assert_close(written, final_tensors(tmp_path / "trained")["ema.encoder.shared.weight"])


def test_words_are_learned(data, tmp_path):
    """After a few dozen updates, a validation with the captions exchanged costs more than with the right ones."""
    from diffkit.data import Loader, open_dataset
    from diffkit.training import build, rng
    from diffkit.training.objectives import make_objective

    recipe = text_recipe(
        data, tmp_path / "run", "training.steps=90", "training.lr=6e-3", "training.checkpoint_every=90",
        "training.class_dropout=0.1", "training.ema_decay=0.9",
    )  # fmt: skip
    fit(recipe)
    dataset = open_dataset(recipe.dataset, seed=0)
    loader = Loader(dataset, recipe.dataset, batch_size=24, seed=0)
    network, scheduler, _ = build.network(recipe, dataset, loader.shape)
    tensors = final_tensors(tmp_path / "run")
    own = network.state_dict()
    for name in own:
        if f"ema.{name}" in tensors:
            own[name].copy_(tensors[f"ema.{name}"])
    batch = next(loader.stream(0))
    objective = make_objective(recipe.noise, scheduler, "cpu")
    draw = objective.draw(batch.images, rng.generator("cpu", 1))
    draw.level.fill_(990)
    with torch.no_grad():
        labels = network.labels_of(batch)
        right = objective.loss(network, batch.images, labels, draw).mean()
        red, blue = network.label(CAPTIONS[0]), network.label(CAPTIONS[1])
        swapped = torch.where(labels == red, blue, torch.where(labels == blue, red, labels))
        wrong = objective.loss(network, batch.images, swapped, draw).mean()
    print("right", float(right), "wrong", float(wrong))
    assert float(wrong) > 1.2 * float(right)


def test_a_network_without_text_can_learn_its_variance_too(tmp_path):
    recipe = text_recipe(
        "digits", tmp_path / "run", "model.text=none", "model.preset=tiny", "noise.variance=learned",
        "noise.prediction=epsilon", "dataset.limit=30", "training.steps=3",
    )  # fmt: skip
    fit(recipe)
    pipe = DDPMPipeline.from_pretrained(tmp_path / "run", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(2, generator=torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images
    assert theirs.shape[0] == 2
    model = load(str(tmp_path / "run"), device="cpu")
    prediction = model(model.noise(generators([0])), torch.tensor(500), model.encode([""]))
    assert prediction.var is not None
    assert prediction.var.shape == prediction.out.shape == (1, 1, 8, 8)


def test_data_without_captions_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("diffkit.data.loader.Loader.__init__", lambda *a, **k: pytest.fail("the images were read"))
    with pytest.raises(UsageError, match="no captions") as caught:
        fit(text_recipe("digits", tmp_path / "run"))
    assert "caption_column" in caught.value.hint


def test_grey_pictures_are_refused_and_taken_as_rgb_where_asked(tmp_path, monkeypatch):
    from PIL import Image

    folder = captioned_folder(tmp_path / "grey")
    for path in folder.glob("*.png"):
        Image.open(path).convert("L").save(path)
    with pytest.raises(UsageError, match="RGB") as caught:
        fit(text_recipe(folder, tmp_path / "run"))
    assert "dataset.channels" in caught.value.hint
    assert fit(text_recipe(folder, tmp_path / "run", "dataset.channels=3", "training.steps=1"))["step"] == 1


def test_a_caption_column_that_is_not_there_is_a_data_error(data, tmp_path):
    with pytest.raises(DataError, match="caption_column 'words'"):
        fit(text_recipe(data, tmp_path / "run", "dataset.caption_column=words"))


def test_captions_come_from_a_named_column_of_a_table_too(tmp_path):
    from datasets import Dataset, Features, Image, Value

    folder = captioned_folder(tmp_path / "pictures")
    rows = {
        "image": [str(folder / f"{k}.png") for k in range(10)],
        "says": [f"a {'red' if k % 2 else 'blue'} thing" for k in range(10)],
    }
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "says": Value("string")}))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    sets = ["dataset.caption_column=says", "training.steps=1"]
    fit(text_recipe(tmp_path / "parquet", tmp_path / "run", *sets))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "a, blue, red, thing" in card


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (["noise.prediction=flow"], "flow"),
        (["noise.variance=fixed"], "variance"),
        (["model.class_conditioning=embedding"], "class_conditioning"),
        (["dataset.streaming=true"], "stream"),
        (["noise.timestep_bias=900-200"], "timestep_bias"),
        (["noise.timestep_bias=mostly late"], "LOW-HIGH"),
        (["model.pretrained=google/ddpm-cat-256"], "from scratch"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(tmp_path, sets, named):
    with pytest.raises(UsageError, match=named):
        text_recipe("x", tmp_path, *sets)


def test_text_chooses_its_preset_and_its_variance():
    recipe = load_recipe("digits", sets=["model.text=t5", "model.class_conditioning=none"], environ={})
    assert recipe.noise.variance == "learned"
    plain = load_recipe("digits", environ={})
    assert (plain.noise.variance, plain.model.text) == ("fixed", "none")


def test_a_dry_run_counts_the_network(data, tmp_path):
    facts = estimate_recipe(text_recipe(data, tmp_path / "run"), timed=False)
    assert facts["updates"] == 9
    assert facts["trainable"] < facts["parameters"]
    assert facts["memory"]["activations"] > 0
