"""Guidance by losses through the jobs: every family, every command that has it, what it costs, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from diffkit.engine.losses import Color
from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.classifier import SmallCNN, save_classifier
from diffkit.jobs.anagram import Anagram
from diffkit.jobs.hybrid import Hybrid
from diffkit.jobs.inpaint import Inpaint
from diffkit.jobs.sample import Sample
from diffkit.jobs.sdedit import SDEdit
from diffkit.models import info, open_repo
from diffkit.pictures.metadata import read_recipe
from diffkit.types import Model
from tests.models.conftest import make_if, make_sd
from tests.support.drawing import Done, do
from tests.support.families import FAMILIES, Counting, label_of, make_run
from tests.support.tiny_clip import make_clip

RED = "color:#ff2000,soft=0"
ROUNDING = 1.01 / 127.5


def sampled(model: Model, family: str, seeds: tuple[int, ...] = (1, 2), **fields: Any) -> Done:
    """Draw by `sample`, or where a model needs an image by `inpaint`."""
    fields = {"steps": 4, **fields}
    if model.info.source == "mask":
        picture = Image.linear_gradient("L")
        return do(
            Inpaint, model, seeds, label_of(family), image=picture, mask=Image.new("L", (256, 256), 255), **fields
        )
    name = "prompt" if model.info.text else "classes"
    label = label_of(family)
    return do(Sample, model, seeds, **({name: [label]} if label else {}), **fields)


def redness(done: Done) -> torch.Tensor:
    wanted = torch.tensor([1.0, 0x20 / 127.5 - 1, -1.0]).reshape(1, 3, 1, 1)
    return (done.tensor.expand(-1, 3, -1, -1) - wanted).abs().mean((1, 2, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("through", ["x0", "network"])
def test_every_family_goes_to_a_colour(models, family: str, through: str) -> None:
    """No network call is added, and a grey picture goes to where the three distances are smallest together."""
    model = Counting(models(family))
    plain = sampled(model, family)
    calls = len(model.rows)
    guided = sampled(model, family, guides=[f"{RED}@60"], guide_through=through)
    assert len(model.rows) == 2 * calls
    assert (redness(guided) < redness(plain) - 0.02).all()
    assert torch.isfinite(guided.tensor).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_of_nought_changes_no_bit_and_scales_add_up(models, family: str) -> None:
    model = models(family)
    plain = sampled(model, family)
    assert torch.equal(sampled(model, family, guides=[f"{RED}@0", "color:blue@0"]).tensor, plain.tensor)
    once = sampled(model, family, guides=[f"{RED}@30"])
    twice = sampled(model, family, guides=[f"{RED}@10", f"{RED}@20"])
    torch.testing.assert_close(twice.tensor, once.tensor, atol=ROUNDING, rtol=0)
    back = sampled(model, family, guides=[f"{RED}@30", f"{RED}@-30"])
    torch.testing.assert_close(back.tensor, plain.tensor, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("weight", ["signal", "index", "score"])
@pytest.mark.parametrize("through", ["x0", "network"])
def test_a_picture_does_not_know_its_batch(models, tmp_path: Path, weight: str, through: str) -> None:
    """Cutouts are drawn by the seed and the step: also for the second picture of a batch."""
    clip = make_clip(tmp_path / "clip")
    model, how = models("classes"), {"guide_weight": weight, "guide_through": through}
    how["guides"] = [f"clip:a,model={clip},cuts=2@400", "color:white@5"]
    together = sampled(model, "classes", (5, 6, 7), **how).tensor
    alone = torch.cat([sampled(model, "classes", (seed,), **how).tensor for seed in (5, 6, 7)])
    torch.testing.assert_close(together, alone, atol=ROUNDING, rtol=0)
    assert not torch.equal(together[:1], sampled(model, "classes", (5,)).tensor)


@pytest.mark.parametrize("command", ["sdedit", "inpaint", "anagram", "hybrid", "decode"])
def test_every_command_that_has_it_is_guided(models, command: str) -> None:
    model = models("sd" if command == "decode" else "classes")
    picture = Image.linear_gradient("L")

    def run(**how: Any) -> torch.Tensor:
        fields = {"steps": 4, **how}
        if command == "sdedit":
            return redness(do(SDEdit, model, (1, 2), "one", image=picture, strength=0.8, **fields))
        if command == "inpaint":
            mask = Image.new("L", (256, 256), 255)
            return redness(do(Inpaint, model, (1, 2), "one", image=picture, mask=mask, resample=2, jump=2, **fields))
        if command == "anagram":
            return redness(do(Anagram, model, (1, 2), classes=["one", "zero"], **fields))
        if command == "decode":  # every view has a latent of its own
            return redness(do(Anagram, model, (1, 2), prompts=["a", "b"], views=["identity", "negate"], **fields))
        return redness(do(Hybrid, model, (1, 2), classes=["one", "zero"], split="low_high:2", **fields))

    assert (run(guides=[f"{RED}@60"]) < run() - 0.01).all()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sides of the pictures that a colour was asked of, in order."""
    found: list[int] = []
    real = Color.of

    def of(self: Color, images: torch.Tensor, random: Any) -> torch.Tensor:
        found.append(images.shape[-1])
        return real(self, images, random)

    monkeypatch.setattr(Color, "of", of)
    return found


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stage I on pixels, a stage II, and a latent upscaler."""
    folder = tmp_path_factory.mktemp("stages")
    make_if(folder / "one")
    make_if(folder / "two", stage=2)
    make_sd(folder / "up", in_channels=7, num_class_embeds=1000, prediction="v_prediction")
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "up" / "low_res_scheduler")
    return {name: folder / name for name in ("one", "two", "up")}


@pytest.mark.parametrize("through", ["x0", "network"])
def test_guides_reach_the_stages_on_pixels_and_not_the_upscaler(
    run_cli, tmp_path: Path, seen: list[int], stages: dict[str, Path], through: str
) -> None:
    common = ("anagram", "-m", stages["one"], "--p1", "a cat", "--p2", "a dog", "--steps", 3, "-n", 2)
    common = (*common, "--model-2", stages["two"], "--guide-through", through, "--json")
    small, large = info(open_repo(stages["one"])).size[0], info(open_repo(stages["two"])).size[0]
    guides = ("--guide", f"{RED}@60", "--guide", "color:red@1")
    told = json.loads(run_cli(*common, *guides, "--dry-run").stdout)
    assert told["loss_gradients"] == 2 * (3 + 3)
    assert told["backward_passes"] == (6 if through == "network" else 0)
    done = run_cli(*common, *guides, "-o", tmp_path / "guided")
    assert done.code == 0, done.stderr
    assert seen == [small] * 6 + [large] * 6
    assert "is not guided" not in done.stderr
    plain = run_cli(*common, "-o", tmp_path / "plain")
    images = [np.asarray(Image.open(path)).astype(float) for ran in (done, plain)
              for path in json.loads(ran.stdout)["images"]]  # fmt: skip
    far = [float(np.abs(image - (255, 32, 0)).mean()) for image in images]
    assert max(far[:2]) < min(far[2:]) - 5
    seen.clear()
    ran = run_cli(*common, "--model-3", stages["up"], "--steps-3", 2, *guides, "-o", tmp_path / "up")
    assert ran.code == 0, ran.stderr
    assert seen == [small] * 6 + [large] * 6
    assert f"{stages['up']} is not guided" in ran.stderr


def test_a_dry_run_counts_the_gradients_of_a_search(run_cli, tmp_path: Path, seen: list[int]) -> None:
    common = ("anagram", "-m", make_run(tmp_path / "run", size=8), "--c1", "one", "--c2", "zero", "--steps", 4)
    common = (*common, "--best-of", 6, "--scorer", f"classifier:{small(tmp_path)}", "--batch-size", 2)
    common = (*common, "--guide", "color:black@50", "-o", tmp_path / "a", "--json")
    told = json.loads(run_cli(*common, "--dry-run").stdout)
    run_cli(*common)
    assert told["loss_gradients"] == len(seen) == told["unet_calls"]


def test_a_searched_picture_is_the_guided_one(run_cli, tmp_path: Path) -> None:
    common = ("anagram", "-m", make_run(tmp_path / "run", size=8), "--c1", "one", "--c2", "zero", "--steps", 3)
    common = (*common, "--guide", "color:black@50", "--json")
    found = json.loads(
        run_cli(*common, "--best-of", 3, "--scorer", f"classifier:{small(tmp_path)}", "-o", tmp_path / "a").stdout
    )
    seed = found["seeds"][0]
    alone = json.loads(run_cli(*common, "--seed", seed, "-o", tmp_path / "b").stdout)
    a, b = (np.asarray(Image.open(one["images"][0])).astype(int) for one in (found, alone))
    assert np.abs(a - b).max() <= 1


def small(folder: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(folder / "small.safetensors", SmallCNN(8, 3, width=4).eval(), ["zero", "one", "two, three"])
    return folder / "small.safetensors"


# --- the command line, metadata, replay, sweeps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", size=8)


def test_a_picture_remembers_its_guides_and_is_drawn_again(run_cli, folder: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "wish.png")
    guides = ("--guide", "color:red", "--guide", f"image:{tmp_path / 'wish.png'}@20", "--guide-through", "network")
    guides = (*guides, "--guide", f"classifier:{small(tmp_path)}=two, three")
    ran = run_cli("sample", folder, "-c", "one", "-n", 2, "--steps", 3, *guides, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    recipe = read_recipe(said["images"][1])
    assert recipe["arguments"]["guides"] == [
        "color:red,side=0,soft=0.4@40", f"image:{tmp_path / 'wish.png'},side=0@20",
        f"classifier:{tmp_path / 'small.safetensors'}=two, three@10",
    ]  # fmt: skip
    assert recipe["arguments"]["guide_through"] == "network"
    assert {f"guide {tmp_path / 'wish.png'}", f"guide {tmp_path / 'small.safetensors'}"} <= set(recipe["inputs"])
    again = run_cli("replay", said["images"][1], "-o", tmp_path / "again.png", "--json")
    assert json.loads(again.stdout)["identical"] is True
    Image.new("L", (16, 16), 3).save(tmp_path / "wish.png")
    ran = run_cli("replay", said["images"][1], "-o", tmp_path / "again.png")
    assert (ran.code, "wish.png, which has changed since" in ran.stderr) == (3, True)


def test_pictures_without_guides_say_nothing_of_them(run_cli, folder: Path, tmp_path: Path) -> None:
    said = json.loads(run_cli("sample", folder, "-c", "one", "--steps", 2, "-o", tmp_path, "--json").stdout)
    assert not [key for key in read_recipe(said["images"][0])["arguments"] if key.startswith("guide")]


def test_a_sweep_tries_scales(run_cli, folder: Path, tmp_path: Path) -> None:
    ran = run_cli(
        "sample", folder, "-c", "one", "--steps", 3, "--sweep", "guide=color:black@0|color:black@20|color:black@60",
        "-o", tmp_path, "--json",
    )  # fmt: skip
    cells = json.loads(ran.stdout)["sweep"]
    means = [np.asarray(Image.open(cell["images"][0])).mean() for cell in cells]
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize(
    ("through", "family", "back", "vae"), [("x0", "classes", 0, 0), ("network", "classes", 6, 0), ("x0", "sd", 0, 6)]
)
def test_a_dry_run_counts_calls_and_passes_back(
    run_cli, folders, through: str, family: str, back: int, vae: int
) -> None:
    label = ("-p", "a cat") if family == "sd" else ("-c", "one")
    flags = ("--guide", "color:red", "--guide", "color:blue@3", "--guide-through", through)
    ran = run_cli(
        "sample", folders[family], *label, "-n", 4, "--batch-size", 2, "--steps", 3, *flags, "--dry-run", "--json"
    )
    said = json.loads(ran.stdout)
    assert (said["unet_calls"], said["backward_passes"], said["vae_backward_passes"]) == (6, back, vae)
    assert said["loss_gradients"] == 12
    assert ("back through the network" in ran.stderr) == (through == "network")
    assert ("VAE" in ran.stderr) == (family == "sd")
    plain = json.loads(run_cli("sample", folders[family], *label, "--steps", 3, "--dry-run", "--json").stdout)
    assert "backward_passes" not in plain


def test_as_many_passes_back_as_were_counted(models) -> None:
    passes: list[int] = []
    model = models("classes")
    handle = next(iter(model.network.children())).register_full_backward_hook(lambda *_: passes.append(1))
    try:
        sampled(model, "classes", guides=["color:red"], guide_through="network")
        assert len(passes) == 4
        sampled(model, "classes", guides=["color:red"])
        assert len(passes) == 4
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("guide", "code", "said"),
    [
        ("colour:red", 2, "unknown guide 'colour'"),
        ("color:#12", 2, "is no colour"),
        ("clip:a red rose@100", 4, "openai/clip-vit-large-patch14"),
        ("classifier:none.safetensors=3", 4, "no such file"),
        ("image:none.png", 3, "none.png"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "anagram"])
def test_what_is_not_there_is_said_before_a_model_is_loaded(
    run_cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, guide: str, code: int,
    said: str,
) -> None:  # fmt: skip
    from diffkit.jobs import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "load_opened", lambda *_: pytest.fail("a model was loaded"))
    what = ("sample", folder) if command == "sample" else ("anagram", "-m", folder, "--c1", "one", "--c2", "zero")
    ran = run_cli(*what, "--guide", guide)
    assert ran.code == code
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 3


def test_python_takes_one_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffkit

    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    one, same, plain = (
        diffkit.sample("tiny", prompt="a red heart", steps=2, **guides)[0]
        for guides in ({"guides": "color:blue"}, {"guide": ["color:blue@40"]}, {})
    )
    assert one.tobytes() == same.tobytes() != plain.tobytes()
    assert one.info["diffkit"]["arguments"]["guides"] == ["color:blue,side=0,soft=0.4@40"]


def test_a_one_step_denoiser_is_not_guided(tmp_path: Path) -> None:
    import diffkit

    folder = make_run(tmp_path / "run", "one_step", "none")
    with pytest.raises(UsageError, match="no steps to guide"):
        diffkit.sample(str(folder), guides=["color:red"])
    with pytest.raises(ModelError, match="guide clip:a"):
        diffkit.sample("tiny", prompt="a red heart", guides=["clip:a,model=someone/none"])
