"""What was asked for, checked before any work; plain values, because workers get it as JSON."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hfgraph.bench.presets import NAMES, PRESETS, TINYLM, tinylm
from hfgraph.bench.systems import BASELINE, SYSTEMS
from hfgraph.bench.tasks import TASKS
from hfgraph.errors import MissingPackage, SabotageNeedsOurs, UnknownModel, UnknownSystem, UnknownTask
from hfgraph.files import check_writable

DTYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class Plan:
    """One run of the bench.

    Attributes:
        model: a preset, a hub name or a folder.
        source: what is loaded for it; empty for a preset, which is made at random.
        threads: of each process; 0 lets torch choose.
        sabotage: a rule that hfgraph falsifies, to see the gate go red.
    """

    model: str
    source: str = ""
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 0
    rounds: int = 5
    seed: int = 0
    tasks: tuple[str, ...] = tuple(TASKS)
    systems: tuple[str, ...] = tuple(SYSTEMS)
    sabotage: str | None = None

    @staticmethod
    def of(model: str, *, device: str, tasks: Iterable[str] | None = None, systems: Iterable[str] | None = None, **rest: Any) -> Plan:
        """Check names. The baseline is always among the systems, and everything is in the order of its table.

        Raises:
            UnknownModel, NotInAClone, UnknownTask, UnknownSystem, SabotageNeedsOurs.
        """
        here = [s.name for s in SYSTEMS.values() if device in s.devices]
        named_tasks, named_systems = (list(dict.fromkeys(n)) if n is not None else None for n in (tasks, systems))
        for name in named_tasks or ():
            if name not in TASKS:
                raise UnknownTask(name, TASKS)
        for name in named_systems or ():
            if name not in here:
                raise UnknownSystem(name, here, device)
        chosen = here if named_systems is None else [n for n in here if n == BASELINE or n in named_systems]
        if rest.get("sabotage") and not any(SYSTEMS[s].ours for s in chosen):
            raise SabotageNeedsOurs(rest["sabotage"])
        sources = source_of(model)
        wanted = tuple(t for t in TASKS if named_tasks is None or t in named_tasks)
        return Plan(model, sources, device=device, tasks=wanted, systems=tuple(chosen), **rest)

    @staticmethod
    def read(given: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {f.name: given[f.name] for f in fields(Plan)}
        return Plan(**{**plain, "tasks": tuple(plain["tasks"]), "systems": tuple(plain["systems"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def source_of(model: str) -> str:
    """What is loaded for a name: nothing for a preset, else a folder or a hub name.

    Raises:
        UnknownModel: a word that is neither a preset nor a folder, and hub names of that form are too old to be meant.
        NotInAClone: tinylm is not here.
    """
    if model in PRESETS:
        return ""
    if model == TINYLM:
        return tinylm()
    if not Path(model).is_dir() and "/" not in model and os.sep not in model:
        raise UnknownModel(model, NAMES)
    return model


def plot_files(path: Path) -> list[Path]:
    """What is written for a plot's name: that file, or both kinds where its ending is neither."""
    return [path] if path.suffix in (".png", ".svg") else [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]


def check_outputs(out: Path | None, plot: Path | None) -> None:
    """Refuse, before any work, what could not be written after it.

    Raises:
        CannotWrite, MissingPackage.
    """
    for path in (*([out] if out else []), *(plot_files(plot) if plot else [])):
        check_writable(path)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise MissingPackage("matplotlib", "--plot", "pip install 'hfgraph[plots]'")
