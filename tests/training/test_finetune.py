"""Fine-tuning starts where the source was, and keeps what the source fixes."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_run import TINY

from diffkit.errors import ModelError, UsageError
from diffkit.models import load
from diffkit.recipes.reading import load_recipe
from diffkit.training import fit
from diffkit.training.finetune import at_source_size, fit_input, fit_output, load_pretrained
from tests.support.families import make_run


def unet(channels=3, size=16, **more):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8, **more,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """An RGB DDIM pipeline with its own schedule."""
    scheduler = DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDIMPipeline(unet(), scheduler).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def recipe(source, *sets, name="celebahq-finetune"):
    base = [
        f"model.pretrained={source}", "dataset.name=digits", "dataset.resolution=16", "training.steps=2",
        "training.batch_size=4", "training.gradient_accumulation=1", "training.warmup_steps=0", "dataset.limit=20",
        "training.preview_images=4", "training.preview_steps=2", "training.preview_every=0",
    ]  # fmt: skip
    return load_recipe(name, sets=[*base, *sets], environ={})


def outputs(network, x, t, labels=None):
    with torch.no_grad():
        return network(x, t, labels)


@pytest.mark.parametrize("fields", [{"prediction_type": "sample"}, {"prediction_type": "sample", "noise_scale": 2.0}])
def test_a_flow_that_training_does_not_know_is_refused(tmp_path, fields):
    folder = make_run(tmp_path / "flow", "flow", size=16)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    (folder / "diffkit.json").unlink()
    with pytest.raises(UsageError, match="predicts x0"):
        load_pretrained(recipe(folder, "dataset.channels=1"), (1, 16, 16), 0)


def test_the_schedule_and_the_prediction_type_are_the_sources(source, caplog):
    network, scheduler, prediction = load_pretrained(recipe(source, "dataset.channels=3"), (3, 16, 16), 0)
    assert isinstance(scheduler, DDPMScheduler)
    assert (prediction, scheduler.config.num_train_timesteps) == ("v_prediction", 50)
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(outputs(network, x, 7), unet()(x, 7).sample.detach(), atol=0, rtol=0)
    assert "not used" not in caplog.text
    load_pretrained(recipe(source, "noise.prediction=v_prediction", "noise.timesteps=50"), (3, 16, 16), 0)
    assert "not used" not in caplog.text
    _, _, kept = load_pretrained(recipe(source, "noise.prediction=sample", "noise.timesteps=7"), (3, 16, 16), 0)
    assert kept == "v_prediction"
    assert "not used: noise.prediction=sample, noise.timesteps=7" in caplog.text


def test_grey_data_on_an_rgb_source_gives_what_rgb_greys_gave(source):
    network, _, _ = load_pretrained(recipe(source), (1, 16, 16), 0)
    x = torch.randn(2, 1, 16, 16)
    expected = unet()(x.repeat(1, 3, 1, 1), 7).sample.detach().mean(1, keepdim=True)
    torch.testing.assert_close(outputs(network, x, 7), expected, atol=1e-5, rtol=1e-5)


def test_rgb_data_on_a_grey_source_gives_what_the_mean_gave(tmp_path):
    DDPMPipeline(unet(1), DDPMScheduler()).save_pretrained(tmp_path / "grey")
    network, _, _ = load_pretrained(recipe(tmp_path / "grey"), (3, 16, 16), 0)
    x = torch.randn(2, 3, 16, 16)
    expected = unet(1)(x.mean(1, keepdim=True), 7).sample.detach().repeat(1, 3, 1, 1)
    torch.testing.assert_close(outputs(network, x, 7), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["embedding", "concat"])
def test_classes_on_an_unconditional_source_begin_as_no_class(source, kind):
    chosen = recipe(source, f"model.class_conditioning={kind}")
    network, _, _ = load_pretrained(chosen, (3, 16, 16), 10)
    x = torch.randn(2, 3, 16, 16)
    expected = unet()(x, 7).sample.detach()
    for labels in (torch.tensor([3, 9]), None):
        torch.testing.assert_close(outputs(network, x, 7, labels), expected, atol=1e-6, rtol=1e-6)
    assert (network.num_classes, network.null_class) == (10, 10)


def test_a_class_conditional_source_keeps_its_classes_or_their_absence(tmp_path):
    torch.manual_seed(0)
    whole = unet(num_class_embeds=11)
    DDPMPipeline(whole, DDPMScheduler()).save_pretrained(tmp_path / "classes")
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 9])
    null = torch.tensor([10, 10])
    same, _, _ = load_pretrained(recipe(tmp_path / "classes", "model.class_conditioning=embedding"), (3, 16, 16), 10)
    torch.testing.assert_close(outputs(same, x, 5, labels), whole(x, 5, labels).sample.detach(), atol=0, rtol=0)
    fewer, _, _ = load_pretrained(recipe(tmp_path / "classes", "model.class_conditioning=embedding"), (3, 16, 16), 4)
    without, _, _ = load_pretrained(recipe(tmp_path / "classes"), (3, 16, 16), 0)
    expected = whole(x, 5, null).sample.detach()
    torch.testing.assert_close(outputs(fewer, x, 5, torch.tensor([0, 3])), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs(without, x, 5), expected, atol=1e-5, rtol=1e-5)


def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_that_can(source):
    with pytest.raises(UsageError, match="no multiple of 2") as caught:
        load_pretrained(recipe(source), (3, 17, 17), 0)
    assert "16" in caught.value.hint
    network, _, _ = load_pretrained(recipe(source), (3, 24, 24), 0)
    assert network.unet.config.sample_size == 24


def test_channel_maps_keep_extra_class_channels_only_when_asked():
    weight = torch.randn(5, 3 + 4, 3, 3)
    assert torch.equal(fit_input(weight, 3, 3, 4, keep=True), weight)
    assert torch.equal(fit_input(weight, 3, 3, 4)[:, 3:], torch.zeros(5, 4, 3, 3))
    assert fit_input(weight, 3, 1, 0).shape == (5, 1, 3, 3)
    assert fit_output(torch.randn(3, 8, 3, 3), 1).shape == (1, 8, 3, 3)
    assert fit_output(torch.randn(1), 3).shape == (3,)


def flat(folder, *, pickled):
    """A repository as google/ddpm-* are: everything at the root, old keys, attention weights by their old names."""
    net = unet()
    folder.mkdir()
    config = {k: v for k, v in net.config.items() if not k.startswith("_")}
    config |= {"_class_name": "UNet2DModel", "_diffusers_version": "0.1.1"}
    (folder / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "num_train_timesteps": 40,
                 "beta_schedule": "linear", "clip_sample": True, "variance_type": "fixed_small"}  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in net.state_dict().items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        weights[name] = value.clone()
    assert any(".query." in name for name in weights)
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_a_flat_old_named_repository_is_read_and_fine_tuned(tmp_path, pickled, caplog):
    folder = flat(tmp_path / "flat", pickled=pickled)
    chosen = recipe(folder, "dataset.channels=3", f"output.dir={tmp_path / 'run'}")
    with caplog.at_level("INFO"):
        network, scheduler, _ = load_pretrained(chosen, (3, 16, 16), 0)
    assert ("restricted unpickler" in caplog.text) == pickled
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(outputs(network, x, 3), unet()(x, 3).sample.detach(), atol=1e-6, rtol=1e-6)
    assert scheduler.config.num_train_timesteps == 40
    one_step = chosen.training.model_copy(update={"preview_steps": 1})  # the source's leading grid would refuse one
    summary = fit(chosen.model_copy(update={"training": one_step}))
    assert DDPMPipeline.from_pretrained(summary["output_dir"])(num_inference_steps=2).images[0].size == (16, 16)


def test_frozen_layers_stay_and_the_rest_moves(source, tmp_path):
    chosen = recipe(
        source, "dataset.channels=3", "model.freeze=[down_blocks]", f"output.dir={tmp_path / 'run'}", "training.lr=1e-2"
    )
    fit(chosen)
    before = unet().state_dict()
    after = load_file(tmp_path / "run" / "unet_raw" / "diffusion_pytorch_model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert not any(name.startswith("down_blocks") for name in moved)


def test_a_run_of_diffkit_is_a_source_too(tmp_path):
    """Concatenated classes included: the second run's network computes what the first one's did."""
    first = load_recipe(
        "digits", environ={},
        sets=[*TINY, "training.steps=2", "model.class_conditioning=concat", f"output.dir={tmp_path / 'first'}"],
    )  # fmt: skip
    fit(first)
    second = load_recipe(
        "digits", environ={},
        sets=["dataset.resolution=8", f"model.pretrained={tmp_path / 'first'}", "model.class_conditioning=concat"],
    )  # fmt: skip
    network, _, _ = load_pretrained(second, (1, 8, 8), 10)
    model = load(str(tmp_path / "first"))
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 10])
    torch.testing.assert_close(
        outputs(network, x, 3, labels), outputs(model.network, x, 3, labels), atol=1e-6, rtol=1e-5
    )
    assert (Path(tmp_path) / "first" / "unet_raw" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "sets", "size"),
    [
        ("celebahq-finetune", ["model.pretrained=SOURCE"], 16),  # the recipe's 256 suits the recipe's own source
        ("digits", ["model.pretrained=SOURCE"], 16),
        ("celebahq-finetune", ["model.pretrained=SOURCE", "dataset.resolution=24"], 24),
        ("celebahq-finetune", ["dataset.resolution=24", "model.pretrained=SOURCE"], 24),
        ("celebahq-finetune", [], 256),
        ("celebahq-finetune", ["model.pretrained=google/ddpm-celebahq-256"], 256),
        ("own, with a size", ["model.pretrained=SOURCE"], 32),
        ("own, without", ["model.pretrained=SOURCE"], 16),
        ("own, without", [], 64),  # nothing to start from: as in every recipe
    ],
)
def test_the_size_is_the_sources_unless_somebody_gives_one(source, tmp_path, name, sets, size):
    if name.startswith("own"):
        own = tmp_path / "own.yaml"
        own.write_text("dataset: {name: digits, resolution: 32}\n" if "with a" in name else "dataset: {name: digits}\n")
        name = own
    chosen = load_recipe(name, sets=[text.replace("SOURCE", str(source)) for text in sets], environ={})
    if str(source) in str(chosen.model.pretrained):
        chosen = at_source_size(chosen)
    assert chosen.dataset.resolution == size


def test_the_environment_gives_a_size_too(source):
    chosen = load_recipe(
        "celebahq-finetune", flags={"model.pretrained": str(source)}, environ={"DIFFKIT_DATASET__RESOLUTION": "24"}
    )
    assert at_source_size(chosen).dataset.resolution == 24


def test_a_run_goes_on_at_the_sources_size(source, tmp_path, caplog):
    sets = [f"model.pretrained={source}", "dataset.name=digits", "training.epochs=null", "training.steps=1",
            "dataset.limit=20", "training.preview_images=4", "training.preview_steps=2",
            f"output.dir={tmp_path / 'run'}"]  # fmt: skip
    with caplog.at_level("INFO", "diffkit"):
        fit(load_recipe("celebahq-finetune", sets=sets, environ={}))
    assert "dataset.resolution is 16, the size of" in caplog.text
    assert "goes on at" not in caplog.text
    assert load(str(tmp_path / "run"), device="cpu").info.size == (16, 16)
    assert "resolution: 16" in (tmp_path / "run" / "resolved.yaml").read_text()


def test_a_padded_source_goes_on_as_it_was_padded(tmp_path):
    """9 pixels in a network of 10: no multiple of 2, and its own size all the same."""
    make_run(tmp_path / "padded", kind="none")
    chosen = at_source_size(load_recipe("digits", sets=[f"model.pretrained={tmp_path / 'padded'}"], environ={}))
    assert chosen.dataset.resolution == 9
    network, _, _ = load_pretrained(chosen, (1, 9, 9), 0)
    assert network.unet.config.sample_size == 10
    with pytest.raises(UsageError, match="no multiple of 2"):
        load_pretrained(chosen, (1, 7, 7), 0)


def test_an_oblong_source_needs_a_size(source):
    path = source / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": [16, 32]}))
    chosen = load_recipe("celebahq-finetune", sets=[f"model.pretrained={source}"], environ={})
    with pytest.raises(UsageError, match="32x16") as caught:
        at_source_size(chosen)
    assert "dataset.resolution" in caught.value.hint
    network, _, _ = load_pretrained(recipe(source), (3, 16, 16), 0)
    assert network.unet.config.sample_size == 16


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"in_channels": 4, "out_channels": 4}, "in_channels is 4"),
        ("unet/config.json", {"in_channels": 2, "out_channels": 2}, "in_channels is 2"),
        ("unet/config.json", {"sample_size": None}, "sample_size"),
        ("unet/config.json", {"out_channels": 6}, "variance"),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "prediction_type"),
    ],
)
def test_a_source_that_cannot_be_understood_is_refused_before_its_weights(source, file, changes, named):
    for weights in source.rglob("*.safetensors"):
        weights.unlink()
    path = source / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=named):
        load_pretrained(recipe(source), (3, 16, 16), 0)


def test_an_old_configuration_predicts_what_it_was_trained_to(source):
    """Before diffusers 0.6 prediction_type "sample" was predict_epsilon false, which today's diffusers ignores."""
    path = source / "scheduler" / "scheduler_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "prediction_type"}
    path.write_text(json.dumps(config | {"predict_epsilon": False}))
    _, scheduler, prediction = load_pretrained(recipe(source), (3, 16, 16), 0)
    assert prediction == scheduler.config.prediction_type == "sample"
    assert load(str(source), device="cpu").scheduler.config.prediction_type == "sample"


def test_a_dry_run_looks_at_the_source(source, tmp_path, run_cli):
    data = ("--dataset", "digits", "--resolution", 16, "--dry-run", "--json")
    told = json.loads(run_cli("finetune", "--pretrained", source, *data).stdout)
    assert told["parameters"] == sum(
        p.numel() for p in UNet2DModel.from_pretrained(source, subfolder="unet").parameters()
    )
    ran = run_cli("finetune", "--pretrained", "tiny", *data)
    assert (ran.code, "UNet2DConditionModel" in ran.stdout) == (4, True)
