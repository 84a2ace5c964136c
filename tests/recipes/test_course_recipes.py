"""The courses' recipes: their numbers, and that each of them trains and draws in a tiny form."""

from __future__ import annotations

from pathlib import Path

import pytest

import diffkit
from diffkit import training
from diffkit.models.memory import count_parameters
from diffkit.models.presets import preset_kind, unet_arguments
from diffkit.recipes.reading import load_recipe
from diffkit.types import Network

# By recipe: D or parameters, T, batch, epochs, rate, prediction.
NUMBERS = {
    "cs180-one-step": (128, 1000, 256, 5, 1e-4, "one_step"),
    "cs180-time": (64, 300, 128, 20, 1e-3, "epsilon"),
    "cs180-class": (64, 300, 128, 20, 1e-3, "epsilon"),
    "cs180-flow-time": (64, 1000, 64, 10, 1e-2, "flow"),
    "cs180-flow-class": (64, 1000, 64, 10, 1e-2, "flow"),
    "hf-basic-unet": (309_057, 1000, 128, 3, 1e-3, "linear_mix"),
    "keras-ddim": (None, 1000, 64, 50, 1e-3, "epsilon"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_has_the_courses_numbers(name: str) -> None:
    recipe = load_recipe(name, environ={})
    size, timesteps, batch, epochs, rate, prediction = NUMBERS[name]
    noise, spec = recipe.noise, recipe.training
    assert (noise.timesteps, noise.prediction) == (timesteps, prediction)
    assert (spec.batch_size, spec.epochs, spec.lr) == (batch, epochs, rate)
    arguments = unet_arguments(recipe.model.preset, recipe.model.overrides)
    if name.startswith("cs180"):
        assert arguments["hidden"] == size
        assert recipe.dataset.normalize == "unit"
        told = {"cs180-one-step": "none", "cs180-time": "add", "cs180-class": "add"}
        assert arguments["time"] == told.get(name, "multiply")
        assert (recipe.model.class_conditioning == "embedding") == name.endswith("class")
        assert (spec.class_dropout, spec.ema, spec.weight_decay) == (0.1, False, 0.0)
        assert (spec.lr_schedule == "exponential") == (name != "cs180-one-step")
    elif name == "hf-basic-unet":
        config = {**arguments, "in_channels": 1, "out_channels": 1, "sample_size": 28}
        assert count_parameters(Network("", preset_kind(recipe.model.preset), config)) == size
        assert noise.distribution == "uniform"
    else:
        assert (noise.loss, noise.schedule, recipe.dataset.normalize) == ("mae", "offset_cosine:0.95,0.02", "standard")
        assert (spec.weight_decay, spec.ema_decay) == (1e-4, 0.999)
        assert (arguments["block_out_channels"], arguments["layers_per_block"]) == ((32, 64, 96, 128), 2)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_trains_and_draws(name: str, tmp_path: Path) -> None:
    small = {"cs180": "hidden=4", "hf-ba": "block_out_channels=[4, 8, 8]"}.get(name[:5], "layers_per_block=1")
    sets = [
        "dataset.name=digits", "dataset.resolution=8", "dataset.limit=20", f"model.overrides.{small}",
        "training.steps=2", "training.batch_size=4", "training.preview_images=2", "training.preview_steps=2",
        "training.preview_every=0", f"output.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    recipe = load_recipe(name, sets=sets, environ={})
    assert training.fit(recipe)["step"] == 2
    assert diffkit.sample(str(tmp_path / "run"), seed=0, **({} if "step" in name else {"steps": 2}))[0].size == (8, 8)
    assert list((tmp_path / "run" / "samples").glob("*.png"))
