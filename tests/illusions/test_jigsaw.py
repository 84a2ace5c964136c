from __future__ import annotations

import numpy as np
import pytest

from diffkit.illusions.views import jigsaw


class TestJigsaw:
    @pytest.mark.parametrize(("size", "count", "seed"), [(64, 4, 0), (64, 4, 7), (60, 3, 1), (100, 5, 2), (256, 4, 0)])
    def test_every_piece_fills_another_of_the_same_outline(self, size: int, count: int, seed: int) -> None:
        owner, table = jigsaw.owners(size, count).ravel(), jigsaw.table(size, count, seed)
        assert sorted(table) == list(range(size * size))
        goes = {move.target: move.source for move in jigsaw.moves(count, seed)}
        assert sorted(goes) == list(range(count * count)) == sorted(goes.values())
        assert np.array_equal(owner[table], np.vectorize(goes.__getitem__)(owner))

    @pytest.mark.parametrize("count", [2, 4, 6])
    def test_no_piece_stays(self, count: int) -> None:
        assert all(move.source != move.target for seed in range(10) for move in jigsaw.moves(count, seed))

    def test_a_piece_only_moves_and_turns(self) -> None:
        size = 64
        owner, table = jigsaw.owners(size, 4), jigsaw.table(size, 4, 0)
        for move in jigsaw.moves(4, 0):
            y, x = np.nonzero(owner == move.target)
            source = table[y * size + x]
            before, after = np.stack([source // size, source % size]), np.stack([y, x])
            apart = [np.hypot(*(p[:, :, None] - p[:, None, :]).astype(float)) for p in (before, after)]
            np.testing.assert_allclose(apart[0], apart[1])

    @pytest.mark.parametrize("size", [32, 64, 256])
    def test_pieces_interlock(self, size: int) -> None:
        cell = size // 4
        square = np.arange(size) // cell
        grid = square[:, None] * 4 + square[None]
        owner = jigsaw.owners(size, 4)
        lent = owner != grid
        assert 0.02 < lent.mean() < 0.2
        assert {(a, b) for a, b in zip(owner[lent], grid[lent], strict=True)} == {
            (a, b) for a in range(16) for b in range(16)
            if abs(a // 4 - b // 4) + abs(a % 4 - b % 4) == 1 and (a // 4 == b // 4) == bool((a // 4 + a % 4) % 2)
        }  # fmt: skip

    def test_a_tab_has_a_neck(self) -> None:
        owner = jigsaw.owners(256, 4)
        widths = [(owner[64 + depth, :64] == 0).sum() for depth in range(24)]  # the first piece's tab, downwards
        assert widths[2] < max(widths)
        assert widths[-1] == 0
