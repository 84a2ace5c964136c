"""The safety checkers that Stable Diffusion and DeepFloyd IF come with: kept where they load, never silently left out.

They judge finished pictures; nothing here touches sampling. The model is loaded when the first picture is judged.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import DiffkitError, ModelError, UsageError
from diffkit.models.repo import Repo
from diffkit.models.weights import find_weights, load_config, quiet_libraries, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG = logging.getLogger("diffkit.models")

MODES = ("auto", "on", "off")

# CLIP's own preparation of pictures.
_SIZE = 224
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Safety:
    """A repository's safety checker, as the user wants it.

    Args:
        repo: The model.
        mode: auto (used where the repository has one that loads), on (an error where not) or off (the user's choice).
        device: Where to judge.
        prefer: Weight variant to take where it is there.
        allow_pickle: Also read `.bin`.
        own: A model that diffkit trained, which never holds a checker.

    Raises:
        UsageError: Unknown mode.
        ModelError: Mode "on" and there is none.
    """

    def __init__(
        self,
        repo: Repo,
        mode: str,
        device: torch.device,
        prefer: str = "",
        *,
        allow_pickle: bool = False,
        own: bool = False,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"safety {mode!r} is not one of {', '.join(MODES)}")
        self.repo, self.mode, self.device, self.prefer, self.allow_pickle = repo, mode, device, prefer, allow_pickle
        self._checker: PreTrainedModel | None = None
        self.active = mode != "off" and repo.has("safety_checker/config.json")
        if mode == "on" and not self.active:
            raise ModelError(f"{repo.id} holds no safety checker", "Leave the safety option at auto.")
        if mode == "off":
            LOG.info("the safety checker of %s is off, as asked", repo.id)
        elif not self.active and not own:
            LOG.info("%s holds no safety checker: pictures are not judged", repo.id)

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Return (B, 3, H, W) in [-1, 1] with the pictures that were flagged turned black, and which they are."""
        flags = [False] * len(images)
        if self.active and images.shape[1] == 3:
            checker = self._load()
            if checker is not None:
                flags = judge(checker, images)
        if any(flags):
            LOG.warning("%d of %d pictures were flagged by the safety checker and are black", sum(flags), len(flags))
        black = torch.tensor(flags, device=images.device).reshape(-1, 1, 1, 1)
        return torch.where(black, torch.full_like(images, -1.0), images), flags

    def _load(self) -> PreTrainedModel | None:
        if self._checker is None:
            try:
                self._checker = load_checker(self.repo, self.prefer, allow_pickle=self.allow_pickle).to(self.device)
            except Exception as error:
                if self.mode == "on" or isinstance(error, MemoryError):
                    raise
                why = error.message if isinstance(error, DiffkitError) else f"{type(error).__name__}: {error}"
                LOG.warning("the safety checker of %s cannot be loaded, pictures are not judged: %s", self.repo.id, why)
                self.active = False
        return self._checker


def load_checker(repo: Repo, prefer: str = "", *, allow_pickle: bool = False) -> PreTrainedModel:
    """Build the checker and fill it from its weights.

    `from_pretrained` of transformers 5 refuses IFSafetyChecker (its class misses an initialisation step that only
    loading and tying of weights need), so the module is made and filled directly.

    Raises:
        ModelError: Unknown class, no weights that may be read, or missing tensors.
    """
    from transformers import CLIPConfig

    entry = (repo.json("model_index.json") or {}).get("safety_checker") or [None, None]
    config = load_config(repo, "safety_checker", "config.json")
    name = entry[1] or (config.get("architectures") or [""])[0]
    if name == "IFSafetyChecker":
        from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker as kind
    elif name == "StableDiffusionSafetyChecker":
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as kind
    else:
        raise ModelError(f"{repo.id}: unknown safety checker {name!r}")
    state = read_tensors(repo, find_weights(repo, "safety_checker", "model", prefer=prefer, allow_pickle=allow_pickle))
    with quiet_libraries():
        checker: PreTrainedModel = kind(CLIPConfig.from_dict(config))
    found = {_plain(name): value.float() for name, value in state.items()}
    wanted = {name: _plain(name) for name in checker.state_dict() if not name.endswith("position_ids")}
    missing = [name for name, plain in wanted.items() if plain not in found]
    if missing:
        raise ModelError(f"{repo.id} (safety_checker): {len(missing)} tensors are missing: {', '.join(missing[:3])}")
    checker.load_state_dict({name: found[plain] for name, plain in wanted.items()}, strict=False)
    return checker.eval()


def _plain(name: str) -> str:
    """Name a tensor as no version of transformers does: 5.6 took one level of `vision_model` out."""
    return re.sub(r"(vision_model\.)+", "vision_model.", name)


@torch.no_grad()
def judge(checker: PreTrainedModel, images: Tensor) -> list[bool]:
    """Return for each picture (B, 3, H, W) in [-1, 1] whether the checker flags it, for content or for a watermark."""
    small = (images.float() / 2 + 0.5).clamp(0, 1)
    scale = _SIZE / min(small.shape[-2:])
    size = [max(_SIZE, round(side * scale)) for side in small.shape[-2:]]
    small = F.interpolate(small, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - _SIZE) // 2, (size[1] - _SIZE) // 2
    small = small[..., top : top + _SIZE, left : left + _SIZE]
    mean, std = (torch.tensor(v, device=small.device).reshape(1, 3, 1, 1) for v in (_MEAN, _STD))
    device = next(checker.parameters()).device
    with quiet_libraries():  # the checkers warn by themselves; we say it once
        blank = small.new_zeros(len(small), 1, 1, 3).cpu().numpy()
        _, *verdicts = checker(clip_input=((small - mean) / std).to(device), images=blank)
    return [any(bool(v[k]) for v in verdicts) for k in range(len(images))]
