"""A run goes on with the data that it began with: other contents are refused, or under force said in one line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import assert_same_run
from tiny_text import captioned_folder, text_recipe

from diffkit.errors import UsageError
from diffkit.training import checkpoint, fit

MORE = ["dataset.limit=null", "training.steps=4", "training.checkpoint_every=2"]


def paint(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path, "BMP")


@pytest.fixture
def pictures(tmp_path):
    """Two classes of grey pictures, all files of one size."""
    for k in range(12):
        (tmp_path / "set" / f"c{k % 2}").mkdir(parents=True, exist_ok=True)
        paint(tmp_path / "set" / f"c{k % 2}" / f"{k}.bmp", k)
    return tmp_path / "set"


def recaption(root):
    (root / "metadata.csv").write_text("file_name,text\nc0/0.bmp,a text\n")


def repaint(root):
    times = (root / "c0" / "0.bmp").stat()
    paint(root / "c0" / "0.bmp", 99)
    os.utime(root / "c0" / "0.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))


def add(root):
    paint(root / "c0" / "12.bmp", 12)


def reclass(root):
    for k in (0, 1):  # the images stay where they are, in the same order
        (root / f"c{k}").rename(root / f"d{k}")


CHANGES = [
    (repaint, [], "other images or file names"),
    (add, [], "12 images have become 13"),
    (reclass, [], "other images or file names, other classes"),
    (recaption, [], ""),  # the recipe does not read captions
    (repaint, ["dataset.limit=6"], "other images or file names"),
    (add, ["dataset.limit=6"], ""),  # beyond the limit
]


@pytest.mark.parametrize(("change", "sets", "said"), CHANGES)
def test_a_run_whose_data_has_changed(tiny, pictures, caplog, change, sets, said):
    recipe = tiny(f"dataset.name={pictures}", *MORE, *sets)
    fit(recipe)
    change(pictures)
    if said:
        with pytest.raises(UsageError, match=f"dataset {pictures} has changed .*: {said}$") as caught:
            fit(recipe)
        assert caught.value.exit_code == 2
        assert "`force_resume`" in caught.value.hint
    else:
        fit(recipe)
    caplog.clear()
    assert fit(recipe, force_resume=True)["step"] == 4
    assert caplog.text.count("has changed") == bool(said)
    assert caplog.text.count(said or "has changed") == bool(said)


def test_other_captions_of_a_model_of_captions(tmp_path):
    recipe = text_recipe(captioned_folder(tmp_path / "set"), tmp_path / "run", "training.steps=3")
    fit(recipe)
    file = tmp_path / "set" / "metadata.jsonl"
    file.write_text(file.read_text().replace("a blue disc", "a blue coin"))
    with pytest.raises(UsageError, match=r": other captions$"):
        fit(recipe)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_checkpoint_without_a_fingerprint_goes_on_without_a_word(tiny, pictures, caplog, monkeypatch, cache):
    """Those of earlier versions have none; what they trained is resumed bit for bit."""
    sets = [f"dataset.name={pictures}", *MORE, f"dataset.cache={cache}", "dataset.workers=0"]
    whole = fit(tiny(*sets, out="whole"))
    save = checkpoint.save

    def earlier(root, step, tensors, state, **options):
        return save(root, step, tensors, {k: v for k, v in state.items() if k != "dataset"}, **options)

    monkeypatch.setattr(checkpoint, "save", earlier)

    def stop(progress):
        if progress.step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny(*sets, out="resumed"), on_progress=stop)
    monkeypatch.undo()
    newest = checkpoint.newest(Path(tiny(out="resumed").output.dir) / "checkpoints")
    assert newest.step == 2
    assert "dataset" not in newest.state
    caplog.clear()
    resumed = fit(tiny(*sets, out="resumed"))
    assert "changed" not in caplog.text
    assert_same_run(whole["output_dir"], resumed["output_dir"])


def test_the_command_exits_with_2(tiny, pictures, run_cli, tmp_path):
    flags = [item for s in (f"dataset.name={pictures}", "dataset.resolution=8", "model.preset=tiny",
             "training.steps=2", "training.batch_size=4", "training.preview_images=4", "training.preview_steps=2",
             f"output.dir={tmp_path / 'run'}") for item in ("--set", s)]  # fmt: skip
    assert run_cli("train", "digits", *flags, "--json").code == 0
    repaint(pictures)
    ran = run_cli("train", "digits", *flags, "--json")
    assert ran.code == 2
    assert "other images or file names" in json.loads(ran.stdout)["error"]["message"]
    assert run_cli("train", "digits", *flags, "--json", "--force-resume").code == 0
