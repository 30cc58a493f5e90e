"""The state of a training between two epochs, in safetensors and JSON, so that an interrupted one continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from recfit.training.settings import Epoch
from recfit.types import ConfigError


@dataclass(frozen=True)
class Progress:
    """The epochs so far and the weights of the best of them."""

    epochs: tuple[Epoch, ...]
    best: int
    weights: Mapping[str, Tensor]


def write(path: Path, plan: str, module: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Replace the checkpoint at `path` at once, never half; `plan` describes the training it belongs to."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.weights.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    epochs = [asdict(epoch) for epoch in progress.epochs]
    metadata = {"plan": plan, "progress": json.dumps({"best": progress.best, "epochs": epochs})}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, part, metadata)
    os.replace(part, path)


def read(path: Path, plan: str, module: nn.Module, optimizer: Optimizer) -> Progress | None:
    """Restore `module` and `optimizer` from `path`; None where there is no checkpoint."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("plan") != plan:
            raise ConfigError(f"{path} is the checkpoint of another training; delete it or name another file")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module.load_state_dict(_under("model.", tensors))
    _restore(optimizer, _under("optimizer.", tensors))
    progress = json.loads(metadata["progress"])
    epochs = tuple(Epoch(**epoch) for epoch in progress["epochs"])
    return Progress(epochs, progress["best"], _under("best.", tensors))


def _restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".")
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
