"""Ops: one room (folder) each. Discovery is the folder: importing `hfgraph.kernels.all_ops` registers every room."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from hfgraph.graph.op import OPS, Op


@cache
def all_ops() -> dict[str, Op]:
    """Import every room and return the registry, by name."""
    for room in sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg):
        importlib.import_module(f"{__name__}.{room}")
    return OPS
