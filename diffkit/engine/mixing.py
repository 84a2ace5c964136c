"""Several predictions for one picture: views of it (anagrams), or parts of it (hybrids), each under its own prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffkit.engine.rows import stacked, tile
from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Filter, Prediction, View


def multiview(
    net: Denoiser,
    conds: Sequence[Cond],
    views: Sequence[View],
    reduce: Literal["mean", "alternate"] = "mean",
    *,
    timesteps: Sequence[float] | Tensor | None = None,
    weights: Sequence[float] | None = None,
) -> Denoiser:
    """Predict every view of x under its own condition, turn the predictions back and average them: an anagram.

    All views go through the network in one call. The condition that the result is called with is joined to each of
    `conds`; an image in it (`channels`) is turned with the view.

    Args:
        net: The denoiser, with its guidance.
        conds: One per view, of batch size 1 or that of x.
        views: Linear and orthogonal maps.
        reduce: "mean" of all views, or "alternate": step k uses view k modulo their number.
        timesteps: The grid that steps are counted on; needed by "alternate".
        weights: How much each view counts in the mean, none negative; equally when left out. They are scaled to the
            sum 1.

    Raises:
        UsageError: Not one condition per view, an unknown reduction, or weights of which none is above 0.

    Source: Geng et al., arXiv:2311.17919, eq. 2; alternating: Tancik, illusion-diffusion.
    """
    if not views or len(conds) != len(views):
        raise UsageError(f"{len(conds)} prompts for {len(views)} views", "Give one prompt for each view.")
    if reduce == "alternate" and timesteps is None:
        raise ValueError("reduce='alternate' needs the timesteps")
    share = check_shares(weights, len(views), reduce)

    def viewed(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        chosen = list(zip(views, conds, strict=True))
        if reduce == "alternate":
            assert timesteps is not None
            # The step follows from t and the grid. A counter would be state, and wrong on a path that turns back.
            chosen = [chosen[place_of(timesteps, t) % len(views)]]
        batch, count = x.shape[0], len(chosen)
        each = stacked([(turn_cond(cond, view), own) for view, own in chosen], batch)
        # Each view is a rotation of the space of pictures, so a turned x is still signal * picture + noise * N(0, I),
        # which the network knows; and predictions that are turned back are all about the same x and can be averaged.
        pred = net(torch.cat([view.apply(x) for view, _ in chosen]), tile(t, count), each)
        back = [view.invert(part) for (view, _), part in zip(chosen, pred.out.chunk(count), strict=True)]
        if pred.var is None:
            return Prediction(_mean(back, share))
        # A variance has no sign: a view that negates colours turns the prediction, and leaves this as it is.
        spread = [view.invert_var(part) for (view, _), part in zip(chosen, pred.var.chunk(count), strict=True)]
        return Prediction(_mean(back, share), _mean(spread, share))

    return viewed


def mix(
    net: Denoiser,
    conds: Sequence[Cond],
    split: Filter,
    *,
    views: Sequence[View] | None = None,
    known: Callable[[Tensor, Tensor], Tensor] | None = None,
    fixed: int = 0,
) -> Denoiser:
    """Take each part of the prediction from another condition, out = sum_k f_k(out_k): a hybrid image.

    All conditions go through the network in one call; a learned variance is averaged and not filtered.

    Args:
        net: The denoiser, with its guidance.
        conds: One per part of the split that is drawn, of batch size 1 or that of x.
        split: Parts that sum to the identity.
        views: One per condition: the part shows its prompt to those who look in this way. Plainly when left out.
        known: From (x, t) to the output that stands for a given picture, which one part is then taken from
            (`constraints.component_of`): a hybrid made out of a photo.
        fixed: Which part that is; it has no condition.

    Raises:
        UsageError: Not one condition per part that is drawn, or not one view per condition.

    Source: Geng et al., arXiv:2404.11615, eq. 4; the given part: section 3.4, on the prediction in place of x_t, whose
    noise stays N(0, I) that way.
    """
    if known is not None and not 0 <= fixed < split.parts:
        raise UsageError(f"`fixed` {fixed}: the split has the parts 0..{split.parts - 1}")
    drawn = [k for k in range(split.parts) if known is None or k != fixed]
    if len(conds) != len(drawn):
        raise UsageError(f"{len(conds)} prompts for {len(drawn)} parts of a split", f"Give {len(drawn)}.")
    if views is not None and len(views) != len(conds):
        raise UsageError(f"{len(views)} views for {len(conds)} parts", "Give one view per prompt.")

    def mixed(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch, count = x.shape[0], len(conds)
        # Views x guidance x samples: all of them are rows of one batch, and one network call answers for all.
        seen = [x] * count if views is None else [view.apply(x) for view in views]
        own = [cond] * count if views is None else [turn_cond(cond, view) for view in views]
        each = stacked(list(zip(own, conds, strict=True)), batch)
        pred = net(torch.cat(seen), tile(t, count), each)
        back, spread = list(pred.out.chunk(count)), [] if pred.var is None else list(pred.var.chunk(count))
        if views is not None:
            back = [view.invert(part) for view, part in zip(views, back, strict=True)]
            spread = [view.invert_var(part) for view, part in zip(views, spread, strict=False)]
        # The parts sum to the identity and a step is linear in the prediction: part k of the picture follows from
        # part k of the predictions alone, and is drawn for its own prompt.
        start = torch.zeros_like(x) if known is None else split.part(known(x, t), fixed)
        out = sum((split.part(part, k) for k, part in zip(drawn, back, strict=True)), start)
        return Prediction(out, _mean(spread) if spread else None)

    return mixed


def turn_cond(cond: Cond, view: View) -> Cond:
    """Return a condition with its picture (`channels`) as a view shows it."""
    # A prompt reads the same from every side; an image that the network is given beside x has to turn with it.
    return Cond({k: view.apply(v) if k == "channels" else v for k, v in cond.tensors.items()})


def check_shares(weights: Sequence[float] | None, count: int, reduce: str) -> list[float] | None:
    """Return weights of views scaled to the sum 1; None where all count the same.

    Raises:
        UsageError: An unknown reduction, not one weight per view, or weights of no sense.
    """
    if reduce not in ("mean", "alternate"):
        raise UsageError(f"`reduce` {reduce!r} is not one of mean, alternate")
    if weights is None:
        return None
    text = ", ".join(f"{w:g}" for w in weights)
    if len(weights) != count:
        raise UsageError(f"`weights` needs one value per view, got {len(weights)} ({text}) for {count}")
    if reduce == "alternate":
        raise UsageError(f"`weights` {text}: views that take turns have no weights", "Leave it out, or `reduce` mean.")
    total = float(sum(weights))
    if not all(0.0 <= w < float("inf") for w in weights) or not 0.0 < total < float("inf"):
        raise UsageError(f"`weights` {text}: weights are finite, none is negative, and one is above 0")
    # Equal weights take the plain mean, whose rounding is that of no weights at all.
    return None if len(set(weights)) == 1 else [w / total for w in weights]


def _mean(parts: Sequence[Tensor], share: Sequence[float] | None = None) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if share is None:
        return torch.stack(list(parts)).mean(0)
    return sum((w * part for w, part in zip(share, parts, strict=True)), torch.zeros_like(parts[0]))


def place_of(timesteps: Sequence[float] | Tensor, t: Tensor) -> int:
    """Index of the (one) timestep that a batch stands at."""
    grid = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
    return int((grid - float(t.reshape(-1)[0])).abs().argmin())
