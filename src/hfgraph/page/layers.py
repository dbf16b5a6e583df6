"""A model as its modules, with layers that are alike folded into one row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hfgraph.graph.snapshot import Shown

if TYPE_CHECKING:
    from hfgraph.report import GraphReport, Site


_TO = "\u2013"  # between the first and the last of several numbers


@dataclass
class Module:
    """One module of the model, or several that are alike.

    Attributes:
        name: the last part of its path; of folded ones with the numbers they span, e.g. `layers.1–23`.
        path: of the first of them.
        cls: its class; empty for a container that is only gone through.
        paths: of all that are folded here.
        before, after: its own nodes, without those of the modules in it.
        sites: what was, or nearly was, rewritten in it; of the first of them.
    """

    name: str
    path: str
    cls: str = ""
    paths: tuple[str, ...] = ()
    before: list[Shown] = field(default_factory=list)
    after: list[Shown] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    children: list[Module] = field(default_factory=list)

    def walk(self) -> Iterator[Module]:
        """It and all modules in it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree(graph: GraphReport) -> Module:
    """The modules of a graph, in order of execution, alike ones folded."""
    root = Module("", "", graph.before.modules.get("", ""), ("",))
    known = {"": root}
    classes = {**graph.after.modules, **graph.before.modules}
    for node in graph.before.nodes:
        if node.kind != "output":
            _module(known, classes, node.module).before.append(node)
    for node in graph.after.nodes:
        if node.kind != "output":
            _module(known, classes, node.module).after.append(node)
    for site in graph.sites:
        _module(known, classes, site.module).sites.append(site)
    return _folded(root)


def _module(known: dict[str, Module], classes: dict[str, str], path: str) -> Module:
    """The module at a path, made with its parents where it is new."""
    if path not in known:
        parent, _, name = path.rpartition(".")
        known[path] = Module(name, path, classes.get(path, ""), (path,))
        _module(known, classes, parent).children.append(known[path])
    return known[path]


# --- folding ------------------------------------------------------------------------------------------


def _folded(module: Module) -> Module:
    """Numbered siblings that compute alike become one row; a container with nothing of its own goes into its rows' names."""
    children = [_folded(c) for c in module.children]
    groups: dict[Any, list[Module]] = {}
    for i, child in enumerate(children):
        key = _alike(child) if child.name.isdigit() else i
        groups.setdefault(key, []).append(child)
    merged = [_merged(group) for group in groups.values()]
    return replace(module, children=[row for child in merged for row in _hoisted(child)])


def _hoisted(child: Module) -> list[Module]:
    """`layers` that only holds `0–23` becomes `layers.0–23`."""
    if child.cls or child.before or child.after or child.sites or not child.children:
        return [child]
    return [replace(c, name=f"{child.name}.{c.name}") for c in child.children]


def _alike(module: Module) -> Any:
    """Equal for modules that compute the same and were treated the same, wherever they stand."""
    nodes = tuple((n.label if n.kind == "call" else "", n.value, n.rules) for n in (*module.before, *module.after))
    sites = tuple((s.rule, s.status, re.sub(r"_?\d+", "", s.reason), s.note) for s in module.sites)
    return module.cls, len(module.before), nodes, sites, tuple((c.name, _alike(c)) for c in module.children)


def _merged(group: list[Module]) -> Module:
    if len(group) == 1:
        return group[0]
    return replace(group[0], name=_spans([int(m.name) for m in group]), paths=tuple(p for m in group for p in m.paths))


def _spans(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> `0–2, 5`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}{_TO}{r[-1]}" for r in runs)
