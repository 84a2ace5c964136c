"""The caches of `datasets` and of the Hub lie in a temporary folder; letters have matplotlib's fonts alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    root = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "datasets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))


@pytest.fixture(scope="session", autouse=True)
def _fonts_of_every_machine() -> Iterator[None]:
    """The system's fonts are left out, or pictures of letters would be others on each machine."""
    from diffkit.data.glyphs import fonts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.font_manager.findSystemFonts", lambda *_, **__: [])
        for cached in (fonts.faces, fonts.letter_masks):
            cached.cache_clear()
        yield
    for cached in (fonts.faces, fonts.letter_masks):
        cached.cache_clear()
