from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from diffkit.engine.samplers import GridDDIM
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import ModelError, UsageError
from diffkit.models import info, load, open_repo
from diffkit.models.attention import BlockedAttnProcessor, set_attention
from diffkit.models.configuration import read_record
from diffkit.models.ddpm import DDPM, PixelCodec
from diffkit.models.memory import count_parameters
from diffkit.models.meta import RunMeta
from diffkit.models.network import DDPMNetwork, build_network, save_network, save_pipeline
from diffkit.models.presets import PRESETS, padded_size, unet_arguments
from diffkit.recipes.schema import ModelSpec, NoiseSpec
from diffkit.types import Cond
from tests.models.conftest import make_flat

NAMES = ["a", "b", "c"]


def network(kind: str = "none", size: int = 8) -> DDPMNetwork:
    torch.manual_seed(0)
    spec = ModelSpec(preset="tiny", class_conditioning=kind)
    return build_network(spec, shape=(1, size, size), num_classes=3).eval()


def meta(kind: str = "none", size: int = 8, prediction: str = "epsilon") -> RunMeta:
    names = [] if kind == "none" else NAMES
    return RunMeta(prediction=prediction, conditioning=kind, class_names=names, resolution=size, channels=1)


def parameters(preset: str, channels: int, size: int) -> int:
    with torch.device("meta"):
        net = build_network(ModelSpec(preset=preset), shape=(channels, size, size))
    return sum(p.numel() for p in net.parameters())


def test_celebahq_is_the_published_architecture() -> None:
    assert parameters("celebahq256", 3, 256) == 113_673_219
    row = PRESETS["celebahq256"]
    assert [i for i, kind in enumerate(row["down_block_types"]) if kind.startswith("Attn")] == [4]
    assert [i for i, kind in enumerate(row["up_block_types"]) if kind.startswith("Attn")] == [1]


def test_the_small_presets_have_the_size_their_comments_state() -> None:
    assert 1.7e6 < parameters("digits16", 1, 16) < 1.9e6
    assert parameters("tiny", 1, 8) < 20_000
    assert parameters("course28", 1, 28) == pytest.approx(1.7e6, rel=0.02)
    assert parameters("unet32", 3, 32) == pytest.approx(9.3e6, rel=0.01)
    assert parameters("butterflies64", 3, 64) == pytest.approx(18.5e6, rel=0.01)


def test_course_net_takes_28_pixels_as_they_are() -> None:
    net = build_network(ModelSpec(preset="course28", class_conditioning="concat"), shape=(1, 28, 28), num_classes=10)
    assert net.unet.config.sample_size == 28
    assert net.unet.config.in_channels == 5
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 28, 28), torch.tensor(3), torch.tensor([4])).shape == (1, 1, 28, 28)


@pytest.mark.parametrize(("preset", "size", "padded"), [("unet32", 28, 32), ("course28", 28, 28), ("tiny", 9, 10)])
def test_padded_size(preset: str, size: int, padded: int) -> None:
    assert padded_size(preset, size) == padded
    assert padded_size(unet_arguments(preset), size) == padded


def test_padding_is_said_and_undone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        net = network(size=9)
    assert "padded to 10" in caplog.text
    model = DDPM(net, DDPMScheduler(), meta(size=9))
    assert (model.info.sample, model.info.size) == ((1, 10, 10), (9, 9))
    images = torch.rand(2, 1, 9, 9)
    padded = model.codec.encode(images)
    assert padded.shape == (2, 1, 10, 10)
    torch.testing.assert_close(model.codec.decode(padded), images, rtol=0, atol=0)


def test_codec_repeats_the_edges_outwards() -> None:
    codec = PixelCodec(3, 6)
    images = torch.arange(9.0).reshape(1, 1, 3, 3)
    padded = codec.encode(images)
    torch.testing.assert_close(padded[0, 0, 1, 1:4], images[0, 0, 0])
    assert padded[0, 0, 0, 0] == 0.0
    assert padded[0, 0, 5, 5] == 8.0


def test_overrides_replace_arguments_and_unknown_ones_are_refused() -> None:
    spec = ModelSpec(preset="tiny", overrides={"layers_per_block": 2})
    assert build_network(spec, shape=(1, 8, 8)).unet.config.layers_per_block == 2
    with pytest.raises(UsageError, match="layers_per_blok") as caught:
        build_network(ModelSpec(preset="tiny", overrides={"layers_per_blok": 2}), shape=(1, 8, 8))
    assert "layers_per_block" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be overridden"):
        build_network(ModelSpec(preset="tiny", overrides={"in_channels": 2}), shape=(1, 8, 8))
    with pytest.raises(UsageError, match="block_out_channels"):
        build_network(ModelSpec(preset="tiny", overrides={"block_out_channels": [8, 8, 8]}), shape=(1, 8, 8))
    with pytest.raises(UsageError, match="'tinny'"):
        build_network(ModelSpec(preset="tinny"), shape=(1, 8, 8))


def test_conditioning_needs_classes() -> None:
    with pytest.raises(UsageError, match="no classes"):
        build_network(ModelSpec(preset="tiny", class_conditioning="concat"), shape=(1, 8, 8))


@pytest.mark.parametrize("kind", ["embedding", "concat"])
def test_labels_matter_and_none_is_the_null_class(kind: str) -> None:
    net = network(kind)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        null = net(x, t)
        assert net.null_class == 3
        torch.testing.assert_close(net(x, t, torch.tensor([3, 3])), null, rtol=0, atol=0)
        assert not torch.allclose(net(x, t, torch.tensor([0, 1])), null)


@pytest.mark.parametrize("kind", ["none", "embedding", "concat"])
def test_saved_and_loaded_predicts_the_same(tmp_path: Path, kind: str) -> None:
    net = network(kind, 9)
    save_pipeline(tmp_path / "run", net, make_noise_scheduler(NoiseSpec()), meta(kind, 9))
    model = load(str(tmp_path / "run"), device="cpu")
    record, read = read_record(open_repo(tmp_path / "run"))
    assert read == meta(kind, 9)
    assert model.info.record == record
    assert model.info.classes == (tuple(NAMES) if kind != "none" else ())
    set_attention(net.unet, "auto", "cpu")
    x, t = torch.randn(2, 1, 10, 10), torch.tensor(5)
    labels = None if kind == "none" else torch.tensor([1, 3])
    with torch.no_grad():
        out = model(x, t, model.encode(["b", None] if kind != "none" else [None, None])).out
        torch.testing.assert_close(out, net(x, t, labels), rtol=0, atol=0)


def test_stock_diffusers_loads_what_is_saved(tmp_path: Path) -> None:
    sampler = GridDDIM(num_train_timesteps=20)  # our subclass is saved as the class that diffusers knows
    save_pipeline(tmp_path, network(), sampler, meta())
    pipe = DDPMPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.scheduler.config.num_train_timesteps == 20
    assert isinstance(UNet2DModel.from_pretrained(tmp_path / "unet"), UNet2DModel)


def test_raw_weights_lie_beside_the_average(tmp_path: Path) -> None:
    net = network("concat")
    save_pipeline(tmp_path, net, DDPMScheduler(), meta("concat"))
    with pytest.raises(ModelError, match="no raw weights"):
        load(str(tmp_path), device="cpu", raw=True)
    with torch.no_grad():
        net.class_embedding.weight.add_(1.0)
    save_network(tmp_path / "unet_raw", net)
    raw, ema = (load(str(tmp_path), device="cpu", raw=raw) for raw in (True, False))
    torch.testing.assert_close(raw.network.class_embedding.weight, ema.network.class_embedding.weight + 1.0)


def test_a_flat_repository_of_old_names_is_read(tmp_path: Path) -> None:
    make_flat(tmp_path / "flat")
    model = load(str(tmp_path / "flat"), device="cpu")
    assert (model.info.sample, model.info.size, model.info.channels) == ((3, 8, 8), (8, 8), 3)
    assert (model.info.conditioning, model.info.classes, model.info.null) == ("none", (), False)
    assert model.info.scheduler.config.prediction_type == "epsilon"
    assert model.info.record == {}
    assert model(torch.zeros(1, 3, 8, 8), torch.tensor(0), Cond()).out.shape == (1, 3, 8, 8)


def test_a_foreign_conditional_model_has_no_null_class(tmp_path: Path) -> None:
    net = network("embedding")
    net.unet.save_pretrained(tmp_path)
    model = load(str(tmp_path), device="cpu")
    assert (model.info.classes, model.info.null, model.info.guidance) == (("0", "1", "2", "3"), False, 1.0)
    assert model.encode(["3"]).tensors["class_labels"].tolist() == [3]
    with pytest.raises(UsageError, match="without a null class"):
        model.uncond(1)


def test_classes_by_name_or_number() -> None:
    model = DDPM(network("embedding"), DDPMScheduler(), meta("embedding"))
    assert model.encode(["b", "2", 0, None, ""]).tensors["class_labels"].tolist() == [1, 2, 0, 3, 3]
    assert model.uncond(2).tensors["class_labels"].tolist() == [3, 3]
    with pytest.raises(UsageError, match="class '7'"):
        model.encode(["7"])
    plain = DDPM(network(), DDPMScheduler(), meta())
    assert plain.encode([None, None]) == Cond()
    with pytest.raises(UsageError, match="unconditional"):
        plain.encode(["a"])
    with pytest.raises(UsageError, match="guidance"):
        plain.uncond(1)


def test_linear_mix_becomes_a_velocity() -> None:
    model = DDPM(network(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=100), meta(prediction="linear_mix"))
    x = torch.randn(2, 1, 8, 8)
    x0 = model.network(x, torch.tensor(0.0))
    for t in (torch.tensor(25.0), torch.tensor([25.0, 25.0])):
        torch.testing.assert_close(model(x, t, Cond()).out, (x - x0) / 0.25)


def test_learned_variance_comes_apart() -> None:
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    model = DDPM(DDPMNetwork(unet), DDPMScheduler(variance_type="learned_range"), meta())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(3)
    both = unet(x, t).sample
    got = model(x, t, Cond())
    torch.testing.assert_close(torch.cat([got.out, got.var], dim=1), both)


def test_noise_of_an_image_depends_on_its_own_generator() -> None:
    model = DDPM(network(), DDPMScheduler(), meta())
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2)]
    alone = [torch.Generator().manual_seed(2)]
    torch.testing.assert_close(model.noise(seeds)[1:], model.noise(alone), rtol=0, atol=0)


def test_attention_kernel_is_chosen_and_both_agree() -> None:
    unet = network().unet
    assert set_attention(unet, "auto", "cpu") == "blocked"
    assert set_attention(unet, "auto", "cuda") == "sdpa"
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(5)
    kinds, outs = [], []
    for kind in ("plain", "sdpa", "blocked"):
        set_attention(unet, kind)
        kinds.append({type(m.processor) for m in unet.modules() if hasattr(m, "set_processor")})
        with torch.no_grad():
            outs.append(unet(x, t).sample)
    assert kinds == [{AttnProcessor}, {AttnProcessor2_0}, {BlockedAttnProcessor}]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs[0], outs[2], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="attention 'fast'"):
        set_attention(unet, "fast")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scores", [1, 40, 1 << 19])
def test_the_blocked_kernel_has_the_plain_ones_gradients(
    monkeypatch: pytest.MonkeyPatch, scores: int, precision: str
) -> None:
    """Blocks of one head, of some, and one block of all; under autocast it computes in fp32."""
    monkeypatch.setattr("diffkit.models.attention._CACHED", scores)
    unet = network().unet
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(5)
    results = []
    for kind in ("plain", "blocked"):
        set_attention(unet, kind)
        unet.zero_grad()
        inside = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = unet(inside, t).sample
        (out.float() ** 2).sum().backward()
        results.append([out, inside.grad, *(p.grad for p in unet.parameters() if p.grad is not None)])
    atol, rtol = (1e-4, 1e-4) if precision == "fp32" else (0.5, 0.2)
    assert len(results[0]) == len(results[1]) > 20
    for plain, blocked in zip(*results, strict=True):
        torch.testing.assert_close(plain.float(), blocked.float(), atol=atol, rtol=rtol)


def test_meta_ignores_what_it_does_not_know_and_refuses_wrong_types() -> None:
    original = meta("concat", 9)
    text = original.to_json().replace('"recipe"', '"from_the_future": 1, "recipe"')
    assert RunMeta.read(json.loads(text)) == original
    for bad, said in (
        ([], "no JSON object"),
        ({"resolution": "9"}, "resolution is '9', of the wrong type"),
        ({"channels": True}, "channels is True"),
        ({"class_names": "a"}, "class_names is 'a'"),
        ({"class_names": ["a", 1]}, "class_names is"),
        ({"null_class": 1}, "null_class is 1"),
    ):
        with pytest.raises(ModelError, match=said):
            RunMeta.read(bad)


def test_parameters_are_counted_without_weights(tmp_path: Path) -> None:
    net = network("embedding")
    save_pipeline(tmp_path, net, DDPMScheduler(), meta("embedding"))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert count_parameters(info(open_repo(tmp_path)).network) == sum(p.numel() for p in net.parameters())


def test_unknown_family_and_foreign_scheduler_are_refused(tmp_path: Path) -> None:
    save_pipeline(tmp_path, network(), DDPMScheduler(), meta())
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("DDPMScheduler", "os"))
    with pytest.raises(ModelError, match="scheduler"):
        load(str(tmp_path), device="cpu")
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("DDPMPipeline", "AudioPipeline"))
    with pytest.raises(ModelError, match="AudioPipeline"):
        load(str(tmp_path), device="cpu")
