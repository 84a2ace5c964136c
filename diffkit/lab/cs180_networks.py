"""The networks of CS180, part B, as trainings: the course's recipes, and what differs on a laptop."""

from __future__ import annotations

from typing import Any

from diffkit.lab.pieces import Made
from diffkit.lab.section import Lab, Table
from diffkit.lab.trainings import Training, train

_WIDTH, _BATCH = 32, 64
TRIPLES = ("training.preview_images=10",)  # of a preview that shows three pictures for each


def narrow(limit: int, every: int) -> tuple[str, ...]:
    """Return what differs from a recipe on a laptop: a narrower network, and the course's epochs on fewer pictures.

    Args:
        limit: So many pictures of the data, in batches of 64.
        every: Updates from one preview to the next.
    """
    return (
        f"model.overrides.hidden={_WIDTH}",
        f"dataset.limit={limit}",
        f"training.batch_size={_BATCH}",
        f"training.preview_every={every}",
        "training.preview_images=20",
        "training.log_every=5",
    )


def one_step(lab: Lab) -> Training:
    """The denoiser of sigma 0.5."""
    quick = (*narrow(1792, 28), *TRIPLES, "training.lr=1e-3")
    return train(lab, "cs180-one-step", "Clean, noisy, denoised, as the training goes on", quick=quick, epochs=(1, 5))


def by_time(lab: Lab, flow: bool) -> Training:
    """The network that is told the time."""
    if flow:
        quick = (*narrow(1536, 24), "training.preview_steps=25", "training.lr=3e-3")
        return train(lab, "cs180-flow-time", "As the training goes on", quick=quick, epochs=(1, 5, 10))
    quick = (*narrow(1920, 150), "training.preview_steps=25", "training.lr=3e-3")
    return train(lab, "cs180-time", "As the training goes on", quick=quick, epochs=(5, 20))


def by_class(lab: Lab, flow: bool, *sets: str) -> Training:
    """The network that is told the class, too."""
    # To predict the noise takes more updates than a velocity does: 900, where 280 do by flow matching.
    quick = (*(narrow(1792, 28) if flow else narrow(2880, 225)), "training.preview_steps=25")
    quick = quick if any(one.startswith("training.lr=") for one in sets) else (*quick, "training.lr=3e-3")
    recipe, epochs = ("cs180-flow-class", (1, 5, 10)) if flow else ("cs180-class", (5, 20))
    return train(lab, recipe, "As the training goes on", sets=sets, quick=quick, epochs=epochs)


def trained(made: Made) -> Table:
    """What a training took, and where it ended."""
    curve, done = made.payload["curve"], made.payload
    row = (
        f"{done['parameters']:,}",
        str(done["step"]),
        f"{done['epoch']:.2g}",
        f"{curve[0]['loss']:.4f}",
        f"{curve[-1]['loss']:.4f}",
        f"{made.seconds:.0f}",
    )
    return Table(("parameters", "updates", "epochs", "first loss", "last loss", "seconds"), (row,))


def notes(lab: Lab) -> tuple[str, ...]:
    """What is to be said of a training: on what, where MNIST is not at hand, and that it is a reduced one."""
    reduced = "" if lab.full else "Reduced for a laptop: a narrower network, and the course's epochs on fewer digits."
    return tuple(line for line in (lab.data[1], reduced) if line)


def four_of_each(flow: bool, full: bool) -> dict[str, Any]:
    """How digits by class are drawn: four of each, guidance 5."""
    return {
        "classes": ("all",),
        "num": 40,
        "guidance": 5.0,
        "batch_size": 40,
        **({"steps": 300 if full else 50} if flow else {"scheduler": "ddpm", "steps": 300 if full else 100}),
    }
