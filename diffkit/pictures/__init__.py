"""Pictures in and out: opening a user's file, grids and captions, PNG metadata, animations, plots.

This room knows no model and no job; it turns files into tensors in [-1, 1] and finished pictures into files.
"""
