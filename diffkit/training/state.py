"""Between a `TrainState` and the flat tensors and JSON of a checkpoint, exactly, sharded or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.models.network import is_spread, whole
from diffkit.training.checkpoint import Checkpoint
from diffkit.training.loop import TrainState
from diffkit.training.optim import Plateau


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters are spread over the processes (FSDP)."""
    return any(map(is_spread, module.parameters()))


def _like(value: Tensor, param: Tensor) -> Tensor:
    """Shard a whole tensor as `param` is sharded."""
    if not is_spread(param) or value.shape != param.shape:
        return value.to(param.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)


def _named(state: TrainState) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters by the network's own names, in the optimizer's order."""
    names = [name for name, p in state.network.named_parameters() if p.requires_grad]
    params = [p for group in state.optimizer.param_groups for p in group["params"]]
    return list(zip(names, params, strict=True))


def _once(network: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers, tied ones under their first name only: safetensors stores no tensor twice."""
    firsts = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {name: value for name, value in network.state_dict().items() if name in firsts}


def collect(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's tensor files; every process must call it, because shards are gathered here.

    Returns:
        network: all weights and buffers; ema: the averaged weights; optimizer: `exp_avg/NAME` and so on.
    """
    files = {"network": {name: whole(v) for name, v in _once(state.network).items()}}
    if state.ema is not None:
        files["ema"] = {name: whole(v) for name, v in state.ema.state_dict().items()}
    files["optimizer"] = {
        f"{key}/{name}": whole(value)
        for name, param in _named(state)
        for key, value in state.optimizer.state.get(param, {}).items()
    }
    return files


def summary(state: TrainState, scaler: Any = None) -> dict[str, Any]:
    """Return the JSON part: counters, and the state of what is not a tensor."""
    return {
        "step": state.step,
        "splits": state.splits,
        "plateau": state.plateau.state_dict() if state.plateau else None,
        "loss_sum": _plain(state.loss_sum),
        "loss_count": state.loss_count,
        "skipped": _plain(state.skipped),
        "streak": _plain(state.streak),
        "data": state.data,
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def _plain(value: Tensor) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0


@torch.no_grad()
def restore(state: TrainState, checkpoint: Checkpoint, scaler: Any = None) -> None:
    """Put a checkpoint back into a freshly built `TrainState`, bit for bit."""
    own = state.network.state_dict()
    for name, value in checkpoint.tensors("network").items():
        own[name].copy_(_like(value, own[name]))
    if state.ema is not None:
        shadow = state.ema.state_dict()
        state.ema.load_state_dict({k: _like(v, shadow[k]) for k, v in checkpoint.tensors("ema").items()})
    _restore_optimizer(state, checkpoint.tensors("optimizer"))
    saved = checkpoint.state
    state.step, state.splits, state.data = int(saved["step"]), int(saved["splits"]), dict(saved["data"] or {})
    state.loss_count = int(saved["loss_count"])
    for name in ("loss_sum", "skipped", "streak"):
        getattr(state, name).fill_(saved[name])
    if saved["plateau"]:
        state.plateau = Plateau(**saved["plateau"])
    if scaler is not None and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])


def _restore_optimizer(state: TrainState, saved: Mapping[str, Tensor]) -> None:
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        slot, _, name = key.partition("/")
        slots.setdefault(name, {})[slot] = value
    inner = state.bare_optimizer
    fused = bool(inner.defaults.get("fused"))
    for name, param in _named(state):
        if name in slots:
            # The plain kernels keep their step count on the host; the fused ones want it beside the weights.
            inner.state[param] = {
                slot: _like(value, param) if fused or slot != "step" else value for slot, value in slots[name].items()
            }
