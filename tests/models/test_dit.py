"""DiT against diffusers' own pipeline, on tiny random weights: same latents, same steps, fp32."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DPMSolverMultistepScheduler
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import ModelError, UsageError
from diffkit.models import info, load, open_repo
from diffkit.models.classes import class_label
from diffkit.models.memory import count_parameters
from tests.models.conftest import make_dit
from tests.models.fakehub import FakeHub

NAMES = {"0": "tench, Tinca tinca", "1": "crane", "2": "great white shark, white shark", "3": "crane", "4": "maillot"}
# As facebook/DiT-XL-2-256 has it, written before the class of today's scheduler knew some of its fields.
PUBLISHED = {
    "_class_name": "DDIMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
    "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": True,
    "steps_offset": 0, "trained_betas": None,
}  # fmt: skip


def stock(parts: dict, monkeypatch: pytest.MonkeyPatch, null: int = 5) -> DiTPipeline:
    """The stock pipeline; its null class is the number 1000 in its code, which here is row `null` of the table."""
    real = LabelEmbedding.forward
    monkeypatch.setattr(
        LabelEmbedding, "forward", lambda self, labels, *rest: real(self, labels.where(labels != 1000, null), *rest)
    )
    pipe = DiTPipeline(**parts, id2label={int(k): v for k, v in NAMES.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(model, scheduler, scale: float, labels: list[str], seeds: list[int], steps: int) -> Tensor:
    made = generators(seeds)
    set_grid(scheduler, steps)
    x = pure_noise(scheduler, model.noise(made))
    net = cfg(model, model.uncond(1), scale)
    for step in denoise(net, x, scheduler, model.encode(labels), generators=made):
        x = step.x
    return model.codec.decode(x)


@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("kind", ["ddim", "dpm++", "published"])
def test_parity(tmp_path, monkeypatch, kind, learned, scale):
    made = {
        "ddim": DDIMScheduler(clip_sample=False),
        "dpm++": DPMSolverMultistepScheduler(),
        "published": DDIMScheduler.from_config(PUBLISHED),
    }[kind]
    parts = make_dit(tmp_path / "m", scheduler=made, id2label=NAMES, **({} if learned else {"out_channels": 4}))
    pipe = stock(parts, monkeypatch)
    ids = pipe.get_label_ids(["white shark", "maillot"])
    # Not "pt", for which the pipeline of diffusers 0.37 returns an array with the channels last, too.
    images = pipe(
        ids, guidance_scale=scale, num_inference_steps=6, generator=generators([3, 4]), output_type="np"
    ).images
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2)
    model = load(str(tmp_path / "m"), device="cpu")
    assert type(model.scheduler) is type(made)
    ours = sample(model, model.scheduler, scale, ["white shark", "maillot"], [3, 4], 6)
    ours = (ours / 2 + 0.5).clamp(0, 1)
    print("largest difference", float((ours - theirs).abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (theirs[0] - theirs[1]).abs().max() > 0.01


def test_the_published_configuration_is_read(tmp_path):
    """It calls its network Transformer2DModel and has fields that today's class does not know."""
    make_dit(tmp_path)
    before = load(str(tmp_path), device="cpu")
    path = tmp_path / "transformer" / "config.json"
    old = {"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "num_vector_embeds": None,
           "cross_attention_dim": None, "double_self_attention": False, "use_linear_projection": False}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    after = load(str(tmp_path), device="cpu")
    assert torch.equal(*(sample(m, m.scheduler, 4.0, ["1"], [0], 2) for m in (before, after)))


def test_the_learned_variance_comes_apart(tmp_path):
    parts = make_dit(tmp_path)
    model, x = load(str(tmp_path), device="cpu"), torch.randn(2, 4, 8, 8)
    got = model(x, torch.tensor(7), model.encode(["1", None]))
    with torch.no_grad():
        whole = parts["transformer"](x, torch.tensor([7, 7]), torch.tensor([1, 5])).sample
    assert got.var is not None
    torch.testing.assert_close(torch.cat([got.out, got.var], 1), whole, rtol=0, atol=0)
    each = model(x, torch.tensor([7, 500]), model.encode(["1", None])).out
    torch.testing.assert_close(each[:1], got.out[:1], rtol=0, atol=1e-6)


def test_names_are_those_of_the_stock_pipeline(tmp_path):
    """And every class can be asked for by a name of its own, and by its number."""
    parts = make_dit(tmp_path, id2label=NAMES)
    known = info(open_repo(tmp_path))
    pipe = DiTPipeline(**parts, id2label={int(k): v for k, v in NAMES.items()})
    assert pipe.labels
    for name, label in pipe.labels.items():
        assert class_label(name, known) == label
    assert known.classes == ("tench", "crane (1)", "great white shark", "crane", "maillot")
    assert [class_label(name, known) for name in known.classes] == [0, 1, 2, 3, 4]
    assert [class_label(str(k), known) for k in range(5)] == [0, 1, 2, 3, 4]
    assert class_label(None, known) == class_label("", known) == 5
    with pytest.raises(UsageError, match="'trench'") as caught:
        class_label("trench", known)
    assert "tench" in caught.value.hint
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "id2label"}))
    assert info(open_repo(tmp_path)).classes == ("0", "1", "2", "3", "4")


def test_everything_is_known_without_weights(tmp_path):
    parts = make_dit(tmp_path, id2label=NAMES)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    known = info(open_repo(tmp_path))
    assert (known.family, known.pipeline, known.channels, known.conditioning) == ("dit", "DiTPipeline", 3, "class")
    assert (known.size, known.sample, known.latent, known.factor) == ((16, 16), (4, 8, 8), True, 2)
    assert (known.null, known.guidance, known.source, known.text) == (True, 4.0, "noise", False)
    assert count_parameters(known.network) == sum(p.numel() for p in parts["transformer"].parameters())
    with pytest.raises(ModelError, match="vae"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("missing", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_missing_part(tmp_path, part, missing):
    make_dit(tmp_path)
    (tmp_path / part / missing).unlink()
    with pytest.raises(ModelError, match=part) as caught:
        load(str(tmp_path), device="cpu")
    assert caught.value.exit_code == 4


def test_variants_pickles_and_types(tmp_path):
    parts = make_dit(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    parts["transformer"].half().save_pretrained(tmp_path / "transformer", variant="fp16")
    for dtype in ("auto", "fp16", "bf16"):
        model = load(str(tmp_path), device="cpu", dtype=dtype)
        out = model(torch.zeros(1, *model.info.sample), torch.tensor(5), model.encode(["1"])).out
        assert out.dtype == torch.float32
        assert model.codec.decode(torch.zeros(1, *model.info.sample)).dtype == torch.float32
        assert model.parameters == sum(p.numel() for p in parts["transformer"].parameters())
    with pytest.raises(ModelError, match="no variant 'ema'"):
        load(str(tmp_path), device="cpu", variant="ema")
    weights.with_suffix(".fp16.safetensors").unlink()
    torch.save(parts["transformer"].float().state_dict(), weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled"):
        load(str(tmp_path), device="cpu")
    assert load(str(tmp_path), device="cpu", allow_pickle=True).parameters


def test_what_it_cannot_do_is_said(tmp_path):
    make_dit(tmp_path)
    model = load(str(tmp_path), device="cpu")
    with pytest.raises(UsageError, match="one size only, 16x16"):
        model.at(16, 16)
    with pytest.raises(UsageError, match="not from an image"):
        model.image_cond(torch.zeros(1, 3, 16, 16), generators([0]))
    with pytest.raises(UsageError, match="`raw`"):
        load(str(tmp_path), device="cpu", raw=True)
    with pytest.raises(UsageError, match="'huge'"):
        load(str(tmp_path), device="cpu", memory="huge")


def test_memory_low_changes_no_picture(tmp_path):
    make_dit(tmp_path)
    plain, low, lowest = (load(str(tmp_path), device="cpu", memory=level) for level in ("auto", "low", "lowest"))
    want = sample(plain, plain.scheduler, 4.0, ["1", "2"], [0, 1], 3)
    for model in (low, lowest):
        torch.testing.assert_close(sample(model, model.scheduler, 4.0, ["1", "2"], [0, 1], 3), want, rtol=0, atol=1e-5)
    assert (plain.row_limit, low.row_limit, lowest.row_limit) == (None, None, 1)


@pytest.mark.parametrize("gated", [True, False])
def test_from_the_hub(tmp_path, fake_hub: FakeHub, gated):
    """What it is costs three small files; a gated one is said to be gated."""
    make_dit(tmp_path / "m", id2label=NAMES)
    fake_hub.repos["facebook/tiny"] = tmp_path / "m"
    if gated:
        fake_hub.gated.add("facebook/tiny")
        with pytest.raises(ModelError, match="gated"):
            load("facebook/tiny", device="cpu")
        return
    repo = open_repo("facebook/tiny")
    assert info(repo).revision == fake_hub.commit("facebook/tiny")
    small = {"model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"}
    assert set(fake_hub.fetched()) == small
    load("facebook/tiny", device="cpu")
    shutil.rmtree(tmp_path / "m" / "vae")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ModelError, match="vae"):
        load("facebook/tiny", device="cpu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample_size": None}, "sample_size is missing"),
        ({"sample_size": [8, 16]}, "sample_size is .8, 16."),
        ({"sample_size": 9}, "sample_size is 9x9; needed: multiples of 2"),
        ({"in_channels": 3}, "out_channels is 8"),
        ({"in_channels": 8}, "latent_channels is 4"),
        ({"out_channels": 7}, "out_channels is 7"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm is missing"),
        ({"num_embeds_ada_norm": 4}, "id2label"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"_class_name": "SD3Transformer2DModel"}, "_class_name"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path, changes, named):
    make_dit(tmp_path, id2label=NAMES)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=named) as caught:
        info(open_repo(tmp_path))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("names", [["tench"], {"x": "tench"}, {"5": "tench"}, {"0": 3}])
def test_wrong_names_are_refused(tmp_path, names):
    make_dit(tmp_path, id2label=names)
    with pytest.raises(ModelError, match="id2label"):
        info(open_repo(tmp_path))
