"""How good a model's pictures are: drawn by the job `sample`, or read from a folder, and measured against real ones.

What is measured, and by what, is in `diffkit.evaluation`; this is the way from a model to its pictures. Under a
launcher the processes share the drawing; picture k is the one that `sample` draws with seed k, whoever draws it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.evaluation.features import Features, parse_features
from diffkit.evaluation.metrics import METRICS
from diffkit.evaluation.pictures import Pictures, holds_pictures, side_of
from diffkit.evaluation.report import Evaluation, report
from diffkit.evaluation.statistics import MOST, embedded, joined, real_features
from diffkit.jobs.base import build
from diffkit.jobs.batch import Batch
from diffkit.jobs.options import Run, Watch
from diffkit.jobs.rows import Prepared, batches_of
from diffkit.jobs.run import draw, load_prepared, prepare, processes
from diffkit.jobs.sample import Sample
from diffkit.models import info, open_repo
from diffkit.models.devices import pick_device
from diffkit.recipes.schema import DatasetSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffkit.types import Model, ModelInfo

LOG = logging.getLogger("diffkit.jobs")


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, against what, and how.

    Attributes:
        source: A model, or a dataset or folder of pictures.
        dataset: The real pictures: a registered name, a folder, a Hub id.
        split: Of the dataset.
        features: Of the registry, with their source.
        metrics: Names; all when empty.
        num: Pictures to draw, or to read of a folder; of a folder all when None.
        num_real: Real pictures; `MOST` when None.
        resolution: Side at which pictures are compared; the model's, or of the first picture, when None.
        channels: 1 grey, 3 RGB; colour where either side has it when None.
    """

    source: str
    dataset: str
    split: str = "train"
    features: str = "classifier"
    metrics: tuple[str, ...] = ()
    num: int | None = None
    num_real: int | None = None
    resolution: int | None = None
    channels: int | None = None


DRAWN = 1000  # pictures of a model, where nobody says how many


def evaluate(
    source: str,
    dataset: str,
    *,
    split: str = "train",
    features: str = "classifier",
    metrics: Sequence[str] = (),
    num: int | None = None,
    num_real: int | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    device: str = "auto",
    watch: Watch | None = None,
    **sampling: Any,
) -> Evaluation:
    """Measure how near pictures are to real ones.

    Args:
        source: A model's folder or Hub id, or a folder or dataset of pictures.
        dataset: The real pictures: a registered name, a folder, a Hub id.
        split: Of the dataset.
        features: `classifier[:FILE]`, `clip:ID`, `dinov2:ID` or `inception:FILE`.
        metrics: Names of metrics; all when left out.
        num: How many pictures are drawn (1000 when left out), or read of a folder (all).
        num_real: How many real ones; 10,000 or all there are when left out.
        resolution: Side at which pictures are compared; the model's, or that of a folder's first picture.
        channels: 1 grey, 3 RGB; colour where either side has it, when left out.
        device: Where to draw and to compute features.
        watch: A listener of the drawing.
        sampling: Fields of the job `sample`: seed, steps, scheduler, guidance, batch_size, prompt, classes, raw, ...

    Returns:
        The numbers; under a launcher every process has them.

    Raises:
        UsageError: An unknown name, a model that needs prompts where there are none, too few pictures.
        DataError, ModelError: Pictures or weights that cannot be read.
    """
    asked = Asked(source, dataset, split, features, tuple(metrics), num, num_real, resolution, channels)
    for name in asked.metrics:
        METRICS.parse(name)
    parse_features(features)  # what is not there is said before anything is opened
    build(Sample, sampling)
    if num is not None and num < 2:
        raise UsageError(f"`num` is {num}; at least two pictures are needed", "Ask for more: 1000, say.")
    if holds_pictures(source):
        if sampling:
            raise UsageError(
                f"`{next(iter(sampling))}`: {source} holds pictures, and nothing is drawn", "Leave it out."
            )
        return _folder(asked, device)
    return _model(asked, device, watch or Watch(), {k: v for k, v in sampling.items() if v is not None})


def _folder(asked: Asked, device: str) -> Evaluation:
    """Compare pictures with pictures."""
    size = asked.resolution or side_of(asked.source, asked.split)
    theirs = Pictures(DatasetSpec(name=asked.source, split=asked.split, resolution=size), asked.channels)
    real = Pictures(DatasetSpec(name=asked.dataset, split=asked.split, resolution=size), asked.channels)
    depth = max(theirs.depth, real.depth)
    theirs, real = (Pictures(p.spec, depth, p.dataset) for p in (theirs, real))
    features = parse_features(asked.features, pick_device(device)).fitted(real)
    if theirs.identity == real.identity:
        LOG.warning("%s and %s are the same pictures: a set is no measure of itself", asked.source, asked.dataset)
    about = {"pictures": asked.source, "identity": theirs.identity}
    other = embedded(features, theirs, asked.num)
    return report(features, real, real_features(features, real, asked.num_real or MOST), other, about, asked.metrics)


def _model(asked: Asked, device: str, watch: Watch, sampling: dict[str, Any]) -> Evaluation:
    """Draw and compare."""
    known = info(open_repo(asked.source, revision=sampling.get("revision")))
    height, width = known.size
    if height != width:
        raise UsageError(f"{known.id} draws pictures of {width}x{height} pixels; squares are compared")
    size = asked.resolution or height
    real = Pictures(DatasetSpec(name=asked.dataset, split=asked.split, resolution=size), asked.channels)
    real = Pictures(real.spec, asked.channels or max(known.channels, real.depth), real.dataset)
    parse_features(asked.features).suits(real)
    values = {"model": asked.source, "num": asked.num or DRAWN, **sampling, **_labels(asked, known, real, sampling)}
    options = Run(files=False, device=device)
    prepared = prepare(Sample, values, options)
    rank, world, place, barrier = processes(device)
    features = parse_features(asked.features, pick_device(place))
    if rank:  # the first process learns and fills the cache, the others read
        barrier()
    features = features.fitted(real)
    truth = real_features(features, real, asked.num_real or MOST)
    if not rank:
        barrier()
    model = load_prepared(prepared, options, place, watch, {})
    other = _drawn(prepared, model, features, real, watch, rank, world)
    job = prepared.jobs[0]
    about = {
        "model": {"id": known.id, "revision": known.revision, "family": known.family},
        "sampling": {key: value for key, value in job.arguments().items() if key not in ("prompt", "model")},
        "processes": world,
    }  # fmt: skip
    return report(features, real, truth, other, about, asked.metrics)


def _labels(asked: Asked, known: ModelInfo, real: Pictures, sampling: dict[str, Any]) -> dict[str, Any]:
    """What the pictures are to show, where nobody says: the classes in turn, or the captions of real pictures."""
    if known.conditioning == "none" or any(sampling.get(key) for key in ("prompt", "classes")):
        return {}
    if not known.text:
        return {"classes": ("all",)}
    captions = real.captions(asked.num or DRAWN)
    if not captions:
        raise UsageError(
            f"{known.id} draws from prompts, and dataset {asked.dataset} has no captions",
            "Give a `prompt`, as often as there are different ones.",
        )
    return {"prompt": tuple(captions)}


def _drawn(
    prepared: Prepared, model: Model, features: Features, real: Pictures, watch: Watch, rank: int, world: int
) -> Tensor:
    """The features of the pictures that `sample` draws, (N, D), in the order of their seeds."""
    job = prepared.jobs[0]
    assert isinstance(job, Sample)
    rows = job.rows(prepared.info)
    mine = batches_of(len(rows), job.batch_size)[rank::world]
    watch.begin("sample", len(prepared.timesteps[0]) * len(mine))
    found: list[tuple[int, Tensor]] = []
    with torch.no_grad():
        for positions in mine:
            some = [rows[k] for k in positions]
            batch = Batch([row.seed for row in some], [row.label for row in some], job.settings)
            pictures = draw(job, model, batch, watch).pictures  # as a PNG keeps them, in whole levels
            found.append((positions.start, features.embed(real.like(pictures))))
    watch.end()
    return joined(found, world)
