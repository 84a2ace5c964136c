"""The commands that edit pictures: files, JSON, sweeps, replay, and what they refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffkit.pictures.metadata import read_recipe, write_png
from tests.cli.test_sample import pixels
from tests.models.conftest import make_if, make_sd, sd_parts, text_unet, write_index
from tests.support.families import make_run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plain") / "m", kind="none")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("classes") / "m")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    image = Image.new("L", (30, 20))
    image.paste(255, (15, 0, 30, 20))
    image.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    monkeypatch.chdir(tmp_path)


COMMANDS = {
    "sdedit": ["--strength", "0.5", "--steps", "6"],
    "inpaint": ["--steps", "6", "--jump", "2", "--resample", "2"],
    "denoise": ["--timesteps", "5,15", "--stride", "4"],
    "invert": ["--steps", "6"],
    "interpolate": ["--steps", "6", "--frames", "3"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_its_example_and_back_again(run_cli, classes: Path, kit, command: str) -> None:
    ran = run_cli(command, "-m", classes, "-c", "one", *COMMANDS[command], "--seed", 5, "--gif", "--json", "-o", "out")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert Path(told["images"][0]).name == f"{command}-5.png"
    assert (told["seeds"], told["model"]["family"]) == ([5], "ddpm")
    assert told["unet_calls"] == told["steps"] == len(told["timesteps"])
    assert set(told["seconds"]) == {"load", "denoise", "total"}
    assert Path(told["gif"]).is_file()
    assert ("drawn in code" in ran.stderr) == (command != "interpolate")
    recipe = read_recipe(told["images"][0])
    assert (recipe["command"], recipe["seed"], recipe["index"]) == (command, 5, 0)
    again = run_cli("replay", told["images"][0], "--json")
    assert json.loads(again.stdout)["identical"] is True, again.stderr
    if told.get("grid"):
        assert json.loads(run_cli("replay", told["grid"], "--json").stdout)["identical"] is True
    planned = json.loads(run_cli(command, "-m", classes, *COMMANDS[command], "--dry-run", "--json").stdout)
    assert (planned["unet_calls"], planned["timesteps"]) == (told["unet_calls"], told["timesteps"])
    if command == "denoise":
        assert set(told["psnr"]) == {"blur", "one_step", "iterative"}
        assert set(told["psnr"]["blur"]) == {"5", "15"}
    if command == "invert":
        assert told["scores"]["round_trip_psnr"] > 0


def test_noise_needs_no_model(run_cli, kit, classes: Path, photo: Path) -> None:
    ran = run_cli("noise", photo, "-t", "0,500,999", "--size", 32, "--json", "-o", "out")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["timesteps"] == [0, 500, 999]
    assert told["signal"]["0"] > told["signal"]["500"] > told["signal"]["999"]
    assert json.loads(run_cli("replay", told["images"][0], "--json").stdout)["identical"] is True
    assert run_cli("noise", "-m", classes, "-t", "19", "-o", "out").code == 0
    for flags in (["-t", "1000"], ["-t", "a"], ["--schedule", "liner"]):
        assert run_cli("noise", *flags, "-o", "out").code == 2


def test_inpaint_keeps_the_black_and_says_its_calls_first(run_cli, plain: Path, photo: Path, mask: Path, kit) -> None:
    ran = run_cli("inpaint", photo, mask, "-m", plain, "-n", 2, "--steps", 12, "-o", "out", "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["unet_calls"] == 12 + 9 * 10
    assert ran.stderr.startswith("102 network calls (jump 10, resample 10)")
    with Image.open(photo) as image:
        from diffkit.pictures.images import cut

        kept = np.asarray(cut(image, 9, 9).convert("L")).astype(int)
    first, second = (pixels(path) for path in told["images"])
    assert (first[:, :4] == kept[:, :4]).all()
    assert (first[:, 5:] != second[:, 5:]).any()
    ran = run_cli("inpaint", photo, mask, "-m", plain, "--invert-mask", "--steps", 5, "-o", "out", "--json")
    turned = pixels(json.loads(ran.stdout)["images"][0])
    assert (turned[:, 5:] == kept[:, 5:]).all()
    assert (turned[:, :4] != kept[:, :4]).any()


def test_masks(run_cli, plain: Path, photo: Path, mask: Path, tmp_path: Path, kit) -> None:
    Image.new("L", (20, 20), 255).save(tmp_path / "small.png")
    ran = run_cli("inpaint", photo, tmp_path / "small.png", "-m", "no/such-model")
    assert ran.code == 2
    assert "20x20 pixels, the image 30x20" in ran.stderr
    assert run_cli("inpaint", photo, "-m", plain).code == 2
    assert run_cli("inpaint", tmp_path / "none.png", mask, "-m", plain).code == 3
    for value, said in ((0, "nothing is repainted"), (255, "nothing of the image is kept")):
        Image.new("L", (30, 20), value).save(tmp_path / "flat.png")
        ran = run_cli("inpaint", photo, tmp_path / "flat.png", "-m", plain, "--steps", 2, "-o", "out", "--quiet")
        assert ran.code == 0
        assert said in ran.stderr


def test_a_photo_with_a_hole_is_a_mask_of_the_hole(run_cli, plain: Path, photo: Path, tmp_path: Path, kit) -> None:
    with Image.open(photo) as image:
        from diffkit.pictures.images import cut

        kept = np.asarray(cut(image, 9, 9).convert("L"))
        hole = image.convert("RGBA")
    hole.paste((0, 0, 0, 0), (15, 0, 30, 20))
    hole.save(tmp_path / "hole.png")
    ran = run_cli("inpaint", photo, tmp_path / "hole.png", "-m", plain, "--steps", 5, "-o", "out", "--json")
    assert (ran.code, ran.stderr.count("transparent part is repainted")) == (0, 1)
    got = pixels(json.loads(ran.stdout)["images"][0])
    assert (got[:, :4] == kept[:, :4]).all()
    assert (got[:, 5:] != kept[:, 5:]).any()


def test_sdedit_by_mask_and_strength(run_cli, plain: Path, photo: Path, mask: Path, kit) -> None:
    ran = run_cli("sdedit", photo, "--mask", mask, "-m", plain, "--strength", 0.58, "--steps", 12, "-o", "out")
    assert ran.code == 0, ran.stderr
    assert "strength 0.58: 7 steps" in ran.stderr
    for strength in ("0", "1.5", "nan"):
        ran = run_cli("sdedit", photo, "-m", "no/such-model", "--strength", strength)
        assert (ran.code, "--strength" in ran.stderr) == (2, True)


# --- sweeps


def test_a_sweep_is_one_labelled_sheet(run_cli, classes: Path, photo: Path, kit) -> None:
    common = ("sdedit", photo, "-m", classes, "--steps", 5, "-o", "out", "--json")
    ran = run_cli(*common, "--sweep", "strength=0.2,0.6,1", "--sweep", "class=one,zero", "-n", 2)
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len(told["images"]) == 12
    assert [cell["values"] for cell in told["sweep"]][:3] == [
        "strength=0.2 class=one", "strength=0.2 class=zero", "strength=0.6 class=one",
    ]  # fmt: skip
    assert [cell["steps"] for cell in told["sweep"]] == [1, 1, 3, 3, 5, 5]
    with Image.open(told["grid"]) as sheet:
        assert sheet.width < 400  # two columns
        assert sheet.height > 6 * 160
    assert told["unet_calls"] == 1 + 3 + 5  # both classes stand in one batch
    one = run_cli(*common, "--strength", 0.6, "-c", "zero", "--seed", 1)
    (alone,) = json.loads(one.stdout)["images"]
    swept = next(p for p in told["images"] if p.endswith("sdedit-1-strength=0.6_class=zero.png"))
    assert np.abs(pixels(alone) - pixels(swept)).max() <= 1
    for path in (swept, told["grid"]):
        assert json.loads(run_cli("replay", path, "--json").stdout)["identical"] is True


def test_guidance_scales_are_swept_in_one_batch(run_cli, classes: Path, kit) -> None:
    common = ("sample", classes, "-c", "one", "--steps", 4, "--json")
    told = json.loads(run_cli(*common, "--sweep", "guidance=0,1,4", "-n", 2, "-o", "out").stdout)
    assert (told["unet_calls"], len(told["images"])) == (4, 6)
    assert json.loads(run_cli(*common, "--sweep", "guidance=0,1,4", "-n", 2, "--dry-run").stdout)["unet_calls"] == 4
    for scale, cell in zip((0, 1, 4), told["sweep"], strict=True):
        alone = json.loads(run_cli(*common, "--guidance", scale, "--seed", 1, "-o", f"{scale}.png").stdout)["images"]
        assert np.abs(pixels(alone[0]) - pixels(cell["images"][1])).max() <= 1
    assert np.abs(pixels(told["images"][0]) - pixels(told["images"][4])).max() > 10
    assert json.loads(run_cli("replay", told["images"][5], "--json").stdout)["identical"] is True


def test_sample_sweeps_and_replays(run_cli, classes: Path, kit) -> None:
    ran = run_cli("sample", classes, "-c", "one", "--sweep", "steps=2,4", "--sweep", "scheduler=ddim,ddpm", "-o", "out",
                  "--json")  # fmt: skip
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [cell["steps"] for cell in told["sweep"]] == [2, 2, 4, 4]
    plain = json.loads(run_cli("sample", classes, "-c", "one", "--steps", 4, "-o", "x.png", "--json").stdout)["images"]
    assert (pixels(plain[0]) == pixels(told["images"][2])).all()
    for path in (told["images"][3], told["grid"], plain[0]):
        assert json.loads(run_cli("replay", path, "--json").stdout)["identical"] is True
    many = json.loads(run_cli("sample", classes, "-c", "one,zero", "-n", 7, "--batch-size", 3, "--steps", 2, "-o", "m",
                              "--json").stdout)  # fmt: skip
    for path in (many["images"][5], many["grid"]):
        assert json.loads(run_cli("replay", path, "--json").stdout)["identical"] is True


@pytest.mark.parametrize(
    ("command", "flags"),
    [("sample", []), ("sdedit", ["--strength", "0.9"]), ("inpaint", []), ("anagram", ["--c1", "one", "--c2", "zero"])],
)
def test_guidance_on_a_part_of_the_way_is_swept_recorded_and_replayed(
    run_cli, classes: Path, kit, command: str, flags: list[str]
) -> None:
    model = [classes] if command == "sample" else ["-m", classes]
    label = [] if command == "anagram" else ["-c", "one"]
    common = (command, *model, *label, *flags, "--steps", 6, "--guidance", 3, "--json", "-o")
    told = json.loads(run_cli(*common, "out", "--sweep", "guidance-interval=0:1,0:0.5,0.5:1").stdout)
    always, first, last = (pixels(path) for path in told["images"])
    assert (first != always).any()
    assert (last != always).any()
    assert (first != last).any()
    one = json.loads(run_cli(*common, "one.png", "--guidance-interval", "0:0.5").stdout)["images"][0]
    assert (pixels(one) == first).all()
    assert read_recipe(one)["arguments"]["guidance_interval"] == "0:0.5"
    for path in (one, told["grid"]):
        assert json.loads(run_cli("replay", path, "--json").stdout)["identical"] is True


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["strenght=1,2"], "Did you mean 'strength'"),
        (["strength"], "no values"),
        (["strength=a,b"], "not a float"),
        (["strength=0.2,3"], "--strength is 3.0; it must be at most 1"),
        (["eta=0.5,2"], "--eta is 2.0; it must be at most 1"),
        (["model=a,b"], "no option that can be swept"),
        (["strength=0.1", "strength=0.2"], "same option"),
        (["steps=1,2", "strength=0.2", "eta=0,1"], "3 times"),
        (["scheduler=ddim,dimm"], "dimm"),
    ],
)
def test_broken_sweeps_come_before_the_model(run_cli, photo: Path, sweeps: list[str], message: str) -> None:
    flags = [part for sweep in sweeps for part in ("--sweep", sweep)]
    ran = run_cli("sdedit", photo, "-m", "no/such-model", *flags)
    assert ran.code == 2, ran.stderr
    assert message in ran.stderr


# --- models that take prompts


def test_prompts_from_the_command_line(run_cli, kit, tmp_path: Path, photo: Path, mask: Path) -> None:
    make_sd(tmp_path / "sd")
    make_sd(tmp_path / "sd9", in_channels=9)
    make_if(tmp_path / "if")
    common = ("--prompt", "a cat", "--steps", 3, "--json", "-o", "out")
    for name in ("sd", "if"):
        ran = run_cli("sample", tmp_path / name, *common, "-n", 2, "--negative-prompt", "a dog", "--max-batch", 1)
        assert ran.code == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert (told["steps"], len(told["images"])) == (3, 2)
        assert read_recipe(told["images"][1])["prompt"] == "a cat"
        assert json.loads(run_cli("replay", told["images"][1], "--json").stdout)["identical"] is True
        ran = run_cli("sdedit", photo, "-m", tmp_path / name, *common, "--sweep", "prompt=a cat|two dogs, one pond")
        assert ran.code == 0, ran.stderr
        ran = run_cli("invert", photo, "-m", tmp_path / name, *common, "--edit-prompt", "a dog", "--refine", 1)
        assert ran.code == 0, ran.stderr
        assert json.loads(ran.stdout)["unet_calls"] == 3 * 2 + 3 * 2
        assert run_cli("sample", tmp_path / name, "--prompt", "a", "--class", "one").code == 2
    ran = run_cli("inpaint", photo, mask, "-m", tmp_path / "sd9", *common)
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["unet_calls"] == 3
    dry = json.loads(run_cli("sample", tmp_path / "sd", *common, "--dry-run").stdout)
    assert (dry["unet_calls"], dry["model"]["family"]) == (3, "stable_diffusion")


def test_upscaling_by_stage_two_and_three(run_cli, kit, tmp_path: Path, photo: Path) -> None:
    from diffusers import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    make_if(tmp_path / "if2", stage=2)
    parts = sd_parts(tmp_path / "x4")
    parts["unet"] = text_unet(in_channels=7, num_class_embeds=50)
    parts["scheduler"] = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    parts["low_res_scheduler"] = DDPMScheduler(beta_schedule="scaled_linear")
    write_index(tmp_path / "x4", "StableDiffusionUpscalePipeline", parts)
    for name, size in (("if2", (16, 16)), ("x4", (48, 32))):  # the tiny VAE doubles where the real one has a factor 4
        ran = run_cli(
            "upscale", photo, "-m", tmp_path / name, "-p", "a cat", "--steps", 2, "-n", 2, "--json", "-o", "o"
        )
        assert ran.code == 0, ran.stderr
        told = json.loads(ran.stdout)
        with Image.open(told["images"][0]) as image:
            assert image.size == size
        assert json.loads(run_cli("replay", told["images"][1], "--json").stdout)["identical"] is True
    make_sd(tmp_path / "sd")
    ran = run_cli("upscale", photo, "-m", tmp_path / "sd", "-o", "o")
    assert (ran.code, "no upscaler" in ran.stderr) == (2, True)


def test_a_prompt_for_a_class_model_and_the_other_way_round(run_cli, classes: Path, plain: Path, photo: Path) -> None:
    for command, model, flags in (
        ("sdedit", classes, ["--prompt", "a cat"]),
        ("sdedit", plain, ["--class", "one"]),
        ("sdedit", classes, ["--class", "four"]),
        ("sdedit", classes, ["--negative-prompt", "a dog"]),
        ("invert", classes, ["--edit-prompt", "a dog"]),
        ("invert", classes, ["--edit-prompt", "a", "--edit-class", "one"]),
        ("sample", classes, ["--prompt", "a cat"]),
        ("upscale", classes, []),
    ):
        where = [model] if command == "sample" else [photo, "-m", model]
        ran = run_cli(command, *where, *flags, "--steps", 2)
        assert ran.code == 2, (command, flags, ran.stderr)


def test_the_model_left_out(run_cli, kit, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_cli("sdedit", photo, "--steps", 2, "--offline")
    assert ran.code == 0
    assert "tiny is used (it ships with diffkit)" in ran.stderr
    ran = run_cli("sdedit", photo, "--prompt", "a photo of a castle", "--offline")
    assert ran.code == 4
    assert (
        "does not know 'photo', 'of', 'castle', and model 'stable-diffusion-v1-5/stable-diffusion-v1-5'" in ran.stderr
    )
    make_run(Path("runs/digits"))
    ran = run_cli("sdedit", photo, "--steps", 2)
    assert ran.code == 0
    assert "runs/digits is used" in ran.stderr
    assert run_cli("sdedit", photo, "--prompt", "a cat", "--offline").code == 4  # that run knows no prompts


# --- replay


def test_replay_writes_where_it_is_told(run_cli, classes: Path, photo: Path, kit) -> None:
    run_cli("sdedit", photo, "-m", classes, "--steps", 2, "-o", "a.png")
    for out, written in ((None, "a-replay.png"), ("r", "r/a-replay.png"), ("b/c.png", "b/c.png")):
        ran = run_cli("replay", "a.png", *(() if out is None else ("-o", out)), "--json")
        assert json.loads(ran.stdout)["images"] == [written]
        assert Path(written).is_file()
    ran = run_cli("replay", "a.png", "-o", "c.jpg")
    assert (ran.code, "written as PNG files" in ran.stderr, Path("c.jpg").exists()) == (2, True, False)


def test_replay_says_what_has_changed(run_cli, classes: Path, photo: Path, kit) -> None:
    run_cli("sdedit", photo, "-m", classes, "--steps", 3, "-o", "a.png")
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    ran = run_cli("replay", "a.png")
    assert (ran.code, "has changed since" in ran.stderr) == (3, True)
    photo.unlink()
    ran = run_cli("replay", "a.png")
    assert (ran.code, "not there" in ran.stderr) == (3, True)
    run_cli("sample", classes, "--steps", 3, "-o", "b.png")
    recipe = read_recipe("b.png")
    write_png(Path("b.png"), Image.new("L", (9, 9)), recipe)
    ran = run_cli("replay", "b.png", "--json")
    assert (ran.code, json.loads(ran.stdout)["identical"]) == (0, False)
    assert "not the same" in ran.stderr


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("{", "no recipe"),
        ("[1]", "no recipe"),
        ('{"command": "train", "arguments": {}}', "cannot be replayed"),
        ('{"command": "sdedit", "arguments": 3}', "no arguments"),
        ('{"command": "sample", "arguments": {"steps": "many"}}', "steps is 'many'; it must be a valid integer"),
        ('{"command": "sample", "arguments": {"steps": -4}}', "steps is -4; it must be at least 1"),
        ('{"command": "sample", "arguments": {"classes": [[1], 2]}}', "it must be a valid string"),
        ('{"command": "sample", "arguments": {"num": 1, "model": "no/model"}, "index": 7}', "contradicts itself"),
        ('{"command": "sdedit", "arguments": {"image": "/etc/hostname"}, "index": 0}', "has changed since"),
    ],
)
def test_hostile_recipes(run_cli, kit, recipe: str, said: str) -> None:
    info = PngInfo()
    info.add_itxt("diffkit", recipe)
    Image.new("L", (8, 8)).save("h.png", pnginfo=info)
    ran = run_cli("replay", "h.png")
    assert ran.code in (2, 3), ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_what_a_recipe_must_not_say_is_ignored(run_cli, classes: Path, kit, tmp_path: Path) -> None:
    arguments = {"model": str(classes), "steps": 2, "out": str(tmp_path / "evil"), "allow_pickle": True, "x" * 500: 1}
    write_png(Path("h.png"), Image.new("L", (9, 9)), {"command": "sample", "arguments": arguments, "index": 0})
    ran = run_cli("replay", "h.png")
    assert ran.code == 0, ran.stderr
    assert ran.stderr.count("is ignored") == 3
    assert not (tmp_path / "evil").exists()


def test_seconds_tell_the_encoding_of_prompts_from_the_loading(
    run_cli, tmp_path: Path, photo: Path, kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffkit.models.text import PromptEncoder

    make_if(tmp_path / "if")
    quick = PromptEncoder._load
    # As long as a real encoder takes: a tiny one is as quick as the cache.
    monkeypatch.setattr(PromptEncoder, "_load", lambda self: (time.sleep(0.5), quick(self))[1])
    common = ("sdedit", photo, "-m", tmp_path / "if", "-p", "a cat", "--steps", 2, "-o", "out", "--json")
    first, second = (json.loads(run_cli(*common).stdout)["seconds"] for _ in range(2))
    assert set(first) == {"load", "encode", "denoise", "total"}
    assert second["encode"] < first["encode"] / 5  # read from the cache, without the encoder
    assert first["load"] + first["encode"] + first["denoise"] <= first["total"] + 0.01


@pytest.mark.slow
def test_compiled_networks_draw_the_same(run_cli, classes: Path, kit) -> None:
    common = ("sample", classes, "-c", "one", "--steps", 3, "--json")
    plain = json.loads(run_cli(*common, "-o", "plain.png").stdout)["images"]
    compiled = json.loads(run_cli(*common, "--compile", "-o", "compiled.png").stdout)["images"]
    assert np.abs(pixels(plain[0]) - pixels(compiled[0])).max() <= 1


def test_the_small_model_is_told_what_its_example_shows(run_cli, kit, photo: Path, tmp_path: Path) -> None:
    said = "no --prompt: the example is a red heart"
    for command in ("sdedit", "inpaint"):
        ran = run_cli(command, "--steps", 2, "--offline", "--json", "-o", tmp_path / "o.png")
        assert said in ran.stderr
        (path,) = json.loads(ran.stdout)["images"]
        assert read_recipe(Path(path))["arguments"]["prompt"] == "a red heart"
        assert json.loads(run_cli("replay", path, "--json", "--offline").stdout)["identical"]
    assert said not in run_cli("sdedit", photo, "--steps", 2, "--offline").stderr
    assert said not in run_cli("sdedit", "--prompt", "a green tree", "--steps", 2, "--offline").stderr
