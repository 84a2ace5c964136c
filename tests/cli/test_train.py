"""`diffkit train` and `diffkit finetune` as their users run them, and what the result is good for."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from PIL import Image
from tiny_run import TINY

from diffkit.models import load

KEYS = {"output_dir", "step", "epoch", "loss", "images_per_second", "checkpoint", "resumed_from", "skipped_steps"}


@pytest.fixture
def train(run_cli, tmp_path):
    """Run a tiny `diffkit train` and return (folder, the JSON that it printed)."""

    def go(*sets, out="run", command=("train", "digits")):
        items = [i for s in [*TINY, "training.steps=4", *sets] for i in ("--set", s)]
        ran = run_cli(*command, "--json", "--out", str(tmp_path / out), *items)
        assert ran.code == 0, ran.stderr
        return tmp_path / out, json.loads(ran.stdout)

    return go


def test_an_unconditional_run_is_a_stock_pipeline(train):
    folder, summary = train("model.class_conditioning=none")
    assert set(summary) >= KEYS
    assert summary["step"] == 4
    pipe = DDPMPipeline.from_pretrained(folder)
    image = pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    assert (image.size, image.mode) == ((8, 8), "L")
    again = DDIMPipeline.from_pretrained(folder)(num_inference_steps=3).images[0]
    assert again.size == (8, 8)
    expected = {"model_index.json", "unet", "unet_raw", "scheduler", "diffkit.json", "resolved.yaml", "metrics.jsonl",
                "loss.png", "samples", "checkpoints", "README.md"}  # fmt: skip
    assert expected <= {p.name for p in folder.iterdir()}
    assert not [p for p in folder.iterdir() if p.name.startswith(".writing")]
    for picture in [folder / "loss.png", *(folder / "samples").iterdir()]:
        with Image.open(picture) as image:
            image.verify()


def test_the_averaged_weights_are_the_pipeline_and_the_raw_ones_lie_beside(train):
    folder, summary = train()
    from safetensors.torch import load_file

    newest = Path(summary["checkpoint"])
    ema, raw = load_file(newest / "ema.safetensors"), load_file(newest / "network.safetensors")
    for part, weights in (("unet", ema), ("unet_raw", raw)):
        for name, value in UNet2DModel.from_pretrained(folder, subfolder=part).state_dict().items():
            assert torch.equal(value, weights[f"unet.{name}"]), (part, name)


@pytest.mark.parametrize("kind", ["embedding", "concat"])
def test_a_conditional_run_is_sampled_by_class(train, run_cli, tmp_path, kind):
    folder, _ = train(f"model.class_conditioning={kind}")
    extra = 4 if kind == "concat" else 0
    assert UNet2DModel.from_pretrained(folder, subfolder="unet").config.in_channels == 1 + extra
    ran = run_cli(
        "sample", str(folder), "--class", "3,7", "-n", "2", "--steps", "2", "--json", "--out", str(tmp_path / "o")
    )
    assert ran.code == 0, ran.stderr
    assert len(json.loads(ran.stdout)["images"]) == 2


OFFSET = ["noise.prediction=v_prediction", "noise.schedule=offset_cosine:0.95,0.02", "noise.timesteps=300"]
SIGMOID = ["noise.prediction=sample", "noise.snr_gamma=5", "noise.schedule=sigmoid", "noise.timesteps=512"]
CASES = {
    "flow": ["noise.prediction=flow"],
    "linear mix": ["noise.prediction=linear_mix"],
    "one step": ["noise.prediction=one_step", "noise.sigma=0.4"],
    "v": OFFSET,
    "x0": SIGMOID,
    "saving memory": ["training.gradient_checkpointing=true", "training.mixed_precision=bf16"],
}


@pytest.mark.parametrize("case", CASES)
def test_every_objective_trains_previews_and_samples(train, run_cli, tmp_path, case):
    folder, summary = train("model.class_conditioning=none", *CASES[case])
    assert summary["loss"] > 0
    assert {p.name for p in (folder / "samples").iterdir()} == {"step-0000004-ema.png", "step-0000004-raw.png"}
    steps = [] if case == "one step" else ["--steps", "2"]
    ran = run_cli("sample", str(folder), *steps, "--json", "--out", str(tmp_path / "o"))
    assert ran.code == 0, ran.stderr
    if case not in ("linear mix", "one step"):
        assert DDPMPipeline.from_pretrained(folder)(num_inference_steps=3).images[0].size == (8, 8)


def test_a_resolution_that_cannot_be_halved_is_padded_and_cropped_back(train, run_cli, tmp_path):
    folder, _ = train("dataset.resolution=9", "model.class_conditioning=none")
    assert UNet2DModel.from_pretrained(folder, subfolder="unet").config.sample_size == 10
    model = load(str(folder))
    assert (model.info.sample, model.info.size) == ((1, 10, 10), (9, 9))
    ran = run_cli("sample", str(folder), "--steps", "2", "--json", "--out", str(tmp_path / "one.png"))
    assert ran.code == 0, ran.stderr
    assert Image.open(tmp_path / "one.png").size == (9, 9)


def test_the_card_tells_the_loss_the_recipe_and_shows_a_picture(train):
    folder, summary = train("dataset.validation=0.2")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert f"training loss {summary['loss']:.5f}" in card
    assert f"validation loss {summary['validation_loss']:.5f}" in card
    picture = card.split("](samples/")[1].split(")")[0]
    assert (folder / "samples" / picture).is_file()
    assert "ema_decay: 0.9" in card
    assert str(folder.parent) not in card.replace(f"dir: {folder}", "")


def test_trackers_get_the_numbers(train):
    pytest.importorskip("tensorboard")
    folder, _ = train("output.report_to=[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {tag for path in {p.parent for p in folder.rglob("events.out.tfevents.*")}
            for tag in EventAccumulator(str(path)).Reload().Tags()["scalars"]}  # fmt: skip
    assert {"loss", "lr"} <= tags


def test_the_flags_are_shorthands_and_the_resolved_recipe_is_written(run_cli, tmp_path):
    items = [
        i
        for s in TINY
        if not s.startswith(("training.steps", "training.batch", "dataset.resolution"))
        for i in ("--set", s)
    ]
    ran = run_cli("train", "--steps", "2", "--batch-size", "4", "--resolution", "8", "--lr", "0.002", "--seed", "5",
                  "--out", str(tmp_path / "run"), "--json", *items)  # fmt: skip
    assert ran.code == 0, ran.stderr
    from diffkit.recipes.reading import load_recipe

    recipe = load_recipe(str(tmp_path / "run" / "resolved.yaml"), environ={})
    training = recipe.training
    assert (training.steps, training.batch_size, training.lr, training.seed) == (2, 4, 0.002, 5)
    assert recipe.dataset.resolution == 8


def test_finetune_goes_on_from_a_run_and_fits_new_classes(train, run_cli, tmp_path):
    folder, _ = train("model.class_conditioning=none", out="first")
    sets = [f"model.pretrained={folder}", "model.class_conditioning=embedding"]
    second, summary = train(*sets, out="second", command=("finetune", "digits"))
    assert summary["step"] == 4
    assert len(load(str(second)).info.classes) == 10
    ran = run_cli("finetune", "digits", "--set", "model.pretrained=null", "--json")
    assert ran.code == 2
    assert "--pretrained" in json.loads(ran.stdout)["error"]["hint"]


def test_errors_come_before_anything_is_loaded(run_cli, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run_cli("train", "--out", str(tmp_path / "file" / "run"), "--json")
    assert (ran.code, json.loads(ran.stdout)["error"]["code"]) == (2, 2)
    ran = run_cli("train", "digitz", "--json")
    assert ran.code == 2
    assert "digits" in json.loads(ran.stdout)["error"]["hint"]
    ran = run_cli("train", "--set", "training.lrr=1", "--json")
    assert ran.code == 2
    ran = run_cli("train", "--dataset", str(tmp_path / "nothing-here"), "--out", str(tmp_path / "r"), "--json")
    assert ran.code in (3, 4)


def test_dry_run_says_what_it_would_take_and_writes_nothing(run_cli, tmp_path):
    ran = run_cli("train", "--dry-run", "--out", str(tmp_path / "run"), "--json")
    assert ran.code == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["parameters"] > 1_000_000
    assert not (tmp_path / "run").exists()


def test_progress_is_said_where_there_is_no_terminal(run_cli, tmp_path, monkeypatch):
    from diffkit.cli import train as module

    monkeypatch.setattr(module._Bar, "seconds_between_lines", 0.0)
    items = [i for s in TINY for i in ("--set", s)]
    ran = run_cli("train", "--out", str(tmp_path / "run"), *items)
    assert ran.code == 0, ran.stderr
    assert "step 12 of 12: loss 0." in ran.stderr
    assert "images/s" in ran.stderr
    assert str(tmp_path / "run") in ran.stdout
    quiet = run_cli("train", "--quiet", "--out", str(tmp_path / "other"), *items)
    assert quiet.stderr == ""
