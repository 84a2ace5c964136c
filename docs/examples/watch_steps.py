"""A listener of one's own: told of every step of every picture command, here for the clean estimates on the way."""

from __future__ import annotations

import diffkit
from diffkit.jobs.options import Watch
from diffkit.pictures.grids import grid
from diffkit.types import Model, Step


class Estimates(Watch):
    """Keeps what the model believes to see (`x0`) at every `every`-th step of the first picture."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.pictures, self.labels = [], []

    def loaded(self, model: Model) -> None:
        """Keep the way from samples to pictures: of a latent model that is its VAE."""
        self.decode = model.codec.decode

    def step(self, step: Step, positions: range) -> None:
        """Take a picture, if this is the first batch and the scheduler says what it steps towards."""
        if positions.start == 0 and step.index % self.every == 0 and step.x0 is not None:
            self.pictures += diffkit.from_tensor(self.decode(step.x0[:1]))
            self.labels.append(f"t = {step.t:.0f}")


watch = Estimates(every=4)
(picture,) = diffkit.sample("tiny", prompt="a green tree", steps=24, watch=watch)
grid([*watch.pictures, picture], 7, labels=[*watch.labels, "the picture"], min_cell=96).save("watch_steps.png")
