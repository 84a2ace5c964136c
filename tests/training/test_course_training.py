"""Training of the courses' networks: exact resume with running statistics, their average, and what is drawn after."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import assert_same_run, final_tensors

import diffkit
from diffkit.data import Loader, open_dataset
from diffkit.errors import UsageError
from diffkit.models import load
from diffkit.models.course_networks import CS180UNet
from diffkit.training import fit
from diffkit.training.ema import EMA
from diffkit.training.estimate import estimate_recipe
from diffkit.training.normalize import pixel_range
from diffkit.training.objectives import OBJECTIVES
from diffkit.training.statistics import RunningStatistics, running_statistics
from tests.training.test_distributed import launch

CS180 = ["model.preset=cs180", "model.overrides={hidden: 4, time: add}", "dataset.normalize=unit"]
FORMS = {
    "epsilon": [*CS180, "noise.clip_sample=false", "noise.prediction=epsilon"],
    "flow": [
        *CS180, "model.overrides={hidden: 4, time: multiply}", "noise.prediction=flow", "noise.times=logit_normal",
    ],
    "one step": [
        *CS180, "model.overrides={hidden: 4}", "noise.prediction=one_step", "model.class_conditioning=none",
        "training.ema=false",
    ],
    "basic": [
        "model.preset=basic-unet", "model.overrides={block_out_channels: [4, 8, 8]}", "model.class_conditioning=none",
        "noise.prediction=linear_mix", "noise.distribution=uniform", "dataset.normalize=unit",
    ],
    "standard": [*CS180, "dataset.normalize=standard", "noise.clip_sample=false", "noise.loss=mae"],
}  # fmt: skip


class Crash(Exception):
    pass


def crash_at_7(progress):
    if progress.step.step == 7:
        raise Crash


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_is_bit_equal_statistics_included(tiny, form):
    whole = fit(tiny(*FORMS[form], out="whole"))
    resumed = tiny(*FORMS[form], out="resumed")
    with pytest.raises(Crash):
        fit(resumed, on_progress=crash_at_7)
    assert fit(resumed)["resumed_from"].endswith("step-0000004")
    folders = [Path(whole["output_dir"]), Path(resumed.output.dir)]
    assert_same_run(*folders)
    if form not in ("basic", "one step"):
        named = final_tensors(folders[0])
        assert "network.unet.up1.0.1.running_mean" in named
        assert "ema.unet.up1.0.1.running_var" in named
        assert int(named["network.unet.up1.0.1.num_batches_tracked"]) == 12
    for part in ("unet/diffusion_pytorch_model.safetensors", "diffkit.json"):
        assert (folders[0] / part).read_bytes() == (folders[1] / part).read_bytes()


def test_two_processes_keep_one_set_of_statistics(tmp_path):
    """Resume of two is bit equal; and the checkpoint's statistics are the mean of both, so they differ from one's."""
    sets = [*CS180, "noise.clip_sample=false", "training.batch_size=4", "training.ema=false"]
    launch(tmp_path / "whole", *sets)
    launch(tmp_path / "parts", *sets, "training.steps=12", "training.keep_checkpoints=5")
    newest = sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[-1]
    for file in newest.glob("*.safetensors"):
        file.write_bytes(b"")
    done = launch(tmp_path / "parts", *sets, "training.keep_checkpoints=5")
    assert json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["resumed_from"]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_statistics_are_averaged_among_processes_and_taken_back_with_an_update():
    net = CS180UNet(8, hidden=4)
    fake = SimpleNamespace(num_processes=1, reduce=lambda value, how: value * 0 + 3.0)
    before = {name: value.clone() for name, value in running_statistics(net).items()}
    kept = RunningStatistics(net)
    for bad, taken in ((torch.tensor(1.0), False), (torch.tensor(0.0), True)):
        kept.keep()
        net(torch.randn(4, 1, 8, 8), 0)
        kept.settle(bad, fake)
        same = all(torch.equal(value, before[name]) for name, value in running_statistics(net).items())
        assert same != taken
    kept.keep()
    net(torch.full((4, 1, 8, 8), torch.nan), 0)
    kept.settle(torch.tensor(1.0), fake)
    assert all(bool(value.isfinite().all()) for value in running_statistics(net).values())
    fake.num_processes = 2
    kept.keep()
    kept.settle(torch.tensor(0.0), fake)
    assert all(bool((value == 3).all()) for value in running_statistics(net).values())


def test_a_replayed_update_leaves_the_statistics_of_the_replay_alone(tiny, monkeypatch):
    """Memory that runs out after a forward pass: the replay starts from the statistics before the update."""
    row, seen, failed = OBJECTIVES["epsilon"], [], []
    loss = row.loss

    def scarce(self, network, x0, labels, draw):
        before = {name: value.clone() for name, value in running_statistics(network).items()}
        seen.append(before)
        losses = loss(self, network, x0, labels, draw)
        if len(seen) == 3:
            failed.append({name: value.clone() for name, value in running_statistics(network).items()})
            raise torch.OutOfMemoryError("out of memory")
        return losses

    monkeypatch.setattr(row, "loss", scarce)
    fit(tiny(*FORMS["epsilon"], "training.steps=4", "dataset.validation=0"))
    for name, value in seen[2].items():
        assert not torch.equal(failed[0][name], value)
        assert torch.equal(seen[3][name], value)  # the first half of the replay


def test_the_average_has_statistics_of_its_own():
    net = CS180UNet(8, hidden=4)
    ema = EMA(net, 0.9)
    start = {name: value.clone() for name, value in running_statistics(net).items()}
    net(torch.randn(4, 1, 8, 8) + 2, 0)
    ema.update(5)
    decay = min(0.9, 6 / 15)
    for name, value in running_statistics(net).items():
        torch.testing.assert_close(ema.state_dict()[name], decay * start[name] + (1 - decay) * value)
    last = {name: value.clone() for name, value in running_statistics(net).items()}
    with ema.applied():
        for name, value in running_statistics(net).items():
            torch.testing.assert_close(value, ema.state_dict()[name])
    assert all(torch.equal(value, last[name]) for name, value in running_statistics(net).items())
    assert "num_batches_tracked" not in " ".join(ema.names)


@pytest.mark.parametrize("form", FORMS)
def test_every_command_works_on_such_a_run(tiny, tmp_path, form):
    recipe = tiny(*FORMS[form])
    folder = fit(recipe)["output_dir"]
    facts = estimate_recipe(recipe, timed=False)
    model = load(folder, device="cpu")
    assert facts["parameters"] == model.parameters > 0
    assert facts["updates"] == 12
    label = "3" if model.info.classes else None
    one = diffkit.sample(folder, classes=label, seed=1, out=None)
    two = diffkit.sample(folder, classes=label, num=2, seed=0)
    assert one[0].size == (8, 8)
    assert one[0].tobytes() == two[1].tobytes()  # evaluation mode: a picture does not depend on its batch
    picture = Image.new("L", (8, 8), 200)
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    if model.info.one_step:
        return
    steps = {"steps": 4, "label": label}
    edited = diffkit.sdedit(picture, model=folder, strength=0.5, **steps)[0]
    assert edited.size == (8, 8)
    near = diffkit.sdedit(picture, model=folder, strength=0.01, steps=1000, label=label)[0]
    if form == "flow":  # a nearly empty step gives the picture back: the range is undone
        assert max(abs(a - 200) for a in near.tobytes()) < 30
    painted = diffkit.inpaint(picture, mask, model=folder, resample=1, **steps)[0]
    assert painted.crop((4, 0, 8, 8)).tobytes() == bytes([200]) * 32


@pytest.mark.parametrize("form", FORMS)
def test_finetune_goes_on_from_such_a_run(tiny, form):
    source = fit(tiny(*FORMS[form], out="source"))["output_dir"]
    conditioning = [s for s in FORMS[form] if s.startswith("model.class")]
    more = [f"model.pretrained={source}", *conditioning, "training.steps=2", "training.lr=1e-30", "training.ema=false"]
    recipe = tiny(*more, out="second")
    done = fit(recipe)["output_dir"]
    old, new = (json.loads((Path(f) / "diffkit.json").read_text()) for f in (source, done))
    for key in ("prediction", "mean", "std", "noise", "conditioning"):
        assert old[key] == new[key]
    weights = [load_file(Path(f) / "unet" / "diffusion_pytorch_model.safetensors") for f in (source, done)]
    for name, value in weights[0].items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-6)
    assert estimate_recipe(recipe, timed=False)["parameters"] == load(done, device="cpu").parameters


def test_finetune_fits_classes_channels_and_says_what_cannot_be(tiny):
    plain = fit(tiny(*FORMS["flow"], "model.class_conditioning=none", out="plain"))["output_dir"]
    classes = fit(tiny(*FORMS["flow"], out="classes"))["output_dir"]
    start = ["training.steps=1", "training.lr=1e-30", "training.ema=false"]
    grown = fit(tiny(f"model.pretrained={plain}", *start, out="grown"))["output_dir"]
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(400.0)
    before, after = load(plain, device="cpu"), load(grown, device="cpu")
    after.network.unet.load_state_dict(
        {k: v for k, v in before.network.unet.state_dict().items() if "running" in k}, strict=False
    )
    with torch.no_grad():
        every = after(x, t, after.encode(["3", None])).out
        torch.testing.assert_close(every, before(x, t, before.encode([None, None])).out, rtol=1e-4, atol=1e-5)
    colour = fit(tiny(f"model.pretrained={classes}", "dataset.channels=3", *start, out="rgb"))["output_dir"]
    assert load(colour, device="cpu").info.channels == 3
    assert len(json.loads((Path(colour) / "diffkit.json").read_text())["mean"]) == 3
    with pytest.raises(UsageError, match="class-conditional"):
        fit(tiny(f"model.pretrained={classes}", "model.class_conditioning=none", *start, out="lost"))
    with pytest.raises(UsageError, match="fit no other size"):
        fit(tiny(f"model.pretrained={classes}", "dataset.resolution=12", *start, out="large"))


def test_a_network_without_time_is_refused_where_it_is_needed(tiny):
    with pytest.raises(UsageError, match="not told the time") as caught:
        fit(tiny("model.preset=cs180", "model.overrides={hidden: 4}"))
    assert "model.overrides.time" in caught.value.hint
    with pytest.raises(UsageError, match="not told the time"):
        fit(tiny("model.preset=basic-unet", "model.class_conditioning=none", "noise.prediction=flow"))
    with pytest.raises(UsageError, match="no gradient checkpointing"):
        fit(tiny(*FORMS["flow"], "training.gradient_checkpointing=true"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["dataset.normalize=unit"], r"noise\.clip_sample"),
        (["noise.times=logit_normal"], r"noise\.times"),
        (["noise.distribution=uniform"], r"noise\.distribution"),
        (["dataset.normalize=unit", "noise.clip_sample=false", "noise.variance=learned"], r"noise\.variance"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(tiny, sets, message):
    with pytest.raises(UsageError, match=message):
        tiny(*sets)


def test_the_range_of_pixels_is_measured(tiny):
    recipe = tiny("dataset.validation=0.2")
    loader = Loader(open_dataset(recipe.dataset), recipe.dataset, batch_size=7, seed=0)
    images = torch.cat([batch.images for batch in loader.first(10_000)])
    assert len(images) == loader.length == 48
    mean, std = pixel_range("standard", loader)
    inside = (images.double() - mean[0]) / std[0]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inside.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert pixel_range("unit", loader) == ([-1.0], [2.0])
    assert pixel_range("symmetric", loader) == ([], [])
    assert len(list(loader.first(7))) == 1


def test_pure_noise_teaches_the_mean_image(tiny):
    """Whatever noise goes in, the best answer is the mean of the data: the network comes near it."""
    sets = [
        *FORMS["one step"], "noise.prediction=pure_noise", "training.steps=150", "training.batch_size=30",
        "training.lr=1e-2", "dataset.flip=false", "training.checkpoint_every=150", "model.overrides={hidden: 8}",
    ]  # fmt: skip
    recipe = tiny(*sets)
    folder = fit(recipe)["output_dir"]
    loader = Loader(open_dataset(recipe.dataset), recipe.dataset, batch_size=60, seed=0)
    mean = next(loader.first(60)).images.mean(0)[0]
    drawn = diffkit.sample(folder, num=4, seed=0)
    got = torch.stack([torch.tensor(list(p.tobytes())).view(8, 8) for p in drawn]) / 127.5 - 1
    spread = next(loader.first(60)).images.std(0).mean()
    assert float((got.mean(0) - mean).abs().mean()) < 0.25 * float(spread)
    assert float(got.std(0).mean()) < 0.3 * float(spread)
