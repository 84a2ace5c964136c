"""What the commands that edit pictures share: their common options, and the way from a plan to files.

A command's body takes its own options, checks them, and returns a `Plan`; here the model is loaded, every combination
of a sweep is drawn, and the pictures, the sheet and the JSON are written. `sample` goes its own way.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli import options, sweep
from diffkit.cli.loading import default_model, load_model
from diffkit.cli.plan import Batch as Batch
from diffkit.cli.plan import Plan as Plan
from diffkit.cli.runner import Output, command
from diffkit.errors import UsageError

LOG = logging.getLogger("diffkit")

Class = Annotated[str | None, typer.Option("--class", "-c", help="A class by name or number, of models with classes.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures per batch.")]
Spacing = Annotated[str | None, typer.Option("--spacing", help="Of the grid: leading, trailing or linspace.")]
NoSafety = Annotated[
    bool, typer.Option("--no-safety-checker", help="Do not judge the pictures of models that come with a checker.")
]
Image = Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="A picture; a drawn example when left out.")]

_SHARED: dict[str, tuple[Any, Any]] = {
    "model": (options.Model, None),
    "revision": (options.Revision, None),
    "variant": (options.Variant, None),
    "allow_pickle": (options.AllowPickle, False),
    "prompt": (options.Prompt, None),
    "negative_prompt": (options.NegativePrompt, None),
    "label": (Class, None),
    "guidance": (options.Guidance, None),
    "guidance_interval": (options.Interval, None),
    "steps": (options.Steps, None),
    "scheduler": (options.Scheduler, None),
    "spacing": (Spacing, None),
    "eta": (options.Eta, 0.0),
    "seed": (options.Seed, 0),
    "num": (options.Num, 1),
    "batch_size": (BatchSize, 16),
    "sweep": (options.Sweep, None),
    "gif": (options.Gif, False),
    "out": (options.Out, None),
    "device": (options.Device, "auto"),
    "dtype": (options.Dtype, "auto"),
    "memory": (options.Memory, "auto"),
    "max_batch": (options.MaxBatch, None),
    "compile": (options.Compile, False),
    "no_safety_checker": (NoSafety, False),
    "dry_run": (options.DryRun, False),
}

# Not part of a picture's recipe: where it goes and how it is shown.
_UNTOLD = {"out", "gif", "animate", "dry_run", "sweep", "device", "allow_pickle"}


# Every picture command by name: what `replay` calls.
COMMANDS: dict[str, Callable[..., Output]] = {}


def picture_command(
    app: typer.Typer, name: str, hub: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Register a command whose body returns a `Plan`; it gets the shared options.

    Args:
        app: The application.
        name: The command's name.
        hub: The model used where none is named and there is no local run.
        without: Shared options that have no meaning for it.
    """

    def decorate(body: Callable[..., Plan]) -> Callable[..., Plan]:
        own = inspect.signature(body, eval_str=True).parameters
        keyword = inspect.Parameter.KEYWORD_ONLY
        extra = [
            inspect.Parameter(key, keyword, default=default, annotation=kind)
            for key, (kind, default) in _SHARED.items()
            if key not in without
        ]
        signature = inspect.Signature([*own.values(), *extra])

        @functools.wraps(body)
        def run(**given: Any) -> Output:
            values = {key: default for key, (_, default) in _SHARED.items()}
            values |= {key: parameter.default for key, parameter in own.items()} | given
            return _run(name, hub, body, list(own), values, signature)

        run.__signature__ = signature  # type: ignore[attr-defined]
        COMMANDS[name] = run
        command(app, name)(run)
        return body

    return decorate


def _run(
    name: str, hub: str, body: Callable[..., Plan], own: list[str], given: dict[str, Any], signature: inspect.Signature
) -> Output:
    from diffkit.engine.settings import check_settings, seeds_from
    from diffkit.models.vocabulary import BUNDLED
    from diffkit.pictures.examples import EXAMPLE_PROMPT

    began = time.perf_counter()
    table = sweep.parse(given["sweep"], signature)
    cells = [{**given, **cell.values} for cell in table.combinations]
    plans = [body(**{key: values[key] for key in own}) for values in cells]
    settings = [_settings(name, values) for values in cells]
    for each in settings:
        check_settings(each)
    warn_unheard([each for each, plan in zip(settings, plans, strict=True) if plan.unguided is None])
    for why in dict.fromkeys(plan.unguided for plan in plans if plan.unguided is not None):
        if silent := guiding(given):
            LOG.warning("%s: no effect of %s", why, ", ".join(silent))
    words = [word for plan in plans for word in plan.words]
    told = [cell.get(key) for cell in cells for key in ("prompt", "negative_prompt", "edit_prompt")]
    source = given["model"] or default_model(hub, " ".join(dict.fromkeys(w for w in [*told, *words] if w)) or None)
    for plan in plans:
        if plan.before is not None:
            plan.before(source, given)
    if source == BUNDLED and all(plan.example for plan in plans) and all(cell["prompt"] is None for cell in cells):
        LOG.info("no --prompt: the example is %s", EXAMPLE_PROMPT)
        given, cells = given | {"prompt": EXAMPLE_PROMPT}, [cell | {"prompt": EXAMPLE_PROMPT} for cell in cells]
    groups = sweep.groups(table, plans[0].batched)
    if given["dry_run"]:
        return _estimate(source, given, plans, settings, groups)
    from diffkit.cli.sheet import Sheet, Tile
    from diffkit.jobs.album import Album

    seeds = given.get("company") or seeds_from(given["seed"], given["num"])
    album = Album(name, given["out"], len(seeds) * len(cells))
    model = _load(source, given, cells, words)
    loaded = time.perf_counter()
    sheet = Sheet(name, album, model, table, given["gif"])
    for group in groups:
        recipes = [_recipe(name, {**cells[k], "model": source}, own, plans[k], model) for k in group]
        if again := sweep.narrowed(given["sweep"] or [], [table.combinations[k] for k in group], signature):
            for recipe in recipes:  # the last bits of a picture depend on its company
                recipe["arguments"]["sweep"] = again
        tiles = [
            Tile(table.combinations[k], settings[k], _label(model, cells[k]), recipe)
            for k, recipe in zip(group, recipes, strict=True)
        ]
        sheet.draw(tiles, plans[group[0]], seeds, given["batch_size"])
    recipe = _recipe(name, {**given, "model": source}, own, plans[0], model)
    if given["sweep"]:
        recipe["arguments"]["sweep"] = given["sweep"]
    payload, lines = sheet.close(seeds, recipe, loaded, began)
    return Output(payload, lines)


def sweep_sample(given: dict[str, Any], hub: str) -> Output:
    """Draw `sample`'s pictures for every combination of a sweep; `hub` as of `picture_command`."""

    def body(**own: Any) -> Plan:
        from diffkit.jobs.edit import Edit, pictures_of
        from diffkit.jobs.sample import generate, timesteps_of

        def draw(model: Any, batch: Batch) -> Any:
            import torch

            done = generate(
                model, batch.seeds, batch.labels, batch.settings, batch_size=len(batch.seeds), on_step=batch.on_step
            )
            images = torch.stack([picture.image for some in done for picture in some])
            visited = timesteps_of(model, batch.settings)
            return Edit(pictures_of(images), visited, len(visited))

        return Plan(draw, timesteps_of, batched=True)

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature(
        [inspect.Parameter(k, keyword, default=d, annotation=kind) for k, (kind, d) in _SHARED.items()]
    )
    return _run("sample", hub, body, ["timesteps", "stop_noise_after", "raw"], given, signature)


def guiding(given: dict[str, Any]) -> list[str]:
    """Return the options that say how prompts guide, as far as they are given or swept."""
    swept = [text.partition("=")[0].strip().removeprefix("--") for text in given["sweep"] or []]
    flags = {key: key.replace("_", "-") for key in ("guidance", "guidance_interval", "negative_prompt")}
    return [f"--{flag}" for key, flag in flags.items() if given[key] not in (None, "") or flag in swept]


def warn_unheard(settings: list[Any]) -> None:
    """Say which options guidance 1 makes silent, each once."""
    from diffkit.engine.settings import unheard

    for line in dict.fromkeys(filter(None, map(unheard, settings))):
        LOG.warning("%s", line)


def warn_unguided(model: Any, settings: Any, visited: list[float]) -> None:
    """Say that no step stands where guidance was asked for."""
    from diffkit.engine.settings import guides

    levels = model.scheduler.config.num_train_timesteps
    if not any(guides(settings, t, levels) for t in visited):
        ends = ":".join(f"{end:g}" for end in settings.interval)
        parts = [f"{(levels - t) / levels:.3g}" for t in (visited[0], visited[-1])]
        LOG.warning(
            "--guidance-interval %s: no step stands there, and nothing is guided; they go from %s to %s", ends, *parts
        )


def _settings(name: str, values: dict[str, Any]) -> Any:
    from diffkit.engine.settings import Settings, interval

    grid = values["timesteps"] if name == "sample" else None  # `denoise` has other timesteps
    return Settings(
        scheduler=values["scheduler"], steps=values["steps"], spacing=values["spacing"], eta=values["eta"],
        guidance=values["guidance"], negative=values["negative_prompt"], max_batch=values["max_batch"],
        timesteps=grid and tuple(int(t) for t in grid.split(",")),
        stop_noise_after=values.get("stop_noise_after"), interval=interval(values["guidance_interval"]),
    )  # fmt: skip


def _load(source: str, given: dict[str, Any], cells: list[dict[str, Any]], own: list[str]) -> Any:
    words = [w for cell in cells for w in (cell["prompt"], cell["negative_prompt"], cell.get("edit_prompt"))] + own
    model = load_model(
        source, device=given["device"], dtype=given["dtype"], revision=given["revision"], variant=given["variant"],
        allow_pickle=given["allow_pickle"], memory=given["memory"], raw=given.get("raw", False),
        compile=given["compile"],
        safety="off" if given["no_safety_checker"] else "auto", prompts=[w or "" for w in [*words, ""]],
    )  # fmt: skip
    if getattr(getattr(model, "meta", None), "prediction", "") == "one_step" and given["sweep"] is None:
        raise UsageError(f"{source} is a one-step denoiser, which has no steps to edit on", "Give another --model.")
    return model


def _label(model: Any, values: dict[str, Any]) -> str | None:
    from diffkit.jobs.sample import takes_prompts

    if takes_prompts(model):
        if values["label"] is not None:
            raise UsageError(f"--class {values['label']!r}: this model takes prompts", "Give --prompt.")
        return values["prompt"]
    if values["prompt"] is not None:
        raise UsageError(
            f"--prompt {values['prompt']!r}: this model knows no prompts", "Give --class, or leave it out."
        )
    if values["label"] is not None:
        model.encode([values["label"]])  # refuses unknown ones
    return values["label"]


def _recipe(name: str, values: dict[str, Any], own: list[str], plan: Plan, model: Any) -> dict[str, Any]:
    from diffkit.jobs.album import make_recipe

    told = {key: values[key] for key in [*own, *_SHARED] if key not in _UNTOLD}
    defaults = {key: default for key, (_, default) in _SHARED.items()}
    kept = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in told.items()
        if value not in (None, False) and (key not in defaults or value != defaults[key] or key in ("seed", "num"))
    }
    if name == "sample" and (words := {k: [kept.pop(k)] for k in ("label", "prompt") if k in kept}):
        kept |= {"classes" if k == "label" else k: v for k, v in words.items()}
    recipe = {**make_recipe(name, kept, model), **plan.about}
    inputs = {key: digest(path) for key, path in plan.inputs.items() if path is not None}
    return {**recipe, "inputs": inputs} if inputs else recipe


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _estimate(
    source: str, given: dict[str, Any], plans: list[Plan], settings: list[Any], groups: list[list[int]]
) -> Output:
    from diffkit.jobs.estimate import estimate

    all_facts = [
        estimate(
            source, given["revision"], settings[some[0]], given["num"] * len(some), given["batch_size"],
            plans[some[0]].visits,
        )
        for some in groups
    ]  # fmt: skip
    facts = {**all_facts[0], "unet_calls": sum(f["unet_calls"] for f in all_facts)}
    for some, own in zip(groups, all_facts, strict=True):
        if (later := plans[some[0]].later) is not None:
            more = later(settings[some[0]], given["num"] * len(some), given["batch_size"], own["steps"])
            facts["unet_calls"] += more.pop("unet_calls", 0)
            facts |= more
    lines = [
        f"pictures    {given['num'] * len(plans)}",
        f"UNet calls  {facts['unet_calls']}",
        f"parameters  {facts['parameters'] / 1e6:.2f} M, {facts['weights_mb']:.0f} MB in fp32",
        "timesteps   " + ", ".join(f"{t:g}" for t in facts["timesteps"][:100]) + (" ..." * (facts["steps"] > 100)),
    ]
    lines += [
        f"stage       {stage['model']}: {stage['steps']} steps, {stage['parameters'] / 1e6:.2f} M parameters"
        for stage in facts.get("stages", [])
    ]
    lines += [f"not counted {facts['uncounted']}"] if "uncounted" in facts else []
    return Output(facts, lines)
