"""The courses' networks against their equations, written out by hand, and against counts that follow from them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.models import load, open_repo
from diffkit.models.course_networks import BasicUNet, CS180UNet
from diffkit.models.inspect import describe
from diffkit.models.kinds import KINDS, halvings, network_class
from diffkit.models.memory import count_parameters
from diffkit.models.meta import RunMeta
from diffkit.models.network import DDPMNetwork, build_network, save_pipeline
from diffkit.models.presets import COURSE_PRESETS, PRESETS, padded_size, unet_arguments
from diffkit.recipes.schema import ModelSpec
from diffkit.types import Network

FORMS = [(time, classes) for time in ("none", "add", "multiply") for classes in (0, 10)]


def seeded(net: CS180UNet) -> CS180UNet:
    """Statistics and affine parameters that are not 0 and 1, so that a forgotten normalization is seen."""
    generator = torch.Generator().manual_seed(1)
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if name.endswith(("running_mean", "1.weight", "1.bias", "running_var")) and value.ndim == 1:
            value.data = torch.rand(value.shape, generator=generator) + 0.5
    return net


def cs180_by_hand(w: dict[str, Tensor], z: Tensor, t: Tensor, one_hot: Tensor | None, time: str, train: bool) -> Tensor:
    """The course's diagram: every operation by its formula, the weights by their names."""

    def normalized(x: Tensor, name: str) -> Tensor:
        if train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=stride, padding=1)
        return gelu(normalized(x, f"{name}.1"))

    def conv_block(x: Tensor, name: str) -> Tensor:
        return conv(conv(x, f"{name}.0"), f"{name}.1")

    def down_block(x: Tensor, name: str) -> Tensor:
        return conv_block(conv(x, f"{name}.0", stride=2), f"{name}.1")

    def up_conv(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        x = F.conv_transpose2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=stride, padding=padding)
        return gelu(normalized(x, f"{name}.1"))

    def up_block(x: Tensor, name: str) -> Tensor:
        return conv_block(up_conv(x, f"{name}.0", 2, 1), f"{name}.1")

    def fc_block(x: Tensor, name: str) -> Tensor:
        x = gelu(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
        return (x @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"])[:, :, None, None]

    x = conv_block(z, "conv_in")
    down1 = down_block(x, "down1")
    down2 = down_block(down1, "down2")
    unflatten = up_conv(gelu(down2.mean((2, 3), keepdim=True)), "unflatten", down2.shape[-1], 0)
    if one_hot is not None:
        unflatten = fc_block(one_hot, "class1") * unflatten
    if time == "add":
        unflatten = unflatten + fc_block(t[:, None], "time1")
    if time == "multiply":
        unflatten = unflatten * fc_block(t[:, None], "time1")
    up1 = up_block(torch.cat([unflatten, down2], 1), "up1")
    if one_hot is not None:
        up1 = fc_block(one_hot, "class2") * up1
    if time == "add":
        up1 = up1 + fc_block(t[:, None], "time2")  # t2: the page of 2024 prints t1, which has twice the channels
    if time == "multiply":
        up1 = up1 * fc_block(t[:, None], "time2")
    up2 = up_block(torch.cat([up1, down1], 1), "up2")
    out = conv_block(torch.cat([up2, x], 1), "conv_out.0")
    return F.conv2d(out, w["conv_out.1.weight"], w["conv_out.1.bias"], padding=1)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("time", "classes"), FORMS)
def test_cs180_is_the_courses_equations(time: str, classes: int, train: bool) -> None:
    net = seeded(CS180UNet(28, hidden=8, time=time, timesteps=300, num_class_embeds=classes + 1 if classes else None))
    net.train(train)
    z, t, labels = torch.randn(3, 1, 28, 28), torch.tensor([0, 150, 299]), torch.tensor([4, 0, 9])
    one_hot = torch.eye(10)[labels] if classes else None
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        expected = cs180_by_hand(weights, z, t / 300, one_hot, time, train)
        got = net(z, t, labels if classes else None).sample
    assert float((got - expected).abs().max()) < 1e-5
    assert float(expected.std()) > 0.01


def test_time_and_class_matter_where_the_network_is_told_them() -> None:
    z = torch.randn(2, 1, 8, 8)
    for time, classes in FORMS:
        net = CS180UNet(8, hidden=4, time=time, num_class_embeds=classes + 1 if classes else None).eval()
        with torch.no_grad():
            plain = net(z, torch.tensor(0)).sample
            assert torch.equal(net(z, torch.tensor(500)).sample, plain) == (time == "none")
            if classes:
                assert not torch.equal(net(z, torch.tensor(0), torch.tensor([1, 2])).sample, plain)
                null = net(z, torch.tensor(0), torch.tensor([10, 10])).sample
                assert torch.equal(null, plain)  # dropped: the one-hot vector is zero
        kind = "CS180UNet"
        assert KINDS[kind].timed(net.config) == (time != "none")


def parameters_of_cs180(d: int, time: bool, classes: int) -> int:
    """From the course's description: convolutions k k a b + b, batch normalizations 2 b, Linear a b + b."""

    def conv(a: int, b: int, k: int = 3) -> int:
        return k * k * a * b + b + 2 * b

    def block(a: int, b: int) -> int:
        return conv(a, b) + conv(b, b)

    def down(a: int, b: int) -> int:
        return conv(a, b) + block(b, b)

    def up(a: int, b: int) -> int:
        return conv(a, b, 4) + block(b, b)

    def fc(a: int, b: int) -> int:
        return a * b + b + b * b + b

    total = block(1, d) + down(d, d) + down(d, 2 * d) + conv(2 * d, 2 * d, 7)
    total += up(2 * d + 2 * d, d) + up(d + d, d) + block(d + d, d) + 9 * d + 1
    total += (fc(1, 2 * d) + fc(1, d)) if time else 0
    return total + ((fc(classes, 2 * d) + fc(classes, d)) if classes else 0)


@pytest.mark.parametrize("hidden", [64, 128])
@pytest.mark.parametrize(("time", "classes"), FORMS)
def test_parameters_follow_from_the_description(hidden: int, time: str, classes: int) -> None:
    config = {"hidden": hidden, "time": time, "num_class_embeds": classes + 1 if classes else None}
    counted = count_parameters(Network("", "CS180UNet", config))
    assert counted == parameters_of_cs180(hidden, time != "none", classes)


def test_basic_unet_is_the_courses_and_has_309_thousand_parameters() -> None:
    net = BasicUNet(28).eval()
    pairs = [*pairwise((1, 32, 64, 64)), *pairwise((64, 64, 32, 1))]
    assert sum(25 * a * b + b for a, b in pairs) == sum(p.numel() for p in net.parameters()) == 309_057
    w = [(m.weight, m.bias) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    layer = lambda x, k: (lambda y: y * torch.sigmoid(y))(F.conv2d(x, *w[k], padding=2))  # noqa: E731
    twice = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    half = lambda x: x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))  # noqa: E731
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        a = layer(x, 0)
        b = layer(half(a), 1)
        h = layer(layer(half(b), 2), 3)
        h = layer(twice(h) + b, 4)
        expected = layer(twice(h) + a, 5)
        got = net(x, torch.tensor(7)).sample
    assert float((got - expected).abs().max()) < 1e-5


def test_statistics_are_the_batches_in_training_and_their_own_in_evaluation() -> None:
    net = CS180UNet(8, hidden=4)
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        net.train()
        assert not torch.allclose(net(x[:2], 0).sample, net(x, 0).sample[:2])
        net.eval()
        torch.testing.assert_close(net(x[:2], 0).sample, net(x, 0).sample[:2])


@pytest.mark.parametrize("preset", list(COURSE_PRESETS))
@pytest.mark.parametrize("conditioning", ["none", "embedding", "concat"])
def test_saved_and_loaded_predicts_the_same(tmp_path: Path, preset: str, conditioning: str) -> None:
    overrides = {"hidden": 4, "time": "add"} if preset == "cs180" else {"block_out_channels": [4, 8, 8]}
    spec = ModelSpec(preset=preset, overrides=overrides, class_conditioning=conditioning)  # type: ignore[arg-type]
    if preset == "basic-unet" and conditioning == "embedding":
        with pytest.raises(UsageError, match="takes no class embedding"):
            build_network(spec, shape=(1, 9, 9), num_classes=3)
        return
    net = build_network(spec, shape=(1, 9, 9), num_classes=3, timesteps=50)
    assert net.unet.config.sample_size == 12
    names = ["a", "b", "c"] if conditioning != "none" else []
    meta = RunMeta(conditioning=conditioning, class_names=names, resolution=9, channels=1, mean=[-1.0], std=[2.0])
    net(torch.randn(4, 1, 12, 12), torch.tensor(3))  # moves the running statistics
    save_pipeline(tmp_path / "run", net.eval(), DDPMScheduler(num_train_timesteps=50), meta)
    model = load(str(tmp_path / "run"), device="cpu")
    assert describe(open_repo(tmp_path / "run"))["parameters"] == sum(p.numel() for p in net.parameters())
    assert (model.info.family, model.info.network.kind) == ("ddpm", type(net.unet).__name__)
    assert (model.info.size, model.info.sample) == ((9, 9), (1, 12, 12))
    x, t = torch.randn(2, 1, 12, 12), torch.tensor(5)
    labels = torch.tensor([1, 3]) if names else None
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, t, model.encode(["b", None] if names else [None, None])).out, net(x, t, labels), rtol=0, atol=0
        )
    images = torch.rand(2, 1, 9, 9) * 2 - 1
    inside = model.codec.encode(images)
    assert 0 <= float(inside.min()) <= float(inside.max()) <= 1
    torch.testing.assert_close(model.codec.decode(inside), images)


def test_stock_diffusers_loads_it_where_this_package_is_imported(tmp_path: Path) -> None:
    save_pipeline(tmp_path, DDPMNetwork(CS180UNet(8, hidden=4, time="add")), DDPMScheduler(), RunMeta(channels=1))
    pipe = DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.unet, CS180UNet)
    assert not pipe.unet.training
    assert pipe(num_inference_steps=2).images[0].size == (8, 8)


def test_a_class_under_our_name_from_elsewhere_is_custom_code(tmp_path: Path) -> None:
    save_pipeline(tmp_path, DDPMNetwork(CS180UNet(8, hidden=4)), DDPMScheduler(), RunMeta(channels=1))
    index = tmp_path / "model_index.json"
    text = index.read_text()
    for good, bad in (("diffkit.models.course_networks", "diffkit.cli"), ('"CS180UNet"', '"Conv"')):
        index.write_text(text.replace(good, bad))
        with pytest.raises(ModelError, match="custom code"):
            open_repo(tmp_path)


def test_a_network_alone_is_opened_too(tmp_path: Path) -> None:
    BasicUNet(8, block_out_channels=(4, 8)).save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").info.network.kind == "BasicUNet"


def test_sizes_and_arguments_that_do_not_fit_are_refused() -> None:
    assert (padded_size("cs180", 28), padded_size("cs180", 30), padded_size("basic-unet", 30)) == (28, 32, 32)
    assert halvings("CS180UNet", unet_arguments("cs180")) == halvings("BasicUNet", unet_arguments("basic-unet")) == 2
    with pytest.raises(UsageError, match="time is 'both'"):
        build_network(ModelSpec(preset="cs180", overrides={"time": "both"}), shape=(1, 8, 8))
    with pytest.raises(UsageError, match="hiden"):
        unet_arguments("cs180", {"hiden": 3})
    with pytest.raises(UsageError, match="cannot be overridden"):
        unet_arguments("cs180", {"timesteps": 3})
    with pytest.raises(ValueError, match="multiple of 4"):
        CS180UNet(30)


def test_the_table_names_what_is_there() -> None:
    assert not set(COURSE_PRESETS) & set(PRESETS)
    for name, (kind, _) in COURSE_PRESETS.items():
        assert KINDS[kind].preset == name
        net = network_class(kind)(**unet_arguments(name))
        parts = dict(net.named_modules())
        assert parts[KINDS[kind].first].in_channels == parts[KINDS[kind].last].out_channels == 1


@pytest.mark.parametrize(
    "broken", [{"std": [0.0]}, {"mean": []}, {"mean": [0.0, 0.0], "std": [1.0, 1.0]}, {"noise": "pink"}]
)
def test_a_broken_range_of_pixels_is_refused(broken: dict[str, object]) -> None:
    good = {"channels": 1, "mean": [0.5], "std": [1.0], "noise": "uniform"}
    assert RunMeta.read(good).mean == [0.5]
    with pytest.raises(ModelError, match=r"diffkit\.json"):
        RunMeta.read({**good, **broken})
