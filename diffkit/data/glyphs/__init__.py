"""Glyphs: letters, digits and shapes drawn in code, with captions, as many as wanted and without a network."""
