"""CS180, part B: networks trained on the spot, from a denoiser in one step to digits by class.

2024 trains by DDPM (T = 300, time added), 2025 and 2026 by flow matching (time multiplied). The recipes cs180-* hold
the course's numbers; a laptop gets narrower networks and fewer updates, and the commands say which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffkit.lab import measure
from diffkit.lab.cs180_networks import TRIPLES, by_class, by_time, four_of_each, narrow, notes, one_step, trained
from diffkit.lab.pieces import Made
from diffkit.lab.section import Lab, Plan, Section, Table, numbers, section
from diffkit.lab.trainings import examples, on, train

SIGMAS = "0,0.2,0.4,0.5,0.6,0.8,1"


def noising(year: int | None) -> Section:
    """Plan the noise of part B."""

    @section(
        "noising",
        "B.1.1 Noise",
        asks="Digits with noise of sigma 0, 0.2, 0.4, 0.5, 0.6, 0.8, 1 on pixels from 0 to 1.",
        formula="z = x + σ ε,  ε ~ N(0, I)",
        source="Vincent et al., 2010, JMLR 11 (denoising autoencoders)",
    )
    def plan(lab: Lab) -> Plan:
        pieces = [lab.draw("noise", "", image=path, sigma=SIGMAS, size=28, model=None) for path in examples(lab)]
        return Plan(pieces, notes=notes(lab)[:1] if lab.data[1] else ())

    return plan


def one_step_training(year: int | None) -> Section:
    """Plan the denoiser in one step."""

    @section(
        "one-step-training",
        "B.1.2 A one-step denoiser",
        asks="A network learns x from z at sigma 0.5 (D = 128, batch 256, 5 epochs, Adam 1e-4); pictures after"
        " epochs 1 and 5, and the loss.",
        formula="L = E ‖D(x + σ ε) − x‖²,  σ = 0.5",
        source="Ronneberger et al., arXiv:1505.04597 (the network's shape)",
    )
    def plan(lab: Lab) -> Plan:
        training = one_step(lab)
        shown = [on(training, "denoise", f"Test digit {k}", image=path, sigma="0.5")
                 for k, path in enumerate(examples(lab, 2), 1)]  # fmt: skip

        def measured(made: list[Made]) -> list[Table | str]:
            scores = [(f"digit {k}", one.payload["psnr"]) for k, one in enumerate(made[1:], 1)]
            return [trained(made[0]), measure.psnr_table(scores, "sigma")]

        return Plan([training, *shown], measured, notes(lab))

    return plan


def out_of_distribution(year: int | None) -> Section:
    """Plan the denoiser at other noise."""

    @section(
        "out-of-distribution",
        "B.1.3 Out-of-distribution noise",
        asks="One test digit at every sigma of the list; the network knows sigma 0.5.",
        formula="x̂ = D(x + σ ε),  σ = 0, 0.2, ..., 1",
        source="as before",
    )
    def plan(lab: Lab) -> Plan:
        training = one_step(lab)
        piece = on(training, "denoise", "", image=examples(lab, 1)[0], sigma=SIGMAS)

        def measured(made: list[Made]) -> list[Table | str]:
            return [measure.psnr_table([("", made[1].payload["psnr"])], "sigma")]

        return Plan([training, piece], measured)

    return plan


def pure_noise(year: int | None) -> Section:
    """Plan the denoiser of noise alone."""

    @section(
        "pure-noise",
        "B.1.4 Denoising pure noise",
        asks="A fresh network learns to answer noise alone by a digit, 5 epochs; pictures after 1 and 5. Why is it"
        " the mean?",
        formula="L = E ‖D(ε) − x‖²  is least for  D(ε) = E[x]",
        source="the mean is what a squared error is least for: Bishop, 2006, section 1.5.5",
    )
    def plan(lab: Lab) -> Plan:
        quick = (*narrow(1280, 20), *TRIPLES, "training.lr=1e-3")
        training = train(
            lab,
            "cs180-one-step",
            "A digit, the noise, the answer",
            sets=("noise.prediction=pure_noise",),
            quick=quick,
            epochs=(1, 5),
        )
        drawn = on(training, "sample", "Answers to five noises", num=5)

        def measured(made: list[Made]) -> list[Table | str]:
            header = (
                "RMS between two answers",
                "contrast of an answer",
                "contrast of the data's mean",
                "RMS from that mean",
            )
            mean = measure.mean_picture(lab.data[0], made[1])
            row = (measure.variety(made[1]), measure.contrast(made[1]), *mean)
            return [trained(made[0]), Table(header, (numbers(row, 3),)), measure.UNITS]

        why = (
            "The noise says nothing of the digit: whatever it is, every digit is as likely as before. Of all answers"
            " the one with the least mean squared error is then the mean of all training pictures, the same for every"
            " noise. That is what the network comes to: a blurred picture that resembles no digit and all of them."
        )
        return Plan([training, drawn], measured, (why, *notes(lab)))

    return plan


def time_conditioned(year: int | None) -> Section:
    """Plan the network that is told the time."""
    flow = year != 2024
    asks = (
        "The network is told t (D = 64, batch 64, Adam 1e-2, 10 epochs); 50 Euler steps; grids after epochs 1, 5, 10."
        if flow
        else "The network is told t (T = 300, beta 1e-4 to 0.02, D = 64, batch 128, Adam 1e-3, 20 epochs)."
    )

    @section(
        "time-conditioned",
        "B.2.1 Time conditioning",
        asks=asks,
        formula="L = E ‖u(x_{t}, t) − (x − ε)‖²" if flow else "L = E ‖ε̂(x_{t}, t) − ε‖²",
        source="Liu et al., arXiv:2209.03003, eq. 1" if flow else "Ho et al., arXiv:2006.11239, eq. 14",
    )
    def plan(lab: Lab) -> Plan:
        training = by_time(lab, flow)
        way: dict[str, Any] = {"steps": 50} if flow else {"scheduler": "ddpm", "steps": 300 if lab.full else 100}
        drawn = on(training, "sample", "Drawn from noise", num=20, **way)
        return Plan([training, drawn], lambda made: [trained(made[0])], notes(lab))

    return plan


def lr_decay(year: int | None) -> Section:
    """Plan what the learning rate does."""

    @section(
        "lr-decay",
        "B.2.2 Learning-rate decay",
        asks="After every epoch the learning rate is multiplied by gamma.",
        formula="γ = 0.1^{1 / epochs}",
        source="torch's ExponentialLR",
    )
    def plan(lab: Lab) -> Plan:
        training = by_time(lab, year != 2024)

        def measured(made: list[Made]) -> list[Table | str]:
            rows = made[0].payload["curve"]
            some = [rows[k * (len(rows) - 1) // 5] for k in range(6)]
            return [
                Table(
                    ("epoch", *(f"{row['epoch']:.2g}" for row in some)),
                    (
                        ("learning rate", *(f"{row['lr']:.2g}" for row in some)),
                        ("loss", *(f"{row['loss']:.4f}" for row in some)),
                    ),
                )
            ]

        return Plan([training], measured, ("The training of B.2.1; the dashed line is the learning rate.",))

    return plan


def class_conditioned(year: int | None) -> Section:
    """Plan the network that is told the class."""
    flow = year != 2024
    epochs = "10 epochs, 300 steps; epochs 1, 5, 10" if flow else "20 epochs; epochs 5 and 20"

    @section(
        "class-conditioned",
        "B.2.3 Class conditioning",
        asks=f"One-hot, dropped with p = 0.1; guidance 5; four of each digit; {epochs}.",
        formula="û = u_{∅} + 5 (u_{c} − u_{∅})" if flow else "ε̂ = ε_{∅} + 5 (ε_{c} − ε_{∅})",
        source="Ho and Salimans, arXiv:2207.12598",
    )
    def plan(lab: Lab) -> Plan:
        training = by_class(lab, flow)
        drawn = on(training, "sample", "Four of each", **four_of_each(flow, lab.full))
        return Plan([training, drawn], lambda made: [trained(made[0])], notes(lab))

    return plan


def without_scheduler(year: int | None) -> Section:
    """Plan the same without a decay."""

    @section(
        "without-scheduler",
        "B.2.4 Without the scheduler",
        asks="The decay is taken away, the quality is to stay, and how is to be explained.",
        formula="w̄ ← d w̄ + (1 − d) w",
        source="Polyak and Juditsky, 1992; arXiv:2006.11239, section 4",
    )
    def plan(lab: Lab) -> Plan:
        training = by_class(
            lab,
            True,
            "training.lr_schedule=constant",
            "training.lr=1e-3",
            "training.ema=true",
            "training.ema_decay=0.99",
        )
        drawn = on(training, "sample", "Four of each", **four_of_each(True, lab.full))

        def measured(made: list[Made]) -> list[Table | str]:
            return [trained(made[0])]

        why = (
            "A decaying rate does two things: at first it moves fast, in the end it averages the noise of the batches"
            " away. Here a constant rate of 1e-3 is small enough not to overshoot, and the moving average of the"
            " weights does the averaging: pictures are drawn with it."
        )
        return Plan([training, drawn], measured, (why, *notes(lab)))

    return plan


def part_b_extras(year: int | None) -> Section:
    """Plan a film of the digits."""
    flow = year != 2024
    more = (
        "other data (`data` takes Fashion-MNIST, SVHN, CIFAR-10), a better network without classes"
        if flow
        else ("films of sampling, a better network, rectified flow")
    )

    @section("part-b-extras", "B.3 More", asks=f"Of one's own: {more}.", source="as before")
    def plan(lab: Lab) -> Plan:
        training = by_class(lab, flow)
        way = four_of_each(flow, lab.full) | {"num": 10, "batch_size": 10, "gif": True}
        return Plan([training, on(training, "sample", "The way out of the noise", **way)])

    return plan


_MAKERS: tuple[Callable[[int | None], Section], ...] = (
    noising,
    one_step_training,
    out_of_distribution,
    pure_noise,
    time_conditioned,
    lr_decay,
    class_conditioned,
    without_scheduler,
    part_b_extras,
)


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections as a year has them, by name."""
    made = [maker(year) for maker in _MAKERS]
    return {one.name: one for one in made}
