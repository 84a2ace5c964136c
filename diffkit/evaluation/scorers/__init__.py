"""How well pictures match prompts: scorers by name, and the two numbers that the illusions' paper ranks by.

One file per scorer; `base.py` holds their protocol, their registry and the two numbers. Nothing here draws a picture.
"""

from __future__ import annotations

from diffkit.evaluation.scorers.base import CHUNK, SCORERS, Scorer, alignment, concealment, parse_scorer, score_matrix
from diffkit.evaluation.scorers.classifier import CLASSIFIER_FILE, ClassifierScorer
from diffkit.evaluation.scorers.clip import CLIP_ID, ClipScorer
from diffkit.evaluation.scorers.diffusion import DiffusionScorer, check_judge

__all__ = [
    "CHUNK",
    "CLASSIFIER_FILE",
    "CLIP_ID",
    "SCORERS",
    "ClassifierScorer",
    "ClipScorer",
    "DiffusionScorer",
    "Scorer",
    "alignment",
    "check_judge",
    "concealment",
    "parse_scorer",
    "score_matrix",
]
