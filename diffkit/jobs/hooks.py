"""What a picture command may do and say beyond its fields, and what holds where it does not.

`draw` is what every command has; the others have a default. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffkit.errors import UsageError
from diffkit.jobs.batch import Batch, Drawing, Found

if TYPE_CHECKING:
    from PIL import Image

    from diffkit.jobs.options import Watch
    from diffkit.types import Model, ModelInfo


class Hooks:
    """What a picture command overrides.

    Attributes:
        per_picture: Fields that may differ among the pictures of one batch.
        cell_side: Pixels to which small pictures are enlarged on a sheet.
        sources: What its models may draw from, as `ModelInfo.source` says.
    """

    per_picture: ClassVar[frozenset[str]] = frozenset()
    cell_side: ClassVar[int] = 160
    sources: ClassVar[frozenset[str]] = frozenset({"noise"})

    @classmethod
    def check_source(cls, info: ModelInfo) -> None:
        """Refuse a model that starts from another picture than the command has.

        Raises:
            UsageError: It does.
        """
        if info.source not in cls.sources:
            raise UsageError(
                f"{info.id} needs a picture to start from ({'inpainting' if info.source == 'mask' else 'upscaling'})",
                "Give a model that draws from noise: stage I of DeepFloyd IF, or a plain Stable Diffusion.",
            )

    def batched(self) -> frozenset[str]:
        """Return the fields that may differ among the pictures of one batch."""
        return type(self).per_picture

    def notices(self, info: ModelInfo) -> list[str]:
        """Return what is to be said before the work begins."""
        return []

    def about(self) -> dict[str, Any]:
        """Return what a picture's metadata says beyond the fields."""
        return {}

    def columns(self) -> int | None:
        """Return how many pictures stand in a row of the grid; None for a square."""
        return None

    def search(self, model: Model, seeds: list[int], batch_size: int, watch: Watch) -> Found | None:
        """Choose the seeds that are worth drawing; None where all are drawn."""
        return None

    def conditions(self, info: ModelInfo) -> int:
        """Return how many conditions the network is asked for each picture in a step."""
        return 1

    def search_calls(self, info: ModelInfo, batch_size: int) -> int:
        """Return how many network calls the search takes."""
        return 0

    def extra_calls(self, info: ModelInfo, timesteps: Sequence[float], *, searching: bool = False) -> dict[str, int]:
        """Return what a batch takes beside its network calls, by name: passes back through networks.

        With `searching` these are the steps of a search, which draws by the first model alone.
        """
        return {}

    def uncounted(self) -> dict[str, str]:
        """Return what `--dry-run` cannot count: {"uncounted": ...}."""
        return {}

    def animate(self, picture: Image.Image, path: Path, kind: str) -> Path:
        """Write an animation of a finished picture beside its file; return where."""
        raise NotImplementedError

    def stages(self, info: ModelInfo) -> list[dict[str, Any]]:
        """Return the further models that each batch goes through: id, steps and parameters of each."""
        return []

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw a batch: a generator of steps that returns what was drawn.

        What differs from picture to picture is read from the batch, never from the job, which knows the first one's.
        """
        raise NotImplementedError
