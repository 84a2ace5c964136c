"""Anagrams as in a notebook: several prompts, the best of N seeds by the model's own judgement, and an animation."""

from __future__ import annotations

from pathlib import Path

import diffkit
from diffkit.pictures.grids import grid

WORDS = ["the letter M", "the letter W"]
VIEW = diffkit.parse_view("rotate_180")
OUT = Path("anagrams")
STEPS, BEST_OF = 8, 2  # more of both draw better ones; judging takes longer than drawing

# %% The best of N seeds, as the model that drew them judges; a PNG would remember the score, too
(best,) = diffkit.anagram(
    WORDS, views=["identity", VIEW.spec], model="tiny", steps=STEPS, best_of=BEST_OF, scorer="model"
)
print(best.info["diffkit"]["score"])

# %% What is seen, in both ways
sheet = grid([best, VIEW.viewed(best)], labels=WORDS, min_cell=128)
sheet.save("anagram.png")

# %% Three prompts in three views, with an animation, into a folder
diffkit.anagram(
    ["the letter A", "the letter V", "the letter C"],
    views=["identity", "flip", "rotate_cw"],
    model="tiny",
    steps=STEPS,
    out=OUT,
    animate="gif",
)
print(*sorted(path.name for path in OUT.iterdir()))
