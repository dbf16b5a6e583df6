"""What figures depend on: the machine, versions, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from hfgraph import versions

_PACKAGES = ("hfgraph", "torch", "transformers", "triton")


def machine(device: str, threads: int) -> dict[str, Any]:
    """The hardware and its operating system."""
    found = {"processor": processor(), "cores": os.cpu_count(), "threads": threads, "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return {**found, "system": f"{platform.system()} {platform.release()}"}


def processor() -> str:
    """Its name and the widest instructions that torch uses on it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def installed() -> dict[str, str]:
    """Versions of what takes part."""
    return {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := versions.installed(p)) is not None}}


def commit() -> dict[str, Any]:
    """The commit that hfgraph runs from, and whether its sources differ from it; None outside a clone."""
    sources = Path(__file__).parents[1]
    head = _git(sources, "rev-parse", "HEAD")
    return {"commit": head, "changed": bool(_git(sources, "status", "--porcelain", "--", ".")) if head else None}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
