from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from diffkit.illusions.contact_sheet import SIDE, candidates_sheet
from diffkit.illusions.search import Candidate, Found
from tests.support.illusions import anagram


def sheet(prompts: tuple[str, str], first: float, second: float) -> Image.Image:
    """Of one kept candidate with these scores on the diagonal; A is left as it is, so that only they differ."""
    one = Candidate(3, torch.zeros(3, 64, 64), torch.tensor([[first, 0.9], [0.9, second]]), 0.1, 0.5, 9)
    return candidates_sheet(Found(one.image[None], (one,), (one,), 9, 0), anagram("identity", "flip"), prompts)


def changed(one: Image.Image, other: Image.Image) -> list[bool]:
    """Whether the left and the right half of two sheets differ, below the pictures."""
    assert one.size == other.size
    apart = np.abs(np.asarray(one).astype(int) - np.asarray(other)).sum(-1)
    assert not apart[:SIDE].any()
    middle = one.width // 2
    return [bool(apart[:, :middle].any()), bool(apart[:, middle:].any())]


def test_every_view_has_its_own_score_and_prompt_under_it() -> None:
    plain = sheet(("a dog", "a cat"), 0.25, 0.5)
    assert changed(plain, sheet(("a dog", "a cat"), 0.75, 0.5)) == [True, False]
    assert changed(plain, sheet(("a dog", "a cat"), 0.25, 0.75)) == [False, True]
    assert changed(plain, sheet(("a cow", "a cat"), 0.25, 0.5)) == [True, False]
    assert changed(plain, sheet(("a cat", "a dog"), 0.25, 0.5)) == [True, True]
