"""Illusions: the laws of the engine on every family, and analytic denoisers whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.errors import UsageError
from diffkit.illusions.cascade import STAGE_2, STAGE_3, stages_for
from diffkit.illusions.checks import Inside, about_latents, check_fit, latent_way, space_in, space_of, view_in
from diffkit.illusions.drawing import Illusion, draw, illusion_net, seen, usual, visits, working
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.latents import Instances
from diffkit.illusions.views import VIEWS, parse_view
from diffkit.jobs.anagram import make_anagram
from diffkit.jobs.hybrid import make_hybrid
from diffkit.jobs.sample import Settings, generate
from diffkit.models.ddpm import PixelCodec
from diffkit.models.hub import open_repo
from diffkit.types import Cond, Prediction
from tests.engine.test_levels import base_of
from tests.support.families import FAMILIES, Counting, label_of

DRAWING = [family for family in FAMILIES if family != "sd9"]
IDENTITY = parse_view("identity")


def views(*names: str) -> tuple[Any, ...]:
    return tuple(parse_view(name) for name in names)


def words(family: str, count: int) -> tuple[str, ...]:
    names = {"plain": [""], "classes": ["one", "zero"], "flow": ["one", "zero"]}.get(family, ["a cat", "a dog"])
    return tuple(names[k % len(names)] for k in range(count))


def guided(family: str) -> Settings:
    return Settings(steps=5, guidance=None if family == "plain" else 3.0)


# --- analytic denoisers


class Gaussian:
    """A model whose prompts are Gaussians around pictures of their own: the answer of every step is a formula."""

    family, id, num_classes, device = "ddpm", "gaussian", 2, torch.device("cpu")
    spread = 0.2

    def __init__(self, means: dict[str, Tensor], kind: str = "epsilon") -> None:
        self.means, self.names = means, list(means)
        self.shape = tuple(next(iter(means.values())).shape)
        self.scheduler = base_of(kind)
        if kind != "flow":
            self.scheduler = type(self.scheduler).from_config(self.scheduler.config, clip_sample=False)
        side = self.shape[-1]
        self.codec = PixelCodec(side, side)
        self.meta = SimpleNamespace(resolution=side, null_class=False, prediction=kind)

    def noise(self, generators: list[torch.Generator]) -> Tensor:
        return torch.cat([torch.randn(1, *self.shape, generator=g) for g in generators])

    def encode(self, prompts: list[str]) -> Cond:
        return Cond({"c": torch.tensor([self.names.index(p) for p in prompts])})

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(self.scheduler, t)
        mean = torch.stack([self.means[self.names[int(k)]] for k in cond.tensors["c"]])
        gain = signal * self.spread / (signal**2 * self.spread + noise**2)
        return Prediction(out_of(mean + gain * (x - signal * mean), x, t, self.scheduler))


def pictures(count: int = 2, channels: int = 3, side: int = 8) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(channels, side, side, generator=random).clamp(-1, 1) for _ in range(count)]


def plainly(model: Any, prompt: str, seeds: list[int], settings: Settings) -> Tensor:
    return draw(model, Illusion((prompt,), (IDENTITY,)), seeds, settings)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_an_anagram_of_gaussians_is_the_gaussian_between_them(kind: str) -> None:
    """The posterior means of equally wide Gaussians average to that of the Gaussian around the averaged pictures."""
    first, second = pictures()
    how = Settings(steps=12)
    for view in views("flip", "rotate_cw", "negate", "skew:1.5", "jigsaw:2", "pixel_permute"):
        model = Gaussian({"a": first, "b": second, "both": (first + view.invert(second[None])[0]) / 2}, kind)
        got = draw(model, Illusion(("a", "b"), (IDENTITY, view)), [1, 2], how)
        torch.testing.assert_close(got, plainly(model, "both", [1, 2], how), rtol=1e-4, atol=1e-4)
        apart = (got - plainly(model, "a", [1, 2], how)).abs().mean()
        assert apart > 0.05


def test_weights_move_the_answer() -> None:
    first, second = pictures()
    flip = views("flip")[0]
    model = Gaussian({"a": first, "b": second, "both": 0.75 * first + 0.25 * second.flip(-2)})
    got = draw(model, Illusion(("a", "b"), (IDENTITY, flip), weights=(3.0, 1.0)), [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, plainly(model, "both", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)


def test_the_same_prompt_in_all_views_of_a_symmetric_model_is_plain_sampling_bit_for_bit() -> None:
    even = torch.full((3, 8, 8), 0.3)
    model = Gaussian({"a": even})
    plain = plainly(model, "a", [1, 2], Settings(steps=8))
    for names in (("identity", "flip"), ("identity", "rotate_cw", "rotate_180", "rotate_ccw")):
        got = draw(model, Illusion(("a",) * len(names), views(*names)), [1, 2], Settings(steps=8))
        torch.testing.assert_close(got, plain, rtol=0, atol=0)


@pytest.mark.parametrize("split", ["low_high:4", "grey_colour", "triple:3,3", "motion", "scale:0.3"])
def test_a_hybrid_of_gaussians_is_the_gaussian_around_the_hybrid(split: str) -> None:
    parts = parse_filter(split)
    means = dict(zip("abc"[: parts.parts], pictures(parts.parts), strict=True))
    whole = sum(parts.part(mean[None], k) for k, mean in enumerate(means.values()))[0]
    model = Gaussian({**means, "all": whole})
    got = draw(model, make_hybrid("abc"[: parts.parts], split), [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, plainly(model, "all", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)


def test_views_and_parts_together() -> None:
    parts, flip = parse_filter("low_high:4"), views("flip")[0]
    first, second = pictures()
    whole = (parts.part(first[None], 0) + parts.part(second[None].flip(-2), 1))[0]
    model = Gaussian({"a": first, "b": second, "all": whole})
    illusion = make_hybrid(["a", "b"], "low_high:4", ["identity", "flip"])
    got = draw(model, illusion, [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, plainly(model, "all", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)
    assert torch.equal(seen(illusion, got)[1], flip.apply(got))


def test_views_that_take_turns_see_every_other_step() -> None:
    asked: list[tuple[int, list[int]]] = []

    class Watched(Gaussian):
        def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
            asked.append((len(x), cond.tensors["c"].tolist()))
            return super().__call__(x, t, cond)

    model = Watched(dict(zip("ab", pictures(), strict=True)))
    draw(model, Illusion(("a", "b"), views("identity", "flip"), reduce="alternate"), [1, 2], Settings(steps=5))
    assert asked == [(2, [k % 2] * 2) for k in range(5)]


# --- a part that is given


class Halves:
    """Left and right: a projection, so that what is given stays apart from what is drawn."""

    parts, part_names = 2, ("left", "right")

    def part(self, x: Tensor, k: int) -> Tensor:
        mask = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        return x * (mask if k == 0 else ~mask)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("fixed", [0, 1])
def test_a_projection_s_part_is_the_reference_s_and_the_rest_is_plain_sampling(fixed: int, scheduler: str) -> None:
    mean, reference = pictures()
    model, how = Gaussian({"a": mean}), Settings(steps=10, scheduler=scheduler)
    illusion = Illusion(("a",), split=Halves(), reference=reference[None], fixed=fixed)
    got = draw(model, illusion, [1, 2], how)
    halves = [slice(0, 4), slice(4, 8)]
    given, free = halves[fixed], halves[1 - fixed]
    torch.testing.assert_close(got[..., given], reference[None, ..., given].expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(got[..., free], plainly(model, "a", [1, 2], how)[..., free], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["if", "sd"])
@pytest.mark.parametrize("fixed", [0, 1])
def test_grey_or_colour_of_a_photo_is_exact_in_the_end(models, family: str, fixed: int) -> None:
    reference = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    illusion = make_hybrid(["a cat"], "grey_colour", reference=reference, fixed=fixed)
    got = draw(models(family), illusion, [1, 2], Settings(steps=4))
    assert illusion.split is not None
    side = got.shape[-1]
    small = torch.nn.functional.interpolate(reference, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    want = illusion.split.part(small, fixed).expand(2, -1, -1, -1)
    torch.testing.assert_close(illusion.split.part(got, fixed), want, rtol=0, atol=1e-6)
    assert (got[0] - got[1]).abs().max() > 0.01


def test_low_frequencies_of_a_photo_are_the_picture_s() -> None:
    """A Gaussian's parts overlap, so that they are near, not equal; and the free part keeps its own variance."""
    mean, reference = torch.zeros(1, 32, 32), pictures(1, 1, 32)[0]
    model = Gaussian({"a": mean})
    illusion = make_hybrid(["a"], "low_high:6", reference=reference[None])
    assert illusion.split is not None
    got = draw(model, illusion, list(range(40)), Settings(steps=50))
    low = illusion.split.part(got, 0)
    want = illusion.split.part(reference[None], 0)
    free = illusion.split.part(plainly(model, "a", list(range(40)), Settings(steps=50)), 0)
    assert (low - want).square().mean() < 0.15 * (free - want).square().mean()
    high = illusion.split.part(got - low, 1).var()
    plain = plainly(model, "a", list(range(40)), Settings(steps=50))
    assert abs(high / illusion.split.part(plain - illusion.split.part(plain, 0), 1).var() - 1) < 0.05


def test_references_of_other_colours_and_what_is_refused(models) -> None:
    grey = torch.zeros(1, 1, 8, 8)
    assert draw(models("if"), make_hybrid(["a cat"], reference=grey), [1], Settings(steps=2)).shape == (1, 3, 8, 8)
    colours = torch.rand(1, 3, 30, 30)
    assert draw(models("classes"), make_hybrid(["one"], reference=colours), [1], Settings(steps=2)).shape[1] == 1
    with pytest.raises(UsageError, match=r"part 0 \(low\) comes from --reference"):
        make_hybrid(["a", "b"], reference=grey)
    with pytest.raises(UsageError, match="--fixed 2"):
        make_hybrid(["a"], reference=grey, fixed=2)
    assert make_hybrid([None, "b"], reference=grey).prompts == ("b",)
    assert make_hybrid(["a", None], reference=grey, fixed=1).parts() == [0]


# --- every family


@pytest.mark.parametrize("family", DRAWING)
@pytest.mark.parametrize("scheduler", [None, "ddpm"])
def test_the_identity_is_plain_sampling_bit_for_bit(models, family: str, scheduler: str | None) -> None:
    if family == "flow" and scheduler:
        pytest.skip("DDPM does not integrate flows")
    model = models(family)
    how = usual(model, Settings(steps=6, guidance=None if family == "plain" else 3.0, scheduler=scheduler))
    got = draw(model, Illusion((label_of(family) or "",), (IDENTITY,)), [3, 4], how)
    plain = next(generate(model, [3, 4], [label_of(family)] * 2, how))
    for k in range(2):
        assert torch.equal(got[k], plain[k].image)


@pytest.mark.parametrize("family", DRAWING)
@pytest.mark.parametrize("names", [("identity", "flip"), ("identity", "rotate_cw", "negate")])
def test_views_guidance_and_pictures_are_one_call_a_step(models, family: str, names: tuple[str, ...]) -> None:
    model = Counting(models(family))
    illusion = Illusion(words(family, len(names)), views(*names))
    draw(model, illusion, [1, 2, 3], guided(family))
    halves = 1 if family == "plain" else 2
    assert model.rows == [len(names) * halves * 3] * 5
    assert len(visits(model, guided(family))) == 5
    model.rows.clear()
    whole = draw(model, illusion, [1, 2, 3], guided(family))
    model.rows.clear()
    split = draw(model, illusion, [1, 2, 3], Settings(steps=5, guidance=guided(family).guidance, max_batch=4))
    assert max(model.rows) <= 4
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DRAWING)
def test_a_picture_depends_on_its_own_seed_alone(models, family: str) -> None:
    model = models(family)
    for illusion in (
        Illusion(words(family, 2), views("identity", "negate")),
        make_hybrid(words(family, 2), "low_high:8"),
    ):
        for scheduler in ("ddpm",) if family != "flow" else (None,):
            how = Settings(steps=4, guidance=guided(family).guidance, scheduler=scheduler)
            many = draw(model, illusion, [7, 8, 9], how)
            for k in range(3):
                alone = draw(model, illusion, [7 + k], how)
                torch.testing.assert_close(many[k], alone[0], rtol=1e-4, atol=1e-4)


def test_the_views_change_the_picture_and_are_what_is_drawn(models) -> None:
    model, how = models("if"), Settings(steps=4)
    one = draw(model, Illusion(("a cat", "a dog"), views("identity", "flip")), [1], how)
    # Looking at the same anagram from the other side: the noise is turned, too, so the pictures are not the same,
    # but with the views exchanged in both the equations are.
    other = draw(model, Illusion(("a dog", "a cat"), views("flip", "identity")), [1], how)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (one - draw(model, Illusion(("a cat", "a cat"), views("identity", "flip")), [1], how)).abs().max() > 1e-3


def test_style_and_negative_prompt_reach_the_model(models) -> None:
    model = models("if")
    styled = Illusion(("a cat", "a dog"), views("identity", "flip"), style="an oil painting of")
    assert styled.labels() == ["an oil painting of a cat", "an oil painting of a dog"]
    spelled = Illusion(tuple(styled.labels()), views("identity", "flip"))
    how = Settings(steps=3, negative="a dog")
    assert torch.equal(draw(model, styled, [1], how), draw(model, spelled, [1], how))
    assert not torch.equal(draw(model, styled, [1], how), draw(model, styled, [1], Settings(steps=3)))


def test_what_is_left_out() -> None:
    flow, learned = base_of("flow"), base_of("epsilon")
    learned = type(learned).from_config(learned.config, variance_type="learned_range")
    for scheduler, name in ((flow, "flow_euler"), (learned, "ddpm"), (base_of("epsilon"), "ddim")):
        got = usual(SimpleNamespace(scheduler=scheduler), Settings())
        assert (got.scheduler, got.steps) == (name, min(30, scheduler.config.num_train_timesteps))
        assert usual(SimpleNamespace(scheduler=scheduler), got) == got
    kept = usual(SimpleNamespace(scheduler=learned), Settings(steps=7, scheduler="euler"))
    assert (kept.steps, kept.scheduler) == (7, "euler")


# --- latents


def test_latents_are_viewed_directly_where_that_nearly_commutes(models) -> None:
    space = space_of(models("sd"))
    for names, split, way in (
        (("identity", "flip"), None, "direct"),
        (("rotate_cw", "rotate_180"), None, "direct"),
        (("identity", "negate"), None, "decode"),
        (("identity", "jigsaw:2"), None, "decode"),
        (("identity", "identity"), "low_high:2", "direct"),
        (("identity", "identity"), "grey_colour", "decode"),
    ):
        illusion = Illusion(("a", "b"), views(*names), split=split and parse_filter(split))
        assert latent_way(illusion, space) == way
        (said,) = about_latents(illusion, space)
        assert said.startswith("approximate")
    assert about_latents(Illusion(("a",), (IDENTITY,)), space) == []
    with pytest.raises(UsageError, match="-z is no negative"):
        check_fit(Illusion(("a", "b"), views("identity", "negate"), latent="direct"), space)
    with pytest.raises(UsageError, match="draws pixels"):
        check_fit(Illusion(("a", "b"), views("identity", "flip"), latent="decode"), space_of(models("if")))


def test_through_the_decoder_the_identity_is_plain_sampling(models) -> None:
    model, how = models("sd"), Settings(steps=5, guidance=3.0)
    plain = plainly(model, "a cat", [1, 2], how)
    got = draw(model, Illusion(("a cat",), (IDENTITY,), latent="decode"), [1, 2], how)
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


class Unshuffled:
    """A codec without any loss: four pixels are the channels of one latent."""

    factor = 2

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(images, 2)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(x0, 2)


def latent_gaussian(means: dict[str, Tensor]) -> Gaussian:
    codec = Unshuffled()
    model = Gaussian({"": torch.zeros(12, 4, 4)} | {name: codec.encode(mean) for name, mean in means.items()})
    model.family, model.codec = "stable_diffusion", codec  # type: ignore[assignment, misc]
    return model


@pytest.mark.parametrize("names", [("identity", "negate"), ("jigsaw:2", "skew", "identity")])
def test_through_the_decoder_the_estimates_of_all_views_are_one_picture(names: tuple[str, ...]) -> None:
    means = dict(zip("abc", pictures(3), strict=True))
    model = latent_gaussian(means)
    illusion = Illusion(tuple("abc"[: len(names)]), views(*names))
    joined = working(model, illusion)
    assert isinstance(joined, Instances)
    assert joined.shape == (12 * len(names), 4, 4)
    x, t = joined.noise([torch.Generator().manual_seed(k) for k in (1, 2)]), torch.tensor(500)
    net, cond = illusion_net(joined, illusion, Settings(steps=5, guidance=1.0), 2)
    rows = list(zip(illusion.views, net(x, t, cond).out.chunk(len(names), 1), x.chunk(len(names), 1), strict=True))
    clean = [view.invert(model.codec.decode(x0_of(o, r, t, model.scheduler))) for view, o, r in rows]
    alone = [model(r, t, model.encode([p] * 2)).out for p, (_, _, r) in zip(illusion.prompts, rows, strict=True)]
    own = [
        view.invert(model.codec.decode(x0_of(o, r, t, model.scheduler)))
        for o, (view, _, r) in zip(alone, rows, strict=True)
    ]
    for picture in clean:
        torch.testing.assert_close(picture, torch.stack(own).mean(0), rtol=1e-4, atol=1e-4)
    how = Settings(steps=12, guidance=1.0)
    got = draw(model, illusion, [1, 2], how)
    torch.testing.assert_close(got[1:], draw(model, illusion, [2], how), rtol=1e-4, atol=1e-4)


def test_through_the_decoder_a_photo_s_part_is_exact() -> None:
    means = dict(zip("ab", pictures(2), strict=True))
    illusion = Illusion(("a",), split=parse_filter("grey_colour"), reference=means["b"][None])
    got = draw(latent_gaussian(means), illusion, [1, 2], Settings(steps=5, guidance=1.0))
    torch.testing.assert_close(got.mean(1), means["b"][None].mean(1).expand(2, -1, -1), rtol=0, atol=1e-6)


def test_films_of_several_latents_show_one(models) -> None:
    shapes = []
    draw(models("sd"), Illusion(("a cat", "a dog"), views("identity", "negate")), [1, 2], Settings(steps=3),
         on_step=lambda step, place: shapes.append((tuple(step.x.shape), place)))  # fmt: skip
    assert shapes == [((2, 4, 8, 8), range(2))] * 3


# --- what fits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_says_what_a_model_says(models, folders, family: str) -> None:
    space = space_in(open_repo(str(folders[family])))
    assert space.whole == (family != "sd9")
    loaded = space_of(models(family))
    assert (space.channels, space.size, space.picture, space.text, space.factor) == (
        loaded.channels, loaded.size, loaded.picture, loaded.text, loaded.factor,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "illusion", "said"),
    [
        ("classes", Illusion(("one", "zero"), views("identity", "patch_permute:99")), "patch_permute"),
        ("classes", Illusion(("one", "zero"), split=parse_filter("grey_colour")), "3 channels, not of 1"),
        ("classes", Illusion(("one", "zero"), views("identity", "flip"), style="oil"), "--style"),
        ("sd9", Illusion(("a", "b"), views("identity", "flip")), "picture to start from"),
        ("sd", Illusion(("a", "b"), split=parse_filter("grey_colour"), latent="direct"), "not of 4"),
    ],
)
def test_what_does_not_fit_is_said_by_the_configuration_alone(
    folders, family: str, illusion: Illusion, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_fit(illusion, space_in(open_repo(str(folders[family]))))


@pytest.mark.parametrize("name", sorted(VIEWS))
@pytest.mark.parametrize("padded", [12, 13])
def test_a_view_of_a_padded_sample_is_the_view_of_the_picture(name: str, padded: int) -> None:
    if name == "permutation":
        pytest.skip("needs a file")
    view = parse_view({"patch_permute": "patch_permute:3", "jigsaw": "jigsaw:3"}.get(name, name))
    codec = PixelCodec(9, padded)
    space = SimpleNamespace(size=(padded, padded), picture=(9, 9))
    inside = view_in(view, space)
    x = torch.randn(2, 1, padded, padded, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.decode(inside.apply(x)), view.apply(codec.decode(x)), rtol=0, atol=0)
    torch.testing.assert_close(inside.invert(inside.apply(x)), x, rtol=0, atol=0)
    torch.testing.assert_close(inside.apply(x).norm(), x.norm())
    turns = view.latent == "close" and (name == "identity" or padded == 13)
    assert isinstance(inside, Inside) == (view.spatial and not turns)
    same = SimpleNamespace(size=(9, 9), picture=(9, 9))
    assert view_in(view, same) is view


# --- what is seen, and what is said


def test_what_each_judge_sees() -> None:
    x = torch.rand(2, 3, 16, 16)
    first, second = seen(Illusion(("a", "b"), views("identity", "rotate_cw")), x)
    assert torch.equal(first, x)
    assert torch.equal(second, torch.rot90(x, -1, (-2, -1)))
    triple = parse_filter("triple:2,4")
    low, middle, high = seen(make_hybrid(["a", "b", "c"], "triple:2,4"), x)
    torch.testing.assert_close(low, triple.part(x, 0))
    torch.testing.assert_close(middle, triple.part(x, 0) + triple.part(x, 1))
    assert torch.equal(high, x)
    grey, colour = seen(make_hybrid(["a", "b"], "grey_colour"), x)
    assert float(grey.var(1).max()) < 1e-10
    assert torch.equal(colour, x)
    assert all(torch.equal(part, x) for part in seen(make_hybrid(["a", "b"], "scale:0.3"), x))
    (free,) = seen(make_hybrid(["b"], "low_high:2", reference=x[:1], fixed=1), x)
    torch.testing.assert_close(free, parse_filter("low_high:2").part(x, 0))


def test_descriptions_name_every_seed() -> None:
    told = make_anagram(["a", "b"], ["jigsaw"], weights=(1.0, 2.0), style="oil of").describe()
    assert told == {"prompts": ["oil of a", "oil of b"], "views": ["identity", "jigsaw:4,0"], "style": "oil of",
                    "weights": [1.0, 2.0], "reduce": "mean"}  # fmt: skip
    told = make_hybrid(["b"], "low_high", reference=torch.zeros(1, 3, 8, 8)).describe()
    assert told == {"prompts": ["b"], "views": ["identity"], "split": parse_filter("low_high").spec, "fixed": 0}


@pytest.mark.parametrize(
    ("prompts", "given", "expected"),
    [
        (["a", "b"], [], ["identity", "flip"]),
        (["a", "b"], ["rotate_180"], ["identity", "rotate_180"]),
        (["a", "b"], ["negate", "flip"], ["negate", "flip"]),
        (["a", "b", "c"], ["flip", "negate"], ["identity", "flip", "negate"]),
        (["a"], ["flip"], ["identity", "flip"]),
        (["a"], ["flip", "negate", "skew"], ["flip", "negate", "skew:1.5"]),
    ],
)
def test_prompts_and_views_go_together(prompts: list[str], given: list[str], expected: list[str]) -> None:
    made = make_anagram(prompts, given)
    assert [view.spec for view in made.views] == expected
    assert len(made.prompts) == len(expected)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_anagram([]), "no prompts"),
        (lambda: make_anagram(["a", "b", "c"], ["flip"]), "3 prompts and 1 views"),
        (lambda: make_anagram(["a", "b", "c"]), "3 prompts and 0 views"),
        (lambda: make_anagram(["a", "b"], ["flp"]), "flp"),
        (lambda: make_anagram(["a", "b"], weights=(1.0,)), "1 weights"),
        (lambda: make_anagram(["a", "b"], reduce="median"), "--reduce"),
        (lambda: make_anagram(["a", "b"], latent="never"), "--latent"),
        (lambda: make_hybrid(["a"]), "1 prompts for 2 parts"),
        (lambda: make_hybrid([None, "b"]), "1 prompts for 2 parts"),
        (lambda: make_hybrid(["a", "b"], "low_hihg"), "low_hihg"),
        (lambda: make_hybrid(["a", "b"], views=["flip"]), "2 prompts for 1 views"),
        (lambda: make_hybrid(["a", "b"], weights=(1.0, 2.0)), "add up"),
        (lambda: Illusion(("a",), (IDENTITY,), reference=torch.zeros(1, 3, 8, 8)), "--split|reference fixes"),
    ],
)
def test_illusions_that_are_none(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("runs/x", (None, None, None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, None, None), (STAGE_2, STAGE_3)),
        ("DeepFloyd/IF-I-M-v1.0", (64, None, None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (256, None, None), (STAGE_2, None)),
        ("DeepFloyd/IF-I-M-v1.0", (1024, None, None), (STAGE_2, STAGE_3)),
        ("DeepFloyd/IF-I-M-v1.0", (None, "none", None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, None, "none"), (STAGE_2, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, "my/two", "my/three"), ("my/two", "my/three")),
        ("runs/x", (None, None, "my/three"), (None, "my/three")),
        ("runs/x", (256, "my/two", None), ("my/two", None)),
    ],
)
def test_stages(source: str, given: tuple, expected: tuple) -> None:
    assert stages_for(source, *given) == expected


@pytest.mark.parametrize("given", [(256, None, None), (1024, "two", None), (64, "two", None), (256, "two", "three")])
def test_sizes_that_the_stages_do_not_give(given: tuple) -> None:
    with pytest.raises(UsageError, match=f"--size {given[0]}"):
        stages_for("runs/x", *given)
