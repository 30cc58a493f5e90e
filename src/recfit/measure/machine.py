"""The print of the machine that goes with every number."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ISA = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "sve",
    "i8mm",
)
PACKAGES = ("recfit", "numpy", "onnxruntime", "torch", "onnx", "implicit", "faiss-cpu")


@cache
def machine() -> dict[str, Any]:
    """CPU, cores, instruction sets, memory, system and versions; measurements hold for this machine only."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "isa": [flag for flag in ISA if flag in _flags()],
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def halves_fast() -> bool:
    """Whether this is an x86 processor that multiplies bfloat16 faster than float32, as Linux tells; False of any other."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(machine()["isa"])


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu() -> str:
    lines = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return lines[0] if lines else platform.processor() or platform.machine()


def _flags() -> set[str]:
    lines = [line.split(":", 1)[1] for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].split()) if lines else set()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
