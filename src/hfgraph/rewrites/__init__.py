"""Rules: one file each; the folder is the stage. Discovery is the folder: copying a file adds a rule."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rule import Rule

STAGES = ("recognise", "fuse")


@cache
def rules(stage: str) -> tuple[Rule | Recogniser, ...]:
    """The rules of one stage, by name of their files."""
    return tuple(module.RULE.named(name, stage, module.__file__ or "") for name, module in modules(stage))


def modules(folder: str) -> Iterator[tuple[str, ModuleType]]:
    """The modules of a folder below this one, such as "fuse", by their names."""
    package = importlib.import_module(f"{__name__}.{folder}")
    for name in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        yield name, importlib.import_module(f"{package.__name__}.{name}")


def all_rules() -> tuple[Rule | Recogniser, ...]:
    """Every rule of every stage."""
    return tuple(r for stage in STAGES for r in rules(stage))
