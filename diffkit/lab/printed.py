"""Pieces of a report that are no pictures by a model: schedules as curves, a model's parts, measured distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.jobs.command import option_words, words_line
from diffkit.lab.pieces import Bench, Shown


@dataclass(frozen=True)
class Schedules:
    """Noise schedules side by side: `diffkit schedule NAME...`.

    Attributes:
        names: Rows with their arguments, linear:0.001,0.004.
        caption: What stands above the plot.
    """

    names: tuple[str, ...]
    caption: str = ""
    needs: Path | None = None

    @property
    def line(self) -> str:
        """See `Piece`."""
        return words_line("schedule", *self.names)

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Piece`."""
        return {"schedule": self.names}

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """See `Piece`."""
        from diffkit.engine.curves import named_curve
        from diffkit.pictures.plots import noise_schedules

        curves = [named_curve(name, 1000) for name in self.names]
        noise_schedules(curves, folder / "schedule.png")
        rows = [[curve.name, *(f"{value:.3f}" for value in curve.at(5).signal)] for curve in curves]
        times = [f"{t:g}" for t in curves[0].at(5).timesteps]
        return [Shown("schedule.png")], {"rows": rows, "times": times}


@dataclass(frozen=True)
class Inspected:
    """What a model is made of: `diffkit inspect MODEL`.

    Attributes:
        model: The model.
        prompt: Whose tokens are shown.
        image: What is sent through the VAE and back.
        mark: What tells its weights from others.
        caption: What stands above it.
    """

    model: str
    prompt: str | None = None
    image: Path | None = None
    mark: str = ""
    caption: str = ""
    needs: Path | None = None

    @property
    def line(self) -> str:
        """See `Piece`."""
        flags = option_words("prompt", self.prompt) if self.prompt else []
        flags += option_words("image", self.image) if self.image else []
        return words_line("inspect", self.model, *flags)

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Piece`."""
        return {"inspect": self.model, "prompt": self.prompt, "image": str(self.image), "mark": self.mark}

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """See `Piece`."""
        from diffkit.models import inspect, open_repo
        from diffkit.pictures.images import open_image

        repo = open_repo(self.model)
        facts: dict[str, Any] = inspect.describe(repo)
        if self.prompt:
            facts["tokens"] = inspect.tokens(repo, self.prompt)
        if self.image is None:
            return [], facts
        inspect.check_vae(repo)
        facts["psnr"], back = inspect.round_trip(self.model, None, open_image(self.image))
        back.save(folder / "inspect-vae.png")
        return [Shown("inspect-vae.png", f"through the VAE and back, {facts['psnr']:.1f} dB")], facts


@dataclass(frozen=True)
class Evaluated:
    """How near a model's pictures are to real ones: `diffkit evaluate MODEL --dataset D`.

    Attributes:
        model: Its folder.
        dataset: The real pictures.
        num: How many are drawn, and read.
        steps: Sampling steps.
        metrics: Their names.
        mark: What tells its weights from others.
        caption: What stands above it.
    """

    model: str
    dataset: str
    num: int
    steps: int
    metrics: Sequence[str]
    mark: str
    caption: str = ""
    needs: Path | None = None

    @property
    def _flags(self) -> list[str]:
        named = {"dataset": self.dataset, "num": self.num, "num-real": self.num, "steps": self.steps}
        metrics = option_words("metric", tuple(self.metrics))
        return [word for name, value in named.items() for word in option_words(name, value)] + metrics

    @property
    def line(self) -> str:
        """See `Piece`."""
        return words_line("evaluate", self.model, *self._flags)

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Piece`."""
        return {"evaluate": self.model, "flags": self._flags, "mark": self.mark}

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """See `Piece`."""
        from diffkit.jobs.evaluate import evaluate

        found = evaluate(
            self.model, self.dataset, metrics=tuple(self.metrics), num=self.num, num_real=self.num,
            device=bench.device, steps=self.steps,
        )  # fmt: skip
        return [], {**found.as_dict(), "warnings": list(found.warnings)}
