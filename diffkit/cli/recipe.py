"""`diffkit recipe list / show / schema`."""

from __future__ import annotations

import typer

from diffkit.cli.options import RecipeName, Set
from diffkit.cli.runner import Output, command


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(help="List the recipes, show one as it resolves, print what a recipe can say.")
    command(group, "list")(list_recipes)
    command(group, "show")(show_recipe)
    command(group, "schema")(schema)
    app.add_typer(group, name="recipe", no_args_is_help=True)


def list_recipes() -> Output:
    """List the recipes with what they train and what was measured."""
    from diffkit.recipes.reading import DEFAULT, find_recipe, load_recipe, read_header, recipe_names

    rows = []
    for name in recipe_names():
        path = find_recipe(name)
        # As the file says it: an environment variable must not change the list.
        rows.append({"name": name, "description": load_recipe(path, environ={}).description, **read_header(path)})
    lines = []
    for row in rows:
        mark = "  (the default)" if row["name"] == DEFAULT else ""
        lines += [f"{row['name']}{mark}", f"    {row['description']}"]
        lines += [f"    {key}: {row[key]}" for key in ("expected", "measured") if row.get(key)]
    return Output({"recipes": rows, "default": DEFAULT}, lines)


def show_recipe(recipe: RecipeName = None, set_: Set = None) -> Output:
    """Print a recipe as it resolves: defaults, file, environment and --set together."""
    from diffkit.recipes.reading import dump_yaml, load_recipe

    resolved = load_recipe(recipe, sets=set_ or ())
    return Output(resolved.model_dump(mode="json"), dump_yaml(resolved).splitlines())


def schema() -> Output:
    """Print the JSON schema of a recipe, which editors use to complete and to check."""
    import json

    from diffkit.recipes.reading import Recipe

    described = Recipe.model_json_schema()
    return Output(described, json.dumps(described, indent=2, ensure_ascii=False).splitlines())
