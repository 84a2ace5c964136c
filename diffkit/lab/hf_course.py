"""The Hugging Face diffusion course, units 1 and 2: from the noise schedule to guidance by a loss.

What the notebooks train on butterflies and faces is trained on the report's data, in a smaller form on a laptop.
"""

from __future__ import annotations

from typing import Any

from diffkit.errors import ModelError
from diffkit.lab import measure
from diffkit.lab.cs180_networks import trained
from diffkit.lab.pieces import Drawing, Made, Piece
from diffkit.lab.printed import Schedules
from diffkit.lab.section import Cannot, Lab, Plan, Section, Table, section
from diffkit.lab.trainings import SIXTEEN, Training, examples, instead, on, stood_in, train

HO = "Ho et al., arXiv:2006.11239"
_SMALL = ("training.preview_steps=20", "training.log_every=5", "training.batch_size=32", "training.warmup_steps=20")


@section(
    "1.1-schedules",
    "1.1 Noise schedules",
    asks="sqrt(ᾱ) and sqrt(1 − ᾱ): linear, β from 0.001 to 0.004, and cosine.",
    formula="x_{t} = √ᾱ_{t} x + √(1 − ᾱ_{t}) ε",
    source=f"{HO}, eq. 4; Nichol and Dhariwal, arXiv:2102.09672, eq. 17",
)
def schedules(lab: Lab) -> Plan:
    """Plan the curves."""
    return Plan([Schedules(("linear", "linear:0.001,0.004", "cosine"))], schedule_table)


def schedule_table(made: list[Made]) -> list[Table | str]:
    """Return the signal of each schedule at five levels."""
    facts = made[0].payload
    header = ("√ᾱ at t =", *facts["times"])
    return [Table(header, tuple(tuple(row) for row in facts["rows"]))]


@section(
    "1.1-noise",
    "1.1 Noising",
    asks="A picture at eight timesteps, linspace(0, 999, 8).",
    formula="x_{t} = √ᾱ_{t} x + √(1 − ᾱ_{t}) ε",
    source=f"{HO}, eq. 4",
)
def noise(lab: Lab) -> Plan:
    """Plan the strip."""
    times = [999 * k // 7 for k in range(8)]
    return Plan([lab.draw("noise", "", image=lab.images[0], timesteps=times, schedule="linear", size=96, model=None)])


def unconditional(lab: Lab) -> Training:
    """The notebook's own network on the report's data; on a laptop the one for small digits."""
    quick = (
        *SIXTEEN,
        "training.steps=150",
        "training.preview_every=50",
        "training.lr=1e-3",
        "noise.prediction=sample",
        *_SMALL,
    )
    sets = ("dataset.channels=1", "dataset.flip=false", "dataset.resolution=32", "training.epochs=30")
    return train(lab, "butterflies", "As the training goes on", sets=sets, quick=quick)


@section(
    "1.1-train",
    "1.1 Training from scratch",
    asks="32 pixels, batch 64, channels (64, 128, 128, 256), AdamW 4e-4, 30 epochs, T = 1000; the loss, 8 samples.",
    formula="L = E ‖ε̂(x_{t}, t) − ε‖²",
    source=f"{HO}, eq. 14",
)
def scratch(lab: Lab) -> Plan:
    """Plan the training."""
    training = unconditional(lab)
    drawn = on(training, "sample", "Eight samples", num=8, steps=50)
    reduced = () if lab.full else ("Reduced: 16 pixels, 1.8 M parameters, and x is predicted: it learns sooner.",)
    return Plan([training, drawn], lambda made: [trained(made[0])], (*instead(lab, "the butterflies"), *reduced))


@section(
    "1.2-corruption",
    "1.2 Corruption",
    asks="A picture under eight amounts of noise that is uniform in [0, 1].",
    formula="z = (1 − a) x + a n,  n ~ U(0, 1)",
    source="the notebook's own; Liu et al., arXiv:2209.03003",
)
def corruption(lab: Lab) -> Plan:
    """Plan the strips."""
    times = [round(1 - k / 7, 3) for k in range(8)]
    pieces = [
        lab.draw("noise", "", image=path, times=times, uniform=True, size=28, model=None) for path in examples(lab, 2)
    ]
    return Plan(pieces, notes=("The pictures are marked by t = 1 − a, the share of the picture.",))


def basic(lab: Lab, preset: str) -> Training:
    """The course's first network, or UNet2DModel on the same task."""
    sets = () if preset == "basic-unet" else (f"model.preset={preset}",)
    few = "training.steps=500" if preset == "basic-unet" else "training.steps=60"
    quick = (
        few,
        "training.preview_every=1000",
        "training.preview_images=16",
        "training.preview_steps=20",
        *_SMALL[1:3],
    )
    return train(lab, "hf-basic-unet", preset, sets=sets, quick=quick, epochs=(1, 3))


@section(
    "1.2-train",
    "1.2 Two networks",
    asks="A BasicUNet of 309 thousand parameters and UNet2DModel of 1.7 million; batch 128, 3 epochs, Adam 1e-3.",
    formula="L = E ‖D(z) − x‖²",
    source="the notebook's own network",
)
def networks(lab: Lab) -> Plan:
    """Plan both trainings."""
    pieces = [basic(lab, "basic-unet"), basic(lab, "course28")]
    note = () if lab.full else ("Reduced: 500 updates of 32 digits, and 60 of the larger network.",)
    return Plan(pieces, lambda made: [trained(one) for one in made], (*stood_in(lab), *note))


@section(
    "1.2-sampling",
    "1.2 Sampling in a few steps",
    asks="Five steps, state and prediction side by side; then samples of 40 steps.",
    formula="x ← (1 − 1/(n − i)) x + D(x) / (n − i),  i = 0 ... n − 1",
    source="Euler's steps of a flow",
)
def few_steps(lab: Lab) -> Plan:
    """Plan the samples."""
    training = basic(lab, "basic-unet")
    pieces: list[Piece] = [
        training,
        on(training, "sample", "Five steps: the state, and the prediction below it", num=1, steps=5, states=1),
        on(training, "sample", "40 steps", num=64 if lab.full else 24, steps=40),
    ]
    return Plan(pieces, lambda made: [measure.cost_table([("5 steps", made[1]), ("40 steps", made[2])])])


@section(
    "2.1-sampling",
    "2.1 DDIM, 40 steps",
    asks="Four pictures by a pretrained model; x and x̂ every 10 steps.",
    formula="x_{t'} = √ᾱ_{t'} x̂ + √(1 − ᾱ_{t'}) ε̂",
    source="Song et al., arXiv:2010.02502, eq. 12",
)
def ddim(lab: Lab) -> Plan:
    """Plan four pictures and the way to the first."""
    told = lab.told_each(lab.words.several[0])
    pieces = [
        lab.draw("sample", "Four pictures", num=4, steps=40, **told),
        lab.draw(
            "sample", "The first on its way: the state, and the estimate below it", num=1, steps=40, states=10, **told
        ),
    ]
    return Plan(pieces, lambda made: [measure.cost_table([("four pictures", made[0])])])


@section(
    "2.1-finetune",
    "2.1 Fine-tuning",
    asks="A pretrained model goes on, on other pictures: batch 4, 2 epochs, 1e-5, accumulation 2; the loss, a grid.",
    formula="L = E ‖ε̂(x_{t}, t) − ε‖²",
    source=f"{HO}, eq. 14",
)
def finetune(lab: Lab) -> Plan:
    """Plan a training of 1.1 that goes on."""
    before = unconditional(lab)
    size = before.resolved.dataset.resolution
    sets = (
        f"model.pretrained={before.folder}",
        f"dataset.resolution={size}",
        "dataset.channels=1",
        "dataset.flip=false",
        "training.log_every=2",
    )
    quick = (
        "training.steps=40",
        "training.preview_every=20",
        "training.preview_steps=20",
        "training.lr=1e-4",
        "training.checkpoint_every=40",
    )
    training = train(lab, "celebahq-finetune", "As it goes on", sets=sets, quick=quick)
    return Plan([before, training], lambda made: [trained(made[1])], ("The model of 1.1 goes on, in place of faces.",))


_ROSE = "clip:a red rose,model=openai/clip-vit-base-patch32,cuts=4@8"


def guided(lab: Lab, caption: str, *guides: str, steps: int = 40, **values: Any) -> Drawing:
    """Plan pictures that losses lead.

    Raises:
        UsageError: The model cannot be guided.
        ModelError: What measures the loss is not at hand.
    """
    return lab.draw("sample", caption, num=4, steps=steps, guides=guides or None, **values)


@section(
    "2.1-color",
    "2.1 Guidance by a colour",
    asks="The colour (0.1, 0.9, 0.5), mean absolute error, scales 5, 40, 100; gradients to x̂, or through the net.",
    formula="x ← x − s ∇_{x} |x̂ − c|",
    source="Dhariwal and Nichol, arXiv:2105.05233, section 4",
)
def color(lab: Lab) -> Plan:
    """Plan pictures under several scales."""
    pieces = [guided(lab, "Not guided by a colour")]
    pieces += [guided(lab, f"Scale {scale}, to x̂", f"color:#1ae680@{scale}") for scale in (5, 40, 100)]
    pieces += [guided(lab, "Scale 40, through the network", "color:#1ae680@40", guide_through="network")]

    def measured(made: list[Made]) -> list[Table | str]:
        rows = [
            (piece.caption, " ".join(f"{255 * value:.0f}" for value in measure.mean_color(one)))
            for piece, one in zip(pieces, made, strict=True)
        ]
        return [Table(("", "mean red, green, blue of 255"), (*rows, ("the colour", "26 230 128")))]

    return Plan(pieces, measured)


@section(
    "2.1-clip",
    "2.1 Guidance by CLIP",
    asks="A text, CLIP ViT-B/32, scale 8, 4 cuts, 50 steps, times sqrt(ᾱ).",
    formula="x ← x − s √ᾱ_{t} ∇_{x} 2 arcsin²(‖CLIP(x̂) − CLIP(text)‖ / 2)",
    source="Dhariwal and Nichol, arXiv:2105.05233; Radford et al., arXiv:2103.00020",
)
def clip(lab: Lab) -> Plan:
    """Plan pictures that CLIP leads, by the timestep's sqrt(abar), and by the loop's index as the notebook does."""
    try:
        pieces = [
            guided(lab, f"By the {name}", _ROSE, steps=50, guide_weight=weight)
            for name, weight in (("timestep's √ᾱ: right", "signal"), ("loop's index: as the notebook", "index"))
        ]
    except ModelError as error:
        raise Cannot(f"{error.message}. {error.hint}") from None
    return Plan(pieces, measure.costs(pieces))


@section(
    "2.2-class",
    "2.2 Class conditioning",
    asks="A 4-channel class embedding as input channels; batch 128, 10 epochs, Adam 1e-3, cosine; a grid of 10 × 8.",
    formula="ε̂ = ε(x_{t} ⊕ e_{c}, t)",
    source="the notebook's own conditioning",
)
def by_class(lab: Lab) -> Plan:
    """Plan the training."""
    sets = ("model.class_conditioning=concat", "training.epochs=10", "training.lr=1e-3")
    quick = (
        *SIXTEEN,
        "training.steps=200",
        "training.preview_every=100",
        "noise.prediction=sample",
        *_SMALL,
    )
    training = train(lab, "mnist-class", "As the training goes on", sets=sets, quick=quick)
    count = 80 if lab.full else 40
    drawn = on(
        training, "sample", "Each class", classes=("all",), num=count, guidance=2.0, steps=40 if lab.full else 25
    )
    return Plan([training, drawn], lambda made: [trained(made[0])], stood_in(lab))


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections by name."""
    made = (schedules, noise, scratch, corruption, networks, few_steps, ddim, finetune, color, clip, by_class)
    return {one.name: one for one in made}
