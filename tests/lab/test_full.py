"""The numbers that the courses ask for: what `--full` trains and draws, section by section, as the pages print them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from diffkit.lab import sections
from diffkit.lab.printed import Evaluated
from diffkit.lab.run import Outcome, planned
from diffkit.lab.section import Plan
from diffkit.lab.setup import Asked, set_up
from diffkit.lab.trainings import Training

DENOISER = {
    "noise.prediction": "one_step", "noise.sigma": 0.5, "model.preset": "cs180", "model.overrides.hidden": 128,
    "training.batch_size": 256, "training.epochs": 5, "training.lr": 1e-4, "dataset.normalize": "unit",
}  # fmt: skip
DDPM = {
    "noise.prediction": "epsilon", "noise.timesteps": 300, "noise.schedule": "linear:0.0001,0.02",
    "model.overrides.hidden": 64, "model.overrides.time": "add", "training.batch_size": 128, "training.epochs": 20,
    "training.lr": 1e-3, "training.lr_schedule": "exponential", "training.lr_gamma": None,
}  # fmt: skip
FLOW = {
    "noise.prediction": "flow", "model.overrides.hidden": 64, "model.overrides.time": "multiply",
    "training.batch_size": 64, "training.epochs": 10, "training.lr": 1e-2, "training.lr_schedule": "exponential",
}  # fmt: skip
CLASSES = {"model.class_conditioning": "embedding", "training.class_dropout": 0.1}
KERAS = {
    "dataset.resolution": 64, "noise.loss": "mae", "noise.schedule": "offset_cosine:0.95,0.02", "training.lr": 1e-3,
    "training.weight_decay": 1e-4, "training.batch_size": 64, "training.ema_decay": 0.999,
    "training.lr_schedule": "constant",
}  # fmt: skip

# (course, year, section): what the network that is trained there is made with.
TRAINED: list[tuple[str, int | None, str, dict[str, Any]]] = [
    *(("cs180", year, "one-step-training", DENOISER) for year in (2024, 2025, 2026)),
    *(("cs180", year, "pure-noise", DENOISER | {"noise.prediction": "pure_noise"}) for year in (2025, 2026)),
    ("cs180", 2024, "time-conditioned", DDPM),
    ("cs180", 2024, "class-conditioned", DDPM | CLASSES),
    *(("cs180", year, "time-conditioned", FLOW) for year in (2025, 2026)),
    *(("cs180", year, "class-conditioned", FLOW | CLASSES) for year in (2025, 2026)),
    *(("cs180", year, "without-scheduler", FLOW | CLASSES | {"training.lr_schedule": "constant", "training.lr": 1e-3})
      for year in (2025, 2026)),
    ("hf-course", None, "1.1-train", {
        "dataset.resolution": 32, "training.batch_size": 64, "training.lr": 4e-4, "training.epochs": 30,
        "noise.timesteps": 1000, "noise.prediction": "epsilon",
    }),
    ("hf-course", None, "1.2-train", {
        "model.preset": "basic-unet", "training.batch_size": 128, "training.epochs": 3, "training.lr": 1e-3,
        "noise.distribution": "uniform", "noise.prediction": "linear_mix",
    }),
    ("hf-course", None, "2.1-finetune", {
        "training.batch_size": 4, "training.epochs": 2, "training.lr": 1e-5, "training.gradient_accumulation": 2,
    }),
    ("hf-course", None, "2.2-class", {
        "model.class_conditioning": "concat", "model.class_embed_dim": 4, "training.batch_size": 128,
        "training.epochs": 10, "training.lr": 1e-3, "noise.schedule": "cosine",
    }),
    ("keras-ddim", None, "train", KERAS),
]  # fmt: skip

# (course, year, section): options that one of its commands has.
DRAWN: list[tuple[str, int | None, str, str]] = [
    *(("cs180", year, "forward", "--timesteps 250,500,750") for year in (2024, 2025)),
    *(("cs180", year, "forward", "--timesteps 0,125,250,375,500,625,750,875,999") for year in (2024, 2025)),
    ("cs180", 2026, "forward", "--times 0.25,0.5,0.75"),
    ("cs180", 2026, "velocity", "--times 0.25,0.5,0.75"),
    *(("cs180", year, "iterative", "--timesteps 690 --stride 30 --every 5") for year in (2024, 2025)),
    ("cs180", 2026, "iterative", "--flow-step 0.02 --every 5"),
    *(("cs180", year, "sampling", "--num 5") for year in (2024, 2025, 2026)),
    *(("cs180", year, "guidance", "--guidance 7.0") for year in (2024, 2025)),
    ("cs180", 2026, "guidance", "--num 5 --steps 50 --guidance 8.0"),
    *(("cs180", year, "noising", "--sigma 0,0.2,0.4,0.5,0.6,0.8,1") for year in (2024, 2025, 2026)),
    *(("cs180", year, "out-of-distribution", "--sigma 0,0.2,0.4,0.5,0.6,0.8,1") for year in (2024, 2025, 2026)),
    *(("cs180", year, "time-conditioned", "--steps 50") for year in (2025, 2026)),
    ("cs180", 2024, "time-conditioned", "--steps 300 --scheduler ddpm"),
    ("cs180", 2024, "class-conditioned", "--num 40 --batch-size 40 --steps 300 --guidance 5.0 --scheduler ddpm"),
    *(("cs180", year, "class-conditioned", "--num 40 --batch-size 40 --steps 300 --guidance 5.0")
      for year in (2025, 2026)),
    ("hf-course", None, "1.1-noise", "--timesteps 0,142,285,428,570,713,856,999"),
    ("hf-course", None, "1.1-train", "--num 8"),
    ("hf-course", None, "1.2-sampling", "--num 1 --steps 5"),
    ("hf-course", None, "1.2-sampling", "--num 64 --steps 40"),
    ("hf-course", None, "2.1-sampling", "--num 4 --steps 40"),
    ("hf-course", None, "2.2-class", "--num 80"),
    ("hf-course", None, "3-generate", "--steps 35 --guidance 8.0 --seed 42"),
    ("hf-course", None, "3-guidance", "--sweep guidance=1.1,8,12"),
    ("hf-course", None, "3-loop", "--steps 30"),
    ("hf-course", None, "3-img2img", "--strength 0.6"),
    ("hf-course", None, "4.1-round-trip", "--steps 50"),
    ("hf-course", None, "4.1-edit", "--guidance 3.5"),
    ("keras-ddim", None, "kid", "--steps 5"),
    ("keras-ddim", None, "steps", "--sweep steps=1,2,3,5,8,12,20"),
    ("keras-ddim", None, "stochastic", "--num 9 --steps 40"),
    ("keras-ddim", None, "stochastic", "--num 9 --steps 80"),
]  # fmt: skip
EPOCHS = [("cs180", 2024, "class-conditioned", (5, 20)), ("cs180", 2025, "time-conditioned", (1, 5, 10)),
          ("cs180", 2026, "one-step-training", (1, 5))]  # fmt: skip
MNIST = 60_000


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Plan]]:
    """What a section plans; a course is planned once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("full"))
        patch.setenv("DIFFKIT_CACHE", "cache")

        @cache
        def course_of(course: str, year: int | None, full: bool) -> dict[str, Outcome]:
            lab, _ = set_up(Asked(course=course, year=year, data="digits", full=full))
            return {one.section.name: one for one in planned(lab, sections(course, year))}

        def plan(course: str, year: int | None, name: str, full: bool = True) -> Plan:
            found = course_of(course, year, full)[name]
            assert found.plan is not None, found.why
            return found.plan

        yield plan


def training_of(plan: Plan, fine_tuned: bool = False) -> Training:
    found = [piece for piece in plan.pieces if isinstance(piece, Training)]
    return found[-1 if fine_tuned else 0]


def field(recipe: Any, path: str) -> Any:
    for part in path.split("."):
        recipe = recipe[part] if isinstance(recipe, dict) else getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(("course", "year", "name", "asked"), TRAINED)
def test_the_full_form_trains_what_the_course_asks_for(
    course: str, year: int | None, name: str, asked: dict[str, Any], plan_of: Callable[..., Plan]
) -> None:
    recipe = training_of(plan_of(course, year, name), name == "2.1-finetune").resolved
    assert {path: field(recipe, path) for path in asked} == asked
    assert recipe.dataset.limit is None
    assert recipe.training.steps is None


@pytest.mark.parametrize(("course", "year", "name", "options"), DRAWN)
def test_the_full_form_draws_what_the_course_asks_for(
    course: str, year: int | None, name: str, options: str, plan_of: Callable[..., Plan]
) -> None:
    lines = [piece.line for piece in plan_of(course, year, name).pieces]
    pairs = [options.split()[k : k + 2] for k in range(0, len(options.split()), 2)]

    def has(line: str) -> bool:
        words = shlex.split(line)
        return all(any(words[k : k + 2] == pair for k in range(len(words))) for pair in pairs)

    assert any(map(has, lines)), lines


@pytest.mark.parametrize(("course", "year", "name", "epochs"), EPOCHS)
def test_pictures_are_shown_after_the_course_s_epochs(
    course: str, year: int, name: str, epochs: tuple[int, ...], plan_of: Callable[..., Plan]
) -> None:
    """Of MNIST in full, and of the part of it that a laptop trains on."""
    for full in (True, False):
        training = training_of(plan_of(course, year, name, full))
        recipe = training.resolved
        count = min(MNIST, recipe.dataset.limit or MNIST)
        per_epoch = -(-count // recipe.training.batch_size)
        assert training.epochs == epochs
        for epoch in epochs:
            after = epoch * per_epoch
            last = epoch == recipe.training.epochs
            assert last or after % recipe.training.preview_every == 0, (full, epoch)


def test_the_score_of_keras_is_taken_of_more_pictures_in_full(plan_of: Callable[..., Plan]) -> None:
    full, quick = (
        [piece.num for piece in plan_of("keras-ddim", None, "kid", how).pieces if isinstance(piece, Evaluated)]
        for how in (True, False)
    )
    assert min(full) == 2000 > max(quick)
