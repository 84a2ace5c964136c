"""Guidance on a part of the way only: which calls it saves, and that all of what draws hears of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffkit.engine.settings import check_settings, interval
from diffkit.errors import UsageError
from diffkit.illusions.drawing import Illusion, draw
from diffkit.illusions.search import search
from diffkit.illusions.views import parse_view
from diffkit.jobs.edit import fit, fit_mask, picture_shape
from diffkit.jobs.hybrid import make_hybrid
from diffkit.jobs.inpaint import inpaint
from diffkit.jobs.invert import invert
from diffkit.jobs.sample import Settings, generate, timesteps_of
from diffkit.jobs.sdedit import sdedit
from diffkit.jobs.upscale import upscale
from diffkit.models import load
from tests.cli.test_sample import make_run
from tests.models.conftest import make_if
from tests.support.families import Counting, label_of

FAMILIES = ("classes", "flow", "sd", "if")
FIRST_HALF = (0.0, 0.5)


def how(**changes: Any) -> Settings:
    return Settings(steps=6, guidance=3.0, **changes)


def guided_calls(model: Any) -> list[bool]:
    """Which steps stand in the first half of the way, by their timesteps alone."""
    levels = model.scheduler.config.num_train_timesteps
    return [t >= levels / 2 for t in timesteps_of(model, how())]


def anagram(family: str) -> Illusion:
    return Illusion((str(label_of(family)),) * 2, (parse_view("identity"), parse_view("flip")))


def drawn(model: Any, settings: Settings, family: str) -> torch.Tensor:
    return torch.stack([p.image for some in generate(model, [3, 4], [label_of(family)] * 2, settings) for p in some])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_outside_take_one_row_a_picture(models, family: str) -> None:
    model = Counting(models(family))
    guided = guided_calls(model)
    assert any(guided)
    assert not all(guided)
    drawn(model, how(interval=FIRST_HALF), family)
    assert model.rows == [4 if here else 2 for here in guided]
    model.rows.clear()
    draw(model, anagram(family), [3, 4], how(interval=FIRST_HALF))
    assert model.rows == [8 if here else 4 for here in guided]


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_it_is_as_with_guidance_one_and_inside_as_always(models, family: str) -> None:
    model = models(family)
    plain = drawn(model, how(), family)
    assert torch.equal(drawn(model, how(interval=(0.0, 1.0)), family), plain)
    assert not torch.equal(drawn(model, how(interval=FIRST_HALF), family), plain)
    # No step stands so near the picture. Prompts that are encoded in other company differ in the last bits.
    counting = Counting(model)
    nothing = drawn(counting, how(interval=(0.9999, 0.9999)), family)
    assert counting.rows == [2] * 6
    torch.testing.assert_close(nothing, drawn(model, Settings(steps=6, guidance=1.0), family), rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stretch_is_what_its_ends_leave(models, family: str) -> None:
    """The samples of the first half are those of full guidance; from there on they part."""
    model = models(family)
    paths: list[list[torch.Tensor]] = [[], []]
    for path, part in zip(paths, ((0.0, 1.0), FIRST_HALF), strict=True):
        for _ in generate(
            model, [3], [label_of(family)], how(interval=part), on_step=lambda step, _, path=path: path.append(step.x)
        ):
            pass
    same = [torch.equal(a, b) for a, b in zip(*paths, strict=True)]
    assert same == guided_calls(model)
    assert all(before or not after for before, after in pairwise(same))


def test_a_search_counts_what_it_saves(models) -> None:
    model, family = Counting(models("classes")), "classes"

    class Even:
        tau = 1.0

        def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return torch.zeros(len(images), len(prompts))

    found = search(model, anagram(family), [0], how(interval=FIRST_HALF), Even(), best_of=4, cuts=())
    assert found.rows == sum(model.rows) == sum(4 * 2 * (2 if here else 1) for here in guided_calls(model))


@pytest.mark.parametrize("command", ["sdedit", "inpaint", "invert", "hybrid"])
def test_every_trick_hears_of_it(models, command: str) -> None:
    model = Counting(models("classes"))
    _, height, width = picture_shape(model)
    image = fit(model, Image.linear_gradient("L"))
    mask = fit_mask(model, Image.new("L", (width, height), 255))

    def run(settings: Settings) -> list[int]:
        model.rows.clear()
        if command == "sdedit":
            sdedit(model, image, [1], ["one"], settings, strength=1.0)
        elif command == "inpaint":
            inpaint(model, image, mask, [1], ["one"], settings, jump=1, resample=1)
        elif command == "invert":
            invert(model, image, [1], "one", settings, edit="zero")
        else:
            draw(model, make_hybrid(["one", "zero"], "low_high:2"), [1], settings)
        return list(model.rows)

    full, part, none = (run(how(interval=ends)) for ends in ((0.0, 1.0), FIRST_HALF, (0.9999, 0.9999)))
    assert len(full) == len(part) == len(none)
    saved = [b - a for a, b in zip(part, full, strict=True)]
    possible = [b - a for a, b in zip(none, full, strict=True)]
    assert 0 < sum(saved) < sum(possible)
    assert all(one in (0, most) for one, most in zip(saved, possible, strict=True))


def test_upscaling_hears_of_it(tmp_path: Path) -> None:
    make_if(tmp_path / "m", stage=2)
    model = Counting(load(str(tmp_path / "m"), device="cpu"))
    low = Image.new("RGB", (model.shape[2] // 4, model.shape[1] // 4), "grey")
    rows = []
    for ends in ((0.0, 1.0), FIRST_HALF):
        model.rows.clear()
        upscale(model, low, [1], ["a cat"], how(interval=ends))
        rows.append(sum(model.rows))
    assert 6 < rows[1] < rows[0] == 12


def test_nothing_to_guide_is_refused(models, tmp_path: Path) -> None:
    for family in ("plain", "classes"):
        with pytest.raises(UsageError, match="--guidance-interval"):
            list(generate(models(family), [1], [None], Settings(steps=2, interval=FIRST_HALF)))
    for folder, more, label in (
        (make_run(tmp_path / "run", "one_step", "none"), {}, None),
        (make_run(tmp_path / "plain", null=False), {"steps": 2}, "one"),
    ):
        with pytest.raises(UsageError, match="--guidance-interval"):
            list(generate(load(str(folder)), [1], [label], Settings(**more, interval=FIRST_HALF)))


def test_how_it_is_written() -> None:
    assert interval(None) == Settings.interval == (0.0, 1.0)
    assert interval("0:0.5") == FIRST_HALF
    assert interval(" .25 : 1 ") == (0.25, 1.0)
    with pytest.raises(UsageError, match="START:STOP"):
        interval("half")
    for bad in ((-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="of the way"):
            check_settings(Settings(interval=bad))
