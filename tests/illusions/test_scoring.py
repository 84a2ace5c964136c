"""The two numbers that illusions are ranked by, and the matrix that they are read from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffkit.illusions.scoring import alignment, concealment, score_matrix


def test_alignment_is_the_worst_view() -> None:
    matrix = torch.tensor([[[0.3, 0.1], [0.9, 0.2]], [[0.5, 0.6], [0.0, 0.7]]])
    assert alignment(matrix).tolist() == pytest.approx([0.2, 0.5])


def test_concealment_by_hand() -> None:
    # Rows: sigmoid(2/0.5) and sigmoid(1/0.5); columns: sigmoid(1/0.5) and sigmoid(2/0.5).
    matrix = torch.tensor([[3.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    assert float(concealment(matrix, 0.5)) == pytest.approx((sigmoid(4) + sigmoid(2)) / 2)


def test_concealment_averages_both_directions() -> None:
    # Both views look like prompt 0: by rows one of two is right, by columns each is at chance.
    matrix = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(concealment(matrix, 0.01)) == pytest.approx((0.5 + 0.5) / 2)
    # All mass of the columns at view 0, nothing to tell in the rows.
    uneven = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(concealment(uneven, 0.01)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_concealment_is_chance_for_a_picture_that_looks_alike_and_one_for_a_perfect_illusion(views: int) -> None:
    alike = torch.rand(1, 1, generator=torch.Generator().manual_seed(views)).expand(views, views)
    assert float(concealment(alike)) == pytest.approx(1 / views)
    assert float(concealment(torch.eye(views))) == pytest.approx(1.0)
    assert float(concealment(1 - torch.eye(views))) < 1e-6


def test_neither_depends_on_the_order_of_the_views() -> None:
    matrix = torch.rand(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    turned = matrix[order][:, order]
    torch.testing.assert_close(alignment(turned), alignment(matrix), rtol=0, atol=0)
    torch.testing.assert_close(concealment(turned, 0.1), concealment(matrix, 0.1))


def test_only_square_matrices_and_positive_temperatures() -> None:
    with pytest.raises(ValueError, match="square"):
        alignment(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tau"):
        concealment(torch.eye(2), 0.0)


class Means:
    """Similarity with a prompt that is a number: minus the distance of the picture's mean from it."""

    tau = 0.1

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls.append(len(images))
        means = images.flatten(1).mean(1, keepdim=True)
        return -(means - torch.tensor([[float(p) for p in prompts]])).abs()


def test_score_matrix_is_one_call_and_has_views_as_rows() -> None:
    scorer, base = Means(), torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    matrix = score_matrix(scorer, [base, -base], ["0.2", "-0.2"])
    assert scorer.calls == [4]
    expected = torch.tensor([[[0.0, -0.4], [-0.4, 0.0]], [[-0.4, -0.8], [-0.8, -0.4]]])
    torch.testing.assert_close(matrix, expected)


def test_parts_of_different_sizes_are_scored_one_by_one() -> None:
    scorer = Means()
    matrix = score_matrix(scorer, [torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 2, 2)], ["0", "1"])
    assert (scorer.calls, tuple(matrix.shape)) == ([3, 3], (3, 2, 2))
    torch.testing.assert_close(matrix[0], torch.tensor([[0.0, -1.0], [-1.0, 0.0]]))
