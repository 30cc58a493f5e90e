"""recfit fits a recommender into its budget: it measures what every way of paying costs, chooses, exports, serves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from recfit.types import (
    BundleError,
    DataError,
    Infeasible,
    RecfitError,
    Recommendation,
    Request,
)

if TYPE_CHECKING:
    from recfit.config import Budget, Data, Model, Search, Settings
    from recfit.config import load as load_config
    from recfit.engine import Engine, open_bundle
    from recfit.flow import optimize

__all__ = [
    "Budget",
    "BundleError",
    "Data",
    "DataError",
    "Engine",
    "Infeasible",
    "Model",
    "RecfitError",
    "Recommendation",
    "Request",
    "Search",
    "Settings",
    "load_config",
    "open_bundle",
    "optimize",
]

# ONNX Runtime keeps a file of events about the machine and its use for its makers, in a thread of its own; say 0 to let it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported on first use: serving must not pay for, or need, what optimizing imports.
_LAZY = {
    **{name: ("recfit.config", name) for name in ("Budget", "Data", "Model", "Search", "Settings")},
    "Engine": ("recfit.engine", "Engine"),
    "load_config": ("recfit.config", "load"),
    "open_bundle": ("recfit.engine", "open_bundle"),
    "optimize": ("recfit.flow", "optimize"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'recfit' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
