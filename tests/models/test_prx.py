"""PRX and PRXPixel against diffusers' own pipelines, on tiny random weights: same noise, same steps, fp32."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from tiny_prx import TOKENS, make_prx, make_prx_pixel
from torch import Tensor

from diffkit.engine.constraints import keep_known
from diffkit.engine.guidance import cfg
from diffkit.engine.levels import level
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, generators, pure_noise, sdedit_start, set_grid
from diffkit.errors import ModelError, UsageError
from diffkit.models import info, load, open_repo, prx, text_encoding
from diffkit.models.latents import LatentCodec
from diffkit.models.memory import count_parameters
from diffkit.models.parts import count_parts

KINDS = ("kl", "dc", "pixel")
PIXEL = hasattr(diffusers, "PRXPixelPipeline")
needs_pixel = pytest.mark.skipif(not PIXEL, reason="diffusers before 0.39")
EACH = ["kl", "dc", pytest.param("pixel", marks=needs_pixel)]
PROMPT, NEGATIVE = "A photo of A cat", "a dog"


def make(folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    return make_prx_pixel(folder, **more) if kind == "pixel" else make_prx(folder, deep=kind == "dc", **more)


@pytest.fixture(autouse=True)
def cleaning(embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stock pipelines clean prompts, and so ours, where ftfy is not installed: it keeps plain letters."""
    if find_spec("ftfy"):
        return
    import diffusers.pipelines.prx.pipeline_prx as stock_prx

    stub = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(stock_prx, "ftfy", stub, raising=False)
    if PIXEL:
        import diffusers.pipelines.prx.pipeline_prx_pixel as stock_pixel

        monkeypatch.setattr(stock_pixel, "ftfy", stub, raising=False)
    monkeypatch.setattr(prx, "installed", lambda name: True)


def stock(parts: dict[str, Any], kind: str, size: int = 16) -> Any:
    if kind == "pixel":
        pipe = diffusers.PRXPixelPipeline(**parts, default_sample_size=size, prompt_max_tokens=TOKENS)
    else:
        pipe = diffusers.PRXPipeline(**parts, default_sample_size=size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(model: Any, scale: float, seeds: list[int], steps: int, negative: str = NEGATIVE) -> Tensor:
    made = generators(seeds)
    scheduler = make_sampler(None, model.scheduler)
    set_grid(scheduler, steps)
    x = pure_noise(scheduler, model.noise(made))
    cond = model.encode([PROMPT] * len(seeds))
    net = model if scale == 1.0 else cfg(model, model.encode([negative]), scale)
    for step in denoise(net, x, scheduler, cond, generators=made):
        x = step.x
    return model.codec.decode(x)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize("kind", EACH)
def test_parity(tmp_path, kind, scale, size):
    """The whole way: prompts, noise of its scale, the grid of the stock class, guidance, x0 to velocity, the VAE."""
    pipe = stock(make(tmp_path, kind), kind)
    # One at a time: guided, the stock pipelines know no batches (two rows of the timestep for all rows of the sample).
    images = [
        pipe(
            PROMPT, negative_prompt=NEGATIVE, height=size[0], width=size[1], guidance_scale=scale,
            num_inference_steps=5, generator=generators([seed]), output_type="np", use_resolution_binning=False,
        ).images[0]
        for seed in (3, 4)
    ]  # fmt: skip
    theirs = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    model = load(str(tmp_path), device="cpu")
    factor = model.info.factor
    ours = sample(model.at(size[0] // factor, size[1] // factor), scale, [3, 4], 5)
    ours = (ours / 2 + 0.5).clamp(0, 1)
    print("largest difference", float((ours - theirs).abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert (theirs[0] - theirs[1]).abs().max() > 0.01
    assert float(((theirs > 0) & (theirs < 1)).float().mean()) > 0.2


@pytest.mark.parametrize("kind", EACH)
def test_prompts_are_encoded_as_by_the_pipeline(tmp_path, kind):
    """With the padding's mask; the empty prompt of PRXPixel is nothing but padding, which Qwen has no beginning for."""
    pipe = stock(make(tmp_path, kind), kind)
    model = load(str(tmp_path), device="cpu")
    for prompt in (PROMPT, "", "a " * 40, "Tom &amp;amp; Jerry", "  #12 a cat @someone  "):
        want, mask, *_ = pipe.encode_prompt(prompt, torch.device("cpu"), do_classifier_free_guidance=False)
        got = model.encode([prompt]).tensors
        torch.testing.assert_close(got["encoder_hidden_states"], want, rtol=0, atol=0)
        assert got["attention_mask"].dtype == torch.bool
        assert torch.equal(got["attention_mask"], mask)
        assert want.isfinite().all()
    again = load(str(tmp_path), device="cpu")  # now from the cache
    assert torch.equal(
        again.encode([PROMPT]).tensors["attention_mask"], model.encode([PROMPT]).tensors["attention_mask"]
    )
    assert again.prompts.loads == 0


@needs_pixel
def test_a_plain_qwen3_is_read_too(tmp_path):
    pipe = stock(make_prx_pixel(tmp_path, kind="Qwen3Model"), "pixel")
    want, *_ = pipe.encode_prompt(PROMPT, torch.device("cpu"), do_classifier_free_guidance=False)
    got = load(str(tmp_path), device="cpu").encode([PROMPT]).tensors["encoder_hidden_states"]
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_what_embeddings_depend_on_is_in_their_key(tmp_path, monkeypatch):
    make_prx(tmp_path / "latent")
    labels = []
    for there in (True, False):
        monkeypatch.setattr(prx, "installed", lambda name, there=there: there)
        labels.append(text_encoding(open_repo(tmp_path / "latent")).label(open_repo(tmp_path / "latent")))
    assert labels == [f"t5gemma-{TOKENS}-cleaned", f"t5gemma-{TOKENS}-lower"]
    if PIXEL:
        make_prx_pixel(tmp_path / "pixel")
        repo = open_repo(tmp_path / "pixel")
        assert text_encoding(repo).label(repo) == f"qwen3vl-{TOKENS}-unescaped"


def test_without_ftfy_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(prx, "installed", lambda name: False)
    prx._say_once.cache_clear()
    latent, pixel = prx.TEXT_ENCODER["PRXPipeline"], prx.TEXT_ENCODER["PRXPixelPipeline"]
    assert [latent.clean(text) for text in ("  A Cat! ", "B")] == ["a cat!", "b"]
    assert [pixel.clean(text) for text in ("  A &amp;lt; Cat ", "B")] == ["A < Cat", "B"]
    assert len([r for r in caplog.records if "ftfy" in r.message]) == 2


@pytest.mark.parametrize("kind", EACH)
def test_everything_is_known_without_weights(tmp_path, kind):
    parts = make(tmp_path, kind)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    known = info(open_repo(tmp_path))
    pixel = kind == "pixel"
    assert (known.family, known.channels, known.conditioning, known.latent) == ("prx", 3, "text", not pixel)
    assert (known.size, known.sample) == ((16, 16), (3, 16, 16) if pixel else (4, 8, 8))
    assert (known.guidance, known.steps, known.source, known.null) == (4.0, 28, "noise", True)
    assert known.text_encoder == ("qwen3vl" if pixel else "t5gemma")
    assert count_parameters(known.network) == sum(p.numel() for p in parts["transformer"].parameters())
    beside = [name for name in ("text_encoder", "vae") if name in parts]
    counted = {name: sum(p.numel() for p in parts[name].parameters()) for name in beside}
    assert count_parts(open_repo(tmp_path), known) == counted
    with pytest.raises(ModelError, match="transformer"):
        load(str(tmp_path), device="cpu")


@needs_pixel
def test_the_levels_of_pixels_hold_noise_of_its_scale(tmp_path):
    """Known pixels and edits are noised as the network was trained: (1 - s) x0 + 2 s eps."""
    make_prx_pixel(tmp_path)
    model = load(str(tmp_path), device="cpu")
    scheduler = make_sampler(None, model.scheduler)
    set_grid(scheduler, 5)
    for t in scheduler.timesteps:
        share = float(t) / 1000
        assert level(scheduler, t) == pytest.approx((1 - share, 2 * share))
    noise = model.noise(generators([0]))
    assert torch.equal(pure_noise(scheduler, noise), 2 * noise)
    picture = torch.rand_like(noise)
    begun, start, _ = sdedit_start(scheduler, picture, noise, 0.6)
    share = float(scheduler.timesteps[start]) / 1000
    torch.testing.assert_close(begun, (1 - share) * picture + 2 * share * noise)
    held = keep_known(scheduler, picture, torch.zeros(1, 1, 16, 16), generators([1]))
    kept, share = held(noise, 1, scheduler.timesteps[1], scheduler.timesteps[2]), float(scheduler.timesteps[2]) / 1000
    left = (kept - (1 - share) * picture) / share
    assert 1.9 < float(left.std()) < 2.1
    make_prx_pixel(tmp_path / "other", noise_scale=1.5)
    assert level(load(str(tmp_path / "other"), device="cpu").scheduler, 500) == pytest.approx((0.5, 0.75))


@pytest.mark.parametrize("kind", EACH)
def test_sizes_and_gradients(tmp_path, kind):
    make(tmp_path, kind)
    model = load(str(tmp_path), device="cpu")
    for bad in ((9, 8), (8, 0), (-8, 8)):
        with pytest.raises(UsageError, match="multiples of"):
            model.at(*bad)
    x = torch.randn(2, *model.info.sample, requires_grad=True)
    cond = model.encode([PROMPT, ""])
    each = model(x, torch.tensor([900.0, 300.0]), cond).out
    torch.testing.assert_close(each[:1], model(x[:1], torch.tensor(900.0), cond.rows(0, 1)).out, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(model.codec.decode(each).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", EACH)
def test_variants_and_types(tmp_path, kind):
    parts = make(tmp_path, kind)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    parts["transformer"].half().save_pretrained(tmp_path / "transformer", variant="fp16")
    for dtype in ("auto", "bf16"):
        model = load(str(tmp_path), device="cpu", dtype=dtype)
        x = torch.zeros(1, *model.info.sample)
        assert model(x, torch.tensor(500.0), model.encode(["a"])).out.dtype == torch.float32
        assert model.codec.decode(x).dtype == torch.float32
        assert model.encode(["a"]).tensors["attention_mask"].dtype == torch.bool


LATENT_FAULTS = [
    ("transformer/config.json", {"in_channels": None}, "in_channels is missing"),
    ("transformer/config.json", {"in_channels": 8}, "latent_channels is 4"),
    ("transformer/config.json", {"patch_size": 0}, "patch_size is 0"),
    ("transformer/config.json", {"patch_size": 3}, "default_sample_size is 16; needed: a multiple of 6"),
    ("transformer/config.json", {"hidden_size": 15}, "num_heads is 2; needed: a divisor of hidden_size 15"),
    ("transformer/config.json", {"num_heads": "2"}, "num_heads"),
    ("transformer/config.json", {"depth": -1}, "depth is -1"),
    ("transformer/config.json", {"axes_dim": None}, "axes_dim is .32, 32."),
    ("transformer/config.json", {"axes_dim": [3, 5]}, "axes_dim is .3, 5."),
    ("transformer/config.json", {"axes_dim": [8]}, "axes_dim is .8."),
    ("transformer/config.json", {"axes_dim": "44"}, "axes_dim is '44'"),
    ("transformer/config.json", {"mlp_ratio": "3.5"}, "mlp_ratio is '3.5'"),
    ("transformer/config.json", {"theta": 0}, "theta is 0"),
    ("transformer/config.json", {"time_factor": True}, "time_factor is True"),
    ("transformer/config.json", {"time_max_period": None}, "time_max_period is missing"),
    ("transformer/config.json", {"context_in_dim": 8}, "context_in_dim is 8; needed: 16"),
    ("transformer/config.json", {"_class_name": "SD3Transformer2DModel"}, "_class_name"),
    ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
    ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0"),
    ("vae/config.json", {"shift_factor": "much"}, "shift_factor is 'much'"),
    ("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"}, "_class_name is 'DDPMScheduler'"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": None}, "model_max_length is missing"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "model_max_length"),
    ("model_index.json", {"default_sample_size": 15}, "default_sample_size is 15; needed: a multiple of 4"),
    ("model_index.json", {"default_sample_size": "512"}, "default_sample_size is '512'"),
    ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "T5GemmaEncoder"),
    ("model_index.json", {"tokenizer": ["transformers", "T5TokenizerFast"]}, "GemmaTokenizerFast"),
]
PIXEL_FAULTS = [
    ("transformer/config.json", {"in_channels": 4}, "in_channels is 4; needed: 3"),
    ("transformer/config.json", {"bottleneck_size": 0.5}, "bottleneck_size is 0.5"),
    ("transformer/config.json", {"resolution_embeds": "yes"}, "resolution_embeds is 'yes'"),
    ("model_index.json", {"noise_scale": -1}, "noise_scale is -1"),
    ("model_index.json", {"noise_scale": "2"}, "noise_scale is '2'"),
    ("model_index.json", {"prompt_max_tokens": 0}, "prompt_max_tokens is 0"),
    ("model_index.json", {"prompt_max_tokens": 10**6}, "prompt_max_tokens is 1000000"),
    ("model_index.json", {"default_sample_size": 18}, "default_sample_size is 18; needed: a multiple of 4"),
    ("model_index.json", {"text_encoder": ["transformers", "Qwen3VLModel"]}, "Qwen3VLTextModel or Qwen3Model"),
]


@pytest.mark.parametrize(
    ("kind", "file", "changes", "named"),
    [("kl", *fault) for fault in LATENT_FAULTS]
    + [pytest.param("pixel", *fault, marks=needs_pixel) for fault in PIXEL_FAULTS],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path, kind, file, changes, named):
    make(tmp_path, kind)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=named) as caught:
        info(open_repo(tmp_path))
    assert caught.value.exit_code == 4


def test_what_may_be_left_out(tmp_path):
    """As the published files are: no class in the network's configuration, sizes that the pipelines know."""
    make_prx(tmp_path / "a", hidden_size=128, axes_dim=[32, 32])
    path = tmp_path / "a" / "transformer" / "config.json"
    old = json.loads(path.read_text())
    left = {"_class_name", "_diffusers_version", "axes_dim", "bottleneck_size", "resolution_embeds", "theta"}
    path.write_text(json.dumps({key: value for key, value in old.items() if key not in left}))
    index = tmp_path / "a" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"default_sample_size": None}))
    known = info(open_repo(tmp_path / "a"))
    assert known.size == (512, 512)
    assert count_parameters(known.network) > 0
    path = tmp_path / "a" / "vae" / "config.json"
    path.unlink()
    with pytest.raises(ModelError, match="vae"):
        info(open_repo(tmp_path / "a"))


def test_a_deep_autoencoder_without_a_scale_has_that_of_its_class(tmp_path):
    make_prx(tmp_path, deep=True)
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    model = load(str(tmp_path), device="cpu")
    vae = diffusers.AutoencoderDC.from_pretrained(tmp_path / "vae").eval()
    x, picture = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.codec.decode(x), vae.decode(x / vae.config.scaling_factor).sample)
        torch.testing.assert_close(model.codec.encode(picture), vae.encode(picture).latent * vae.config.scaling_factor)


def test_an_old_diffusers_is_named(tmp_path, monkeypatch):
    """A class that it lacks, and fields that its class would pass over in silence."""
    make_prx(tmp_path / "a")
    path = tmp_path / "a" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resolution_embeds": True}))

    class Old:
        def __init__(self, in_channels: int = 16) -> None: ...

    monkeypatch.setattr(diffusers, "PRXTransformer2DModel", Old)
    with pytest.raises(ModelError, match=r"resolution_embeds needs diffusers 0\.39 or later"):
        info(open_repo(tmp_path / "a"))
    index = tmp_path / "a" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "PRXPixelPipeline"}))
    monkeypatch.delattr(diffusers, "PRXPixelPipeline", raising=False)
    with pytest.raises(ModelError, match=r"needs diffusers 0\.39 or later, and 0\.\d+"):
        info(open_repo(tmp_path / "a"))


@pytest.mark.parametrize("scaling", [0.5, (0.5, 2.0)])
def test_latents_may_come_from_another_device(scaling: Any) -> None:
    """A device without memory stands for an accelerator: arithmetic between it and the CPU is refused likewise."""

    class Mirror:
        dtype = torch.float16

        def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (latents,)

    device = torch.device("meta")
    codec = LatentCodec(Mirror, scaling, 1, device, device, scaling)  # type: ignore[arg-type]
    assert codec.decode(torch.zeros(1, 2, 4, 4)).device == device
