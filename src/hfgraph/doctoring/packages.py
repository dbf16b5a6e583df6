"""Checks of what is installed: Python, packages in the range that hfgraph works with, and the backend's name."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfgraph import versions
from hfgraph.doctoring.check import MISSING, NOTE, OK, Check, in_words
from hfgraph.errors import VersionTooOld

# Loaded only for a GPU; everything else works without it.
_FOR_GPUS = "triton"
_GROUP = "torch_dynamo_backends"


def python() -> Iterator[Check]:
    """The interpreter."""
    found = f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()} {platform.machine()})"
    if sys.version_info[:2] < versions.release(versions.PYTHON):
        yield Check("python", MISSING, found, f"hfgraph needs Python {versions.PYTHON} or newer.")
    else:
        yield Check("python", OK, found)


def torch() -> Iterator[Check]:
    """torch, and what it was built for."""
    yield _package("torch", _built_for)


def transformers() -> Iterator[Check]:
    """transformers."""
    yield _package("transformers")


def triton() -> Iterator[Check]:
    """triton, which only GPUs need."""
    yield _package("triton")


def others() -> Iterator[Check]:
    """What hfgraph asks for besides, by the metadata of its installation."""
    asked = [r for r in importlib.metadata.requires("hfgraph") or () if ";" not in r]
    names = [r.split(">=")[0].split("=")[0].strip() for r in asked]
    found = {n: versions.installed(n) for n in names if n not in versions.RANGES}
    absent = [n for n, version in found.items() if version is None]
    there = ", ".join(f"{n} {version}" for n, version in found.items() if version)
    if absent:
        yield Check("other packages", MISSING, f"{there or 'none'}; not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    else:
        yield Check("other packages", OK, there)


def plots() -> Iterator[Check]:
    """The optional package that draws benchmarks."""
    found = versions.installed("matplotlib")
    if found:
        yield Check("plots", OK, f"matplotlib {found}")
    else:
        yield Check("plots", NOTE, "matplotlib is not installed; only plots of benchmarks need it", "pip install 'hfgraph[plots]'")


def backend() -> Iterator[Check]:
    """`backend="hfgraph"` must lead torch to this very installation."""
    import torch._dynamo

    points = importlib.metadata.entry_points(group=_GROUP, name="hfgraph")
    advice = "Install hfgraph in this environment: pip install . in a clone. Until then: import hfgraph.backend, and backend=hfgraph.backend.hfgraph."
    if not points or "hfgraph" not in torch._dynamo.list_backends():
        yield Check("backend", MISSING, 'torch knows no backend named "hfgraph"', advice)
        return
    values = sorted({p.value for p in points})
    loaded: Any = next(iter(points)).load()
    leads_to, here = Path(inspect.getfile(loaded)).parent, Path(__file__).parents[1]
    if leads_to.resolve() != here.resolve():
        yield Check("backend", MISSING, f'"hfgraph" leads torch to {leads_to}, this is {here}', "Uninstall one of the two.")
    elif len(values) > 1:
        yield Check("backend", NOTE, f'several installations call themselves "hfgraph": {", ".join(values)}', "Uninstall all but one.")
    else:
        yield Check("backend", OK, f'torch knows "hfgraph" as {values[0]}')


def _package(name: str, more: Any = lambda module: "") -> Check:
    """A package against the range that hfgraph works with; it must also be importable."""
    oldest, newest = versions.RANGES[name]
    absent = MISSING if name != _FOR_GPUS or _has_gpu() else NOTE
    needed = f"'{name}>={oldest},<{newest}'"
    found = versions.installed(name)
    try:
        module = importlib.import_module(name)
    except Exception as e:  # whatever a broken package raises
        if found is None and isinstance(e, ModuleNotFoundError):
            why = "not installed" if absent == MISSING else "not installed; only GPUs need it"
            return Check(name, absent, why, f"pip install {needed}")
        return Check(name, absent, f"{found or 'some version'} is installed, but cannot be imported: {in_words(e)}", f"pip install --force-reinstall {needed}")
    found = found or str(getattr(module, "__version__", "of unknown version"))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            versions.check({name: found}.get)
    except VersionTooOld:
        return Check(name, MISSING, found, f"hfgraph needs {name} {oldest} or newer: pip install {needed}")
    told = f"{found}{more(module)} (from {oldest}, tested before {newest})"
    if caught:
        return Check(name, NOTE, told, f"It may work. If results look odd, run hfgraph verify, or: pip install {needed}")
    return Check(name, OK, told)


def _built_for(module: Any) -> str:
    if module.version.cuda:
        return f", built for CUDA {module.version.cuda}"
    if getattr(module.version, "hip", None):
        return f", built for ROCm {module.version.hip}"
    return ", built for CPUs"


def _has_gpu() -> bool:
    """Whether torch is there and sees a GPU."""
    try:
        return importlib.import_module("torch").cuda.is_available()
    except Exception:  # no torch: its own check says so
        return False
