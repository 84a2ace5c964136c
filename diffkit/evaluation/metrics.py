"""How far two sets of pictures are apart, measured on their features: FID, KID, CMMD, MIND, precision and recall.

A metric is a row: a frozen dataclass with a registered name, whose `measure` takes the features of real and of other
pictures and gives numbers by name. Adding one touches this file alone. All arithmetic is float64; nothing here knows
where features come from, draws a picture, or touches a global random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.registry import Registry

_BLOCK = 1024  # rows of a matrix of distances that are made at a time


class Metric(Protocol):
    """A measure of two sets of features."""

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    @property
    def better(self) -> Literal["lower", "higher"]:
        """Which of two numbers tells of the better pictures."""
        ...

    def least(self, dimensions: int) -> int:
        """Return the number of pictures on each side below which its numbers mean nothing."""
        ...

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """Return its numbers, for features (N, D) and (M, D), float64, in no particular order."""
        ...


METRICS: Registry[Metric] = Registry("metric")


def measure(real: Tensor, other: Tensor, names: Sequence[str] = ()) -> dict[str, float]:
    """Return the numbers of metrics, by key.

    Args:
        real: (N, D) features of real pictures.
        other: (M, D) of those that are judged.
        names: Of metrics, with their arguments; all with their defaults when left out.

    Raises:
        UsageError: An unknown metric, features of different dimensions or that are not finite, or fewer than two
            pictures.
    """
    if real.ndim != 2 or other.ndim != 2 or real.shape[1] != other.shape[1]:
        raise UsageError(f"features of shapes {tuple(real.shape)} and {tuple(other.shape)} cannot be compared")
    if min(len(real), len(other)) < 2:
        raise UsageError(f"{len(real)} and {len(other)} pictures: at least two are needed on each side")
    if not (real.isfinite().all() and other.isfinite().all()):
        raise UsageError("the features are not finite", "Look at the pictures: a network may have diverged.")
    found: dict[str, float] = {}
    for name in names or METRICS:
        found |= METRICS.parse(name).measure(real.double(), other.double())
    return found


@METRICS.register("fid")
@dataclass(frozen=True)
class FID:
    """Frechet distance of two normal distributions. Source: Heusel et al., arXiv:1706.08500, eq. 6.

    The trace of the root of the covariances' product is the sum of the singular values of A B^T, where A^T A and B^T B
    are the covariances: the same as by the eigenvalues of A S_b A^T, but no root of a rounded zero is taken.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def least(self, dimensions: int) -> int:
        """One more than the dimensions, or the covariance is singular; even then the bias is large."""
        return dimensions + 1

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """See `Metric`."""
        a, b = _root(real), _root(other)
        mixed = torch.linalg.svdvals(a @ b.T).sum()
        apart = (real.mean(0) - other.mean(0)).square().sum()
        return {"fid": float((apart + a.square().sum() + b.square().sum() - 2 * mixed).clamp_min(0))}


def _root(features: Tensor) -> Tensor:
    """A matrix (min(N, D), D) whose A^T A is the covariance, without forming it."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r")[1] if len(features) > features.shape[1] else centred


@dataclass(frozen=True)
class _Subsets:
    """Pairs of subsets that are drawn alike in every call."""

    count: int = 100
    size: int = 1000

    def rows(self, n: int, m: int) -> list[tuple[Tensor, Tensor]]:
        size = max(2, min(self.size, min(n, m) // 2))
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.randperm(n, generator=generator)[:size], torch.randperm(m, generator=generator)[:size])
            for _ in range(self.count)
        ]


@METRICS.register("kid")
@dataclass(frozen=True)
class KID:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3, unbiased: mean and deviation over subsets.

    It may be negative, near 0. Source: Binkowski et al., arXiv:1801.01401, section 4.

    Attributes:
        subsets: How many.
        size: Pictures in each; half of the pictures where there are fewer than twice as many, or the deviation would
            not show that other pictures had given another number.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    subsets: int = 100
    size: int = 1000

    def least(self, dimensions: int) -> int:
        """Enough for subsets of fifty."""
        return 100

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """See `Metric`."""
        found = torch.stack([
            polynomial_mmd(real[a.to(real.device)], other[b.to(other.device)])
            for a, b in _Subsets(self.subsets, self.size).rows(len(real), len(other))
        ])  # fmt: skip
        return {"kid": float(found.mean()), "kid_std": float(found.std(correction=0))}


def polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of the squared MMD of (N, D) and (M, D) under the kernel (x.y / D + 1)^3; shape ().

    Source: Gretton et al., "A kernel two-sample test", 2012, eq. 3.
    """
    n, m, dimensions = len(x), len(y), x.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / dimensions + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


@METRICS.register("cmmd")
@dataclass(frozen=True)
class CMMD:
    """Squared MMD under a Gaussian kernel of features of unit length, times 1000, biased as in the authors' code.

    Published numbers are of CLIP's features (ViT-L/14 at 336 pixels); of other features it is a number of its own.
    Source: Jayasumana et al., arXiv:2401.09603, eq. 4.

    Attributes:
        sigma: Width of the kernel.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    sigma: float = 10.0

    def least(self, dimensions: int) -> int:
        """The bias of the estimate falls as 1 / N."""
        return 100

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """See `Metric`."""
        x, y = (v / v.norm(dim=1, keepdim=True).clamp_min(1e-12) for v in (real, other))

        def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
            # 1 - k rather than k: the three means are all but 1, and only what they lack of it counts
            parts = [torch.expm1(-_squared(part, b) / (2 * self.sigma**2)).sum() for part in a.split(_BLOCK)]
            return torch.stack(parts).sum() / (len(a) * len(b))

        return {"cmmd": 1000 * float(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))}


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, (N, M)."""
    found = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    return found.clamp_min_(0)


@METRICS.register("mind")
@dataclass(frozen=True)
class MIND:
    """Monge inception distance: 3 D times the mean, over random directions, of the squared 2-Wasserstein distance.

    On a line that distance is exact, by sorting; of sets of unlike sizes by their quantile functions. Source: Berthet
    et al., arXiv:2605.06797. Its abstract says: sliced Wasserstein, one-dimensional distances by sorting. The factor
    3 D is that of three public implementations, which agree; of directions two of them take 1000, and one 100.

    Attributes:
        directions: How many; drawn alike in every call.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    directions: int = 1000

    def least(self, dimensions: int) -> int:
        """The paper calls sets of 1000 informative."""
        return 1000

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """See `Metric`."""
        n, m, dimensions = len(real), len(other), real.shape[1]
        generator = torch.Generator().manual_seed(0)
        found = torch.randn(self.directions, dimensions, generator=generator, dtype=torch.float64)
        lines = (found / found.norm(dim=1, keepdim=True)).to(real.device)
        # The quantile functions are constant between these; with n == m they are k / n, and row k meets row k.
        ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
        widths = torch.diff(ends, prepend=ends.new_zeros(1)).double().to(real.device) / (n * m)
        rows = (((ends - 1) // m).to(real.device), ((ends - 1) // n).to(real.device))
        total = 0.0
        for some in lines.split(max(1, 4_000_000 // len(ends))):
            x, y = (v @ some.T for v in (real, other))
            apart = x.sort(0).values[rows[0]] - y.sort(0).values[rows[1]]
            total += float((apart.square() * widths[:, None]).sum())
        return {"mind": 3 * dimensions * total / self.directions}


@METRICS.register("precision_recall")
@dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision and recall: the shares that lie within the other set's balls to the k-th neighbour.

    Both sets are cut to the size of the smaller. Source: Kynkaanniemi et al., arXiv:1904.06991, eq. 1 and 2.

    Attributes:
        neighbours: k.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    neighbours: int = 3

    def least(self, dimensions: int) -> int:
        """Enough for neighbours to be near."""
        return 1000

    def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
        """See `Metric`."""
        count = min(len(real), len(other))
        x, y = real[:count], other[:count]
        return {"precision": self._covered(x, y), "recall": self._covered(y, x)}

    def _covered(self, support: Tensor, points: Tensor) -> float:
        """The share of points that lie in a ball around some point of the support."""
        k = min(self.neighbours, len(support) - 1)
        # the nearest one of each is itself
        radii = torch.cat([_squared(part, support).kthvalue(k + 1, dim=1).values for part in support.split(_BLOCK)])
        inside = [(_squared(part, support) <= radii).any(1) for part in points.split(_BLOCK)]
        return float(torch.cat(inside).double().mean())
