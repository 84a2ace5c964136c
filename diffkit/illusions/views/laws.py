"""What makes a view: it can be undone, keeps lengths, is linear, and turns N(0, I) into N(0, I).

A network has only ever seen independent Gaussian noise. A view that blurs, brightens or interpolates hands it something
else, and no picture comes of it: Geng et al., arXiv:2311.17919, section 3.3. Here each condition is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from diffkit.types import View

_NUMBERS = 200_000  # of noise that are looked at, or a few more
_EXACT = 1e-5  # of numbers of size 1, for views that compute in single precision
_SIGMAS = 6.0  # a statistic of true noise leaves this range once in five hundred million times
_TORN = 0.35
_STILL = 0.05  # of the pixels; inner_circle:0.126 turns as many


@dataclass(frozen=True)
class ViewReport:
    """What was measured of a view.

    Attributes:
        inverse: Largest |invert(apply(x)) - x|, and of the other order, on x ~ N(0, I).
        norm: Largest relative change of a picture's length.
        linearity: Largest |apply(a x + b y) - a apply(x) - b apply(y)|.
        variance_law: Largest |invert_var(apply(x)^2) - x^2|: a variance moves with its pixel and has no sign.
        mean: Mean of the viewed noise; 0 for true noise.
        variance: Its variance; 1 for true noise.
        neighbours: Correlation of its neighbouring pixels, the larger of the two directions; 0 for true noise.
        kept: Fraction of neighbouring pixels of the picture that are neighbours in the view; None where the view does
            more than move pixels and change signs.
        reasons: Why the view cannot work, in sentences; empty if it can.
        hints: What is allowed and yet likely to disappoint.
    """

    inverse: float
    norm: float
    linearity: float
    variance_law: float
    mean: float
    variance: float
    neighbours: float
    kept: float | None
    reasons: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the view can work."""
        return not self.reasons


def check_view(view: View, size: int) -> ViewReport:
    """Measure whether a view can work on pictures of size x size pixels.

    Args:
        view: The view; registered, from a file, or your own object.
        size: Side in pixels.

    Raises:
        UsageError: The view refuses this size.
    """
    count = max(2, -(-_NUMBERS // (3 * size * size)))
    dice = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, 3, size, size, generator=dice, dtype=torch.float64) for _ in range(2))
    viewed, other = view.apply(x), view.apply(y)
    if viewed.shape != x.shape:
        reason = f"It makes {tuple(viewed.shape)} of pictures of the shape {tuple(x.shape)}; the shape must stay."
        nan = float("nan")
        return ViewReport(nan, nan, nan, nan, nan, nan, nan, None, [reason])
    mixed = view.apply(0.6 * x - 1.7 * y) - (0.6 * viewed - 1.7 * other)
    values = {
        "inverse": max(_largest(view.invert(viewed) - x), _largest(view.apply(view.invert(x)) - x)),
        "norm": _largest(viewed.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1) - 1.0),
        "linearity": _largest(mixed),
        "variance_law": _largest(view.invert_var(viewed**2) - x**2),
        "mean": float(viewed.mean()),
        "variance": float(viewed.var()),
        "neighbours": _neighbours(viewed),
    }
    kept, changed = _kept(view, size), float((viewed != x).double().mean())
    return ViewReport(**values, kept=kept, reasons=_reasons(values, x.numel()), hints=_hints(kept, changed))


def _reasons(found: dict[str, float], count: int) -> list[str]:
    near = _SIGMAS / sqrt(count)
    rules = [
        (found["inverse"] <= _EXACT, "It cannot be undone: invert(apply(x)) is off by up to {inverse:.3g}. Predictions "
         "of the view would not fit the picture."),
        (found["norm"] <= _EXACT, "It changes lengths, by up to {norm:.2%}: it is not orthogonal. Blur, brightness and "
         "turns that interpolate do that."),
        (found["linearity"] <= _EXACT, "It is not linear: apply(a x + b y) differs from a apply(x) + b apply(y) by up "
         "to {linearity:.3g}. Signal and noise would not be seen in the same way."),
        (found["variance_law"] <= _EXACT, "invert_var does not move a variance as the pixels move: off by up to "
         "{variance_law:.3g}."),
        (abs(found["mean"]) <= near, "Noise seen through it has the mean {mean:.3f} in place of 0."),
        (abs(found["variance"] - 1.0) <= near * sqrt(2.0), "Noise seen through it has the variance {variance:.3f} in "
         "place of 1."),
        (abs(found["neighbours"]) <= near * sqrt(2.0), "Noise seen through it is correlated, {neighbours:.3f} between "
         "neighbouring pixels in place of 0: the network knows only noise of independent pixels."),
    ]  # fmt: skip
    # `not <=` would let NaN pass as success; a comparison with NaN is false, and so is a reason.
    return [text.format(**found) for holds, text in rules if not holds]


def _hints(kept: float | None, changed: float) -> list[str]:
    if changed == 0.0:
        return ["It changes nothing: beside a view of the picture as it is, it shows the same picture twice."]
    if changed < _STILL:
        return [
            f"It changes only {changed:.1%} of the picture: beside a view of the picture as it is, both look alike."
        ]
    if kept is None:
        return ["It does more than move pixels and change signs; nothing is known of how its pictures look."]
    if kept >= _TORN:
        return []
    return [
        f"It tears neighbours apart: only {kept:.0%} of neighbouring pixels stay neighbours. It is valid, but pictures "
        "seen through it are likely to be grainy, or one of the two meanings will be lost; larger pieces look better."
    ]


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _neighbours(noise: Tensor) -> float:
    """Correlation of neighbouring pixels, across or down, whichever is larger."""
    scale, noise = float(noise.var()), noise - noise.mean()
    pairs = ((noise[..., 1:], noise[..., :-1]), (noise[..., 1:, :], noise[..., :-1, :]))
    return max((float((a * b).mean()) / scale for a, b in pairs), key=abs)


def _kept(view: View, size: int) -> float | None:
    """Fraction of the picture's neighbouring pixels that are neighbours in the view, by sending every address."""
    address = torch.arange(1, size * size + 1, dtype=torch.float64).view(1, 1, size, size)
    found = view.apply(address.expand(1, 3, size, size))[0, 0].abs()
    place = found.round().long() - 1
    if _largest(found - found.round()) > 1e-6 or not torch.equal(place.flatten().sort()[0], torch.arange(size * size)):
        return None
    rows, columns = place // size, place % size
    close = [
        ((rows[a] - rows[b]).abs() + (columns[a] - columns[b]).abs() == 1).double().mean()
        for a, b in (((slice(None), slice(1, None)), (slice(None), slice(-1))),
                     ((slice(1, None),), (slice(-1),)))
    ]  # fmt: skip
    return float(sum(close) / 2)
