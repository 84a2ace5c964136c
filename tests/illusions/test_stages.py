"""Stage II and the x4 upscaler in all views: known answers, the plain stages as a special case, and windows."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.drawing import Illusion, seen
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.stages import enlarge, refine
from diffkit.illusions.tiles import Windowed, by_tiles, starts, tiled
from diffkit.illusions.views import parse_view
from diffkit.jobs.sample import Settings
from diffkit.jobs.upscale import upscale
from diffkit.models import load
from diffkit.pictures.images import from_tensor, to_tensor
from diffkit.types import Cond, Prediction
from tests.models.conftest import make_if, make_sd

PLAIN = Settings(scheduler="ddim", steps=3, guidance=1.0)
PROMPTS = ("a cat", "a dog")


def views(*names: str) -> tuple[Any, ...]:
    return tuple(parse_view(name) for name in names)


@pytest.fixture
def embeddings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of prompts."""
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


class Shuffled:
    """A codec without loss: the four pixels of a latent lie in its channels. No view but the identity commutes."""

    factor = 2

    def __init__(self) -> None:
        self.sides: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.sides.append(images.shape[-1] // 2)
        return F.pixel_unshuffle(images, 2)

    def decode(self, x0: Tensor) -> Tensor:
        self.sides.append(x0.shape[-1])
        return F.pixel_shuffle(x0, 2)


class Painter:
    """A latent upscaler whose clean estimate is known: the small picture that it sees, times the number in its prompt.

    With an `offset` the pixels in the upper left corner of each latent are that much lighter: a detail.
    """

    family, kind, id, meta = "stable_diffusion", "upscale", "painter", None

    def __init__(self, size: int = 24, offset: float = 0.0) -> None:
        self.shape, self.offset, self.device = (12, size, size), offset, torch.device("cpu")
        self.codec, self.memory = Shuffled(), SimpleNamespace(max_batch=None)
        self.scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
        self.sides: list[int] = []

    def at(self, height: int, width: int) -> Painter:
        assert (height, width) == self.shape[1:]
        return self

    def noise(self, generators: list[torch.Generator]) -> Tensor:
        return torch.cat([torch.randn(1, *self.shape, generator=g) for g in generators])

    def encode(self, prompts: list[str]) -> Cond:
        return Cond({"encoder_hidden_states": torch.tensor([float(p or 0) for p in prompts]).reshape(-1, 1, 1)})

    def upscale_cond(self, images: Tensor, generators: list[torch.Generator], noise_level: int) -> Cond:
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
    whole = enlarge(Painter(), Illusion(gains, views(*names)), small, [0, 1], PLAIN)
    if "skew" in names:  # it does not commute with enlarging: turned at the large size what was turned at the small
        back = [v.invert(large(v.apply(small))) for v in views(*names)]
    else:
        back = [large(small)] * len(names)
    expected = sum(float(g) * one for g, one in zip(gains, back, strict=True)) / len(names)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["negate", "square_hinge", "inner_circle"])
def test_no_view_is_left_out_as_it_is_by_the_first_prompt_alone(name):
    small, pair = noise(1, 3, 24, 24).clamp(-1, 1), Illusion(("1.0", "1.0"), views("identity", name))
    # What each view's viewer should see: the details of the network where the network would draw them.
    wanted = [
        large(one) + F.pad(torch.full((1, 1, 1, 1), 0.4), (0, 1, 0, 1)).repeat(1, 3, 24, 24)
        for one in seen(pair, small)
    ]
    errors = {}
    for mode in ("multiview", "first"):
        whole = enlarge(Painter(offset=0.4), pair, small, [0], PLAIN, mode=mode)
        errors[mode] = [float((one - w).square().mean()) for one, w in zip(seen(pair, whole), wanted, strict=True)]
    assert errors["first"][0] == pytest.approx(0.0, abs=1e-9)  # the first prompt's picture, and nobody else's
    assert errors["first"][1] > 0.005
    assert max(errors["multiview"]) < 0.6 * errors["first"][1]


def test_a_split_and_weights_are_heard_at_the_large_size():
    small, split = noise(1, 3, 24, 24).clamp(-1, 1), parse_filter("grey_colour")
    hybrid = enlarge(Painter(), Illusion(("1.0", "0.5"), split=split), small, [0], PLAIN)
    expected = split.part(large(small), 0) + 0.5 * split.part(large(small), 1)
    torch.testing.assert_close(hybrid, expected, rtol=0, atol=1e-5)
    weighted = Illusion(("1.0", "0.5"), views("identity", "negate"), weights=(3.0, 1.0))
    whole = enlarge(Painter(), weighted, small, [0], PLAIN)
    torch.testing.assert_close(whole, (3 * 1.0 + 0.5) / 4 * large(small), rtol=0, atol=1e-5)


def test_a_reference_keeps_its_component():
    small, split = noise(1, 3, 24, 24).clamp(-1, 1), parse_filter("grey_colour")
    photo = noise(1, 3, 48, 48).clamp(-1, 1)
    one = Illusion(("1.0",), split=split, reference=photo, fixed=0)
    whole = enlarge(Painter(), one, small, [0], PLAIN)
    expected = split.part(photo, 0) + split.part(large(small), 1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


def test_windows_bound_what_the_network_and_the_vae_see():
    small, pair = noise(1, 3, 32, 32).clamp(-1, 1), Illusion(("1.0", "0.5"), views("identity", "negate"))
    painter = Painter(32)
    whole = enlarge(painter, pair, small, [0], PLAIN, tile=16)
    torch.testing.assert_close(whole, 0.75 * large(small), rtol=0, atol=1e-5)
    assert set(painter.sides) == {16}
    assert set(painter.codec.sides) == {16}


@pytest.fixture
def upscaler(tmp_path, embeddings) -> Any:
    make_sd(tmp_path / "up", in_channels=7, num_class_embeds=1000, prediction="v_prediction")
    low = DDIMScheduler(beta_schedule="scaled_linear")
    low.save_pretrained(tmp_path / "up" / "low_res_scheduler")
    return load(str(tmp_path / "up"), device="cpu")


def test_the_first_prompt_alone_is_the_plain_upscaler(upscaler):
    picture = from_tensor(noise(1, 3, 16, 16).clamp(-1, 1))[0]
    small = to_tensor(picture, 3)
    settings = Settings(scheduler="ddim", steps=3, guidance=4.0)
    plain = upscale(upscaler, picture, [3], ["a cat"], settings, noise_level=10).pictures[0]
    for illusion, mode in ((Illusion(PROMPTS, views("flip", "negate")), "first"), (Illusion(PROMPTS[:1]), "multiview")):
        ours = enlarge(upscaler, illusion, small, [3], settings, mode=mode, noise_level=10)
        assert from_tensor(ours)[0].tobytes() == plain.tobytes()


def test_views_that_agree_change_nothing(upscaler):
    """The same prompt seen twice plainly, each with a latent of its own: what the VAE loses must not add up."""
    small, settings = noise(2, 3, 16, 16).clamp(-1, 1), Settings(scheduler="ddim", steps=3, guidance=4.0)
    twice = Illusion(("a cat", "a cat"), latent="decode")
    one = enlarge(upscaler, twice, small, [3, 4], settings)
    plain = enlarge(upscaler, twice, small, [3, 4], settings, mode="first")
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-5)
    other = enlarge(upscaler, Illusion(PROMPTS, latent="decode"), small, [3, 4], settings)
    assert float((other - plain).abs().max()) > 1e-3


def test_a_picture_depends_on_its_own_seed_alone_and_previews_are_one_latent(upscaler):
    small, settings = noise(2, 3, 16, 16).clamp(-1, 1), Settings(scheduler="ddim", steps=2, eta=1.0)
    pair, shapes = Illusion(PROMPTS, views("identity", "square_hinge")), []
    both = enlarge(upscaler, pair, small, [3, 4], settings, on_step=lambda step, rows: shapes.append(step.x.shape))
    alone = enlarge(upscaler, pair, small[1:], [4], settings)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    assert shapes == [(2, 4, 16, 16)] * 2


@pytest.fixture
def second(tmp_path, embeddings) -> Any:
    make_if(tmp_path / "two", stage=2)
    return load(str(tmp_path / "two"), device="cpu")


def test_one_plain_view_is_plain_stage_two(second):
    picture = from_tensor(noise(1, 3, 4, 4).clamp(-1, 1))[0]
    small = to_tensor(picture, 3)
    settings = Settings(scheduler="ddpm", steps=3, guidance=4.0)
    plain = upscale(second, picture, [3], ["a cat"], settings, noise_level=50).pictures[0]
    ours = refine(second, Illusion(("a cat",)), small, [3], settings)
    assert from_tensor(ours)[0].tobytes() == plain.tobytes()


def test_turning_all_views_turns_the_picture(second):
    """Half turns: seen upside down, from the turned small picture and noise, the same picture comes out turned."""
    settings, small = Settings(scheduler="ddim", steps=3, guidance=4.0), noise(1, 3, 4, 4).clamp(-1, 1)
    half = parse_view("rotate_180")

    class Turned(type(second)):
        def _noise(self, *args):
            return half.apply(super()._noise(*args))

    plain = refine(second, Illusion(PROMPTS, views("identity", "rotate_180")), small, [3], settings)
    second.__class__ = Turned
    turned = refine(second, Illusion(PROMPTS, views("rotate_180", "identity")), half.apply(small), [3], settings)
    torch.testing.assert_close(half.apply(turned), plain, rtol=0, atol=1e-5)
    other = refine(second, Illusion(PROMPTS, views("rotate_180", "identity")), small, [3], settings)
    assert float((half.apply(other) - plain).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "change", [{"mode": "all"}, {"tile": 12}, {"seeds": [1, 2]}, {"images": torch.zeros(1, 3, 12, 12)}]
)
def test_enlarge_refuses(change):
    options = {"images": torch.zeros(1, 3, 24, 24), "seeds": [1]} | change
    images, seeds = options.pop("images"), options.pop("seeds")
    with pytest.raises(UsageError):
        enlarge(Painter(), Illusion(("1", "2"), views("identity", "flip")), images, seeds, PLAIN, **options)


def test_the_wrong_model_or_size_is_refused(second, tmp_path):
    make_if(tmp_path / "one")
    pair, small = Illusion(PROMPTS), torch.zeros(1, 3, 8, 8)
    with pytest.raises(UsageError, match="no stage II"):
        refine(load(str(tmp_path / "one"), device="cpu"), pair, small, [1])
    with pytest.raises(UsageError, match="no latent upscaler"):
        enlarge(second, pair, small, [1])
    with pytest.raises(UsageError, match="2 pictures for 1 seeds"):
        refine(second, pair, torch.zeros(2, 3, 4, 4), [1])
    with pytest.raises(UsageError, match="patch_permute"):
        refine(second, Illusion(PROMPTS, views("identity", "patch_permute:99")), small, [1])


@pytest.mark.parametrize(("length", "tile"), [(16, 16), (24, 16), (40, 16), (100, 24), (1024, 256)])
def test_windows_cover_everything_and_overlap(length, tile):
    begin = starts(length, tile)
    assert begin[0] == 0
    assert begin[-1] + tile == length
    assert all(0 < b - a <= tile - tile // 4 for a, b in pairwise(begin))


def test_windows_blend_to_what_the_whole_gives():
    x = noise(2, 3, 40, 56)
    torch.testing.assert_close(by_tiles(lambda part: 2 * part, x, 16), 2 * x, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_tiles(large, x, 16, made=2), large(x), rtol=0, atol=1e-5)
    halved = by_tiles(lambda part: F.avg_pool2d(part, 2), x, 8, cell=2)
    torch.testing.assert_close(halved, F.avg_pool2d(x, 2), rtol=0, atol=1e-5)
    slope = torch.arange(24.0).expand(1, 1, 8, 24)
    ramp = by_tiles(lambda part: torch.full_like(part, float(part[0, 0, 0, 0])), slope, 8)
    assert float(ramp[0, 0, 0].diff().abs().max()) < 6.0  # a seam without blending would be a jump of 5 or more
    assert bool((ramp[0, 0, 0].diff() >= 0).all())


def test_a_network_in_windows_gets_its_picture_in_the_same_windows():
    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        assert x.shape[-2:] == cond.tensors["channels"].shape[-2:]
        return Prediction(x + cond.tensors["channels"] * cond.tensors["class_labels"].reshape(-1, 1, 1, 1), -x)

    x, cond = noise(2, 3, 24, 40), Cond({"channels": noise(2, 3, 24, 40), "class_labels": torch.tensor([1, 2])})
    whole, parts = net(x, torch.tensor(5), cond), tiled(net, 16)(x, torch.tensor(5), cond)
    torch.testing.assert_close(parts.out, whole.out, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.var, whole.var, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="multiple of 8"):
        Windowed(Painter(), 20)
