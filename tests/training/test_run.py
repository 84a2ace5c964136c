"""Whole runs: resume equals uninterrupted, bad numbers and full memory are survived, what is written can be used."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TINY, assert_same_run, final_tensors

from diffkit.errors import NumericalError, ResourceError, Terminated, UsageError
from diffkit.training import checkpoint, fit, rng
from diffkit.training import run as run_module
from diffkit.training.objectives import OBJECTIVES


class Crash(Exception):
    pass


def crash_at(step):
    def callback(progress):
        if progress.step.step == step:
            raise Crash

    return callback


def crashed_and_resumed(recipe, step):
    with pytest.raises(Crash):
        fit(recipe, on_progress=crash_at(step))
    return fit(recipe)


VARIANTS = {
    "plain": [],
    "accumulated": ["training.gradient_accumulation=2", "training.batch_size=4"],
    "concat": ["model.class_conditioning=concat"],
    "flow": ["noise.prediction=flow"],
    "dropout": ["model.overrides.dropout=0.3"],
    "plateau": [
        "training.lr_schedule=plateau", "training.plateau_patience=0", "dataset.validation=0.2",
        "training.validate_every=2", "training.lr_gamma=0.7",
    ],
    "no ema": ["training.ema=false"],
    "from disk": ["dataset.cache=disk", "dataset.workers=2"],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tiny, variant):
    whole = fit(tiny(*VARIANTS[variant], out="whole"))
    resumed = crashed_and_resumed(tiny(*VARIANTS[variant], out="resumed"), 7)
    assert resumed["resumed_from"].endswith("step-0000004")
    assert resumed["step"] == whole["step"] == 12
    assert_same_run(Path(whole["output_dir"]), Path(resumed["output_dir"]))
    rows = [json.loads(line) for line in (Path(resumed["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [3, 6, 9, 12]


def test_a_resumed_stream_is_bit_equal_too(tiny, tmp_path):
    """A streamed set: the place in the stream travels in the checkpoint, and no image is read twice or left out."""
    rng = np.random.default_rng(0)
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        pictures = [Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(11)]
        data = datasets.Dataset.from_dict({"image": pictures, "label": [k % 10 for k in range(11)]})
        data = data.cast_column("image", datasets.Image()).cast_column("label", datasets.ClassLabel(num_classes=10))
        data.to_parquet(tmp_path / "shards" / f"part-{shard}.parquet")
    more = [f"dataset.name={tmp_path / 'shards'}", "dataset.streaming=true", "dataset.limit=null"]
    whole = fit(tiny(*more, out="whole"))
    resumed = crashed_and_resumed(tiny(*more, out="resumed"), 7)
    assert resumed["step"] == 12
    assert_same_run(Path(whole["output_dir"]), Path(resumed["output_dir"]))


@pytest.mark.parametrize("fault", ["another seed", "no ema", "no optimizer", "another place in the data"])
def test_the_comparison_fails_when_it_should(tiny, fault, monkeypatch):
    """The negative control: each of these must be noticed by the comparator above."""
    from diffkit.training import state as states

    whole = fit(tiny(out="whole"))
    recipe = tiny(out="resumed")
    with pytest.raises(Crash):
        fit(recipe, on_progress=crash_at(7))
    if fault == "another seed":
        recipe = tiny("training.seed=1", out="resumed")
    elif fault == "no ema":
        monkeypatch.setattr("diffkit.training.ema.EMA.load_state_dict", lambda self, state: None)
    elif fault == "no optimizer":
        monkeypatch.setattr(states, "_restore_optimizer", lambda state, saved: None)
    else:
        from diffkit.data import Loader

        stream = Loader.stream
        monkeypatch.setattr(Loader, "stream", lambda self, start=0, state=None: stream(self, start + 1, state))
    resumed = fit(recipe, force_resume=True)
    with pytest.raises(AssertionError):
        assert_same_run(Path(whole["output_dir"]), Path(resumed["output_dir"]))


def test_another_recipe_is_refused_and_free_fields_are_not(tiny):
    fit(tiny())
    with pytest.raises(UsageError, match=r"training.lr: 0.001 -> 0.01") as caught:
        fit(tiny("training.lr=0.01"))
    assert "`force_resume`" in caught.value.hint
    assert fit(tiny("training.checkpoint_every=3", "training.log_every=5"))["step"] == 12


def test_every_broken_checkpoint_but_one_is_survived(tiny):
    recipe = tiny()
    first = fit(recipe)
    newest, older = checkpoint.find(Path(first["output_dir"]) / "checkpoints")
    before = final_tensors(Path(first["output_dir"]))
    (newest / "ema.safetensors").write_bytes(b"")
    again = fit(recipe)
    assert again["resumed_from"] == str(older)
    for name, value in final_tensors(Path(again["output_dir"])).items():
        assert torch.equal(value, before[name])


def at_each_loss(monkeypatch, change):
    """Let `change(step, x0)` return the images that the loss of an update is computed on."""
    place, draw_from, row = {}, rng.generator, OBJECTIVES["sample"]
    loss = row.loss

    def generator(device, seed, *position):
        place["step"] = position[1] if position[0] == "noise" else None
        return draw_from(device, seed, *position)

    def changed(self, network, x0, labels, draw):
        return loss(self, network, x0 if place["step"] is None else change(place["step"], x0), labels, draw)

    monkeypatch.setattr(rng, "generator", generator)
    monkeypatch.setattr(row, "loss", changed)


def poison(monkeypatch, steps):
    """Make the loss NaN at the given steps."""
    at_each_loss(monkeypatch, lambda step, x0: x0 * math.nan if step in steps else x0)


def test_one_bad_gradient_is_skipped_and_counted(tiny, monkeypatch):
    poison(monkeypatch, {5})
    summary = fit(tiny())
    assert summary["skipped_steps"] == 1
    assert all(bool(torch.isfinite(v).all()) for v in final_tensors(Path(summary["output_dir"])).values())
    assert math.isfinite(summary["loss"])


def test_gradients_that_stay_bad_end_the_run_and_keep_the_last_good_checkpoint(tiny, monkeypatch):
    poison(monkeypatch, set(range(6, 1000)))
    recipe = tiny("training.steps=60")
    with pytest.raises(NumericalError, match="no finite gradient") as caught:
        fit(recipe)
    assert caught.value.exit_code == 6
    assert all(bool(torch.isfinite(v).all()) for v in final_tensors(Path(recipe.output.dir)).values())


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tiny, monkeypatch, caplog):
    whole = fit(tiny(out="whole"))
    tight = 4

    def small_memory(step, x0):
        if step >= 5 and len(x0) > tight:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x0

    at_each_loss(monkeypatch, small_memory)
    with caplog.at_level("WARNING"):
        summary = fit(tiny(out="tight"))
    assert "out of memory at step 5" in caplog.text
    rows = [json.loads(line) for line in (Path(summary["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("splits") for row in rows if "loss" in row] == [None, 2, 2, 2]
    a, b = final_tensors(Path(whole["output_dir"])), final_tensors(Path(summary["output_dir"]))
    for name, value in a.items():  # the same sums in another order
        torch.testing.assert_close(value, b[name], atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    tight = 0
    with pytest.raises(ResourceError, match="out of memory at step"):
        fit(tiny(out="none"))


def test_accumulation_is_the_same_update_as_one_large_batch_of_the_same_noise(tiny):
    """Two micro-batches of 4 see the images of one of 8; with the noise tied to the micro-batch only the ids agree."""
    from diffkit.data import Loader, open_dataset

    recipe = tiny()
    dataset = open_dataset(recipe.dataset, seed=0)
    large = Loader(dataset, recipe.dataset, batch_size=8, seed=0).stream(0)
    small = Loader(dataset, recipe.dataset, batch_size=4, seed=0).stream(0)
    for _ in range(10):
        together = torch.cat([next(small).images, next(small).images])
        assert torch.equal(next(large).images, together)


def command(folder, *more):
    sets = [item for s in [*TINY, f"output.dir={folder}", *more] for item in ("--set", s)]
    return [sys.executable, "-m", "diffkit", "train", "digits", "--json", *sets]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
        if any(json.loads(row)["step"] >= step for row in rows[:-1]):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.poll()}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_end_a_run_from_which_the_same_command_goes_on(tmp_path, number, code):
    more = ["training.steps=300", "training.log_every=1", "training.checkpoint_every=50"]
    folder = tmp_path / "run"
    with subprocess.Popen(command(folder, *more), stdout=subprocess.PIPE, env=environment(), text=True) as process:
        wait_for_step(folder, 60, process)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == code
    newest = checkpoint.newest(folder / "checkpoints").step
    if number == signal.SIGKILL:
        assert newest % 50 == 0
    else:
        assert newest % 50 != 0 or newest > 60
        assert json.loads(output)["error"]["code"] == code
        assert (folder / "model_index.json").is_file()
    done = subprocess.run(command(folder, *more), check=True, stdout=subprocess.PIPE, env=environment(), text=True)
    summary = json.loads(done.stdout)
    assert summary["step"] == 300
    assert summary["resumed_from"].endswith(f"{newest:07d}")
    whole = subprocess.run(
        command(tmp_path / "whole", *more), check=True, stdout=subprocess.PIPE, env=environment(), text=True
    )
    assert json.loads(whole.stdout)["step"] == 300
    assert_same_run(folder, tmp_path / "whole")


def test_terminated_carries_its_code():
    assert Terminated("x", 143).exit_code == 143


def test_a_signal_before_the_first_step_leaves_at_once(tiny, monkeypatch):
    """While images are decoded and networks are built there is nothing to save, and nothing to wait for."""
    monkeypatch.setattr(run_module.build, "network", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="before the first step") as caught:
        fit(tiny(out="early"))
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_precision_that_the_cpu_lacks_is_said(tiny, monkeypatch, caplog):
    monkeypatch.setattr(run_module.fast, "emulated", lambda precision, device: precision == "bf16")
    for precision, said in (("no", False), ("bf16", True)):
        caplog.clear()
        fit(tiny("training.steps=1", f"training.mixed_precision={precision}", out=precision))
        assert ("computes bf16 in software" in caplog.text) == said
