"""Functions from one denoiser to another: guidance, views (anagrams), parts (hybrids), smaller calls.

They work on the batch axis, so that nested wrappers end in one network call per step; none of them holds state. The
gradient of a loss, which needs a call of its own and a backward pass, is in `gradients.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffkit.engine.settings import check_interval, check_shares, within
from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Filter, Prediction, View


def cfg(
    net: Denoiser,
    uncond: Cond,
    scale: float | Sequence[float],
    *,
    start: float = 0.0,
    stop: float = 1.0,
    levels: int = 1000,
) -> Denoiser:
    """Guide a denoiser: out = uncond + scale * (cond - uncond), by one call on the doubled batch.

    Scale 1 is the conditional and 0 the unconditional prediction; neither costs a second pass. A learned variance is
    the conditional one's.

    Args:
        net: The denoiser to guide.
        uncond: The null class, empty prompt or negative prompt; batch size 1 or that of x. What it does not hold (an
            image, a noise level) is the same in both halves, and comes from the condition.
        scale: Guidance scale w; or one per image, where x is then that batch or several of them (views).
        start: Guide from this fraction of the way from pure noise (0) to the image (1) on, measured in timesteps;
            before it the prediction is conditional.
        stop: Guide up to this fraction; a step at either end is guided.
        levels: T, the number of timesteps of the way; used for `start` and `stop` only.

    Raises:
        UsageError: start and stop are not 0 <= start <= stop <= 1.

    Source: Ho & Salimans, arXiv:2207.12598, eq. 6; the interval: Kynkäänniemi et al., arXiv:2404.07724.
    """
    check_interval(start, stop)
    # Reading a timestep from a GPU stops everything until it has arrived; without an interval nobody asks for it.
    always = start == 0.0 and stop == 1.0

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        if scale == 1.0 or not (always or within(start, stop, float(t.max()), levels)):
            return net(x, t, cond)
        if scale == 0.0:  # the condition's share is nothing, and what it lacks (an image) is still needed
            return net(x, t, stacked([(cond, uncond)], batch))
        # Both predictions in one call: the batch twice, first without and then with the condition. A negative prompt
        # stands in the place of "without": the picture is then led away from it.
        both = stacked([(cond, uncond), (cond, cond)], batch)
        pred = net(x.repeat(2, *[1] * (x.ndim - 1)), t if t.ndim == 0 else t.repeat(2), both)
        without, with_cond = pred.out.chunk(2)
        # A learned variance says how sure the network is of a step, not where it leads: nothing to go further along.
        var = None if pred.var is None else pred.var[batch:]
        weight = scale if isinstance(scale, float | int) else fit(torch.tensor(scale).reshape(-1, 1, 1, 1), batch).to(x)
        # The difference points to where the condition makes x likelier: by Bayes it is, up to a factor, the gradient of
        # log p(cond | x). Weight 1 follows the model; a larger one goes on in the same direction (eq. 6). The line is
        # the same for every kind of prediction, since each is affine in the score.
        return Prediction(without + weight * (with_cond - without), var)

    return guided


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
        chosen, own = list(views), list(conds)
        if reduce == "alternate":
            assert timesteps is not None
            # The step follows from t and the grid. A counter would be state, and wrong on a path that turns back.
            place = place_of(timesteps, t) % len(views)
            chosen, own = [views[place]], [conds[place]]
        back, spread = _ask_each(net, x, t, cond, own, chosen)
        # All of them are now about the same x: equation 2 is their mean.
        return Prediction(_mean(back, share), _mean(spread, share) if spread else None)

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
        back, spread = _ask_each(net, x, t, cond, conds, views)
        # The parts sum to the identity and a step is linear in the prediction: part k of the picture follows from
        # part k of the predictions alone, and is drawn for its own prompt.
        start = torch.zeros_like(x) if known is None else split.part(known(x, t), fixed)
        out = sum((split.part(part, k) for k, part in zip(drawn, back, strict=True)), start)
        return Prediction(out, _mean(spread) if spread else None)

    return mixed


def _ask_each(
    net: Denoiser, x: Tensor, t: Tensor, cond: Cond, conds: Sequence[Cond], views: Sequence[View] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Predict x under each condition, as its view shows it; return the predictions turned back, and the variances."""
    count = len(conds)
    seen = [x] * count if views is None else [view.apply(x) for view in views]
    own = [cond] * count if views is None else [turn_cond(cond, view) for view in views]
    # Views x guidance x samples: all of them are rows of one batch, and one network call answers for all. Each view is
    # a rotation of the space of pictures, so a turned x is still signal * picture + noise * N(0, I), which the network
    # was trained on.
    each = stacked(list(zip(own, conds, strict=True)), x.shape[0])
    pred = net(torch.cat(seen), tile(t, count), each)
    back, spread = list(pred.out.chunk(count)), [] if pred.var is None else list(pred.var.chunk(count))
    if views is not None:
        back = [view.invert(part) for view, part in zip(views, back, strict=True)]
        # A variance has no sign: a view that negates colours turns the prediction, and leaves this as it is.
        spread = [view.invert_var(part) for view, part in zip(views, spread, strict=False)]
    return back, spread


def turn_cond(cond: Cond, view: View) -> Cond:
    """Return a condition with its picture (`channels`) as a view shows it."""
    # A prompt reads the same from every side; an image that the network is given beside x has to turn with it.
    return Cond({k: view.apply(v) if k == "channels" else v for k, v in cond.tensors.items()})


def _mean(parts: Sequence[Tensor], share: Sequence[float] | None = None) -> Tensor:
    # With shares that sum to 1 it stays a mean: the noise in the prediction keeps its scale, as the solver expects.
    if len(parts) == 1:
        return parts[0]
    if share is None:
        return torch.stack(list(parts)).mean(0)
    return sum((w * part for w, part in zip(share, parts, strict=True)), torch.zeros_like(parts[0]))


def place_of(timesteps: Sequence[float] | Tensor, t: Tensor) -> int:
    """Index of the (one) timestep that a batch stands at."""
    # The nearest, since some solvers' timesteps are no whole numbers and are rounded on their way through a tensor.
    grid = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
    return int((grid - float(t.reshape(-1)[0])).abs().argmin())


def smallest_limit(*limits: int | None) -> int | None:
    """Return the smallest of several limits on the rows of a network call; None, for no limit, where all are None.

    Raises:
        UsageError: A limit below 1.
    """
    given = [limit for limit in limits if limit is not None]
    if any(limit < 1 for limit in given):
        raise UsageError(f"`max_batch` {min(given)} is below 1", "Give 1 or more, or leave it out.")
    return min(given, default=None)


def chunked(net: Denoiser, *limits: int | None) -> Denoiser:
    """Split calls of more rows than the smallest of `limits` into several; the innermost wrapper.

    Where all limits are None the denoiser is returned as it is.

    Raises:
        UsageError: A limit below 1.
    """
    limit = smallest_limit(*limits)
    if limit is None:
        return net

    # Innermost, because the wrappers around it make the rows: 4 pictures of an anagram with 2 views under guidance are
    # 16 of them.
    def split(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        if batch <= limit:
            return net(x, t, cond)
        # No network mixes rows (normalization is per picture), so the parts say what the whole would, up to the order
        # in which sums are rounded.
        cond = cond.expand(batch)
        parts = [
            net(x[k : k + limit], t if t.ndim == 0 else t[k : k + limit], cond.rows(k, k + limit))
            for k in range(0, batch, limit)
        ]
        spread = [p.var for p in parts if p.var is not None]
        return Prediction(torch.cat([p.out for p in parts]), torch.cat(spread) if spread else None)

    return split


def stacked(pairs: Sequence[tuple[Cond, Cond]], batch: int) -> Cond:
    """Return conditions for `batch` rows each, one pair after the other.

    A pair gives its second condition, and of the first what that lacks. Fewer rows are repeated, view by view.
    """
    each = [{**cond.tensors, **own.tensors} for cond, own in pairs]
    if any(set(one) != set(each[0]) for one in each):
        raise ValueError(f"conditions with different parts cannot be joined: {[sorted(one) for one in each]}")
    return Cond({k: torch.cat([fit(one[k], batch) for one in each]) for k in each[0]})


def fit(v: Tensor, batch: int) -> Tensor:
    """Repeat the rows of v (B, ...) to `batch` rows, a multiple of B."""
    rows = v.shape[0]
    if rows == 1:
        return v.expand(batch, *v.shape[1:])
    if batch % rows:
        raise ValueError(f"a condition of {rows} rows does not fit a batch of {batch}")
    # Views lie behind one another in the batch (all images in view 1, all in view 2), so conditions repeat as a whole.
    return v if rows == batch else v.repeat(batch // rows, *[1] * (v.ndim - 1))


def tile(t: Tensor, count: int) -> Tensor:
    """Repeat the rows of timesteps (B,) `count` times; one for all, of shape (), stays."""
    return t if t.ndim == 0 else t.repeat(count)
