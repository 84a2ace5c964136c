"""`diffkit sample`: pictures from noise."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.cli import loading, options, pictures
from diffkit.cli.progress import Bar
from diffkit.cli.runner import Output, command
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffkit.jobs.sample import Settings

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# What the model that ships with diffkit draws where nothing is asked for.
EXAMPLES = ("a red heart", "a handwritten three", "the letter R", "a green tree", "the blue letter K", "an orange star")

Where = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run's or model's folder, or a Hub id; when left out runs/digits if there, else the model that ships "
        "with diffkit.",
    ),
]
Count = Annotated[
    int | None, typer.Option("--num", "-n", min=1, help="How many pictures; one per class when left out.")
]
Timesteps = Annotated[str | None, typer.Option("--timesteps", help="The grid itself: descending, 999,750,500,250,0.")]
Spacing = Annotated[str | None, typer.Option("--spacing", help="Of the grid: leading, trailing or linspace.")]
StopNoise = Annotated[
    int | None, typer.Option("--stop-noise-after", min=0, metavar="N", help="No fresh noise after N steps.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures per batch.")]
Columns = Annotated[int | None, typer.Option("--columns", min=1, help="Pictures per row of the grid.")]
Raw = Annotated[bool, typer.Option("--raw/--ema", help="A run's last weights, in place of their moving average.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "sample")(sample)


def sample(
    model: Where = None,
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    negative_prompt: options.NegativePrompt = None,
    guidance: options.Guidance = None,
    guidance_interval: options.Interval = None,
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    spacing: Spacing = None,
    eta: options.Eta = 0.0,
    timesteps: Timesteps = None,
    stop_noise_after: StopNoise = None,
    seed: options.Seed = 0,
    num: Count = None,
    batch_size: BatchSize = 64,
    columns: Columns = None,
    sweep: options.Sweep = None,
    gif: options.Gif = False,
    raw: Raw = False,
    out: options.Out = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "auto",
    max_batch: options.MaxBatch = None,
    compile: options.Compile = False,
    no_safety_checker: pictures.NoSafety = False,
    revision: options.Revision = None,
    variant: options.Variant = None,
    allow_pickle: options.AllowPickle = False,
    dry_run: options.DryRun = False,
) -> Output:
    """Draw pictures from noise: of a class (`--class all` draws one of each) or a prompt, as the model takes them."""
    began = time.perf_counter()
    source = model
    if source is None:  # first: what cannot be drawn is said before torch is imported
        source, prompt = _default(classes, prompt, negative_prompt, sweep)
    from diffkit.engine.settings import Settings, check_settings, interval, seeds_from

    settings = Settings(
        scheduler, steps, spacing, eta, _numbers(timesteps), stop_noise_after, guidance, negative_prompt, max_batch,
        interval=interval(guidance_interval),
    )  # fmt: skip
    check_settings(settings)
    if sweep:
        if len(classes or []) > 1 or len(prompt or []) > 1:
            raise UsageError("a sweep draws one class or prompt", "Sweep them: --sweep class=3,7.")
        return pictures.sweep_sample(
            {
                "model": source, "label": classes[0] if classes else None, "prompt": prompt[0] if prompt else None,
                "negative_prompt": negative_prompt, "guidance": guidance, "guidance_interval": guidance_interval,
                "steps": steps, "scheduler": scheduler,
                "spacing": spacing, "eta": eta, "timesteps": timesteps, "stop_noise_after": stop_noise_after,
                "seed": seed, "num": num or 1, "batch_size": batch_size, "sweep": sweep, "gif": gif, "raw": raw,
                "out": out, "device": device, "dtype": dtype, "memory": memory, "max_batch": max_batch,
                "compile": compile, "no_safety_checker": no_safety_checker, "revision": revision, "variant": variant,
                "allow_pickle": allow_pickle, "dry_run": dry_run,
            },
            HUB,
        )  # fmt: skip
    pictures.warn_unheard([settings])
    assert source is not None
    if dry_run:
        return _estimate(source, revision, settings, num or max(1, len(_split(classes)), len(prompt or [])), batch_size)
    from diffkit.jobs.album import Album, Film, make_recipe, plain_name

    Album("sample", out, num or 1)  # fails before anything is loaded
    rank, world, place, wait = _processes(device)
    drawn = loading.load_model(
        source, device=place, dtype=dtype, revision=revision, variant=variant, allow_pickle=allow_pickle, raw=raw,
        memory=memory, safety="off" if no_safety_checker else "auto", compile=compile,
        prompts=[*(prompt or []), negative_prompt or "", ""] if prompt else ["", negative_prompt or ""],
    )  # fmt: skip
    loaded = time.perf_counter()
    names = _labels(drawn, classes, prompt)
    count = num or len(names)
    labels = [names[k % len(names)] for k in range(count)]
    seeds = seeds_from(seed, count)
    columns = columns or (len(names) if len(names) > 1 else None)
    album, film = Album("sample", out, count), Film(drawn.codec, columns) if gif and rank == 0 else None
    arguments = {
        "model": source, ("prompt" if prompt else "classes"): [n for n in names if n is not None] or None,
        "negative_prompt": negative_prompt, "guidance": guidance, "guidance_interval": guidance_interval,
        "steps": steps, "max_batch": max_batch,
        "no_safety_checker": no_safety_checker or None, "memory": None if memory == "auto" else memory,
        "compile": compile or None,
        "scheduler": scheduler, "spacing": spacing, "eta": eta or None, "timesteps": timesteps,
        "stop_noise_after": stop_noise_after, "seed": seed, "num": count, "batch_size": batch_size,
        "raw": raw or None, "dtype": dtype, "revision": revision, "variant": variant,
    }  # fmt: skip
    recipe = make_recipe("sample", arguments, drawn)
    grid_of, calls = _draw(drawn, seeds, labels, settings, album, film, recipe, batch_size, rank, world)
    denoised = time.perf_counter()
    wait()
    sheet = animation = None
    if rank == 0:
        captions = [label or "" for label in labels] if len(set(labels)) > 1 else None
        sheet = album.write_grid(seeds, recipe, columns, captions)
        animation = album.write_gif(film) if film else None
    payload = {
        "images": [str(album.path(s)) for s in seeds],
        "grid": sheet and str(sheet),
        "gif": animation and str(animation),
        "model": plain_name(drawn),
        "seeds": seeds,
        "steps": len(grid_of),
        "timesteps": grid_of,
        "unet_calls": calls,
        "seconds": loading.seconds(drawn, began, loaded, denoised),
    }
    return Output({k: v for k, v in payload.items() if v is not None}, _lines(payload, album, count))


def _draw(
    model: Any, seeds: list[int], labels: list[str | None], settings: Settings, album: Any, film: Any,
    recipe: dict[str, Any], batch_size: int, rank: int, world: int,
) -> tuple[list[float], int]:  # fmt: skip
    """Draw and write this process's pictures; return the timesteps and the network calls of the whole job."""
    from diffkit.jobs.sample import batches, generate, takes_prompts, timesteps_of

    visited, kind = timesteps_of(model, settings), "prompt" if takes_prompts(model) else "class"
    pictures.warn_unguided(model, settings, visited)
    mine = len(batches(len(seeds), batch_size, rank, world))
    with Bar("sampling", mine * len(visited)) as bar:

        def on_step(step: Any, positions: range) -> None:
            bar.advance()
            if film is not None:
                film.shoot(step, positions)

        for done in generate(
            model, seeds, labels, settings, batch_size=batch_size, rank=rank, world=world, on_step=on_step
        ):
            for picture in done:
                own = {"seed": picture.seed, "index": picture.index, kind: picture.label}
                album.write(picture.seed, picture.image, {**recipe, **{k: v for k, v in own.items() if v is not None}})
    return visited, len(batches(len(seeds), batch_size)) * len(visited)


def _lines(payload: dict[str, Any], album: Any, count: int) -> list[str]:
    seconds = payload["seconds"]["denoise"]
    lines = [f"{count} picture{'s' if count > 1 else ''}, {payload['steps']} steps, {seconds:.1f} s"]
    if count == 1:
        lines.append(f"picture  {payload['images'][0]}")
    else:
        lines += [f"grid     {payload['grid']}", f"pictures {album.folder}"]
    return lines + ([f"gif      {payload['gif']}"] if payload["gif"] else [])


def _default(
    classes: list[str] | None, prompts: list[str] | None, negative: str | None, sweep: list[str] | None
) -> tuple[str | None, list[str] | None]:
    """Choose the model where none is named, and the prompts; None leaves the choice to the sweep, which knows them."""
    from diffkit.models.vocabulary import BUNDLED

    swept = {entry.partition("=")[0].strip().lstrip("-") for entry in sweep or []}
    if swept & {"prompt", "negative-prompt", "negative_prompt"}:
        return None, prompts
    if (classes or "class" in swept) and not prompts and not (loading.DEFAULT_RUN / "model_index.json").is_file():
        raise UsageError(
            f"no model is named, and there is no {loading.DEFAULT_RUN}",
            "Run `diffkit train` first, give a folder or a Hub id, or a --prompt in place of the class.",
        )
    words = " ".join([*(prompts or []), negative or ""]).strip()
    source = loading.default_model(HUB, words or None)
    if not words and not classes and source == BUNDLED:
        prompts = [*EXAMPLES[: 1 if sweep else None]]
        logging.getLogger("diffkit").info("no --prompt: %s", ", ".join(prompts))
    return source, prompts


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--timesteps {text!r}: give whole numbers with commas, 999,750,500,250,0") from None


def _split(classes: list[str] | None) -> list[str]:
    return [part.strip() for entry in classes or [] for part in entry.split(",") if part.strip()]


def _labels(model: Any, classes: list[str] | None, prompts: list[str] | None) -> list[str | None]:
    """Return what was asked for: prompts, or classes in the model's own spelling; [None] where nothing was."""
    from diffkit.jobs.sample import takes_prompts

    if takes_prompts(model):
        if classes:
            raise UsageError(f"--class {classes[0]!r}: this model takes prompts", "Give --prompt.")
        return [*prompts] if prompts else [None]
    if prompts:
        raise UsageError(f"--prompt {prompts[0]!r}: this model knows no prompts", "Give --class, or leave it out.")
    known = model.class_names
    wanted: list[str] = []
    for entry in classes or []:
        if entry in known:  # a name may hold a comma
            wanted.append(entry)
        elif entry == "all":
            if not known:
                raise UsageError("--class all: this model is unconditional and has no classes", "Leave --class out.")
            wanted += known
        else:
            wanted += _split([entry])
    cond = model.encode(wanted) if wanted else None  # refuses unknown ones
    if cond is None:
        return [None]
    return [known[int(label)] for label in cond.tensors["class_labels"]]


def _processes(device: str) -> tuple[int, int, str, Any]:
    """Return (rank, number of processes, device, barrier); under `accelerate launch` the launcher decides."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, device, lambda: None
    from accelerate import PartialState

    state = PartialState()
    place = str(state.device) if device == "auto" else device
    return state.process_index, state.num_processes, place, state.wait_for_everyone


def _estimate(source: str, revision: str | None, settings: Settings, count: int, batch_size: int) -> Output:
    from diffkit.jobs.estimate import estimate

    facts = estimate(source, revision, settings, count, batch_size)
    shown = ", ".join(f"{t:g}" for t in facts["timesteps"])
    return Output(
        facts,
        [
            f"pictures    {count}, in batches of {min(batch_size, count)}",
            f"steps       {facts['steps']}",
            f"UNet calls  {facts['unet_calls']}",
            f"parameters  {facts['parameters'] / 1e6:.2f} M, {facts['weights_mb']:.0f} MB in fp32",
            f"timesteps   {shown}",
        ],
    )
