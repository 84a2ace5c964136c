"""What a run leaves behind: previews while it trains, the pipeline, the loss curve and the model card at its end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit.models.ddpm import DDPM
from diffkit.models.meta import RunMeta
from diffkit.models.network import save_network, save_pipeline
from diffkit.models.text_encoder import vocabulary
from diffkit.models.text_network import TextNetwork, save_text_pipeline
from diffkit.recipes import reading as recipes
from diffkit.recipes.schema import Recipe
from diffkit.training import rng
from diffkit.training.build import Network
from diffkit.training.ema import EMA

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def previews(
    network: Network, scheduler: SchedulerMixin, meta: RunMeta, recipe: Recipe, loader: Any, ema: EMA | None
) -> dict[str, Any]:
    """Draw the preview grids, from the same noise every time.

    Returns:
        PIL images by kind: "raw", and "ema" where there is an average. A one-step denoiser's columns are clean,
        noisy and denoised.
    """
    device = next(network.parameters()).device
    model = DDPM(network, scheduler, meta, device=device, attention=recipe.model.attention)
    draw: Any = _denoised if meta.prediction == "one_step" else _drawn
    with torch.no_grad():
        grids = {"raw": draw(model, recipe, loader)}
        if ema is not None:
            with ema.applied():
                grids["ema"] = draw(model, recipe, loader)
    network.train()
    return grids


def _drawn(model: DDPM, recipe: Recipe, loader: Any) -> Any:
    from diffkit.engine.guidance import cfg
    from diffkit.engine.samplers import default_sampler, is_flow, make_sampler
    from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
    from diffkit.pictures.grids import grid

    spec = recipe.training
    count = spec.preview_images
    seeds = generators(range(count))
    # From the last level on, whatever spacing a pretrained pipeline asks for: it may not allow so few steps.
    spacing = None if is_flow(model.scheduler) else "trailing"
    sampler = make_sampler(default_sampler(model.scheduler), model.scheduler, spacing=spacing)
    steps = min(spec.preview_steps, model.scheduler.config.num_train_timesteps)
    net: Any = model
    cond = model.encode([None] * count)
    if model.info.classes:
        cond = model.encode(_spread(model.network, count, loader))
        net = cfg(model, model.uncond(count), spec.preview_guidance)
    set_grid(sampler, steps)
    x = pure_noise(sampler, model.noise(seeds))
    for step in denoise(net, x, sampler, cond, generators=seeds):
        x = step.x
    return grid(model.codec.decode(x))


def _spread(network: Network, count: int, loader: Any) -> list[str | None]:
    """The labels of a preview: the classes in turn, or captions of images spread evenly over the dataset."""
    if not isinstance(network, TextNetwork):
        return [str(k % network.num_classes) for k in range(count)]
    source, length = loader.dataset.source, loader.dataset.length
    places = [k * length // count for k in range(count)]
    labels = [network.label(source.caption(place)) for place in places]
    return [None if label == network.null_class else str(label) for label in labels]


def _denoised(model: DDPM, recipe: Recipe, loader: Any) -> Any:
    from diffkit.pictures.grids import grid

    batch = next(iter(loader.validation())) if recipe.dataset.validation else next(loader.stream(0))
    clean = model.codec.encode(batch.images[: recipe.training.preview_images])
    noise = torch.randn(clean.shape, generator=rng.generator("cpu", 0, "preview")).to(clean)
    noisy = clean + recipe.noise.sigma * noise
    labels = batch.labels[: len(clean)] if model.info.classes else None
    out = model.network(noisy, torch.zeros(len(clean), dtype=torch.long, device=clean.device), labels).float()
    rows = torch.stack([clean, noisy.clamp(-1, 1), out], dim=1).flatten(0, 1)
    return grid(model.codec.decode(rows), columns=6)


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss curve of `metrics.jsonl`."""
    from diffkit.pictures.plots import loss_curve

    loss_curve(rows, path)


def write_pipeline(
    folder: Path, network: Network, scheduler: SchedulerMixin, meta: RunMeta, ema: EMA | None, main: bool
) -> None:
    """Write the averaged weights as the pipeline and the raw ones as `unet_raw`, each folder replaced as a whole.

    Sharded weights are gathered by every process; one writes.
    """
    whole = _gathered(network, main)
    if ema is None:
        if main:
            _replace(folder, lambda place: _save(place, whole, scheduler, meta))
        return
    if main:
        _replace(folder, lambda place: save_network(place / "unet_raw", whole))
    with ema.applied():
        averaged = _gathered(network, main)
        if main:
            _replace(folder, lambda place: _save(place, averaged, scheduler, meta))


def _save(place: Path, network: Network, scheduler: SchedulerMixin, meta: RunMeta) -> None:
    if isinstance(network, TextNetwork):
        save_text_pipeline(place, network, scheduler, meta)
    else:
        save_pipeline(place, network, scheduler, meta)


def _gathered(network: Network, main: bool) -> Network:
    """The network itself, or a whole copy of a sharded one."""
    if not any(hasattr(p, "full_tensor") for p in network.parameters()):
        return network
    weights = {k: v.full_tensor().cpu() if hasattr(v, "full_tensor") else v for k, v in network.state_dict().items()}
    if not main:
        return network
    whole = network.hollow()
    whole.load_state_dict(weights)
    return whole


def _replace(folder: Path, write: Any) -> None:
    """Write into a temporary folder, then move its entries into place one by one."""
    place = folder / f".writing-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    write(place)
    for entry in sorted(place.iterdir()):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    place.rmdir()


def model_card(recipe: Recipe, meta: RunMeta, summary: dict[str, Any], folder: Path, network: Any = None) -> str:
    """Return the model card: what was trained on what, the measured loss, a sample grid, how to use it, the recipe."""
    grids = sorted((folder / "samples").glob("step-*-ema.png")) or sorted((folder / "samples").glob("step-*-raw.png"))
    picture = f"![Samples after {summary['step']} updates](samples/{grids[-1].name})\n" if grids else ""
    conditional, text = bool(meta.class_names), meta.text_encoder != "none"
    losses = [f"training loss {summary['loss']:.5f}"] if summary["loss"] is not None else []
    if summary.get("validation_loss") is not None:
        losses.append(f"validation loss {summary['validation_loss']:.5f}")
    base = f"base_model: {recipe.model.pretrained}\n" if _hub_like(recipe.model.pretrained) else ""
    data = f"datasets:\n- {recipe.dataset.name}\n" if _hub_like(recipe.dataset.name) else ""
    options = f"--class {meta.class_names[0]} --guidance 2 -n 16" if conditional else "-n 16"
    if text:
        options = f'--prompt "{_example(network)}" --guidance 4 -n 16'
    use = f"diffkit sample {folder.name} {options}"
    stock = _STOCK_TEXT.replace("PROMPT", _example(network)) if text else _STOCK
    python = "" if conditional or meta.prediction in ("one_step", "linear_mix") else stock
    kind = "text-to-image" if text else f"{'class-conditional' if conditional else 'unconditional'}-image-generation"
    source = f" It goes on from `{recipe.model.pretrained}`." if recipe.model.pretrained else ""
    classes = f"Classes: {', '.join(meta.class_names)}.\n\n" if conditional else ""
    if text:
        classes = _words(network, meta)
    return f"""---
library_name: diffusers
tags:
- diffkit
- {kind}
- diffusion
{base}{data}---

# {folder.resolve().name}

A diffusion model of {meta.resolution} px images, trained with diffkit on `{recipe.dataset.name}`.{source}
It predicts {meta.prediction}; {summary["step"]} updates, {", ".join(losses) or "no loss recorded"}.

{picture}
{classes}## Use

```
{use}
```
{python}
## Limits

It draws what its dataset holds and nothing else; look at the dataset for its licence and its biases.

## Recipe

```yaml
{recipes.dump_yaml(recipe).strip()}
```
"""


def _example(network: TextNetwork) -> str:
    return max(network.captions[:1000], key=lambda caption: (-len(caption), caption)).replace('"', "")


def _words(network: TextNetwork, meta: RunMeta) -> str:
    """The part of a card that says which prompts the model knows."""
    captions = network.captions
    words = vocabulary(network.tokenizer)
    shown = ", ".join(f"`{caption[:80]}`" for caption in captions[:: max(1, len(captions) // 8)][:8])
    listed = ", ".join(words[:200]) + (", ..." if len(words) > 200 else "")
    return (
        f"## Prompts\n\nTrained on {len(captions):,} different captions, such as {shown}. "
        f"The text encoder is a small T5 that was {meta.text_encoder}"
        f"{' at its random weights' if meta.text_encoder == 'frozen' else ''}: it knows no other words than these "
        f"{len(words):,}, in lower case: {listed}.\n\n"
    )


_STOCK_TEXT = """
```python
from diffusers import IFPipeline

pipeline = IFPipeline.from_pretrained("FOLDER_OR_ID", safety_checker=None, feature_extractor=None, watermarker=None)
image = pipeline("PROMPT", guidance_scale=4, num_inference_steps=50).images[0]
```
"""

_STOCK = """
```python
from diffusers import DDPMPipeline

image = DDPMPipeline.from_pretrained("FOLDER_OR_ID")().images[0]
```
"""


def _hub_like(name: str | None) -> bool:
    return (
        bool(name)
        and str(name).count("/") == 1
        and not str(name).startswith((".", "/", "~"))
        and not Path(str(name)).exists()
    )
