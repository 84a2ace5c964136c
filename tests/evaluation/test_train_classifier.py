"""`diffkit train-classifier`: offline, the same again, read by guides, scorers and features; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from diffkit.engine.losses import parse_guide
from diffkit.evaluation.features import parse_features
from diffkit.evaluation.image_classifiers import load_logits
from diffkit.evaluation.scorers import parse_scorer

QUICK = ("--steps", 60, "--resolution", 8, "--json")


def whole(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A file's metadata and its tensors."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("noisy", [False, True])
def test_a_file_for_guides_scorers_and_features(run_cli, tmp_path: Path, noisy: bool) -> None:
    import diffkit.evaluation.losses  # noqa: F401  (registers its rows)

    files = [tmp_path / "a" / "one.safetensors", tmp_path / "two.safetensors"]
    flags = ("--noisy",) if noisy else ()
    said = [json.loads(run_cli("train-classifier", *QUICK, *flags, "-o", file).stdout) for file in files]
    assert said[0]["classifier"] == str(files[0])
    assert (said[0]["classes"], said[0]["channels"], said[0]["resolution"]) == (10, 1, 8)
    assert said[0]["accuracy"] > 0.6  # by chance 0.1
    assert said[0]["noisy"] is noisy
    (about, tensors), (same, others) = (whole(file) for file in files)  # the header's order is the library's own
    assert about == same
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    facts = json.loads(about["facts"])
    assert json.loads(about["classes"]) == [str(k) for k in range(10)]
    assert {facts["dataset"], facts["data"]} == {"digits", said[0]["data"]}
    assert len(facts["data"]) == 32
    pictures = torch.rand(2, 1, 8, 8) * 2 - 1
    loss = parse_guide(f"classifier:{files[0]}=7").loss
    loss.check()
    expected = load_logits(str(files[0]), "cpu")(pictures).log_softmax(1)[:, 7]
    torch.testing.assert_close(-loss.of(pictures, []), expected)
    torch.testing.assert_close(parse_scorer(f"classifier:{files[0]}").score(pictures, ["7"])[:, 0], expected)
    assert len(parse_features(f"classifier:{files[0]}").embed(pictures)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_seeds_differ_and_other_data_is_another_hash(run_cli, tmp_path: Path) -> None:
    for k, shade in enumerate(("black", "white")):
        for n in range(6):
            (tmp_path / "data" / shade).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 * k + 30 * n).save(tmp_path / "data" / shade / f"{n}.png")
    short = ("--dataset", tmp_path / "data", "--steps", 2, "--json")
    said = [
        json.loads(run_cli("train-classifier", *short, "--seed", seed, "-o", tmp_path / f"{seed}.safetensors").stdout)
        for seed in (0, 1)
    ]
    assert said[0]["data"] == said[1]["data"]
    one, other = (whole(tmp_path / f"{seed}.safetensors")[1] for seed in (0, 1))
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
    Image.new("L", (8, 8), 255).save(tmp_path / "data" / "black" / "0.png")
    changed = json.loads(run_cli("train-classifier", *short, "-o", tmp_path / "2.safetensors").stdout)
    assert changed["data"] != said[0]["data"]


def test_what_is_refused(run_cli, tmp_path: Path) -> None:
    for n in range(3):
        Image.new("L", (8, 8), 80 * n).save(tmp_path / f"{n}.png")
    for flags, code, message in (
        (("digits", "--dataset", "digits"), 2, "named twice"),
        (("digits", "-o", tmp_path / "x.pt"), 2, "one file"),
        ((tmp_path, "-o", tmp_path / "x.safetensors"), 2, "has no classes"),
        (("digits", "--channels", "2"), 2, "--channels 2: images have 1 channel"),
        ((tmp_path / "none",), 3, "none"),
    ):
        ran = run_cli("train-classifier", *flags)
        assert ran.code == code, ran.stderr
        assert message in ran.stderr
    assert not list(tmp_path.glob("*.safetensors"))
