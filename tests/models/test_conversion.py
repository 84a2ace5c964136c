"""Foreign checkpoints become diffusers folders: each kind draws what its source draws, and nothing else is left."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit.errors import DiffkitError, ModelError, ResourceError, UsageError
from diffkit.models import FAMILIES as FAMILY_TABLE
from diffkit.models import info, load, open_repo
from diffkit.models.conversion import Options, convert, parts, plan_of
from diffkit.types import Cond
from tests.models.conftest import make_dit, make_flat, make_pipeline, make_sd, make_sdxl, text_unet, tiny_vae
from tests.models.fakehub import FakeHub
from tests.models.test_opening import checkpoint
from tests.models.test_pickled import pickled
from tests.models.test_stable_diffusion import add_checker
from tests.support.families import label_of, make_run
from tests.support.single_file import sd3_file, sdxl_file, single_file

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
PICKLES = Options(allow_pickle=True)
FAMILIES = ("plain", "classes", "flow", "sd", "sd9", "if", "dit", "flat")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def answer(folder: Path, label: str | None = "a cat", dtype: str = "auto", **options: bool) -> Tensor:
    """What a model says of some noise, and the picture that its codec makes of it."""
    model = load(str(folder), device="cpu", dtype=dtype, **options)
    x = model.noise([torch.Generator().manual_seed(0)])
    cond = model.encode([label])
    if model.info.source == "mask":
        cond = cond.join(Cond({"channels": torch.zeros(1, 5, *x.shape[2:])}))
    with torch.no_grad():
        picture = model.codec.decode(x)
        return torch.cat([model(x, torch.tensor(3), cond).out.flatten(), picture.flatten()])


def nothing_left(place: Path, *names: str) -> bool:
    """Say whether a folder holds these entries and no others, hidden ones among them."""
    return {path.name for path in place.iterdir()} == set(names)


def types(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found - {"I64"}


# --- one file


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A Stable Diffusion pipeline at sd/, and the same in one file of each form."""
    made = make_sd(tmp_path / "sd")
    save_file(single_file(made), tmp_path / "plain.safetensors")
    torch.save(
        {"state_dict": single_file(made), "epoch": 3, "lr_schedulers": [{"a": 1.0}]}, tmp_path / "lightning.ckpt"
    )
    torch.save(single_file(made, ema=True), tmp_path / "ema.pt", _use_new_zipfile_serialization=False)
    return tmp_path


@pytest.mark.parametrize("name", ["plain.safetensors", "lightning.ckpt", "ema.pt"])
def test_one_file_draws_what_its_pipeline_draws(one_file: Path, name: str) -> None:
    facts = convert(str(one_file / name), one_file / "out", Options(config=str(one_file / "sd"), allow_pickle=True))
    assert torch.equal(answer(one_file / "out"), answer(one_file / "sd"))
    assert (facts["pipeline"], facts["family"], facts["dtype"]) == (
        "StableDiffusionPipeline",
        "stable_diffusion",
        "fp32",
    )
    assert {part["name"] for part in facts["parts"]} == {".", "unet", "vae", "text_encoder"}


@pytest.mark.parametrize("dtype", ["", "fp16"])
def test_one_file_of_sdxl_draws_what_its_pipeline_draws(tmp_path: Path, dtype: str) -> None:
    save_file(sdxl_file(make_sdxl(tmp_path / "xl")), tmp_path / "xl.safetensors")
    facts = convert(
        str(tmp_path / "xl.safetensors"), tmp_path / "out", Options(config=str(tmp_path / "xl"), dtype=dtype)
    )
    written = {part["name"] for part in facts["parts"]}
    assert written == {".", "unet", "vae", "text_encoder", "text_encoder_2"}
    if not dtype:
        assert torch.equal(answer(tmp_path / "out"), answer(tmp_path / "xl"))
    assert types(tmp_path / "out") == {"F16" if dtype else "F32"}
    with pytest.raises(UsageError) as caught:
        convert(str(tmp_path / "xl.safetensors"), tmp_path / "other", Options())
    assert "stabilityai/stable-diffusion-xl-base-1.0" in caught.value.hint


@pytest.mark.skipif("stable_diffusion_3" not in FAMILY_TABLE, reason="the family is not there")
def test_one_file_of_sd3_without_text_encoders_draws_what_its_pipeline_draws(tmp_path: Path) -> None:
    make_sd3 = importlib.import_module("tests.models.conftest").make_sd3
    save_file(sd3_file(make_sd3(tmp_path / "sd3")), tmp_path / "sd3.safetensors")
    facts = convert(str(tmp_path / "sd3.safetensors"), tmp_path / "out", Options(config=str(tmp_path / "sd3")))
    origins = {part["name"]: part["from"] for part in facts["parts"]}
    assert origins["transformer"] == origins["vae"] == str(tmp_path / "sd3.safetensors")
    assert origins["text_encoder"] == origins["text_encoder_3"] == str(tmp_path / "sd3")
    assert torch.equal(answer(tmp_path / "out"), answer(tmp_path / "sd3"))


def test_the_stock_library_opens_it(one_file: Path) -> None:
    from diffusers import StableDiffusionPipeline

    convert(str(one_file / "plain.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    pipe = StableDiffusionPipeline.from_pretrained(one_file / "out", safety_checker=None, feature_extractor=None)
    stored = load_file(one_file / "sd" / UNET)
    assert all(torch.equal(value, stored[name]) for name, value in pipe.unet.state_dict().items())


def test_the_last_weights_are_taken_where_they_are_asked_for(one_file: Path) -> None:
    options = Options(config=str(one_file / "sd"), allow_pickle=True, ema=False)
    convert(str(one_file / "ema.pt"), one_file / "out", options)
    assert not any(value.any() for value in load_file(one_file / "out" / UNET).values())


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_a_number_type_is_written(one_file: Path, dtype: str, stored: str) -> None:
    options = Options(config=str(one_file / "sd"), dtype=dtype)
    facts = convert(str(one_file / "plain.safetensors"), one_file / "out", options)
    assert types(one_file / "out") == {stored}
    assert facts["dtype"] == dtype
    planned = sum(part.bytes or 0 for part in plan_of(str(one_file / "plain.safetensors"), options).parts)
    assert planned == pytest.approx(facts["bytes"], rel=0.2)


def test_every_part_of_one_file_keeps_its_own_number_type(one_file: Path) -> None:
    state = load_file(one_file / "plain.safetensors")
    halved = {k: v if k.startswith("first_stage_model.") else v.half() for k, v in state.items()}
    save_file(halved, one_file / "mixed.safetensors")
    convert(str(one_file / "mixed.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    assert types(one_file / "out" / "unet") == {"F16"}
    assert types(one_file / "out" / "vae") == {"F32"}
    stored = load_file(one_file / "sd" / "vae" / UNET.name)
    assert all(torch.equal(v, stored[k]) for k, v in load_file(one_file / "out" / "vae" / UNET.name).items())


def test_configurations_are_enough_of_a_folder_and_of_the_hub(one_file: Path, fake_hub: FakeHub) -> None:
    expected = answer(one_file / "sd")
    for path in (one_file / "sd").rglob("*.safetensors"):
        path.unlink()
    fake_hub.repos["someone/sd"] = one_file / "sd"
    for number, config in enumerate([str(one_file / "sd"), "someone/sd"]):
        convert(str(one_file / "plain.safetensors"), one_file / f"out{number}", Options(config=config))
        assert torch.equal(answer(one_file / f"out{number}"), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_safety_checker_comes_along_where_it_is_and_is_missed_aloud_where_not(
    one_file: Path, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    add_checker(one_file / "sd", True)
    if not whole:
        (one_file / "sd" / "safety_checker" / "model.safetensors").unlink()
    with caplog.at_level("INFO", "diffkit"):
        convert(str(one_file / "plain.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    entry = json.loads((one_file / "out" / "model_index.json").read_text())["safety_checker"]
    assert (entry[1] is not None) == whole == (one_file / "out" / "safety_checker").is_dir()
    assert ("no safety_checker" in caplog.text) != whole
    model = load(str(one_file / "out"), device="cpu")
    assert model.screen(torch.zeros(1, 3, 32, 32))[1] == [whole]


def test_one_file_asks_for_its_configuration(one_file: Path) -> None:
    with pytest.raises(UsageError, match="in one file") as caught:
        convert(str(one_file / "plain.safetensors"), one_file / "out", Options())
    assert "`config`" in caught.value.hint
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in caught.value.hint


@pytest.mark.parametrize("wrong", ["width", "pixels", "vae"])
def test_a_configuration_of_another_model_is_refused(one_file: Path, wrong: str) -> None:
    if wrong == "width":
        make_sd(one_file / "other", block_out_channels=(16, 32))
    elif wrong == "pixels":
        make_pipeline(one_file / "other")
    else:
        make_sd(one_file / "other")
        path = one_file / "other" / "vae" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_block": 2}))
    with pytest.raises(ModelError):
        convert(str(one_file / "plain.safetensors"), one_file / "out", Options(config=str(one_file / "other")))
    assert not [p for p in one_file.iterdir() if p.name.startswith((".", "out"))]


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.middle_block.0.scale_weight", "first_stage_model.encoder.more"]
)
def test_a_file_with_numbers_that_would_be_dropped_is_refused(one_file: Path, name: str) -> None:
    left = {"first_stage_model.loss.logvar": torch.ones(1)}  # of the training of a VAE: is not looked at
    state = load_file(one_file / "plain.safetensors") | left
    save_file(state, one_file / "more.safetensors")
    convert(str(one_file / "more.safetensors"), one_file / "left", Options(config=str(one_file / "sd")))
    save_file(state | {name: torch.ones(3)}, one_file / "more.safetensors")
    with pytest.raises(ModelError, match=r"has [\d,]+ numbers, and one as configured in .*sd has"):
        convert(str(one_file / "more.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    assert not [p for p in one_file.iterdir() if p.name.startswith((".", "out"))]


@pytest.mark.parametrize("kind", [torch.float64, torch.float8_e4m3fn])
def test_a_number_type_that_no_model_runs_in_asks_for_another(one_file: Path, kind: torch.dtype) -> None:
    state = {name: value.to(kind) for name, value in load_file(one_file / "plain.safetensors").items()}
    save_file(state, one_file / "odd.safetensors")
    with pytest.raises(UsageError, match=str(kind).removeprefix("torch.")) as caught:
        convert(str(one_file / "odd.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    assert "`dtype`" in caught.value.hint
    facts = convert(str(one_file / "odd.safetensors"), one_file / "out", Options(str(one_file / "sd"), dtype="bf16"))
    assert facts["dtype"] == "bf16"


def test_a_file_that_lacks_a_tensor_makes_nothing(one_file: Path) -> None:
    state = load_file(one_file / "plain.safetensors")
    del state["model.diffusion_model.out.2.weight"]
    save_file(state, one_file / "plain.safetensors")
    with pytest.raises(ModelError):
        convert(str(one_file / "plain.safetensors"), one_file / "out", Options(config=str(one_file / "sd")))
    assert not [p for p in one_file.iterdir() if p.name.startswith((".", "out"))]


# --- checkpoints of trainings


@pytest.mark.parametrize(("ema", "bias"), [(True, 1.0), (False, 2.0)])
@pytest.mark.parametrize("beside", ["nothing", "scheduler", "pipeline"])
def test_a_checkpoint_becomes_a_pipeline(tmp_path: Path, ema: bool, bias: float, beside: str) -> None:
    source = checkpoint(tmp_path / "run", "unet", "unet_ema", scheduler=beside == "scheduler")
    if beside == "pipeline":
        make_pipeline(tmp_path / "run")
        DDPMScheduler(num_train_timesteps=50, prediction_type="sample").save_pretrained(tmp_path / "run" / "scheduler")
    facts = convert(str(source), tmp_path / "out", Options(ema=ema))
    model = load(str(tmp_path / "out"), device="cpu")
    assert torch.equal(model.network.unet.conv_out.bias, torch.full((3,), bias))
    assert model.info.timesteps == (1000 if beside == "nothing" else 50)
    assert facts["pipeline"] == model.info.pipeline == "DDPMPipeline"
    if ema and beside != "pipeline":
        assert torch.equal(answer(tmp_path / "out", None), answer(source, None))
    assert not list((tmp_path / "out").rglob("*.bin"))
    from diffusers import DDPMPipeline

    assert DDPMPipeline.from_pretrained(tmp_path / "out").unet.conv_out.bias[0] == bias


def test_a_checkpoint_of_pickles(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "run", "unet")
    expected = answer(source, None)
    pickled(source)
    with pytest.raises(ModelError, match="pickled"):
        convert(str(source), tmp_path / "out", Options())
    convert(str(source), tmp_path / "out", PICKLES)
    assert torch.equal(answer(tmp_path / "out", None), expected)


@pytest.mark.parametrize("family", ["sd", "dit"])
def test_a_checkpoint_of_a_network_alone_goes_into_the_pipeline_that_is_named(tmp_path: Path, family: str) -> None:
    name = "unet" if family == "sd" else "transformer"
    network = (make_sd if family == "sd" else make_dit)(tmp_path / "base")[name]
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(1.25)
    network.save_pretrained(tmp_path / "run" / "checkpoint-7" / name)
    with pytest.raises(ModelError, match="no pipeline that it belongs to") as caught:
        convert(str(tmp_path / "run" / "checkpoint-7"), tmp_path / "out", Options())
    assert "`config`" in caught.value.hint
    convert(str(tmp_path / "run" / "checkpoint-7"), tmp_path / "out", Options(config=str(tmp_path / "base")))
    network.save_pretrained(tmp_path / "base" / name)
    label = "1" if family == "dit" else "a cat"
    assert torch.equal(answer(tmp_path / "out", label), answer(tmp_path / "base", label))


def test_a_checkpoint_goes_into_no_other_pipeline(tmp_path: Path) -> None:
    make_sd(tmp_path / "sd")
    make_pipeline(tmp_path / "ddpm")
    text_unet(cross_attention_dim=24).save_pretrained(tmp_path / "checkpoint-1" / "unet")
    for base, said in (("sd", "cross_attention_dim 24"), ("ddpm", "has a UNet2DModel there")):
        with pytest.raises(ModelError, match=said):
            convert(str(tmp_path / "checkpoint-1"), tmp_path / "out", Options(config=str(tmp_path / base)))
    (tmp_path / "checkpoint-1" / "unet").rename(tmp_path / "checkpoint-1" / "unet_ema")
    with pytest.raises(ModelError, match="averaged weights only"):
        convert(str(tmp_path / "checkpoint-1"), tmp_path / "out", Options(config=str(tmp_path / "sd"), ema=False))


# --- pipelines of pickles


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_of_pickles_draws_the_same_in_safetensors(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    source = tmp_path / "m"
    if family == "dit":
        make_dit(source)
    elif family == "flat":
        make_flat(source)
    else:
        shutil.copytree(folders[family], source)
    label = "1" if family == "dit" else None if family == "flat" else label_of(family)
    expected = answer(source, label)
    pickled(source)
    with pytest.raises(ModelError, match="pickled"):
        convert(str(source), tmp_path / "out", Options())
    convert(str(source), tmp_path / "out", PICKLES)
    assert torch.equal(answer(tmp_path / "out", label), expected)
    assert not list((tmp_path / "out").rglob("*.bin"))
    with pytest.raises(UsageError, match="whole model"):
        convert(str(source), tmp_path / "other", Options(allow_pickle=True, config=str(source)))
    # A second time there is nothing to do, but for another number type.
    with pytest.raises(UsageError, match="nothing to convert"):
        convert(str(tmp_path / "out"), tmp_path / "again", Options())
    convert(str(tmp_path / "out"), tmp_path / "half", Options(dtype="fp16"))
    assert types(tmp_path / "half") - {"F32"} == {"F16"}  # the class table of a run of diffkit stays
    torch.testing.assert_close(answer(tmp_path / "half", label), expected, atol=0.05, rtol=0.05)


def test_a_run_with_classes_over_the_image_keeps_their_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", kind="concat")
    expected = answer(run, "one")
    pickled(run, "unet")
    (run / "unet" / "class_embedding.bin").unlink()
    make_run(tmp_path / "other", kind="concat")
    shutil.copy(tmp_path / "other" / "unet" / "class_embedding.safetensors", run / "unet")
    convert(str(run), tmp_path / "out", PICKLES)
    assert torch.equal(answer(tmp_path / "out", "one"), expected)


def test_a_variant_becomes_the_plain_weights(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "m", variant="fp16")
    convert(str(tmp_path / "m"), tmp_path / "out", Options())
    assert (tmp_path / "out" / UNET).is_file()
    assert torch.equal(answer(tmp_path / "out", None), answer(tmp_path / "m", None))


def test_of_a_hub_repository_a_dry_run_fetches_no_weights(tmp_path: Path, fake_hub: FakeHub) -> None:
    make_sd(tmp_path / "m")
    expected = answer(tmp_path / "m")
    pickled(tmp_path / "m")
    fake_hub.repos["someone/old"] = tmp_path / "m"
    with pytest.raises(ModelError, match="pickled"):
        convert("someone/old", tmp_path / "out", Options())
    facts = convert("someone/old", tmp_path / "out", PICKLES, dry_run=True)
    assert facts["bytes"] is None
    assert not [name for name in fake_hub.fetched() if name.endswith(".bin")]
    assert not (tmp_path / "out").exists()
    convert("someone/old", tmp_path / "out", PICKLES)
    assert torch.equal(answer(tmp_path / "out"), expected)


def test_a_hub_repository_of_one_file_says_how_to_get_it(tmp_path: Path, fake_hub: FakeHub) -> None:
    (tmp_path / "m").mkdir()
    torch.save({}, tmp_path / "m" / "model.ckpt")
    fake_hub.repos["someone/ckpt"] = tmp_path / "m"
    with pytest.raises(ModelError, match=r"model\.ckpt alone") as caught:
        convert("someone/ckpt", tmp_path / "out", Options())
    assert "hf download someone/ckpt model.ckpt" in caught.value.hint
    assert "diffkit convert" in caught.value.hint


def test_large_weights_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pipeline(tmp_path / "m")
    expected = answer(tmp_path / "m", None)
    pickled(tmp_path / "m")
    monkeypatch.setattr(parts, "SHARD", 30_000)
    convert(str(tmp_path / "m"), tmp_path / "out", PICKLES)
    files = sorted((tmp_path / "out" / "unet").glob("*-of-*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 60_000 for path in files)
    assert torch.equal(answer(tmp_path / "out", None), expected)


def test_tied_tensors_and_views_are_written_apart(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "m")
    state = load_file(tmp_path / "m" / UNET)
    expected = answer(tmp_path / "m", None)
    (tmp_path / "m" / UNET).unlink()
    buffer = torch.zeros(64)
    buffer[:3] = state["conv_out.bias"]
    state["conv_out.bias"] = buffer[:3]
    state["conv_in.weight"] = state["conv_in.weight"].transpose(2, 3).contiguous().transpose(2, 3)
    torch.save(state, (tmp_path / "m" / UNET).with_suffix(".bin"))
    convert(str(tmp_path / "m"), tmp_path / "out", PICKLES)
    assert torch.equal(answer(tmp_path / "out", None), expected)


# --- hostile and broken sources


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (f"touch '{self.sentinel}'",))


def put(obj: object, path: Path, form: str) -> None:
    if form == "zip":
        torch.save(obj, path)
    else:
        path.write_bytes(pickle.dumps(obj))


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("form", ["zip", "plain"])
@pytest.mark.parametrize("kind", ["file", "lightning", "checkpoint", "pipeline"])
def test_a_hostile_pickle_never_runs(tmp_path: Path, kind: str, form: str, dry_run: bool) -> None:
    sentinel = tmp_path / "sentinel"
    bomb: dict[str, object] = {"conv_in.weight": Bomb(sentinel)}
    if kind in ("file", "lightning"):
        source = tmp_path / "model.ckpt"
        put({"state_dict": {}, "callbacks": bomb} if kind == "lightning" else bomb, source, form)
    elif kind == "checkpoint":
        source = checkpoint(tmp_path / "run", "unet_ema")
        put(bomb, (source / "unet_ema" / UNET.name).with_suffix(".bin"), form)
        (source / "unet_ema" / UNET.name).unlink()
    else:
        source = tmp_path / "m"
        make_flat(source, weights="none")
        put(bomb, (source / UNET.name).with_suffix(".bin"), form)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ModelError, match=r"refused|no tensors by name") as caught:
        convert(str(source), tmp_path / "out", PICKLES, dry_run=dry_run)
    assert caught.value.exit_code == 4
    assert form == "plain" or "system" in caught.value.message  # the very thing that it asks for
    assert not sentinel.exists()
    assert nothing_left(tmp_path, *before)
    with pytest.raises(ModelError, match="pickled"):
        convert(str(source), tmp_path / "out", Options(), dry_run=dry_run)
    pickle.loads(pickle.dumps(bomb))  # the bomb is real
    assert sentinel.exists()


def test_what_the_unpickler_refuses_is_named(one_file: Path) -> None:
    """Hyper-parameters of a training, as Lightning keeps them."""
    state = load_file(one_file / "plain.safetensors")
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(a=1)}, one_file / "lightning.ckpt")
    with pytest.raises(ModelError, match=r"it asks for argparse\.Namespace") as caught:
        convert(
            str(one_file / "lightning.ckpt"), one_file / "out", Options(config=str(one_file / "sd"), allow_pickle=True)
        )
    assert caught.value.exit_code == 4
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["plain.safetensors", "lightning.ckpt", "ema.pt", "sd", "run"])
def test_a_truncated_source_makes_nothing(one_file: Path, name: str, kept: float) -> None:
    source = victim = one_file / name
    if name == "sd":
        pickled(source)
        victim = (source / UNET).with_suffix(".bin")
    elif name == "run":
        source = checkpoint(one_file / "run", "unet")
        victim = source / UNET
    victim.write_bytes(victim.read_bytes()[: int(kept * victim.stat().st_size)])
    before = {path.name for path in one_file.iterdir()}
    with pytest.raises(ModelError):
        convert(
            str(source),
            one_file / "out",
            Options(config="" if name == "sd" else str(one_file / "sd"), allow_pickle=True),
        )
    assert nothing_left(one_file, *before)


def test_wrong_kinds_are_called_by_name(tmp_path: Path) -> None:
    ones = torch.ones(2, 2)
    vae = tiny_vae().state_dict()
    files: list[tuple[dict[str, object], str]] = [
        ({f"unet.down_blocks.0.attn.to_q.lora_A.weight.{k}": ones for k in range(5)}, "a LoRA"),
        ({f"lora_unet_down_blocks_{k}.alpha": ones for k in range(5)}, "a LoRA"),
        (dict(vae), "a VAE alone"),
        ({f"first_stage_model.{k}": v for k, v in vae.items()}, "a VAE alone"),
        ({f"control_model.input_blocks.{k}": ones for k in range(5)}, "a ControlNet"),
        ({f"text_model.encoder.layers.{k}": ones for k in range(5)}, "a text encoder"),
        (dict(text_unet().state_dict()), "a network of diffusers"),
        ({"<cat-toy>": ones}, "textual inversion"),
        ({f"something.{k}": ones for k in range(5)}, "of no kind that can be converted"),
        ({"state": {}, "param_groups": [{"lr": 1.0}]}, "the state of an optimizer"),
        ({"epoch": 3}, "no tensors by name"),
    ]
    for number, (state, said) in enumerate(files):
        path = tmp_path / f"{number}.ckpt"
        torch.save(state, path)
        with pytest.raises(ModelError, match=said) as caught:
            convert(str(path), tmp_path / "out", PICKLES)
        assert caught.value.hint
    (tmp_path / "a.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match="no file of weights"):
        convert(str(tmp_path / "a.gguf"), tmp_path / "out", PICKLES)
    assert not (tmp_path / "out").exists()


def test_folders_without_a_model_are_called_by_name(tmp_path: Path) -> None:
    rows: dict[str, tuple[tuple[str, ...], str]] = {
        "lora": (("pytorch_lora_weights.safetensors", "optimizer.bin"), "a LoRA"),
        "state": (("model.safetensors", "optimizer.bin", "random_states_0.pkl"), "the state of a training"),
        "checkpoints/step-5": (("manifest.json",), "a checkpoint of `diffkit train`"),
        "empty": ((), "holds no model_index.json"),
    }
    for name, (files, said) in rows.items():
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            (tmp_path / name / file).write_bytes(b"x")
        with pytest.raises(ModelError, match=said):
            convert(str(tmp_path / name), tmp_path / "out", PICKLES)
    make_sd(tmp_path / "sd")
    for part in ("vae", "unet"):
        with pytest.raises(ModelError, match="cannot load"):
            convert(str(tmp_path / "sd" / part), tmp_path / "out", Options(dtype="fp16"))
    with pytest.raises(ModelError, match="no such folder"):
        convert(str(tmp_path / "none"), tmp_path / "out", Options())


class _Runs:
    """Makes a file where a pickle of it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", [*range(pickle.HIGHEST_PROTOCOL + 1), "empty", "text", "zip", "cut"])
def test_a_refused_pickle_says_why_and_not_how_to_run_it(
    tmp_path: Path, form: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own words advise to turn the restricted unpickler off."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    data = {"empty": b"", "text": b"hello world", "zip": b"PK\x03\x04junk", "cut": b"\x80\x02}q\x00(X"}
    whole = pickle.dumps(_Runs(tmp_path / "ran"), protocol=form) if isinstance(form, int) else data[form]
    (tmp_path / "model.bin").write_bytes(whole)
    with pytest.raises(ModelError, match=r"is refused.*: [a-zA-Z]") as caught:
        convert(str(tmp_path / "model.bin"), tmp_path / "out", PICKLES)
    assert "weights_only" not in f"{caught.value.message} {caught.value.hint}".replace("-", "_")
    assert "arbitrary" not in caught.value.message
    assert len(caught.value.message) < 300 + len(str(tmp_path))
    assert nothing_left(tmp_path, "model.bin")


# --- the target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_pipeline(tmp_path / "m")
    return tmp_path / "m"


HALF = Options(dtype="fp16")


def test_a_target_that_is_there_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(str(source), out, HALF)  # an empty folder is nobody's
    with pytest.raises(UsageError, match="is there already") as caught:
        convert(str(source), out, HALF)
    assert "`overwrite`" in caught.value.hint
    convert(str(source), out, Options(dtype="bf16"), overwrite=True)
    assert types(out) == {"BF16"}
    assert nothing_left(tmp_path, "m", "out")


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_model_is_never_replaced(source: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file", "file/below", "m", "m/../m", "."):
        with pytest.raises(UsageError, match="`target`"):
            convert(str(source), tmp_path / name, HALF, overwrite=overwrite, dry_run=name == "file/below")
    assert nothing_left(tmp_path, "m", "thesis", "file")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ("notes.txt", "notes.txt"),
        ("checkpoints/step-9/manifest.json", "checkpoints"),
        ("samples/4.png", "samples"),
        (".git/HEAD", ".git"),
        ("models/another/unet.safetensors", "models"),
        ("model_notes.json", "model_notes.json"),
        ("model.safetensors", "model.safetensors"),
        ("unet/checkpoint-100/optimizer.bin", "unet/checkpoint-100"),
    ],
)
def test_a_model_with_other_things_beside_it_is_not_replaced(
    source: Path, tmp_path: Path, mine: str, named: str
) -> None:
    convert(str(source), tmp_path / "out", HALF)
    (tmp_path / "out" / mine).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / mine).write_text("x")
    with pytest.raises(UsageError, match=rf"something else than a model \({named}\)"):
        convert(str(source), tmp_path / "out", Options(dtype="bf16"), overwrite=True)
    assert (tmp_path / "out" / mine).read_text() == "x"
    assert types(tmp_path / "out" / "unet") == {"F16"}


def test_a_project_with_some_configuration_is_no_model(source: Path, tmp_path: Path) -> None:
    (tmp_path / "project" / "models").mkdir(parents=True)
    (tmp_path / "project" / "config.json").write_text("{}")
    (tmp_path / "project" / "README.md").write_text("x")
    with pytest.raises(UsageError, match=r"something else than a model \(README.md, config.json, models\)"):
        convert(str(source), tmp_path / "project", HALF, overwrite=True)
    assert nothing_left(tmp_path, "m", "project")


def test_a_part_of_a_model_is_not_replaced(source: Path, tmp_path: Path) -> None:
    convert(str(source), tmp_path / "other", HALF)
    for target, why in (("m/unet", "lies in the source"), ("other/unet", "is a part of the model in .*other")):
        with pytest.raises(UsageError, match=rf"`target` .* {why}"):
            convert(str(source), tmp_path / target, HALF, overwrite=True)
        assert (tmp_path / target / "config.json").is_file()


def test_the_network_of_a_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "run")
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "run" / "unet").rename(tmp_path / "checkpoint-9" / "unet")
    with pytest.raises(UsageError, match="lies in the source"):
        convert(str(tmp_path / "checkpoint-9"), tmp_path / "checkpoint-9" / "unet", HALF, overwrite=True)
    assert (tmp_path / "checkpoint-9" / "unet" / "config.json").is_file()


def test_the_pipeline_that_lends_the_rest_is_not_replaced(one_file: Path) -> None:
    for target in ("sd", "sd/../sd", "."):
        with pytest.raises(UsageError, match=r"`target` .* holds the (`config`|source)"):
            convert(
                str(one_file / "plain.safetensors"), one_file / target, Options(config=str(one_file / "sd")),
                overwrite=True,
            )  # fmt: skip
    assert (one_file / "sd" / UNET).is_file()


def test_the_folder_that_one_is_in_is_not_taken_away(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target in (".", "..", "../../here"):
        with pytest.raises(UsageError, match="the folder that you are in"):
            convert(str(source), Path(target), HALF, overwrite=True)
    assert nothing_left(tmp_path, "m", "here")


def test_where_a_link_leads_is_replaced_and_the_link_stays(source: Path, tmp_path: Path) -> None:
    convert(str(source), tmp_path / "disk" / "out", HALF)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    convert(str(source), tmp_path / "out", Options(dtype="bf16"), overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert types(tmp_path / "disk" / "out") == {"BF16"}
    assert nothing_left(tmp_path, "m", "disk", "out")
    assert nothing_left(tmp_path / "disk", "out")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(
    source: Path, tmp_path: Path, error: BaseException, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    if there:
        convert(str(source), tmp_path / "out", HALF)
    before = answer(tmp_path / "out", None) if there else None

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(type(error)):
        convert(str(source), tmp_path / "out", Options(dtype="bf16"), overwrite=True)
    assert nothing_left(tmp_path, "m", *(["out"] if there else []))
    if before is not None:
        assert torch.equal(answer(tmp_path / "out", None), before)


def test_a_disk_without_room_is_said_before(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="are free there"):
        convert(str(source), tmp_path / "deep" / "out", HALF)
    assert nothing_left(tmp_path, "m")


def test_a_result_that_is_no_whole_model_is_not_left(tmp_path: Path) -> None:
    """Its configuration says something that only the whole can refuse."""
    source = checkpoint(tmp_path, "unet", scheduler=True)
    path = source / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 9}))
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(DiffkitError, match=r"the result.*sample_size") as caught:
        convert(str(source), tmp_path / "out", Options())
    assert str(tmp_path / ".") not in caught.value.message.replace(str(source), "")
    assert nothing_left(tmp_path, *before)


def test_a_dry_run_writes_nothing_and_knows_how_much(source: Path, tmp_path: Path) -> None:
    facts = convert(str(source), tmp_path / "deep" / "out", HALF, dry_run=True)
    assert nothing_left(tmp_path, "m")
    sizes = {part["name"]: part["bytes"] for part in facts["parts"]}
    assert sizes["unet"] == 2 * sum(value.numel() for value in load_file(source / UNET).values())
    assert facts["bytes"] == sum(sizes.values())
    assert info(open_repo(source)).family == "ddpm"
