"""`diffkit schema`: a picture command's fields as JSON schema, without loading a model."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from diffkit.cli.runner import Output, command

Name = Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="A picture command; all of them when left out.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "schema")(schema)


def schema(name: Name = None) -> Output:
    """Print the fields of a picture command as JSON schema: names, types, bounds, defaults, what each is for."""
    from diffkit.jobs import job_class, summaries

    if name is not None:
        found = job_class(name).model_json_schema()
    else:
        found = {each: job_class(each).model_json_schema() for each in summaries()}
    return Output(found, [json.dumps(found, indent=2, ensure_ascii=False)])
