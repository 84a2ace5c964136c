"""The jigsaw: interlocking pieces on a square grid, and an exchange of those that have the same outline.

Pieces are coloured like a chessboard. The even ones have tabs at the top and the bottom and sockets at the left and
the right, the odd ones the other way round; borders are straight. So every inner piece is a quarter turn of its
neighbours, and fits wherever an inner piece fits; pieces of the border trade places with their like. Tabs are drawn on
the pixel grid, symmetric and the same on all four sides, which makes the exchange an exact permutation of the pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from diffkit.illusions.views import frames
from diffkit.illusions.views.base import generator

# Of the side of a piece: the tab's half neck, its head's distance from the edge, its head's radius.
_NECK, _REACH, _RADIUS = 0.075, 0.17, 0.135

# Outwards at the top, right, bottom and left: clockwise, so that a quarter turn is a shift by one.
_OUT = ((-1, 0), (0, 1), (1, 0), (0, -1))

Array = np.ndarray[Any, np.dtype[np.int64]]


class Move(NamedTuple):
    """Piece `source` goes to the place of piece `target`, after `quarters` quarter turns clockwise."""

    source: int
    target: int
    quarters: int


def outline(count: int, piece: int) -> tuple[int, ...]:
    """Return what a piece has at the top, right, bottom and left: 1 a tab, -1 a socket, 0 the border."""
    i, j = divmod(piece, count)
    sign = 1 if (i + j) % 2 == 0 else -1
    borders = (i == 0, j == count - 1, i == count - 1, j == 0)
    return tuple(0 if border else sign * (1 if k % 2 == 0 else -1) for k, border in enumerate(borders))


def moves(count: int, seed: int) -> list[Move]:
    """Return where every piece goes: to another place of its kind, in a turn that fits, both by the seed."""
    dice = generator(seed)
    alike: dict[tuple[int, ...], list[int]] = {}
    for piece in range(count * count):
        shape = outline(count, piece)
        alike.setdefault(min(_turn(shape, k) for k in range(4)), []).append(piece)
    found = []
    for group in alike.values():
        order = [group[int(k)] for k in torch.randperm(len(group), generator=dice)]
        # Each goes to the place of the next, so that no piece stays where it is.
        for source, target in zip(order, order[1:] + order[:1], strict=True):
            fits = [k for k in range(4) if _turn(outline(count, source), k) == outline(count, target)]
            fits = [k for k in fits if k or source != target] or [0]
            found.append(Move(source, target, fits[int(torch.randint(len(fits), (1,), generator=dice))]))
    return sorted(found)


def owners(size: int, count: int) -> Array:
    """Return which piece each pixel belongs to, (size, size); count divides size, here and below."""
    cell = size // count
    axis = np.arange(size) // cell
    owner = axis[:, None] * count + axis[None]
    ahead, aside = _tab(cell)
    for piece in range(count * count):
        for has, (dy, dx) in zip(outline(count, piece), _OUT, strict=True):
            if has == 1:
                y, x = _centre(piece, count, cell)
                rows, columns = y + dy * ahead + dx * aside, x + dx * ahead - dy * aside
                owner[np.rint(rows).astype(int), np.rint(columns).astype(int)] = piece
    return owner


def table(size: int, count: int, seed: int) -> Array:
    """Return the permutation, (size * size,): pixel i of the view is pixel table[i] of the picture."""
    cell, owner = size // count, owners(size, count)
    result = np.full(size * size, -1, dtype=np.int64)
    for move in moves(count, seed):
        left, top, right, bottom = _around(move.source, count, cell)
        rows, columns = np.nonzero(owner[top:bottom, left:right] == move.source)
        rows, columns = rows + top, columns + left
        (y, x), (to_y, to_x) = _centre(move.source, count, cell), _centre(move.target, count, cell)
        dy, dx = rows - y, columns - x
        for _ in range(move.quarters):
            dy, dx = dx, -dy
        result[np.rint((dy + to_y) * size + dx + to_x).astype(np.int64)] = rows * size + columns
    assert (result >= 0).all()
    return result


def drawn(image: Image.Image, count: int, seed: int, progress: float) -> Image.Image:
    """Draw the pieces on their way, each along a straight line and turning as it goes."""
    size = image.width
    cell, owner, done = size // count, owners(size, count), frames.smoothstep(progress)
    canvas = frames.canvas(image)
    for move in moves(count, seed):
        turn = (move.quarters if move.quarters < 3 else -1) * 90.0 * done
        (y, x), (to_y, to_x) = _centre(move.source, count, cell), _centre(move.target, count, cell)
        centre = (x + (to_x - x) * done, y + (to_y - y) * done)
        box = _around(move.source, count, cell)
        shape = owner[box[1] : box[3], box[0] : box[2]] == move.source
        frames.stick(canvas, image, box, (x, y), centre, turn, shape=shape)
    return canvas


def _turn(shape: tuple[int, ...], quarters: int) -> tuple[int, ...]:
    return tuple(shape[(k - quarters) % 4] for k in range(4))


def _centre(piece: int, count: int, cell: int) -> tuple[float, float]:
    i, j = divmod(piece, count)
    return i * cell + (cell - 1) / 2, j * cell + (cell - 1) / 2


def _around(piece: int, count: int, cell: int) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) that holds a piece with its tabs."""
    i, j = divmod(piece, count)
    margin, size = cell // 2, count * cell
    return (
        max(0, j * cell - margin),
        max(0, i * cell - margin),
        min(size, (j + 1) * cell + margin),
        min(size, (i + 1) * cell + margin),
    )


def _tab(cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a tab, seen from the middle of its piece: how far ahead (in the neighbour) and how far aside."""
    aside = np.arange(cell) - (cell - 1) / 2
    beyond = np.arange(cell // 2) + 0.5
    w, u = np.meshgrid(beyond, aside, indexing="ij")
    neck = (abs(u) <= _NECK * cell) & (w <= _REACH * cell)
    head = u**2 + (w - _REACH * cell) ** 2 <= (_RADIUS * cell) ** 2
    inside = neck | head
    return (w + cell / 2)[inside], u[inside]
