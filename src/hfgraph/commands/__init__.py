"""The commands of `hfgraph`: one file each. Discovery is the folder; what a command loads, it loads when it runs."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

HOLDS, DOES_NOT_HOLD, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        short: its line in `hfgraph --help`.
        text: what it does and its exit status, in `hfgraph COMMAND --help`.
        example: a command line to copy.
        arguments: adds its flags to a parser.
        run: does it; returns the exit status.
    """

    name: str
    short: str
    text: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def all_commands() -> tuple[Command, ...]:
    """Every command, by name."""
    files = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").COMMAND for name in files)
