"""`diffkit invert`: the noise an image comes from, and edits on the way back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffkit.cli.pictures import Batch, Image, Plan, picture_command

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"

EditPrompt = Annotated[str | None, typer.Option("--edit-prompt", help="What to come back to, in words.")]
EditClass = Annotated[str | None, typer.Option("--edit-class", help="The class to come back to.")]
Refine = Annotated[
    int, typer.Option("--refine", min=0, max=50, help="Further calls per step that make the inversion more exact.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "invert", HUB)(invert)


def invert(
    image: Image = None, edit_prompt: EditPrompt = None, edit_class: EditClass = None, refine: Refine = 3
) -> Plan:
    """Find the noise that DDIM makes an image of, come back, and say how exactly; or come back to something else.

    --prompt or --class says what the image shows; --guidance is that of the edit.
    """
    from diffkit.errors import UsageError
    from diffkit.jobs import invert as task
    from diffkit.jobs.edit import fit
    from diffkit.jobs.inputs import Given
    from diffkit.jobs.sample import takes_prompts

    if edit_prompt is not None and edit_class is not None:
        raise UsageError("--edit-prompt and --edit-class exclude each other", "Give one of them.")
    given, edit = Given(image), edit_prompt if edit_prompt is not None else edit_class

    def draw(model: Any, batch: Batch) -> Any:
        if edit is not None and takes_prompts(model) != (edit_prompt is not None):
            wanted = "--edit-prompt" if takes_prompts(model) else "--edit-class"
            raise UsageError(f"the edit {edit!r} does not fit this model", f"Give it as {wanted}.")
        picture, _ = given.at(model)
        return task.invert(
            model, fit(model, picture), batch.seeds, batch.labels[0], batch.settings, edit=edit, refine=refine,
            on_step=batch.on_step,
        )  # fmt: skip

    silent = "without --edit-prompt or --edit-class nothing is guided" if edit is None else None
    return Plan(draw, lambda m, s: task.visits(m, s, refine, edit is not None), {"image": image}, unguided=silent)
