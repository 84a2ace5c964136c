from __future__ import annotations

import pytest
import torch

from diffkit.pictures.film import FILM_SIDE, Film
from diffkit.pictures.grids import grid
from diffkit.types import Step


def shot(count: int, side: int, columns: int | None = None) -> tuple[Film, torch.Tensor]:
    x = (torch.arange(side * side).reshape(1, 1, side, side) % 7 / 3.5 - 1).expand(count, 3, side, side)
    film = Film(lambda x: x, columns, (3, side, side))
    film.watch(Step(index=0, total=1, t=torch.tensor(0), x=x, x0=None), range(count))
    return film, x


@pytest.mark.parametrize(
    ("count", "side", "columns"), [(1, 32, None), (1, 28, None), (2, 32, None), (4, 32, None), (9, 32, 3), (2, 8, 1)]
)
def test_small_films_are_enlarged_by_a_whole_factor(count: int, side: int, columns: int | None) -> None:
    (frame,) = shot(count, side, columns)[0].frames
    assert FILM_SIDE <= max(frame.size) <= 2 * FILM_SIDE
    across = columns or {1: 1, 2: 2, 4: 2}[count]
    cell = (frame.width - 2) // across - 2
    assert cell % side == 0
    first = frame.crop((2, 2, 2 + cell, 2 + cell))
    factor = cell // side
    blocks = first.resize((side, side), 0).resize((cell, cell), 0)
    assert factor > 1
    assert blocks.tobytes() == first.tobytes()  # pixel by pixel


@pytest.mark.parametrize(("count", "side", "columns"), [(1, 256, None), (16, 64, None), (64, 32, None), (8, 32, 8)])
def test_large_films_stay_as_they_are(count: int, side: int, columns: int | None) -> None:
    film, x = shot(count, side, columns)
    assert film.frames[0].tobytes() == grid(x, columns).tobytes()


def test_evenly_spaced_steps_of_the_first_batch_are_kept() -> None:
    film = Film(lambda x: x, sample=(1, 8, 8))
    x = torch.zeros(2, 1, 8, 8)
    for index in range(100):
        film.watch(Step(index=index, total=100, t=torch.tensor(0), x=x, x0=None), range(2))
    assert len(film.frames) == 34  # each third one, and the last
    for other, positions in ((x, range(2, 4)), (torch.zeros(2, 1, 16, 16), range(2))):
        film.watch(Step(index=99, total=100, t=torch.tensor(0), x=other, x0=None), positions)
    assert len(film.frames) == 34
