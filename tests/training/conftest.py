"""The fixture that makes small recipes."""

import pytest
from tiny_run import TINY

from diffkit.recipes.reading import load_recipe


@pytest.fixture
def tiny(tmp_path):
    """`tiny("training.lr=1", out="name")` -> a recipe whose run takes a second."""

    def make(*sets: str, out: str = "run"):
        return load_recipe("digits", sets=[*TINY, f"output.dir={tmp_path / out}", *sets], environ={})

    return make
