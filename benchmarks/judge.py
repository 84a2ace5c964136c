"""Classifiers that judge generated pictures, trained on real images alone.

`digits` is for the 16-pixel pictures of the recipe `digits`: scikit-learn's images, prepared by the same data room.
`mnist` is for 28 pixels and reads the parquet folder `mnist` in $DIFFKIT_TEST_DATA. A small convolutional network
learns the training part, slightly rotated, scaled and shifted; the accuracy printed is on held-out real images that it
never saw (digits: a fixed quarter; mnist: the test split). It is kept in outputs/judges under a hash of its settings,
in the format that `classifier:FILE` reads; the same settings and seed on the same machine give the same network.

Run: python benchmarks/judge.py [digits] [mnist] [--retrain]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from common import OUTPUTS, finish, parser, table
from torch import Tensor

from diffkit.data import Batch, Loader, open_dataset
from diffkit.evaluation.classifier import SmallCNN, load_classifier, save_classifier
from diffkit.illusions.filters import parse_filter
from diffkit.recipes.schema import DatasetSpec

Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """All that the network depends on; its hash names the cached file."""

    kind: str
    resolution: int
    epochs: int
    held_out: float  # share of the training split; 0: the test split is used
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.05
    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 0.08  # of the width
    seed: int = 0
    version: int = 1  # of the code below
    blur: float = 0.0  # half of the training pictures are low-passed, up to this sigma at 64 pixels

    def path(self) -> Path:
        """Return where the trained network is kept."""
        told = {key: value for key, value in asdict(self).items() if key != "blur" or value}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return OUTPUTS / "judges" / f"{self.kind}-{digest[:12]}.safetensors"


KINDS = {
    "digits": Settings("digits", resolution=16, epochs=40, held_out=0.25, version=2),
    "mnist": Settings("mnist", resolution=28, epochs=4, held_out=0.0, batch_size=128, version=2),
}


def read(settings: Settings) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) for training and (images, labels) held out, as the data room gives them."""
    if settings.kind == "digits":
        return _everything(_digits(settings)), held_out(settings)
    return _split(settings, "train"), held_out(settings)


def held_out(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the (images, labels) that no judge was trained on."""
    if settings.kind == "digits":
        return _joined(list(_digits(settings).validation()))
    return _split(settings, "test")


def _digits(settings: Settings) -> Loader:
    return _loader(DatasetSpec(name="digits", resolution=settings.resolution, validation=settings.held_out))


def _split(settings: Settings, split: str) -> tuple[Tensor, Tensor]:
    folder = os.environ.get("DIFFKIT_TEST_DATA")
    if not folder or not (Path(folder) / settings.kind).is_dir():
        raise SystemExit(
            f"judge {settings.kind}: set DIFFKIT_TEST_DATA to the folder that holds {settings.kind}/*.parquet"
        )
    name = str(Path(folder) / settings.kind)
    return _everything(_loader(DatasetSpec(name=name, split=split, resolution=settings.resolution, channels=1)))


def _loader(spec: DatasetSpec) -> Loader:
    return Loader(open_dataset(spec), spec, batch_size=256, seed=0)


def _everything(loader: Loader) -> tuple[Tensor, Tensor]:
    """One epoch, which is an exact permutation of the training part."""
    assert loader.length is not None
    stream = loader.stream(0)
    images, labels = _joined([next(stream) for _ in range(math.ceil(loader.length / loader.batch_size))])
    return images[: loader.length], labels[: loader.length]


def _joined(parts: list[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([b.images for b in parts]), torch.cat([b.labels for b in parts if b.labels is not None])


def augment(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image a little; what comes in from outside is background (-1)."""
    count = len(images)

    def uniform(extent: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * extent

    angle, scale = uniform(math.radians(settings.degrees)), 1 + uniform(settings.scale, 2)
    rotation = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1).view(-1, 2, 2)
    theta = torch.cat([rotation * scale[:, None], uniform(2 * settings.shift, 2)[:, :, None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def low_passed(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Blur the second half of a batch, by one of eight sigmas up to the settings' own."""
    if not settings.blur:
        return images
    level = int(torch.randint(1, 9, (), generator=generator))
    half = len(images) // 2
    return torch.cat([images[:half], blurred(images[half:], settings.blur * level / 8)])


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return what is seen from afar: the low part of the split `low_high:SIGMA`."""
    return parse_filter(f"low_high:{sigma}").part(images, 0)


def train(settings: Settings) -> tuple[SmallCNN, float, int]:
    """Train a judge; return it with its accuracy on the held-out images and their number."""
    (images, labels), (held, truth) = read(settings)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout
        torch.manual_seed(settings.seed)
        judge = SmallCNN(settings.resolution, classes=10).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        per_epoch = len(images) // settings.batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.epochs * per_epoch, pct_start=0.2
        )
        for _ in range(settings.epochs):
            order = torch.randperm(len(images), generator=generator)
            for k in range(per_epoch):
                rows = order[k * settings.batch_size : (k + 1) * settings.batch_size]
                logits = judge(low_passed(augment(images[rows], settings, generator), settings, generator))
                loss = F.cross_entropy(logits, labels[rows], label_smoothing=settings.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    right = int((classifier(judge)(held) == truth).sum())
    return judge, right / len(held), len(held)


def classifier(judge: SmallCNN) -> Classify:
    """Wrap a network as images (N, 1, H, W) in [-1, 1] -> labels (N,)."""
    judge.eval()

    @torch.no_grad()
    def classify(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != judge.shape:
            raise SystemExit(f"this judge reads pictures of shape {judge.shape}, not {tuple(images.shape[1:])}")
        return torch.cat([judge(part).argmax(1) for part in images.float().cpu().split(512)])

    return classify


def load_judge(kind: str, *, retrain: bool = False, seed: int = 0) -> tuple[Classify, float, int]:
    """Return a judge, trained now or earlier.

    Args:
        kind: digits or mnist.
        retrain: Do not look for an earlier one.
        seed: Another seed is another judge of the same kind.

    Returns:
        classify: images (N, 1, H, W) in [-1, 1] -> labels (N,) int64; its accuracy on held-out images; their number.
    """
    path, accuracy, n = judge_file(kind, retrain=retrain, seed=seed)
    return classifier(load_classifier(path)[0]), accuracy, n


def judge_file(kind: str, *, retrain: bool = False, seed: int = 0, blur: float = 0.0) -> tuple[Path, float, int]:
    """Return the file of a judge, its accuracy on held-out images, and their number.

    Args:
        kind: digits or mnist.
        retrain: Do not look for an earlier one.
        seed: Another seed is another judge.
        blur: Above 0: one that also reads low-passed pictures, up to this sigma at 64 pixels.
    """
    from safetensors import safe_open

    settings = replace(KINDS[kind], seed=seed, blur=blur)
    path = settings.path()
    if path.is_file() and not retrain:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return path, facts["accuracy"], facts["n"]
    judge, accuracy, n = train(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"accuracy": accuracy, "n": n, "settings": asdict(settings)}
    save_classifier(path, judge, [str(k) for k in range(10)], {"facts": json.dumps(facts)})
    return path, accuracy, n


def main() -> None:
    options = parser(__doc__)
    options.add_argument("kinds", nargs="*", metavar="KIND", help="digits or mnist; both when left out.")
    options.add_argument("--retrain", action="store_true", help="Train even if there is a judge of these settings.")
    args = options.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        options.error(f"unknown judge {sorted(unknown)[0]!r}; there are: {', '.join(KINDS)}")
    result = {}
    for kind in args.kinds or KINDS:
        start = time.perf_counter()
        _, accuracy, n = load_judge(kind, retrain=args.retrain)
        result[kind] = {"accuracy": accuracy, "n": n, "seconds": round(time.perf_counter() - start, 1)}
    rows = [[kind, 100 * r["accuracy"], r["n"], round(r["n"] * (1 - r["accuracy"])), r["seconds"]]
            for kind, r in result.items()]  # fmt: skip
    print(table(["judge", "% right on held-out", "n", "wrong", "seconds"], rows))
    finish(result, args.json)


if __name__ == "__main__":
    main()
