"""Recipes: what a training run does, as strict YAML over pydantic models; flags and the environment lie over it."""
