"""What the courses ask of `denoise`, `noise` and `velocity`, against arithmetic written out here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import diffkit
from diffkit.engine.levels import flow_grid, flow_time, level, timestep_at
from diffkit.engine.predictions import KINDS, target, velocity_from
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.recipes.schema import NoiseSpec
from tests.support.families import make_run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_velocity_is_the_picture_less_the_noise_whatever_is_predicted(kind: str) -> None:
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    signal, noise = (0.6, 0.8) if kind != "flow" else (0.3, 0.7)
    out = target(kind, x0, eps, signal, noise)
    found = velocity_from(kind, out, signal * x0 + noise * eps, signal, noise)
    torch.testing.assert_close(found, x0 - eps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow"])
def test_the_timestep_of_a_time_is_the_nearest(schedule: str) -> None:
    flow = schedule == "flow"
    spec = NoiseSpec(prediction="flow") if flow else NoiseSpec(schedule=schedule)
    scheduler = make_noise_scheduler(spec)
    for time in (0.02, 0.25, 0.5, 0.75, 0.98):
        t = timestep_at(scheduler, time)
        near = [s for s in (t - 1, t + 1) if flow <= s < 1000]
        assert all(abs(flow_time(scheduler, t) - time) <= abs(flow_time(scheduler, s) - time) for s in near)
    assert flow_time(scheduler, timestep_at(scheduler, 0.5)) == pytest.approx(0.5, abs=2e-3)


def test_steps_of_equal_flow_time() -> None:
    assert flow_grid(make_noise_scheduler(NoiseSpec(prediction="flow")), 500, 0.02) == list(range(500, 0, -20))
    scheduler = make_noise_scheduler(NoiseSpec(schedule="cosine"))
    grid = flow_grid(scheduler, timestep_at(scheduler, 0.5), 0.02)
    assert len(grid) == 25
    times = [flow_time(scheduler, t) for t in grid]
    assert max(abs(times[k] - (times[0] + 0.02 * k)) for k in range(25)) < 2e-3


def test_a_step_of_ddim_is_one_of_euler_in_flow_time() -> None:
    """What the report says of models that predict noise: divided by signal + noise, DDIM walks straight on."""
    scheduler = make_noise_scheduler(NoiseSpec(schedule="cosine"))
    x0, eps = torch.randn(3), torch.randn(3)
    (a, b), (c, d) = level(scheduler, 600), level(scheduler, 400)
    there, then = (a * x0 + b * eps) / (a + b), (c * x0 + d * eps) / (c + d)
    step = flow_time(scheduler, 400) - flow_time(scheduler, 600)
    torch.testing.assert_close(there + step * (x0 - eps), then)


def test_every_nth_state_is_shown(photo: Path) -> None:
    (plain,) = diffkit.compare_denoisers(photo, model="tiny", timesteps="690", stride=90, guidance=1.0)
    (strip,) = diffkit.compare_denoisers(photo, model="tiny", timesteps="690", stride=90, guidance=1.0, every=3)
    cell = plain.width // 4
    assert (round(strip.width / cell), round(strip.height / plain.height)) == (3, 2)  # with t=420 and t=150


def test_methods_are_chosen_and_unknown_ones_refused(photo: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (blur,) = diffkit.compare_denoisers(photo, model="tiny", timesteps="500", methods=("blur",))
    (all_,) = diffkit.compare_denoisers(photo, model="tiny", timesteps="500", stride=250)
    half = all_.crop((0, 0, blur.width - 2, blur.height))
    assert blur.crop((0, 0, blur.width - 2, blur.height)).tobytes() == half.tobytes()
    ran = run_cli("denoise", photo, "-m", "tiny", "--method", "one_stp")
    assert ran.code == 2
    assert "--method 'one_stp'" in ran.stderr
    assert "one_step" in ran.stderr


def test_a_one_step_denoiser_is_asked_about_every_sigma(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    run = make_run(tmp_path / "run", "one_step", "none", 8)
    out = tmp_path / "out"
    ran = run_cli("denoise", "-m", run, "--sigma", "0.1,0.5", "--json", "--out", out)
    assert ran.code == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert done["unet_calls"] == 2
    assert set(done["psnr"]) == {"blur", "one_step"}
    assert set(done["psnr"]["blur"]) == {"0.1", "0.5"}
    assert done["psnr"]["blur"]["0.1"] > done["psnr"]["blur"]["0.5"]
    assert run_cli("denoise", "-m", run, "--timesteps", "10").code == 2
    assert run_cli("denoise", "-m", "tiny", "--sigma", "0.5").code == 2


def test_sigma_is_a_deviation_of_pixels_from_0_to_1(photo: Path) -> None:
    from diffkit.jobs.noise import Noise

    name, amounts = Noise(image=photo, sigma="0,0.5").amounts()
    assert name == "sigma"
    assert [(one.signal, one.noise) for one in amounts] == [(1.0, 0.0), (1.0, 1.0)]
    strip = diffkit.noise(photo, sigma="0", size=32)[0]
    again = diffkit.noise(photo, times="1", size=32)[0]
    assert strip.crop((0, 20, 60, 60)).tobytes() == again.crop((0, 20, 60, 60)).tobytes()


def test_two_ways_to_say_how_much_noise_are_refused(photo: Path) -> None:
    with pytest.raises(UsageError, match="both say"):
        diffkit.noise(photo, times="0.5", sigma="0.5")
    with pytest.raises(UsageError, match="0 is noise"):
        diffkit.noise(photo, times="1.5")
    with pytest.raises(UsageError, match="with commas"):
        diffkit.noise(photo, sigma="-1")


def test_a_flow_and_the_truth_have_one_velocity(photo: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    ran = run_cli("velocity", photo, "-m", "tiny", "--guidance", "1", "--json", "--out", tmp_path / "out")
    assert ran.code == 0, ran.stderr
    assert "predicts sample: converted" in ran.stderr
    done = json.loads(ran.stdout)
    errors = [done["scores"]["velocity_rms"][t] for t in ("0.25", "0.5", "0.75")]
    assert errors == sorted(errors, reverse=True)  # the way that is left becomes shorter
    assert done["unet_calls"] == 3


@pytest.mark.parametrize("times", ["0", "1", "0.5,2"])
def test_times_off_the_way_have_no_velocity(photo: Path, times: str) -> None:
    with pytest.raises(UsageError, match="above 0"):
        diffkit.velocity(photo, model="tiny", times=times)


def test_latents_have_no_velocity_to_show(photo: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="pixels"):
        diffkit.velocity(photo, model=str(folders["sd"]), prompt="a cat")


def test_states_and_estimates_stand_on_the_sheet(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    ran = run_cli("sample", "tiny", "-p", "a red heart", "--steps", "5", "--states", "2", "--json", "--out", tmp_path)
    assert ran.code == 0, ran.stderr
    done = json.loads(ran.stdout)
    with Image.open(done["grid"]) as sheet, Image.open(done["images"][0]) as last:
        width, height = sheet.size
        assert round(width / height * 2) >= 3  # three states (after steps 1, 3, 5), each above its estimate
        assert last.size == (32, 32)
    plain = run_cli("sample", "tiny", "-p", "a red heart", "--steps", "5", "--json", "--out", tmp_path / "plain")
    with Image.open(done["images"][0]) as one, Image.open(json.loads(plain.stdout)["images"][0]) as other:
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("scheduler", [None, "heun"])
def test_estimates_stand_there_whether_or_not_the_scheduler_gives_them(
    tmp_path: Path, run_cli: Callable[..., Any], folders: dict[str, Path], scheduler: str | None
) -> None:
    """A flow's gives none: at its last step it is the picture itself, which stands above."""
    flags = ("--scheduler", scheduler) if scheduler else ()
    family = "classes" if scheduler else "flow"
    ran = run_cli("sample", folders[family], "-c", "one", "--steps", 3, "--states", 1, *flags, "--json", "-o", tmp_path)
    assert ran.code == 0, ran.stderr
    steps = json.loads(ran.stdout)["steps"]
    with Image.open(json.loads(ran.stdout)["grid"]) as sheet:
        width, height = sheet.size
    assert width / steps < 0.7 * height, "each column holds two pictures"


def test_sigma_means_the_same_to_networks_of_other_ranges(tmp_path: Path) -> None:
    """Of a network that sees pixels from 0 to 1 the noise is half as large in its own numbers: the same picture."""
    from diffkit.jobs.denoise import _white
    from diffkit.models.pixels import PixelCodec

    class Model:
        codec = PixelCodec(8, 8, [-1.0], [2.0])

    image = torch.zeros(1, 1, 8, 8)
    assert _white(Model(), image) == pytest.approx(1.0)  # type: ignore[arg-type]
    Model.codec = PixelCodec(8, 8)
    assert _white(Model(), image) == pytest.approx(2.0)  # type: ignore[arg-type]
