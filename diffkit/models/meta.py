"""What diffusers' own files do not say about a trained model: `diffkit.json` beside model_index.json.

Stock diffusers ignores the file; without it, a model's meaning is read from its configuration.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from diffkit import __version__
from diffkit.errors import ModelError

FILE = "diffkit.json"


class RunMeta(BaseModel):
    """How a model was trained, as far as sampling has to know it.

    Attributes:
        prediction: Training objective: epsilon, sample, v_prediction, flow, one_step, pure_noise or linear_mix.
        conditioning: none, embedding (added to the time embedding), concat (channels of the input) or text (captions).
        class_names: Names of the classes in label order; empty for an unconditional model.
        resolution: Height and width of the images, pixels; the network's sample_size may be larger (padding).
        channels: 1 grey, 3 RGB.
        sigma: one_step: the fixed noise level, else None.
        recipe: Name of the recipe.
        version: The diffkit that wrote the file.
        text_encoder: frozen (random weights) or trained, where captions condition the model; else none.
        null_class: True when the embedding holds one more row than there are classes, for guidance.
        mean: By channel, what is subtracted from pixels in [-1, 1] before the network sees them; empty for nothing.
        std: By channel, what they are then divided by.
        noise: normal, or uniform in [0, 1].
    """

    model_config = ConfigDict(frozen=True, strict=True)  # unknown keys, of later versions, are ignored

    prediction: str = "epsilon"
    conditioning: str = "none"
    class_names: list[str] = []
    resolution: int = 0
    channels: int = 3
    sigma: float | None = None
    recipe: str = ""
    version: str = __version__
    null_class: bool = True
    text_encoder: str = "none"
    mean: list[float] = []
    std: list[float] = []
    noise: str = "normal"

    def to_json(self) -> str:
        """Return the file's text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, data: Any) -> RunMeta:
        """Make it of the file's decoded JSON.

        Raises:
            ModelError: It is no object, or a value has the wrong type.
        """
        try:
            meta = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if not first["loc"]:
                raise ModelError(f"{FILE} holds no JSON object") from None
            raise ModelError(f"{FILE}: {first['loc'][0]} is {data[first['loc'][0]]!r}, of the wrong type") from None
        meta._check_range()
        return meta

    def _check_range(self) -> None:
        """Refuse a shift and scale of pixels that are none."""
        good = all(map(math.isfinite, [*self.mean, *self.std])) and all(value > 0 for value in self.std)
        if not good or {len(self.mean), len(self.std)} not in ({0}, {self.channels}):
            raise ModelError(f"{FILE}: mean {self.mean!r} and std {self.std!r} are no numbers per channel, std above 0")
        if self.noise not in ("normal", "uniform"):
            raise ModelError(f"{FILE}: noise is {self.noise!r}; needed: normal or uniform")
