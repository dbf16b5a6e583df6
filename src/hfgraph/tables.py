"""Reports and verdicts as text: rich tables, rendered to a string."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich import filesize
from rich.console import Console, RenderableType
from rich.table import Table

from hfgraph.causes import in_words
from hfgraph.graph.cost import NOTHING, Work

if TYPE_CHECKING:
    from hfgraph.breaks import Break
    from hfgraph.report import Report, RuleRow, Site
    from hfgraph.verdict import Verdict

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
    """The report as tables: what was done, where, what nearly was, and what each rule and pass did."""
    parts: list[RenderableType] = [_summary(report)]
    done = [s for s in report.sites if s.status != "near miss"]
    if done:
        parts.append(_sites("Rewritten", _folded(replace(s, note="") for s in done), ("rule", "status", "module", "source", "sites")))
        noted = [replace(s, source="") for s in done if s.note]
        parts += [_sites("Read off", _folded(noted), ("rule", "module", "note", "sites"))] if noted else []
    if report.near_misses:
        parts.append(_sites("Near misses", _folded(report.near_misses), ("rule", "module", "source", "reason", "sites")))
    if any(g.rules for g in report.graphs):
        parts.append(_rules(report))
    if any(g.rows for g in report.graphs):
        parts.append(_passes(report))
    for i, graph in enumerate(report.graphs):
        if graph.unrewritten:
            parts.append(f"graph {i} was not rewritten: {graph.unrewritten}")
    parts += [_break(b) for b in report.breaks]
    return parts


def _break(found: Break) -> str:
    place = f" at {found.source}" if found.source else ""
    text = f"graph break ({found.count} x){place}: {in_words(found.reason)}"
    return f"{text}\n  {found.cause.advice}" if found.cause else text


def _summary(report: Report) -> Table:
    table = Table(title="hfgraph", title_justify="left")
    for column in ("graph", "nodes", "calls", "sites", "near misses", "merged", "trace s", "rewrite s"):
        table.add_column(column, justify="right")
    for i, g in enumerate(report.graphs):
        missed = sum(s.status == "near miss" for s in g.sites)
        table.add_row(*map(str, (i, g.nodes, g.calls, len(g.sites) - missed, missed, g.merged, f"{g.capture_seconds:.2f}", f"{g.rewrite_seconds:.2f}")))
    return table


def _rules(report: Report) -> Table:
    """What each rule took out and put in, over all graphs."""
    table = _table("Rules", ("stage", "rule"), ("matches", "nearly", "nodes", "flops", "bytes"))
    sums: dict[tuple[str, str], list[RuleRow]] = {}
    for row in (r for g in report.graphs for r in g.rules.values()):
        sums.setdefault((row.stage, row.rule), []).append(row)
    for (stage, rule), rows in sums.items():
        removed, added = (sum((getattr(r, side) for r in rows), NOTHING) for side in ("removed", "added"))
        table.add_row(stage, rule, str(sum(r.matches for r in rows)), str(sum(r.near_misses for r in rows)), *_change(removed, added))
    return table


def _passes(report: Report) -> Table:
    """What each pass left behind and how long it took, over all graphs."""
    table = _table("Passes", ("stage", "pass"), ("changes", "nodes", "flops", "bytes", "ms"))
    graphs = [g for g in report.graphs if g.rows]
    work = sum((g.captured for g in graphs), NOTHING)
    table.add_row("capture", "Dynamo's graph as plain operators", "", *_counts(work), f"{1e3 * sum(g.capture_seconds for g in graphs):.0f}")
    for rows in zip(*(g.rows for g in graphs), strict=True):
        work = sum((r.work for r in rows), NOTHING)
        table.add_row(rows[0].stage, rows[0].name, str(sum(r.changes for r in rows)), *_counts(work), f"{1e3 * sum(r.seconds for r in rows):.0f}")
    return table


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _counts(work: Work) -> tuple[str, str, str]:
    unit, suffix = filesize.pick_unit_and_suffix(work.flops, ["", "k", "M", "G", "T", "P"], 1000)
    return str(work.nodes), f"{work.flops / unit:.3g} {suffix}".strip(), filesize.decimal(work.bytes)


def _change(removed: Work, added: Work) -> list[str]:
    return [f"{a} -> {b}" if a != b else a for a, b in zip(_counts(removed), _counts(added), strict=True)]


def _folded(sites: Iterable[Site]) -> list[tuple[Site, int]]:
    """Sites that differ only in the number of their layer become one line."""
    groups: dict[Any, list[Site]] = {}
    for s in sites:
        groups.setdefault((s.rule, s.status, _layerless(s.module), s.source, _layerless(s.reason.split(", found")[0]), s.note), []).append(s)
    return [(_span(group), len(group)) for group in groups.values()]


def _layerless(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _span(group: list[Site]) -> Site:
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
    found = "holds" if verdict.ok else "NOT PROVEN" if verdict.right else "DOES NOT HOLD"
    outputs = Table(title=f"verify: {found}", title_justify="left")
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
    return [*parts, *verdict.unproven]


def verdict_text(verdict: Verdict) -> str:
    """The verdict's tables as plain text."""
    return render(verdict_parts(verdict))
