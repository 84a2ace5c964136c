"""What diffusers' own files do not say about a trained model: `diffkit.json` beside model_index.json.

Stock diffusers ignores the file; without it, a model's meaning is read from its configuration.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from diffkit import __version__
from diffkit.errors import ModelError

FILE = "diffkit.json"


@dataclass(frozen=True)
class RunMeta:
    """How a model was trained, as far as sampling has to know it.

    Attributes:
        prediction: Training objective: epsilon, sample, v_prediction, flow, one_step or linear_mix.
        conditioning: none, embedding (added to the time embedding), concat (channels of the input) or text (captions).
        class_names: Names of the classes in label order; empty for an unconditional model.
        resolution: Height and width of the images, pixels; the network's sample_size may be larger (padding).
        channels: 1 grey, 3 RGB.
        sigma: one_step: the fixed noise level, else None.
        recipe: Name of the recipe.
        version: The diffkit that wrote the file.
        text_encoder: frozen (random weights) or trained, where captions condition the model; else none.
        null_class: True when the embedding holds one more row than there are classes, for guidance.
    """

    prediction: str = "epsilon"
    conditioning: str = "none"
    class_names: list[str] = field(default_factory=list)
    resolution: int = 0
    channels: int = 3
    sigma: float | None = None
    recipe: str = ""
    version: str = __version__
    null_class: bool = True
    text_encoder: str = "none"

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunMeta:
        """Read the file's text; unknown keys, of later versions, are ignored.

        Raises:
            ModelError: It is not a JSON object, or a value has the wrong type.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ModelError(f"{FILE} is not valid JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> RunMeta:
        """As `from_json`, from the decoded object."""
        kinds: dict[str, Any] = {
            "prediction": str, "conditioning": str, "class_names": list, "resolution": int, "channels": int,
            "sigma": (float, int, type(None)), "recipe": str, "version": str, "null_class": bool,
            "text_encoder": str,
        }  # fmt: skip
        if not isinstance(data, dict):
            raise ModelError(f"{FILE} holds no JSON object")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for key, value in known.items():
            good = isinstance(value, kinds[key]) and (kinds[key] is bool or not isinstance(value, bool))
            if not good or (key == "class_names" and not all(isinstance(name, str) for name in value)):
                raise ModelError(f"{FILE}: {key} is {value!r}, of the wrong type")
        return cls(**known)
