"""What a run leaves behind: previews while it trains, and the pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.models.ddpm import DDPM
from diffkit.models.meta import RunMeta
from diffkit.models.network import save_network, save_pipeline, whole
from diffkit.models.text_network import TextNetwork, TrainedNetwork, save_text_pipeline
from diffkit.recipes.schema import ONE_STEP, Recipe
from diffkit.training import rng
from diffkit.training.ema import EMA
from diffkit.training.state import is_sharded

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from PIL import Image

    from diffkit.data.loader import Loader
    from diffkit.types import Denoiser


def previews(
    network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta, recipe: Recipe, loader: Loader, ema: EMA | None
) -> dict[str, Image.Image]:
    """Draw the preview grids, from the same noise every time.

    Returns:
        PIL images by kind: "raw", and "ema" where there is an average. A one-step denoiser's columns are clean,
        noisy and denoised.
    """
    device = next(network.parameters()).device
    model = DDPM(network, scheduler, meta, device=device, attention=recipe.model.attention)
    draw = _denoised if meta.prediction in ONE_STEP else _drawn
    with torch.no_grad():
        grids = {"raw": draw(model, recipe, loader)}
        if ema is not None:
            with ema.applied():
                grids["ema"] = draw(model, recipe, loader)
    network.train()
    return grids


def _drawn(model: DDPM, recipe: Recipe, loader: Loader) -> Image.Image:
    from diffkit.pictures.grids import grid

    spec = recipe.training
    labels = labels_for(model, spec.preview_images, loader)
    return grid(drawn(model, range(spec.preview_images), labels, spec.preview_steps, spec.preview_guidance))


def drawn(model: DDPM, seeds: Sequence[int], labels: list[str | None], steps: int, guidance: float) -> Tensor:
    """Draw one picture per seed and label, from noise, by the sampler that suits the model: (B, C, R, R) in [-1, 1]."""
    from diffkit.engine.guidance import cfg
    from diffkit.engine.samplers import default_sampler, is_flow, make_sampler
    from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid

    random = generators(seeds)
    # From the last level on, whatever spacing a pretrained pipeline asks for: it may not allow so few steps.
    spacing = None if is_flow(model.scheduler) else "trailing"
    sampler = make_sampler(default_sampler(model.scheduler), model.scheduler, spacing=spacing)
    net: Denoiser = model
    cond = model.encode(labels)
    if model.info.classes:
        net = cfg(model, model.uncond(len(labels)), guidance)
    set_grid(sampler, min(steps, model.scheduler.config.num_train_timesteps))
    x = pure_noise(sampler, model.noise(random))
    for step in denoise(net, x, sampler, cond, generators=random):
        x = step.x
    return model.codec.decode(x)


def labels_for(model: DDPM, count: int, loader: Loader) -> list[str | None]:
    """Return what so many pictures are to show: the classes in turn, captions of the data, or None."""
    return _spread(model.network, count, loader) if model.info.classes else [None] * count


def _spread(network: TrainedNetwork, count: int, loader: Loader) -> list[str | None]:
    """The labels of a preview: the classes in turn, or captions of images spread evenly over the dataset."""
    if not isinstance(network, TextNetwork):
        return [str(k % network.num_classes) for k in range(count)]
    source, length = loader.dataset.source, loader.dataset.length
    assert source is not None
    assert length is not None
    labels = [network.label(source.caption(k * length // count)) for k in range(count)]
    return [None if label == network.null_class else str(label) for label in labels]


def _denoised(model: DDPM, recipe: Recipe, loader: Loader) -> Image.Image:
    from diffkit.pictures.grids import grid

    batch = next(iter(loader.validation())) if recipe.dataset.validation else next(loader.stream(0))
    clean = model.codec.encode(batch.images[: recipe.training.preview_images])
    noise = torch.randn(clean.shape, generator=rng.generator("cpu", 0, "preview")).to(clean)
    noisy = noise if model.meta.prediction == "pure_noise" else clean + recipe.noise.sigma * noise
    labels = batch.labels[: len(clean)] if batch.labels is not None and model.info.classes else None
    out = model.network(noisy, torch.zeros(len(clean), dtype=torch.long, device=clean.device), labels).float()
    rows = torch.stack([model.codec.decode(x) for x in (clean, noisy, out)], dim=1).flatten(0, 1)
    return grid(rows, columns=6)


def write_pipeline(
    folder: Path, network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta, ema: EMA | None, main: bool
) -> None:
    """Write the averaged weights as the pipeline and the raw ones as `unet_raw`, each folder replaced as a whole.

    Sharded weights are gathered by every process; one writes.
    """
    raw = _gathered(network, main)
    if ema is None:
        if main:
            _replace(folder, lambda place: _save(place, raw, scheduler, meta))
        return
    if main:
        _replace(folder, lambda place: save_network(place / "unet_raw", raw))
    with ema.applied():
        averaged = _gathered(network, main)
        if main:
            _replace(folder, lambda place: _save(place, averaged, scheduler, meta))


def _save(place: Path, network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta) -> None:
    if isinstance(network, TextNetwork):
        save_text_pipeline(place, network, scheduler, meta)
    else:
        save_pipeline(place, network, scheduler, meta)


def _gathered(network: TrainedNetwork, main: bool) -> TrainedNetwork:
    """The network itself, or a whole copy of a sharded one."""
    if not is_sharded(network):
        return network
    weights = {name: whole(value).cpu() for name, value in network.state_dict().items()}
    if not main:
        return network
    gathered = network.hollow()
    gathered.load_state_dict(weights)
    return gathered


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
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
