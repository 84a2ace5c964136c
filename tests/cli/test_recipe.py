from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from diffkit.recipes.reading import Recipe, load_recipe, recipe_names


def test_list_shows_every_recipe_with_what_was_measured(run_cli: Any) -> None:
    ran = run_cli("recipe", "list")
    assert ran.code == 0
    assert ran.stdout.startswith("digits  (the default)\n")
    assert ran.stdout.count("measured: ") == len(recipe_names())
    rows = json.loads(run_cli("recipe", "list", "--json").stdout)["recipes"]
    assert [row["name"] for row in rows] == recipe_names()
    assert all(row["description"] and row["run"] and row["measured"] for row in rows)


def test_show_prints_what_train_would_use(run_cli: Any, tmp_path: Path) -> None:
    ran = run_cli("recipe", "show", "mnist", "--set", "training.lr=2e-4", "--set", "training.steps=5")
    assert ran.code == 0
    path = tmp_path / "shown.yaml"
    path.write_text(ran.stdout)
    shown = load_recipe(path, environ={})
    assert (shown.name, shown.training.lr, shown.training.steps, shown.training.epochs) == ("mnist", 2e-4, 5, None)
    as_json = json.loads(run_cli("recipe", "show", "mnist", "--set", "training.lr=2e-4", "--json").stdout)
    assert as_json["training"]["lr"] == 2e-4
    assert yaml.safe_load(ran.stdout)["dataset"]["resolution"] == 28


def test_show_without_a_name_is_the_default(run_cli: Any) -> None:
    assert run_cli("recipe", "show").stdout.startswith("name: digits\n")


def test_a_wrong_recipe_exits_2_with_the_line(run_cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("training:\n  ema: on\n")
    ran = run_cli("recipe", "show", path)
    assert ran.code == 2
    assert ran.stderr == f"error: {path}:2: training.ema is 'on'; it must be a boolean: true or false\n"


def test_schema_is_the_recipes_own(run_cli: Any) -> None:
    assert json.loads(run_cli("recipe", "schema").stdout) == Recipe.model_json_schema()
    assert json.loads(run_cli("recipe", "schema", "--json").stdout) == Recipe.model_json_schema()
