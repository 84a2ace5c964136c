"""Classifiers that judge generated pictures, trained on real images alone.

`digits` is for the 16-pixel pictures of the recipe `digits`: scikit-learn's images, prepared by the same data room.
`mnist` is for 28 pixels and reads the parquet folder `mnist` in $DIFFKIT_TEST_DATA. A small convolutional network
learns the training part, slightly rotated, scaled and shifted; the accuracy printed is on held-out real images that it
never saw (digits: a fixed quarter; mnist: the test split). It is kept in outputs/judges under a hash of its settings;
the same settings and seed on the same machine give the same network.

Run: python benchmarks/judge.py [digits] [mnist] [--retrain]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import OUTPUTS, finish, parser, table
from torch import Tensor, nn

from diffkit.data import Batch, Loader, open_dataset
from diffkit.schema import DatasetSpec

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

    def path(self) -> Path:
        """Return where the trained network is kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return OUTPUTS / "judges" / f"{self.kind}-{digest[:12]}.safetensors"


KINDS = {
    "digits": Settings("digits", resolution=16, epochs=40, held_out=0.25),
    "mnist": Settings("mnist", resolution=28, epochs=4, held_out=0.0, batch_size=128),
}


class Judge(nn.Module):
    """Four convolutions, two poolings, one linear layer: (N, 1, R, R) in [-1, 1] -> (N, 10) logits."""

    def __init__(self, resolution: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, width), (width, 2 * width)):
            for channels in (before, after):
                layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.shape = (1, resolution, resolution)
        side = resolution // 4
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * side * side, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(images)


def read(settings: Settings) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) for training and (images, labels) held out, as the data room gives them."""
    if settings.kind == "digits":
        loader = _loader(DatasetSpec(name="digits", resolution=settings.resolution, validation=settings.held_out))
        return _everything(loader), _joined(list(loader.validation()))
    folder = os.environ.get("DIFFKIT_TEST_DATA")
    if not folder or not (Path(folder) / settings.kind).is_dir():
        raise SystemExit(
            f"judge {settings.kind}: set DIFFKIT_TEST_DATA to the folder that holds {settings.kind}/*.parquet"
        )
    name = str(Path(folder) / settings.kind)
    train, test = (
        _everything(_loader(DatasetSpec(name=name, split=split, resolution=settings.resolution, channels=1)))
        for split in ("train", "test")
    )
    return train, test


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


def train(settings: Settings) -> tuple[Judge, float, int]:
    """Train a judge; return it with its accuracy on the held-out images and their number."""
    (images, labels), (held, truth) = read(settings)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout
        torch.manual_seed(settings.seed)
        judge = Judge(settings.resolution).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        per_epoch = len(images) // settings.batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.epochs * per_epoch, pct_start=0.2
        )
        for _ in range(settings.epochs):
            order = torch.randperm(len(images), generator=generator)
            for k in range(per_epoch):
                rows = order[k * settings.batch_size : (k + 1) * settings.batch_size]
                logits = judge(augment(images[rows], settings, generator))
                loss = F.cross_entropy(logits, labels[rows], label_smoothing=settings.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    right = int((classifier(judge)(held) == truth).sum())
    return judge, right / len(held), len(held)


def classifier(judge: Judge) -> Classify:
    """Wrap a network as images (N, 1, H, W) in [-1, 1] -> labels (N,)."""
    judge.eval()

    @torch.no_grad()
    def classify(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != judge.shape:
            raise SystemExit(f"this judge reads pictures of shape {judge.shape}, not {tuple(images.shape[1:])}")
        return torch.cat([judge(part).argmax(1) for part in images.float().cpu().split(512)])

    return classify


def load_judge(kind: str, *, retrain: bool = False) -> tuple[Classify, float, int]:
    """Return a judge, trained now or earlier.

    Args:
        kind: digits or mnist.
        retrain: Do not look for an earlier one.

    Returns:
        classify: images (N, 1, H, W) in [-1, 1] -> labels (N,) int64; its accuracy on held-out images; their number.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    settings = KINDS[kind]
    path = settings.path()
    if path.is_file() and not retrain:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        judge = Judge(settings.resolution)
        judge.load_state_dict(load_file(path))
        return classifier(judge), facts["accuracy"], facts["n"]
    judge, accuracy, n = train(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"accuracy": accuracy, "n": n, "settings": asdict(settings)}
    save_file(judge.state_dict(), path, metadata={"facts": json.dumps(facts)})
    return classifier(judge), accuracy, n


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
