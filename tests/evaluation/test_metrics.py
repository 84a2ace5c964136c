"""Metrics against other implementations, against numbers made by hand, and as laws over all rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.evaluation.metrics import CMMD, FID, KID, METRICS, MIND, PrecisionRecall, measure, polynomial_mmd


def normal(count: int, dimensions: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing * scale + shift


def scipy_fid(x: np.ndarray, y: np.ndarray) -> float:
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    traces = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False)) - 2 * np.trace(np.real(root))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + traces)


def looped_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The estimate as it is written, one pair of pictures after another."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m", "dimensions"), [(500, 400, 64), (300, 2000, 128), (65, 70, 64)])
def test_fid_is_that_of_scipys_matrix_square_root(n: int, m: int, dimensions: int) -> None:
    x, y = normal(n, dimensions), normal(m, dimensions, seed=1, shift=0.3, scale=1.2)
    assert FID().measure(x, y)["fid"] == pytest.approx(scipy_fid(x.numpy(), y.numpy()), rel=1e-7)


def test_fid_by_hand() -> None:
    """Two axes, each set four points: means (0, 0) and (3, 4), variances 4/3 (1, 4) and 4/3 (4, 4) along the axes."""
    x = torch.tensor([[1.0, 2], [-1, 2], [1, -2], [-1, -2]], dtype=torch.float64)
    y = torch.tensor([[2.0, 2], [-2, 2], [2, -2], [-2, -2]], dtype=torch.float64) + torch.tensor([3.0, 4.0])
    assert FID().measure(x, y)["fid"] == pytest.approx(25 + 4 / 3 * (1 + 4 + 4 + 4 - 2 * (2 + 4)), rel=1e-12)


def test_fid_of_fewer_pictures_than_dimensions_is_that_of_their_singular_covariances() -> None:
    x, y = normal(20, 50), normal(30, 50, seed=1, shift=0.5)
    wide = linalg.eigvals(np.cov(x.numpy(), rowvar=False) @ np.cov(y.numpy(), rowvar=False))
    root = float(np.sqrt(np.clip(wide.real, 0, None)).sum())
    wanted = float((x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace()) - 2 * root
    assert FID().measure(x, y)["fid"] == pytest.approx(wanted, rel=1e-4)  # the eigenvalues' own rounding


def test_kid_is_that_of_a_loop_over_pairs() -> None:
    x, y = normal(40, 6), normal(30, 6, seed=1, shift=0.3)
    assert float(polynomial_mmd(x, y)) == pytest.approx(looped_kid(x.numpy(), y.numpy()), rel=1e-10)


def test_kid_by_hand() -> None:
    """x = (1, -1), y = (2, 0): k(1, -1) = 0, k(2, 0) = 1, and across 27, 1, -1, 1, whose mean is 7."""
    x, y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    assert float(polynomial_mmd(x, y)) == pytest.approx(0 + 1 - 2 * 7)


def test_kid_over_subsets_is_near_that_of_all_and_unbiased() -> None:
    x, y = normal(600, 16), normal(600, 16, seed=1, shift=0.2)
    got = KID(subsets=200).measure(x, y)
    assert abs(got["kid"] - float(polynomial_mmd(x, y))) < 0.2 * got["kid_std"]
    halves = [
        KID(subsets=4).measure(normal(100, 8, seed=2 * k), normal(100, 8, seed=2 * k + 1))["kid"] for k in range(60)
    ]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / math.sqrt(len(halves))
    assert min(halves) < 0 < max(halves)


def test_cmmd_by_hand() -> None:
    """Two single directions at a right angle, each twice: the squared distance is 2 across, and 0 within."""
    x = torch.tensor([[3.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    assert CMMD().measure(x, y)["cmmd"] == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70), (6, 4)])
def test_mind_on_one_axis_is_the_wasserstein_distance(n: int, m: int) -> None:
    """In one dimension each direction is +-1, so that MIND is three squared distances; scipy's is of order 1."""
    x, y = normal(n, 1), normal(m, 1, seed=1, shift=40.0)  # so far apart that the mean distance is the shift
    first = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    levels = (np.arange(n * m) + 0.5) / (n * m)
    qx, qy = (np.sort(v[:, 0].numpy())[(levels * len(v)).astype(int)] for v in (x, y))
    assert np.abs(qx - qy).mean() == pytest.approx(first, rel=1e-9)
    assert MIND(directions=3).measure(x, y)["mind"] == pytest.approx(3 * ((qx - qy) ** 2).mean(), rel=1e-9)


def test_mind_of_a_shift_is_three_times_its_square() -> None:
    """A shift by v moves each projection by u.v, whose square is |v|^2 / D in the mean."""
    x = normal(200, 12)
    v = torch.linspace(-1, 2, 12, dtype=torch.float64)
    got = MIND(directions=20_000).measure(x, x.flip(0) + v)["mind"]
    assert got == pytest.approx(3 * float(v.square().sum()), rel=0.03)


def test_precision_and_recall_of_a_set_that_covers_half() -> None:
    """Real pictures lie in two far places; the others in the first of them, and a tenth of them nowhere near."""
    near = normal(100, 4, scale=0.1)
    real = torch.cat([near[:50], near[50:] + 1000])[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    other = normal(100, 4, seed=0, scale=0.1)[:100].clone()
    other[50:] = near[:50] + 1e-6
    other[:10] = -5000.0
    other[10:50] = near[10:50] + 1e-6
    got = PrecisionRecall().measure(real, other)
    assert got["precision"] == pytest.approx(0.9)
    assert got["recall"] == pytest.approx(0.5)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_one_of_its_kind(name: str) -> None:
    """Laws: nothing between a set and itself, the same number again, further apart is worse, the order says nothing."""
    row = METRICS.parse(name)
    x, y = normal(300, 10), normal(300, 10, seed=1)
    state = torch.get_rng_state()
    same = row.measure(x, x)
    found = [row.measure(x, y + shift) for shift in (0.0, 2.0, 6.0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == row.measure(x, y)
    for key in (key for key in same if not key.endswith("_std")):
        values = [one[key] for one in found]
        assert values == sorted(values, reverse=row.better == "higher")
        assert len(set(values)) == 3
        if row.better == "higher":
            assert same[key] == 1
        elif key != "kid":  # unbiased, and so below 0 for a set and itself
            assert same[key] == pytest.approx(0, abs=1e-9)
    assert row.least(64) > 1
    shuffled = row.measure(x.flip(0), y.flip(0))
    for key, value in found[0].items():
        spread = 4 * found[0]["kid_std"] / 10 if key.startswith("kid") else 1e-9
        assert shuffled[key] == pytest.approx(value, abs=spread + 1e-9)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        measure(normal(5, 3), normal(5, 4))
    with pytest.raises(UsageError, match="5 and 1 pictures"):
        measure(normal(5, 3), normal(1, 3))
    with pytest.raises(UsageError, match="not finite"):
        measure(normal(5, 3), normal(5, 3) * math.nan)
    with pytest.raises(UsageError, match="unknown metric 'fit'") as caught:
        measure(normal(5, 3), normal(5, 3), ["fit"])
    assert "fid" in caught.value.hint
    assert set(measure(normal(9, 3), normal(9, 3), ["kid:4,3", "mind:10"])) == {"kid", "kid_std", "mind"}
