"""Views of latents: directly where that nearly commutes, else through the decoder, one latent per view."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffkit.engine.levels import x0_of
from diffkit.engine.settings import Settings
from diffkit.illusions.drawing import make_scheduler, model_for, shared_net
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.latents import Instances
from diffkit.types import Cond
from tests.support.illusions import Gaussian, anagram, draw, pictures, plainly, prompting

PLAIN = Settings(steps=5, guidance=1.0)


def test_through_the_decoder_the_identity_is_plain_sampling(models) -> None:
    model, how = models("sd"), Settings(steps=5, guidance=3.0)
    plain = draw(model, ["a cat"], plainly(), [1, 2], how)
    got = draw(model, ["a cat"], plainly(latent="decode"), [1, 2], how)
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


class Unshuffled:
    """A codec without any loss: four pixels are the channels of one latent."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(images, 2)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(x0, 2)


def latent_gaussian(means: dict[str, Tensor]) -> Gaussian:
    codec = Unshuffled()
    model = Gaussian({name: codec.encode(mean) for name, mean in means.items()})
    model.info = replace(model.info, latent=True, channels=3, size=(8, 8))
    model.codec = codec
    return model


@pytest.mark.parametrize("names", [("identity", "negate"), ("jigsaw:2", "skew", "identity")])
def test_through_the_decoder_the_estimates_of_all_views_are_one_picture(names: tuple[str, ...]) -> None:
    means = dict(zip("abc", pictures(3), strict=True))
    model, several, prompts = latent_gaussian(means), anagram(*names), "abc"[: len(names)]
    joined = model_for(model, several)
    assert isinstance(joined, Instances)
    assert joined.info.sample == (12 * len(names), 4, 4)
    x, t = joined.noise([torch.Generator().manual_seed(k) for k in (1, 2)]), torch.tensor(500)
    net = shared_net(joined, several, prompting(prompts, 2)(joined, PLAIN), make_scheduler(joined.info, PLAIN))
    rows = list(zip(several.views, net(x, t, Cond()).out.chunk(len(names), 1), x.chunk(len(names), 1), strict=True))
    clean = [view.invert(model.codec.decode(x0_of(o, r, t, model.scheduler))) for view, o, r in rows]
    alone = [model(r, t, model.encode([p] * 2)).out for p, (_, _, r) in zip(prompts, rows, strict=True)]
    own = [
        view.invert(model.codec.decode(x0_of(o, r, t, model.scheduler)))
        for o, (view, _, r) in zip(alone, rows, strict=True)
    ]
    for picture in clean:
        torch.testing.assert_close(picture, torch.stack(own).mean(0), rtol=1e-4, atol=1e-4)
    how = Settings(steps=12, guidance=1.0)
    got = draw(model, prompts, several, [1, 2], how)
    torch.testing.assert_close(got[1:], draw(model, prompts, several, [2], how), rtol=1e-4, atol=1e-4)


def test_through_the_decoder_a_photo_s_part_is_exact() -> None:
    means = dict(zip("ab", pictures(2), strict=True))
    one = plainly(split=parse_filter("grey_colour"), reference=means["b"][None])
    got = draw(latent_gaussian(means), "a", one, [1, 2], PLAIN)
    torch.testing.assert_close(got.mean(1), means["b"][None].mean(1).expand(2, -1, -1), rtol=0, atol=1e-6)


def test_films_of_several_latents_show_one(models) -> None:
    shapes: list[tuple[int, ...]] = []
    draw(models("sd"), ["a cat", "a dog"], anagram("identity", "negate"), [1, 2], Settings(steps=3),
         lambda step: shapes.append(tuple(step.x.shape)))  # fmt: skip
    assert shapes == [(2, 4, 8, 8)] * 3
