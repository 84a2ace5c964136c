"""Keras' DDIM example: offset cosine, mean absolute error, KID, and what the steps of DDIM do."""

from __future__ import annotations

from diffkit.lab import measure
from diffkit.lab.cs180_networks import trained
from diffkit.lab.hf_course import schedule_table
from diffkit.lab.pieces import Made, Piece
from diffkit.lab.printed import Evaluated, Schedules
from diffkit.lab.section import Lab, Plan, Section, Table, numbers, section
from diffkit.lab.trainings import SIXTEEN, Training, instead, on, train

SONG = "Song et al., arXiv:2010.02502"


def trained_on(lab: Lab) -> Training:
    """The example's training on the report's data: all other sections draw by it."""
    quick = (
        *SIXTEEN,
        "training.steps=400",
        "training.preview_every=100",
        "training.batch_size=32",
        "training.log_every=5",
    )
    return train(lab, "keras-ddim", "18 pictures as the training goes on", sets=("dataset.channels=null",), quick=quick)


@section(
    "schedule",
    "The schedule",
    asks="Offset cosine: signal rates from 0.95 to 0.02, beside cosine.",
    formula="x_{t} = cos θ x + sin θ ε,  θ from arccos 0.95 to arccos 0.02",
    source="arXiv:2102.09672, eq. 17",
)
def schedule(lab: Lab) -> Plan:
    """Plan the curves."""
    return Plan([Schedules(("offset_cosine:0.95,0.02", "cosine"))], schedule_table)


@section(
    "train",
    "The training",
    asks="64 pixels, widths 32, 64, 96, 128, mean absolute error, AdamW 1e-3, decay 1e-4, batch 64, average 0.999; a"
    " grid per epoch.",
    formula="L = E |ε̂(x_{t}, t) − ε|",
    source=f"{SONG}; Ho et al., arXiv:2006.11239",
)
def training(lab: Lab) -> Plan:
    """Plan it."""
    reduced = () if lab.full else ("Reduced: 16 pixels and 400 updates of 32 pictures.",)
    return Plan([trained_on(lab)], lambda made: [trained(made[0])], (*instead(lab, "the flowers"), *reduced))


@section(
    "kid",
    "KID",
    asks="How near 5-step pictures are to real ones.",
    formula="KID = MMD²(f(x), f(y)),  k(a, b) = (aᵀb / d + 1)³",
    source="Binkowski et al., arXiv:1801.01401",
)
def kid(lab: Lab) -> Plan:
    """Plan the measurement, by features that need no network."""
    run = trained_on(lab)
    name, _ = lab.data
    count = 2000 if lab.full else 300
    pieces: list[Piece] = [
        run,
        *(Evaluated(str(run.folder), name, count, steps, ("kid",), run.mark) for steps in (5, 20)),
    ]

    def measured(made: list[Made]) -> list[Table | str]:
        rows = [
            (str(steps), f"{one.payload['kid']:.4f}", f"{one.payload['kid_std']:.4f}", str(one.payload["num_images"]))
            for steps, one in zip((5, 20), made[1:], strict=True)
        ]
        said = list(dict.fromkeys(line for one in made[1:] for line in one.payload["warnings"]))
        return [Table(("steps", "KID", "its deviation", "pictures"), tuple(rows)), *said]

    note = (
        "The example takes Inception's features at 75 pixels, which need its weights (`features` inception:FILE); here"
        " they are those of a classifier that is trained on the data. Numbers of different features do not compare."
    )
    return Plan(pieces, measured, (note,))


@section(
    "steps",
    "1 to 20 steps",
    asks="Pictures from one noise by 1, 2, ... 20 steps.",
    formula="x_{t'} = √ᾱ_{t'} x̂ + √(1 − ᾱ_{t'}) ε̂",
    source=f"{SONG}, eq. 12",
)
def steps(lab: Lab) -> Plan:
    """Plan the sweep."""
    run, counts = trained_on(lab), (1, 2, 3, 5, 8, 12, 20)
    sweep = ("steps=" + ",".join(map(str, counts)),)
    labels = [f"{count} step{'s' if count > 1 else ''}" for count in counts]
    pieces: list[Piece] = [run, on(run, "sample", "", num=1, sweep=sweep, labels=labels, spacing="trailing")]

    def measured(made: list[Made]) -> list[Table | str]:
        last = made[1].folder / made[1].pictures[-1].file
        far = measure.apart(made[1], last)
        return [Table(("steps", *map(str, counts)), (("RMS from that of 20", *numbers(far, 3)),)), measure.UNITS]

    return Plan(pieces, measured)


@section(
    "interpolation",
    "Interpolation",
    asks="Spherical interpolation between two noises.",
    formula="slerp(a, b, w) = (sin((1 − w) φ) a + sin(w φ) b) / sin φ",
    source=f"{SONG}, section 5.3",
)
def interpolation(lab: Lab) -> Plan:
    """Plan the strip."""
    run = trained_on(lab)
    return Plan([run, on(run, "interpolate", "", frames=9, steps=20)])


@section(
    "stochastic",
    "Stochastic sampling",
    asks="40 deterministic steps, and 80 stochastic ones.",
    formula="σ_{t} = η √((1 − ᾱ_{t'}) / (1 − ᾱ_{t})) √(1 − ᾱ_{t} / ᾱ_{t'})",
    source=f"{SONG}, eq. 16",
)
def stochastic(lab: Lab) -> Plan:
    """Plan both, from the same noises."""
    run = trained_on(lab)
    pieces: list[Piece] = [
        run,
        on(run, "sample", "40 deterministic steps", num=9, steps=40, spacing="trailing"),
        on(run, "sample", "80 stochastic steps", num=9, steps=80, spacing="trailing", scheduler="ddim_large"),
    ]

    def measured(made: list[Made]) -> list[Table | str]:
        return [measure.cost_table([("deterministic", made[1]), ("stochastic", made[2])])]

    return Plan(pieces, measured, ("As the example draws it: the fresh noise has the larger deviation.",))


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections by name."""
    made = (schedule, training, kid, steps, interpolation, stochastic)
    return {one.name: one for one in made}
