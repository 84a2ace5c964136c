"""What an evaluation says: the numbers, what they were measured with, and when they mean nothing.

Two evaluations are compared here, too, and only where the same features measured them against the same pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit.errors import UsageError
from diffkit.evaluation.features import Features
from diffkit.evaluation.metrics import METRICS, measure
from diffkit.evaluation.pictures import RESIZE, Pictures


@dataclass(frozen=True)
class Evaluation:
    """Numbers of pictures against real ones.

    Attributes:
        scores: By key: fid, kid, kid_std, cmmd, mind, precision, recall.
        num_images: Pictures that were judged.
        num_real: Real pictures.
        features: Name, hash and number of dimensions.
        resize: Sides in pixels: of the pictures as they are compared, of what the features take, and the filter.
        dataset: Name, split and identity of the real pictures.
        least: By metric, the number of pictures below which it means nothing.
        source: What was judged: the model and how it drew, or a folder.
        warnings: What is to be said of the numbers.
    """

    scores: Mapping[str, float]
    num_images: int
    num_real: int
    features: Mapping[str, Any]
    resize: Mapping[str, Any]
    dataset: Mapping[str, str]
    least: Mapping[str, int]
    source: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints; the scores stand at the top."""
        rest = {key: _plain(getattr(self, key)) for key in self.__dataclass_fields__ if key != "scores"}
        return {**self.scores, **rest}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def report(
    features: Features, pictures: Pictures, real: Tensor, other: Tensor, source: Mapping[str, Any],
    metrics: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    """Measure and describe.

    Args:
        features: What made the features.
        pictures: The real pictures.
        real: Their features (N, D).
        other: Those of what is judged, (M, D).
        source: What is judged.
        metrics: Names; all when left out.

    Raises:
        UsageError: Fewer than two pictures, or an unknown metric.
    """
    scores = measure(real, other, metrics)
    count, dimensions = min(len(real), len(other)), real.shape[1]
    rows = [METRICS.parse(name) for name in metrics or METRICS]
    least = {row.name: row.least(dimensions) for row in rows}
    return Evaluation(
        scores, len(other), len(real),
        features={"name": type(features).name, "hash": features.hash, "dimensions": dimensions},
        resize={"pictures": pictures.spec.resolution, "features": features.size, "filter": RESIZE},
        dataset={"name": pictures.spec.name, "split": pictures.spec.split, "identity": pictures.identity},
        least=least, source=source, warnings=tuple(_warnings(count, dimensions, least)),
    )  # fmt: skip


def _warnings(count: int, dimensions: int, least: Mapping[str, int]) -> list[str]:
    said = []
    if count < dimensions:
        said.append(
            f"{count} pictures are fewer than the {dimensions} dimensions of the features: a covariance of so few is"
            " singular"
        )
    few = [f"{name} below {number}" for name, number in least.items() if count < number]
    if few:
        said.append(f"of {count} pictures these numbers mean nothing: {', '.join(few)}")
    return said


def read_earlier(path: Path) -> dict[str, Any]:
    """Read what an earlier evaluation printed with `--json`.

    Raises:
        UsageError: It is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: dict(found[key]) for key in ("features", "resize", "dataset")}
        int(found["num_images"]), kept["features"]["hash"], kept["dataset"]["identity"]
    except OSError as error:
        raise UsageError(f"`compare` {path}: {error.strerror or error}", "Give the JSON of an earlier run.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            f"`compare` {path}: not what an evaluation prints as JSON", "Give the JSON of an earlier run."
        ) from None
    return dict(found)


def changes(earlier: Mapping[str, Any], now: Evaluation) -> tuple[dict[str, float], list[str]]:
    """Return now minus earlier, by key, and what is to be said of it.

    Args:
        earlier: From `read_earlier`.
        now: What was measured.

    Raises:
        UsageError: Other features, another way of resizing, or other real pictures.
    """
    pairs = [
        ("features", earlier["features"], now.features, ("name", "hash")),
        ("resize", earlier["resize"], now.resize, ("pictures", "features", "filter")),
        ("dataset", earlier["dataset"], now.dataset, ("identity",)),
    ]
    different = [
        f"{what} {key} {before.get(key)!r}, now {after.get(key)!r}"
        for what, before, after, keys in pairs for key in keys if before.get(key) != after.get(key)
    ]  # fmt: skip
    if different:
        raise UsageError(
            f"the earlier numbers cannot be compared with these: {'; '.join(different)}",
            "Measure both with the same features, against the same pictures, at the same size.",
        )
    said = []
    for key, what in (("num_images", "pictures"), ("num_real", "real pictures")):
        if earlier.get(key) != getattr(now, key):
            said.append(
                f"{earlier.get(key)} {what} earlier, {getattr(now, key)} now: FID and MIND fall with the number"
            )
    deltas = {key: value - float(earlier[key]) for key, value in now.scores.items() if _number(earlier.get(key))}
    return deltas, said


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
