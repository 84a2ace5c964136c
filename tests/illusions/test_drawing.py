"""Illusions drawn: the laws of the engine on every family, and analytic denoisers whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.engine.settings import Settings
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import filled, make_scheduler
from diffkit.illusions.filters import Split, parse_filter
from diffkit.models.conditioning import conditioned, finished
from diffkit.types import Cond, Model, Prediction
from tests.engine.test_levels import base_of
from tests.support.families import FAMILIES, Counting, label_of
from tests.support.illusions import IDENTITY, Gaussian, anagram, draw, hybrid, info_of, pictures, plainly, views

HOW = Settings(steps=4)
DRAWING = [family for family in FAMILIES if family != "sd9"]


def words(family: str, count: int) -> list[str]:
    names = {"plain": [""], "classes": ["one", "zero"], "flow": ["one", "zero"]}.get(family, ["a cat", "a dog"])
    return [names[k % len(names)] for k in range(count)]


def guided(family: str) -> Settings:
    return Settings(steps=5, guidance=None if family == "plain" else 3.0)


def sampled(model: Model, labels: list[str | None], seeds: list[int], settings: Settings) -> Tensor:
    """Plain sampling, without anything of illusions but the defaults."""
    random = generators(seeds)
    noise, scheduler = model.noise(random), make_scheduler(model.info, settings)
    net, cond = conditioned(model, labels, settings)
    for step in denoise(net, pure_noise(scheduler, noise), scheduler, cond, generators=random, eta=settings.eta):
        x = step.x
    return finished(model, x)


# --- analytic denoisers


def alone(model: Model, prompt: str, seeds: list[int], settings: Settings) -> Tensor:
    return draw(model, [prompt], plainly(), seeds, settings)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_an_anagram_of_gaussians_is_the_gaussian_between_them(kind: str) -> None:
    """The posterior means of equally wide Gaussians average to that of the Gaussian around the averaged pictures."""
    first, second = pictures()
    how = Settings(steps=12)
    for view in views("flip", "rotate_cw", "negate", "skew:1.5", "jigsaw:2", "pixel_permute"):
        model = Gaussian({"a": first, "b": second, "both": (first + view.invert(second[None])[0]) / 2}, kind)
        got = draw(model, "ab", Composition((IDENTITY, view)), [1, 2], how)
        torch.testing.assert_close(got, alone(model, "both", [1, 2], how), rtol=1e-4, atol=1e-4)
        apart = (got - alone(model, "a", [1, 2], how)).abs().mean()
        assert apart > 0.05


def test_weights_move_the_answer() -> None:
    first, second = pictures()
    model = Gaussian({"a": first, "b": second, "both": 0.75 * first + 0.25 * second.flip(-2)})
    got = draw(model, "ab", anagram("identity", "flip", weights=(3.0, 1.0)), [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, alone(model, "both", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)


def test_the_same_prompt_in_all_views_of_a_symmetric_model_is_plain_sampling_bit_for_bit() -> None:
    even = torch.full((3, 8, 8), 0.3)
    model = Gaussian({"a": even})
    plain = alone(model, "a", [1, 2], Settings(steps=8))
    for names in (("identity", "flip"), ("identity", "rotate_cw", "rotate_180", "rotate_ccw")):
        got = draw(model, "a" * len(names), anagram(*names), [1, 2], Settings(steps=8))
        torch.testing.assert_close(got, plain, rtol=0, atol=0)


@pytest.mark.parametrize("split", ["low_high:4", "grey_colour", "triple:3,3", "motion", "scale:0.3"])
def test_a_hybrid_of_gaussians_is_the_gaussian_around_the_hybrid(split: str) -> None:
    parts = parse_filter(split)
    means = dict(zip("abc"[: parts.parts], pictures(parts.parts), strict=True))
    whole = sum(parts.part(mean[None], k) for k, mean in enumerate(means.values()))[0]
    model = Gaussian({**means, "all": whole})
    got = draw(model, "abc"[: parts.parts], hybrid(split, parts.parts), [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, alone(model, "all", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)


def test_views_and_parts_together() -> None:
    parts, flip = parse_filter("low_high:4"), views("flip")[0]
    first, second = pictures()
    whole = (parts.part(first[None], 0) + parts.part(second[None].flip(-2), 1))[0]
    model = Gaussian({"a": first, "b": second, "all": whole})
    both = anagram("identity", "flip", split=parts)
    got = draw(model, "ab", both, [1, 2], Settings(steps=12))
    torch.testing.assert_close(got, alone(model, "all", [1, 2], Settings(steps=12)), rtol=1e-4, atol=1e-4)
    assert torch.equal(both.shown(got)[1], flip.apply(got))


def test_views_that_take_turns_see_every_other_step() -> None:
    asked: list[tuple[int, list[int]]] = []

    class Watched(Gaussian):
        def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
            asked.append((len(x), cond.tensors["c"].tolist()))
            return super().__call__(x, t, cond)

    model = Watched(dict(zip("ab", pictures(), strict=True)))
    draw(model, "ab", anagram("identity", "flip", reduce="alternate"), [1, 2], Settings(steps=5))
    assert asked == [(2, [k % 2] * 2) for k in range(5)]


# --- a part that is given


class Halves(Split):
    """Left and right: a projection, so that what is given stays apart from what is drawn."""

    part_names = ("left", "right")

    def compute(self, x: Tensor, k: int) -> Tensor:
        mask = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        return x * (mask if k == 0 else ~mask)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("fixed", [0, 1])
def test_a_projection_s_part_is_the_reference_s_and_the_rest_is_plain_sampling(fixed: int, scheduler: str) -> None:
    mean, reference = pictures()
    model, how = Gaussian({"a": mean}), Settings(steps=10, scheduler=scheduler)
    one = plainly(split=Halves(), reference=reference[None], fixed=fixed)
    got = draw(model, "a", one, [1, 2], how)
    halves = [slice(0, 4), slice(4, 8)]
    given, free = halves[fixed], halves[1 - fixed]
    torch.testing.assert_close(got[..., given], reference[None, ..., given].expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(got[..., free], alone(model, "a", [1, 2], how)[..., free], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["if", "sd"])
@pytest.mark.parametrize("fixed", [0, 1])
def test_grey_or_colour_of_a_photo_is_exact_in_the_end(models, family: str, fixed: int) -> None:
    reference = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    split = parse_filter("grey_colour")
    got = draw(models(family), ["a cat"], plainly(split=split, reference=reference, fixed=fixed), [1, 2], HOW)
    side = got.shape[-1]
    small = torch.nn.functional.interpolate(reference, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    want = split.part(small, fixed).expand(2, -1, -1, -1)
    torch.testing.assert_close(split.part(got, fixed), want, rtol=0, atol=1e-6)
    assert (got[0] - got[1]).abs().max() > 0.01


def test_low_frequencies_of_a_photo_are_the_picture_s() -> None:
    """A Gaussian's parts overlap, so that they are near, not equal; and the free part keeps its own variance."""
    mean, reference = torch.zeros(1, 32, 32), pictures(1, 1, 32)[0]
    model = Gaussian({"a": mean})
    split, seeds, how = parse_filter("low_high:6"), list(range(40)), Settings(steps=50)
    got = draw(model, "a", plainly(split=split, reference=reference[None]), seeds, how)
    low = split.part(got, 0)
    want = split.part(reference[None], 0)
    free = split.part(alone(model, "a", seeds, how), 0)
    assert (low - want).square().mean() < 0.15 * (free - want).square().mean()
    high = split.part(got - low, 1).var()
    plain = alone(model, "a", seeds, how)
    assert abs(high / split.part(plain - split.part(plain, 0), 1).var() - 1) < 0.05


def test_references_of_other_colours(models) -> None:
    grey = torch.zeros(1, 1, 8, 8)
    one = hybrid("low_high", 1, reference=grey)
    assert draw(models("if"), ["a cat"], one, [1], Settings(steps=2)).shape == (1, 3, 8, 8)
    colours = torch.rand(1, 3, 30, 30)
    one = hybrid("low_high", 1, reference=colours)
    assert draw(models("classes"), ["one"], one, [1], Settings(steps=2)).shape[1] == 1


# --- every family


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [*((family, None) for family in DRAWING), *((family, "ddpm") for family in DRAWING if family != "flow")],
)
def test_the_identity_is_plain_sampling_bit_for_bit(models, family: str, scheduler: str | None) -> None:
    model, label = models(family), label_of(family)
    how = Settings(steps=6, guidance=None if family == "plain" else 3.0, scheduler=scheduler)
    got = draw(model, [label or ""], plainly(), [3, 4], how)
    assert torch.equal(got, sampled(model, [label] * 2, [3, 4], how))


@pytest.mark.parametrize("family", DRAWING)
@pytest.mark.parametrize("names", [("identity", "flip"), ("identity", "rotate_cw", "negate")])
def test_views_guidance_and_pictures_are_one_call_a_step(models, family: str, names: tuple[str, ...]) -> None:
    model = Counting(models(family))
    asked, several = words(family, len(names)), anagram(*names)
    whole = draw(model, asked, several, [1, 2, 3], guided(family))
    halves = 1 if family == "plain" else 2
    assert model.rows == [len(names) * halves * 3] * 5
    assert len(make_scheduler(model.info, guided(family)).timesteps) == 5
    model.rows.clear()
    split = draw(model, asked, several, [1, 2, 3], replace(guided(family), max_batch=4))
    assert max(model.rows) <= 4
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DRAWING)
def test_a_picture_depends_on_its_own_seed_alone(models, family: str) -> None:
    model, asked = models(family), words(family, 2)
    how = Settings(steps=4, guidance=guided(family).guidance, scheduler=None if family == "flow" else "ddpm")
    for several in (anagram("identity", "negate"), hybrid("low_high:8")):
        many = draw(model, asked, several, [7, 8, 9], how)
        for k in range(3):
            torch.testing.assert_close(many[k], draw(model, asked, several, [7 + k], how)[0], rtol=1e-4, atol=1e-4)


def test_the_views_change_the_picture_and_are_what_is_drawn(models) -> None:
    model, how = models("if"), Settings(steps=4)
    one = draw(model, ["a cat", "a dog"], anagram("identity", "flip"), [1], how)
    # Looking at the same anagram from the other side: the noise is turned, too, so the pictures are not the same,
    # but with the views exchanged in both the equations are.
    other = draw(model, ["a dog", "a cat"], anagram("flip", "identity"), [1], how)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    same = draw(model, ["a cat", "a cat"], anagram("identity", "flip"), [1], how)
    assert (one - same).abs().max() > 1e-3


def test_the_negative_prompt_reaches_the_model(models) -> None:
    model, pair, asked = models("if"), anagram("identity", "flip"), ["a cat", "a dog"]
    plain = draw(model, asked, pair, [1], Settings(steps=3))
    assert not torch.equal(draw(model, asked, pair, [1], Settings(steps=3, negative="a dog")), plain)
    assert torch.equal(draw(model, asked, pair, [1], Settings(steps=3, negative="")), plain)


def test_what_is_left_out() -> None:
    flow, learned = base_of("flow"), base_of("epsilon")
    learned = type(learned).from_config(learned.config, variance_type="learned_range")
    for scheduler, name in ((flow, "flow_euler"), (learned, "ddpm"), (base_of("epsilon"), "ddim")):
        info = info_of((3, 8, 8), scheduler)
        got = filled(info, Settings())
        assert (got.scheduler, got.steps) == (name, min(30, scheduler.config.num_train_timesteps))
        assert filled(info, got) == got
    kept = filled(info_of((3, 8, 8), learned), Settings(steps=7, scheduler="euler"))
    assert (kept.steps, kept.scheduler) == (7, "euler")
