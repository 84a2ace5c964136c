"""What all wrappers around a denoiser share: conditions for the rows of a batch, and calls of a limited size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Prediction


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

    def split(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        if batch <= limit:
            return net(x, t, cond)
        # No network mixes rows, so the parts say what the whole would, up to the order in which sums are rounded.
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
