"""Reports and verdicts as text: rich tables, rendered to a string."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from hfgraph.report import Report, Site
    from hfgraph.verifying import Verdict

_WIDTH = 120


def render(parts: Iterable[RenderableType]) -> str:
    """Plain text of rich renderables, without colour codes."""
    console = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, force_jupyter=False, color_system=None)
    for part in parts:
        console.print(part)
    file: Any = console.file
    return file.getvalue().rstrip()


def report_text(report: Report) -> str:
    """The report's tables as plain text."""
    return render(report_parts(report))


def report_parts(report: Report) -> list[RenderableType]:
    """The report as tables: what was done, where, and what nearly was."""
    parts: list[RenderableType] = [_summary(report)]
    done = [s for s in report.sites if s.status != "near miss"]
    if done:
        parts.append(_sites("Rewritten", _folded(done), ("rule", "status", "module", "source", "sites")))
    if report.near_misses:
        parts.append(_sites("Near misses", _folded(report.near_misses), ("rule", "module", "source", "reason", "sites")))
    for i, graph in enumerate(report.graphs):
        if graph.unrewritten:
            parts.append(f"graph {i} was not rewritten: {graph.unrewritten}")
    parts += [f"graph break ({n} x): {reason}" for reason, n in report.graph_breaks.items()]
    return parts


def _summary(report: Report) -> Table:
    table = Table(title="hfgraph", title_justify="left")
    for column in ("graph", "nodes", "calls", "sites", "near misses", "merged", "trace s", "rewrite s"):
        table.add_column(column, justify="right")
    for i, g in enumerate(report.graphs):
        missed = sum(s.status == "near miss" for s in g.sites)
        table.add_row(*map(str, (i, g.nodes, g.calls, len(g.sites) - missed, missed, g.merged, f"{g.capture_seconds:.2f}", f"{g.rewrite_seconds:.2f}")))
    return table


def _folded(sites: Iterable[Site]) -> list[tuple[Site, int]]:
    """Sites that differ only in the number of their layer become one line."""
    groups: dict[Any, list[Site]] = {}
    for s in sites:
        groups.setdefault((s.rule, s.status, _layerless(s.module), s.source, _layerless(s.reason.split(", found")[0])), []).append(s)
    return [(_span(group), len(group)) for group in groups.values()]


def _layerless(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _span(group: list[Site]) -> Site:
    from dataclasses import replace

    return group[0] if len(group) == 1 else replace(group[0], module=_layerless(group[0].module))


def _sites(title: str, rows: list[tuple[Site, int]], columns: tuple[str, ...]) -> Table:
    table = Table(title=f"{title} ({sum(n for _, n in rows)})", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column == "sites" else "left", overflow="fold")
    for site, count in rows:
        table.add_row(*(str(count) if c == "sites" else str(getattr(site, c)) for c in columns))
    return table


def verdict_parts(verdict: Verdict) -> list[RenderableType]:
    """The verdict as tables: outputs, sites, sabotage."""
    outputs = Table(title=f"verify: {'holds' if verdict.ok else 'DOES NOT HOLD'}", title_justify="left")
    for column in ("weights", "side", "output", "error", "allowed", ""):
        outputs.add_column(column)
    for o in verdict.outputs:
        outputs.add_row(o.weights, o.side, o.name, f"{o.error:.1e}", f"{o.allowed:.1e}", "ok" if o.ok else "WRONG")
    parts: list[RenderableType] = [outputs]
    sites = Table(title="largest error by rewritten site", title_justify="left")
    for column in ("rule", "sites", "error", "allowed", ""):
        sites.add_column(column)
    by_rule = Counter(s.rule for s in verdict.sites)
    for rule, count in by_rule.items():
        mine = [s for s in verdict.sites if s.rule == rule]
        # In the order of the graph, the first wrong site is the cause of those after it.
        worst = next((s for s in mine if not s.ok), max(mine, key=lambda s: s.error / max(s.allowed, 1e-300)))
        sites.add_row(rule, str(count), f"{worst.error:.1e}", f"{worst.allowed:.1e}", "ok" if worst.ok else f"WRONG at {worst.module}")
    if by_rule:
        parts.append(sites)
    if verdict.sabotage:
        table = Table(title="sabotage: each rule falsified in turn", title_justify="left")
        table.add_column("rule")
        table.add_column("caught")
        for rule, caught in verdict.sabotage.items():
            table.add_row(rule, "yes" if caught else "NO")
        parts.append(table)
    parts += [f"a graph was not rewritten: {reason}" for reason in verdict.unrewritten]
    return parts


def verdict_text(verdict: Verdict) -> str:
    """The verdict's tables as plain text."""
    return render(verdict_parts(verdict))
