"""Rules: one file each; the folder is the stage. Discovery is the folder: copying a file adds a rule."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rule import Rule

STAGES = ("recognise", "fuse")


@cache
def rules(stage: str) -> tuple[Rule | Recogniser, ...]:
    """The rules of one stage, by name of their files."""
    package = importlib.import_module(f"{__name__}.{stage}")
    found = []
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.append(module.RULE.named(info.name, stage, module.__file__ or ""))
    return tuple(found)


def all_rules() -> tuple[Rule | Recogniser, ...]:
    """Every rule of every stage."""
    return tuple(r for stage in STAGES for r in rules(stage))
