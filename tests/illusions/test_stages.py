"""Stage II and the x4 upscaler in all views: known answers, the plain stages as a special case, and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.illusions import stages
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import make_scheduler
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.views import parse_view
from diffkit.models import load
from diffkit.models.base import WrappedModel
from diffkit.models.conditioning import conditioned, finished
from diffkit.types import Cond, Model, Prediction
from tests.models.conftest import make_if, make_sd
from tests.support.illusions import Known, anagram, follow, info_of, plainly, prompting, views

PLAIN = Settings(scheduler="ddim", steps=3, guidance=1.0)
PROMPTS = ("a cat", "a dog")


def enlarge(
    model: Model, labels: Sequence[str], composition: Composition, images: Tensor, seeds: list[int], settings: Settings,
    on_step: Any = None, **more: Any,
) -> Tensor:  # fmt: skip
    prompt = prompting(labels, len(seeds))
    return follow(stages.enlarge(model, composition, prompt, images, seeds, settings, **more), on_step)


def refine(
    model: Model, labels: Sequence[str], composition: Composition, images: Tensor, seeds: list[int],
    settings: Settings | None = None, **more: Any,
) -> Tensor:  # fmt: skip
    prompt = prompting(labels, len(seeds))
    return follow(stages.refine(model, composition, prompt, images, seeds, settings, **more))


def upscaled(model: Model, images: Tensor, seeds: list[int], label: str, how: Settings, noise_level: int) -> Tensor:
    """The plain stage, without anything of illusions."""
    random = generators(seeds)
    noise = model.noise(random)
    extra = model.image_cond(images, random, noise_level=noise_level)
    net, cond = conditioned(model, [label] * len(seeds), how)
    scheduler = make_scheduler(model.info, how)
    for step in denoise(net, pure_noise(scheduler, noise), scheduler, cond.join(extra), generators=random):
        x = step.x
    return finished(model, x)


@pytest.fixture
def embeddings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of prompts."""
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


class Shuffled:
    """A codec without loss: the four pixels of a latent lie in its channels. No view but the identity commutes."""

    def __init__(self) -> None:
        self.sides: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.sides.append(images.shape[-1] // 2)
        return F.pixel_unshuffle(images, 2)

    def decode(self, x0: Tensor) -> Tensor:
        self.sides.append(x0.shape[-1])
        return F.pixel_shuffle(x0, 2)


class Painter(Known):
    """A latent upscaler whose clean estimate is known: the small picture that it sees, times the number in its prompt.

    With an `offset` the pixels in the upper left corner of each latent are that much lighter: a detail.
    """

    def __init__(self, size: int = 24, offset: float = 0.0) -> None:
        scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
        self.info = info_of(
            (12, size, size), scheduler, channels=3, size=(2 * size, 2 * size), conditioning="text", null=True,
            source="small", latent=True, input_multiple=8, guidance=7.5, illusion_guidance=7.5,
        )  # fmt: skip
        self.codec, self.offset = Shuffled(), offset
        self.sides: list[int] = []

    def at(self, height: int, width: int) -> Painter:
        assert (height, width) == self.info.sample[1:]
        return self

    def encode(self, prompts: list[str]) -> Cond:
        return Cond({"encoder_hidden_states": torch.tensor([float(p or 0) for p in prompts]).reshape(-1, 1, 1)})

    def image_cond(self, images: Tensor, generators: list[torch.Generator], *, mask=None, noise_level: int = 0) -> Cond:
        return Cond({"channels": images, "class_labels": torch.full((len(images),), noise_level)})

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.sides.append(x.shape[-1])
        gain = cond.tensors["encoder_hidden_states"][..., None]
        out = (gain * cond.tensors["channels"]).repeat_interleave(4, dim=1)
        out[:, ::4] += self.offset
        return Prediction(out)


def large(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="nearest")


@pytest.mark.parametrize("names", [("identity", "flip"), ("rotate_cw", "negate"), ("identity", "square_hinge", "skew")])
def test_the_small_picture_is_seen_in_every_view(names):
    small, gains = noise(2, 3, 24, 24).clamp(-1, 1), ("1.0", "0.5", "0.3")[: len(names)]
    whole = enlarge(Painter(), gains, anagram(*names), small, [0, 1], PLAIN)
    if "skew" in names:  # it does not commute with enlarging: turned at the large size what was turned at the small
        back = [v.invert(large(v.apply(small))) for v in views(*names)]
    else:
        back = [large(small)] * len(names)
    expected = sum(float(g) * one for g, one in zip(gains, back, strict=True)) / len(names)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["negate", "square_hinge", "inner_circle"])
def test_no_view_is_left_out_as_it_is_by_the_first_prompt_alone(name):
    small, pair = noise(1, 3, 24, 24).clamp(-1, 1), anagram("identity", name)
    # What each view's viewer should see: the details of the network where the network would draw them.
    wanted = [
        large(one) + F.pad(torch.full((1, 1, 1, 1), 0.4), (0, 1, 0, 1)).repeat(1, 3, 24, 24)
        for one in pair.shown(small)
    ]
    errors = {}
    for mode, labels, several in (("multiview", ["1.0", "1.0"], pair), ("first", ["1.0"], plainly())):
        whole = enlarge(Painter(offset=0.4), labels, several, small, [0], PLAIN)
        errors[mode] = [float((one - w).square().mean()) for one, w in zip(pair.shown(whole), wanted, strict=True)]
    assert errors["first"][0] == pytest.approx(0.0, abs=1e-9)  # the first prompt's picture, and nobody else's
    assert errors["first"][1] > 0.005
    assert max(errors["multiview"]) < 0.6 * errors["first"][1]


def test_a_split_and_weights_count_at_the_large_size():
    small, split = noise(1, 3, 24, 24).clamp(-1, 1), parse_filter("grey_colour")
    hybrid = enlarge(Painter(), ["1.0", "0.5"], plainly(2, split=split), small, [0], PLAIN)
    expected = split.part(large(small), 0) + 0.5 * split.part(large(small), 1)
    torch.testing.assert_close(hybrid, expected, rtol=0, atol=1e-5)
    weighted = anagram("identity", "negate", weights=(3.0, 1.0))
    whole = enlarge(Painter(), ["1.0", "0.5"], weighted, small, [0], PLAIN)
    torch.testing.assert_close(whole, (3 * 1.0 + 0.5) / 4 * large(small), rtol=0, atol=1e-5)


def test_a_reference_keeps_its_component():
    small, split = noise(1, 3, 24, 24).clamp(-1, 1), parse_filter("grey_colour")
    photo = noise(1, 3, 48, 48).clamp(-1, 1)
    whole = enlarge(Painter(), ["1.0"], plainly(split=split, reference=photo), small, [0], PLAIN)
    expected = split.part(photo, 0) + split.part(large(small), 1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


def test_windows_bound_what_the_network_and_the_vae_see():
    small, pair = noise(1, 3, 32, 32).clamp(-1, 1), anagram("identity", "negate")
    painter = Painter(32)
    whole = enlarge(painter, ["1.0", "0.5"], pair, small, [0], PLAIN, tile=16)
    torch.testing.assert_close(whole, 0.75 * large(small), rtol=0, atol=1e-5)
    assert set(painter.sides) == {16}
    assert set(painter.codec.sides) == {16}


@pytest.fixture
def upscaler(tmp_path, embeddings) -> Any:
    make_sd(tmp_path / "up", in_channels=7, num_class_embeds=1000, prediction="v_prediction")
    low = DDIMScheduler(beta_schedule="scaled_linear")
    low.save_pretrained(tmp_path / "up" / "low_res_scheduler")
    return load(str(tmp_path / "up"), device="cpu")


def test_one_plain_view_is_the_plain_upscaler(upscaler):
    small, settings = noise(1, 3, 16, 16).clamp(-1, 1), Settings(scheduler="ddim", steps=3, guidance=4.0)
    model = upscaler.at(16, 16)
    plain = upscaled(model, small, [3], "a cat", settings, noise_level=10)
    ours = enlarge(upscaler, ["a cat"], plainly(), small, [3], settings, noise_level=10)
    assert torch.equal(ours, plain)


def test_views_that_agree_change_nothing(upscaler):
    """The same prompt seen twice plainly, each with a latent of its own: what the VAE loses must not add up."""
    small, settings = noise(2, 3, 16, 16).clamp(-1, 1), Settings(scheduler="ddim", steps=3, guidance=4.0)
    twice = plainly(2, latent="decode")
    one = enlarge(upscaler, ["a cat"] * 2, twice, small, [3, 4], settings)
    plain = enlarge(upscaler, ["a cat"], plainly(), small, [3, 4], settings)
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-5)
    other = enlarge(upscaler, PROMPTS, twice, small, [3, 4], settings)
    assert float((other - plain).abs().max()) > 1e-3


def test_a_picture_depends_on_its_own_seed_alone_and_previews_are_one_latent(upscaler):
    small, settings = noise(2, 3, 16, 16).clamp(-1, 1), Settings(scheduler="ddim", steps=2, eta=1.0)
    pair, shapes = anagram("identity", "square_hinge"), []
    both = enlarge(upscaler, PROMPTS, pair, small, [3, 4], settings, lambda step: shapes.append(step.x.shape))
    alone = enlarge(upscaler, PROMPTS, pair, small[1:], [4], settings)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    assert shapes == [(2, 4, 16, 16)] * 2


@pytest.fixture
def second(tmp_path, embeddings) -> Any:
    make_if(tmp_path / "two", stage=2)
    return load(str(tmp_path / "two"), device="cpu")


def test_one_plain_view_is_plain_stage_two(second):
    small, settings = noise(1, 3, 4, 4).clamp(-1, 1), Settings(scheduler="ddpm", steps=3, guidance=4.0)
    plain = upscaled(second, small, [3], "a cat", settings, noise_level=50)
    assert torch.equal(refine(second, ["a cat"], plainly(), small, [3], settings), plain)


def test_turning_all_views_turns_the_picture(second):
    """Half turns: seen upside down, from the turned small picture and noise, the same picture comes out turned."""
    settings, small = Settings(scheduler="ddim", steps=3, guidance=4.0), noise(1, 3, 4, 4).clamp(-1, 1)
    half = parse_view("rotate_180")

    class Turned(WrappedModel):
        """All noise of a model turned: that of the sample, and that on the small picture."""

        def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
            return half.apply(super().noise(generators))

        def image_cond(self, images: Tensor, generators, *, mask=None, noise_level: int = 0) -> Cond:
            cond = super().image_cond(half.apply(images), generators, noise_level=noise_level)
            return Cond({**cond.tensors, "channels": half.apply(cond.tensors["channels"])})

    there, back = anagram("identity", "rotate_180"), anagram("rotate_180", "identity")
    plain = refine(second, PROMPTS, there, small, [3], settings)
    turned = refine(Turned(second), PROMPTS, back, half.apply(small), [3], settings)
    torch.testing.assert_close(half.apply(turned), plain, rtol=0, atol=1e-5)
    other = refine(second, PROMPTS, back, small, [3], settings)
    assert float((half.apply(other) - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("change", [{"tile": 12}, {"seeds": [1, 2]}, {"images": torch.zeros(1, 3, 12, 12)}])
def test_enlarge_refuses(change):
    options = {"images": torch.zeros(1, 3, 24, 24), "seeds": [1]} | change
    images, seeds = options.pop("images"), options.pop("seeds")
    with pytest.raises(UsageError):
        enlarge(Painter(), ["1", "2"], anagram("identity", "flip"), images, seeds, PLAIN, **options)


def test_the_wrong_model_or_size_is_refused(second, tmp_path):
    make_if(tmp_path / "one")
    pair, small = plainly(2), torch.zeros(1, 3, 8, 8)
    with pytest.raises(UsageError, match="no stage II"):
        refine(load(str(tmp_path / "one"), device="cpu"), PROMPTS, pair, small, [1])
    with pytest.raises(UsageError, match="no latent upscaler"):
        enlarge(second, PROMPTS, pair, small, [1], PLAIN)
    with pytest.raises(UsageError, match="2 pictures for 1 seeds"):
        refine(second, PROMPTS, pair, torch.zeros(2, 3, 4, 4), [1])
    with pytest.raises(UsageError, match="patch_permute"):
        refine(second, PROMPTS, anagram("identity", "patch_permute:99"), small, [1])
