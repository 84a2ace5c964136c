"""Evaluation: how well pictures match prompts, by scorers of several kinds. Nothing here draws a picture."""
