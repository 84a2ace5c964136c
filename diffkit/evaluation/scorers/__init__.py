"""How well pictures match prompts: scorers by name.

One file per scorer; `base.py` holds their registry. Nothing here draws a picture.
"""

from __future__ import annotations

from diffkit.evaluation.clip import CLIP_ID
from diffkit.evaluation.image_classifiers import CLASSIFIER_FILE
from diffkit.evaluation.scorers.base import CHUNK, SCORERS, parse_scorer
from diffkit.evaluation.scorers.classifier import ClassifierScorer
from diffkit.evaluation.scorers.clip import ClipScorer
from diffkit.evaluation.scorers.diffusion import DiffusionScorer, check_judge

__all__ = [
    "CHUNK",
    "CLASSIFIER_FILE",
    "CLIP_ID",
    "SCORERS",
    "ClassifierScorer",
    "ClipScorer",
    "DiffusionScorer",
    "check_judge",
    "parse_scorer",
]
