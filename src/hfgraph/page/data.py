"""What the page shows, as plain values: each folded layer's nodes once, so that a model of 80 layers stays small."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Any

from hfgraph.graph.snapshot import Shown
from hfgraph.page.layers import Module, tree

if TYPE_CHECKING:
    from hfgraph.report import GraphReport, Report, Site

_VERSIONS = ("hfgraph", "torch", "transformers", "triton")


def page_data(report: Report) -> dict[str, Any]:
    """A report as JSON values."""
    return {
        "model": report.model or "a function",
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "versions": {p: importlib.metadata.version(p) for p in _VERSIONS if any(importlib.metadata.distributions(name=p))},
        "counts": report.counts,
        "near_misses": len(report.near_misses),
        "fields": [f.name for f in fields(Shown)],
        "graphs": [_graph(g) for g in report.graphs],
        "breaks": [b.to_dict() for b in report.breaks],
    }


def _graph(graph: GraphReport) -> dict[str, Any]:
    root = tree(graph)
    kept = {m.path for m in root.walk()}
    return {
        "dynamo_nodes": graph.nodes,
        "calls": graph.calls,
        "merged": graph.merged,
        "unrewritten": graph.unrewritten,
        "ended": graph.ended and graph.ended.to_dict(),
        "seconds": {"capture": graph.capture_seconds, "rewrite": graph.rewrite_seconds, "compile": graph.compile_seconds},
        "captured": asdict(graph.captured),
        "passes": [asdict(r) for r in graph.rows],
        "rules": [asdict(r) for r in graph.rules.values()],
        "tree": _row(root),
        "before": _nodes(graph.before.nodes, kept),
        "after": _nodes(graph.after.nodes, kept),
    }


def _row(module: Module) -> dict[str, Any]:
    return {
        "name": module.name,
        "path": module.path,
        "class": module.cls,
        "paths": list(module.paths),
        "before": _calls(module.before),
        "after": _calls(module.after),
        "sites": [_site(s) for s in module.sites],
        "children": [_row(c) for c in module.children],
    }


def _calls(nodes: list[Shown]) -> int:
    return sum(n.kind == "call" for n in nodes)


def _site(site: Site) -> dict[str, Any]:
    return {k: v for k, v in asdict(site).items() if k != "module"}


def _nodes(nodes: tuple[Shown, ...], kept: set[str]) -> list[list[Any]]:
    """The nodes of the modules that are shown, and those that these read."""
    mine = [n for n in nodes if n.module in kept and n.kind != "output"]
    read = {name for n in mine for name in n.inputs}
    shown = {n.name for n in mine} | read
    return [list(astuple(n)) for n in nodes if n.name in shown]
