"""Guidance on a part of the way only: which calls it saves, and that everything that draws knows of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffkit.engine.settings import Settings, check_settings, interval
from diffkit.errors import UsageError
from diffkit.jobs.anagram import Anagram
from diffkit.jobs.hybrid import Hybrid
from diffkit.jobs.inpaint import Inpaint
from diffkit.jobs.invert import Invert
from diffkit.jobs.sample import Sample
from diffkit.jobs.sdedit import SDEdit
from diffkit.jobs.upscale import Upscale
from diffkit.models import load
from tests.models.conftest import make_if
from tests.support.drawing import Steps, do, make_job
from tests.support.families import Counting, label_of, make_run

FAMILIES = ("classes", "flow", "sd", "if")
FIRST_HALF = (0.0, 0.5)
HOW = {"steps": 6, "guidance": 3.0}


def guided_calls(model: Any) -> list[bool]:
    """Which steps stand in the first half of the way, by their timesteps alone."""
    levels = model.info.timesteps
    return [t >= levels / 2 for t in make_job(Sample, model, steps=6).sampling_timesteps(model.info)]


def several(model: Any, family: str) -> dict[str, Any]:
    words = [str(label_of(family))] * 2
    return {"prompts" if model.info.text else "classes": words}


def drawn(model: Any, family: str, watch: Any = None, seeds: tuple[int, ...] = (3, 4), **fields: Any) -> torch.Tensor:
    from diffkit.jobs.batch import Batch
    from diffkit.jobs.run import draw
    from diffkit.pictures.tensors import to_tensor

    label = label_of(family)
    job = make_job(Sample, model, **{"prompt" if model.info.text else "classes": [label]}, **fields)
    return to_tensor(draw(job, model, Batch(list(seeds), [label] * len(seeds), job.settings), watch).pictures)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_outside_take_one_row_a_picture(models, family: str) -> None:
    model = Counting(models(family))
    guided = guided_calls(model)
    assert any(guided)
    assert not all(guided)
    drawn(model, family, guidance_interval="0:0.5", **HOW)
    assert model.rows == [4 if here else 2 for here in guided]
    model.rows.clear()
    scheduler = "flow_euler" if family == "flow" else "ddim"
    do(Anagram, model, [3, 4], guidance_interval="0:0.5", scheduler=scheduler, **several(model, family), **HOW)
    assert model.rows == [8 if here else 4 for here in guided]


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_it_is_as_with_guidance_one_and_inside_as_always(models, family: str) -> None:
    model = models(family)
    plain = drawn(model, family, **HOW)
    assert torch.equal(drawn(model, family, guidance_interval="0:1", **HOW), plain)
    assert not torch.equal(drawn(model, family, guidance_interval="0:0.5", **HOW), plain)
    # No step stands so near the picture. Prompts that are encoded in other company differ in the last bits.
    counting = Counting(model)
    nothing = drawn(counting, family, guidance_interval="0.9999:0.9999", **HOW)
    assert counting.rows == [2] * 6
    torch.testing.assert_close(nothing, drawn(model, family, steps=6, guidance=1.0), rtol=0, atol=1 / 127)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stretch_is_what_its_ends_leave(models, family: str) -> None:
    """The samples of the first half are those of full guidance; from there on they part."""
    model = models(family)
    paths = []
    for part in ("0:1", "0:0.5"):
        watch = Steps()
        drawn(model, family, watch, (3,), guidance_interval=part, **HOW)
        paths.append([step.x for step in watch.all])
    same = [torch.equal(a, b) for a, b in zip(*paths, strict=True)]
    assert same == guided_calls(model)
    assert all(before or not after for before, after in pairwise(same))


@pytest.mark.parametrize("command", ["sdedit", "inpaint", "invert", "hybrid"])
def test_every_command_knows_of_it(models, command: str) -> None:
    model = Counting(models("classes"))
    image, mask = Image.linear_gradient("L"), Image.new("L", (256, 256), 255)

    def run(part: str) -> list[int]:
        model.rows.clear()
        how = {"guidance_interval": part, **HOW}
        if command == "sdedit":
            do(SDEdit, model, [1], "one", image=image, strength=1.0, **how)
        elif command == "inpaint":
            do(Inpaint, model, [1], "one", image=image, mask=mask, jump=1, resample=1, **how)
        elif command == "invert":
            do(Invert, model, [1], "one", image=image, edit_class="zero", **how)
        else:
            do(Hybrid, model, [1], classes=["one", "zero"], split="low_high:2", **how)
        return list(model.rows)

    full, part, none = (run(ends) for ends in ("0:1", "0:0.5", "0.9999:0.9999"))
    assert len(full) == len(part) == len(none)
    saved = [b - a for a, b in zip(part, full, strict=True)]
    possible = [b - a for a, b in zip(none, full, strict=True)]
    assert 0 < sum(saved) < sum(possible)
    assert all(one in (0, most) for one, most in zip(saved, possible, strict=True))


def test_upscaling_knows_of_it(tmp_path: Path) -> None:
    make_if(tmp_path / "m", stage=2)
    model = Counting(load(str(tmp_path / "m"), device="cpu"))
    low = Image.new("RGB", (model.info.size[1] // 4, model.info.size[0] // 4), "grey")
    rows = []
    for ends in ("0:1", "0:0.5"):
        model.rows.clear()
        do(Upscale, model, [1], "a cat", image=low, guidance_interval=ends, **HOW)
        rows.append(sum(model.rows))
    assert 6 < rows[1] < rows[0] == 12


def test_nothing_to_guide_is_refused(models, tmp_path: Path) -> None:
    for model, fields in (
        (models("plain"), {"steps": 2}),
        (models("classes"), {"steps": 2}),
        (load(str(make_run(tmp_path / "run", "one_step", "none"))), {}),
        (load(str(make_run(tmp_path / "plain", null=False))), {"steps": 2, "classes": ["one"]}),
    ):
        with pytest.raises(UsageError, match=r"`guidance_interval`|one-step denoiser"):
            do(Sample, model, [1], guidance_interval="0:0.5", **fields)


def test_how_it_is_written() -> None:
    assert interval(None) == Settings.interval == (0.0, 1.0)
    assert interval("0:0.5") == FIRST_HALF
    assert interval(" .25 : 1 ") == (0.25, 1.0)
    with pytest.raises(UsageError, match="START:STOP"):
        interval("half")
    for bad in ((-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="of the way"):
            check_settings(Settings(interval=bad))
