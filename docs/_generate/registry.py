"""What the pages are made from: ops, rules, commands and options. There is no list of them here; hfgraph's registries are the lists."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hfgraph import rewrites
from hfgraph.commands import Command, all_commands
from hfgraph.graph.op import Op
from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rule import Rule
from hfgraph.kernels import all_ops
from hfgraph.options import Options


@dataclass(frozen=True)
class Registry:
    """Everything that pages are generated from, in the order in which it is shown."""

    ops: tuple[Op, ...]
    rules: tuple[Rule | Recogniser, ...]
    commands: tuple[Command, ...]
    options: type

    @staticmethod
    def of_hfgraph() -> Registry:
        """What is registered now."""
        ops = sorted(all_ops().values(), key=lambda op: op.name)
        return Registry(tuple(ops), rewrites.all_rules(), all_commands(), Options)

    @property
    def stages(self) -> dict[str, list[Rule | Recogniser]]:
        """The rules by stage, in the order in which stages run."""
        found: dict[str, list[Rule | Recogniser]] = {}
        for rule in self.rules:
            found.setdefault(rule.stage, []).append(rule)
        return found

    def op(self, name: str) -> Op | None:
        """An op by its name."""
        return next((op for op in self.ops if op.name == name), None)

    def found_by(self, op: Op) -> list[Rule | Recogniser]:
        """The rules that put an op where there was none of that name."""
        return [r for r in self.rules if op in made(r) and op not in taken(r)]

    def grown_by(self, op: Op) -> list[Rule | Recogniser]:
        """The rules that let an op take in one step more."""
        return [r for r in self.rules if op in made(r) and op in taken(r)]

    def used_by(self, op: Op) -> list[Rule | Recogniser]:
        """The rules that make something else of an op."""
        return [r for r in self.rules if op in taken(r) and op not in made(r)]


def taken(rule: Rule | Recogniser) -> list[Op]:
    """The ops in a rule's pattern, or those that a recogniser looks at."""
    if isinstance(rule, Recogniser):
        return sorted((op for op in all_ops().values() if op.target in rule.anchors), key=lambda op: op.name)
    return _called(rule.pattern)


def made(rule: Rule | Recogniser) -> list[Op]:
    """The ops in a rule's replacement, or the one that a recogniser finds."""
    return [rule.op] if isinstance(rule, Recogniser) else _called(rule.replacement)


def defined(rule: Rule | Recogniser) -> Callable[..., Any]:
    """A function of the rule's own file."""
    return rule.recognise if isinstance(rule, Recogniser) else rule.pattern


def _called(function: Callable[..., Any]) -> list[Op]:
    """The ops that a function names. Attributes are no names: `F.rms_norm` is not the op `rms_norm`."""
    names = {i.argval for i in dis.get_instructions(function) if i.opname in ("LOAD_GLOBAL", "LOAD_DEREF")}
    known = inspect.getclosurevars(function)
    found = {v for name, v in {**known.globals, **known.nonlocals}.items() if name in names and isinstance(v, Op)}
    return sorted(found, key=lambda op: op.name)
