"""What `hfgraph doctor` looks at: versions, compiler, devices, what will be used, and what is missing.

Each check is a small function that yields lines. None may raise, and none may change anything: the runner sees to both.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from hfgraph.doctoring import compiler, devices, environment, packages
from hfgraph.doctoring.check import MISSING, NOTE, Check, Examination, in_words

# The screen from top to bottom.
SECTIONS: Mapping[str, tuple[Examination, ...]] = {
    "installed": (packages.python, packages.torch, packages.transformers, packages.triton, packages.others, packages.plots),
    "devices": (devices.processor, devices.gpus),
    "compiler": (compiler.cache, compiler.compiler, compiler.test_program, compiler.vectors),
    "used": (packages.backend, devices.rules, devices.ops),
    "environment": (environment.torch_compile, environment.variables),
}
# Those that report the environment itself.
_AS_SET = {compiler.cache, environment.variables}
# Those that say something without torch.
_WITHOUT_TORCH = {packages.python, packages.torch, packages.transformers, packages.triton, packages.others, packages.plots, environment.variables}


@dataclass(frozen=True)
class Checkup:
    """Every line, by section."""

    sections: Mapping[str, tuple[Check, ...]]

    @property
    def missing(self) -> list[Check]:
        """What hfgraph needs and does not have."""
        return [c for checks in self.sections.values() for c in checks if c.status == MISSING]

    @property
    def ok(self) -> bool:
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [{"section": s, **asdict(c)} for s, checks in self.sections.items() for c in checks]}


def examine(say: Callable[[str], object] = lambda text: None, sections: Mapping[str, tuple[Examination, ...]] = SECTIONS) -> Checkup:
    """Run every check. `say` is told what is looked at."""
    say("starting torch")
    has_torch = _imports("torch")
    found: dict[str, tuple[Check, ...]] = {}
    for title, checks in sections.items():
        say(f"looking at: {title}")
        able = [c for c in checks if has_torch or c in _WITHOUT_TORCH]
        lines = [line for check in able for line in _lines(check)]
        if len(able) < len(checks):
            left = ", ".join(_name(c) for c in checks if c not in able)
            lines.append(Check("not checked", NOTE, f"{left}: torch is needed for that"))
        found[title] = tuple(lines)
    return Checkup(found)


def _lines(check: Examination) -> Iterator[Check]:
    """What a check found; that it failed to run is a finding, too."""
    with _as_it_was(), nullcontext() if check in _AS_SET else compiler.usable_cache():
        try:
            yield from check()
        except Exception as e:  # a screen with a gap is of use, a traceback is not
            yield Check(_name(check), MISSING, f"this check itself failed: {in_words(e)}", "Please report it.")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Without warnings among the lines, and with the environment as it was: torch sets variables when it looks for its folders."""
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _name(check: Examination) -> str:
    return getattr(check, "__name__", "check").replace("_", " ")


def _imports(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # the package's own line says why
        return False
    return True
