"""Coverage as tables: a line for each family, a line for each architecture, and the reason for every miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from hfgraph.causes import in_words
from hfgraph.zoo.expected import KINDS
from hfgraph.zoo.record import TOLERANCE, Record
from hfgraph.zoo.table import Coverage


def parts(coverage: Coverage) -> list[RenderableType]:
    """All tables; what went wrong comes last, where it is seen."""
    found: list[RenderableType] = [_architectures(coverage), families(coverage)]
    misses = list(missed(coverage))
    if misses:
        found.append(_table("Not found", ("architecture", "kind", "module", "sites", "reason"), misses))
    beyond = list(surplus(coverage))
    if beyond:
        found.append(_table("Found where none is expected", ("architecture", "kind", "module", "sites"), beyond))
    breaks = list(broken(coverage))
    if breaks:
        found.append(_table("More than one graph", ("architecture", "graphs", "reason"), breaks))
    return [*found, *wrong(coverage)]


def families(coverage: Coverage) -> Table:
    """Shares of the models that trace in one graph."""
    whole = coverage.in_one_graph
    rows = [(f, str(n), str(whole[f]), *(str(coverage.share(kind, f)) for kind in KINDS)) for f, n in coverage.families.items()]
    return _table("Found, of what models that trace in one graph compute", ("family", "models", "in one graph", *KINDS), rows)


def _architectures(coverage: Coverage) -> Table:
    rows = [(r.name, r.family, str(r.graphs or ""), *(cell(r, kind) for kind in KINDS), "failed" if r.failed else f"{r.error:.0e}") for r in _sorted(coverage)]
    return _table("Architectures: sites found, and of how many where some are missed", ("architecture", "family", "graphs", *KINDS, "error"), rows)


def cell(record: Record, kind: str) -> str:
    """`4`, or `2 of 4`; empty where a model computes no such thing."""
    expected, missing = record.expected.get(kind, 0), sum(m.count for m in record.missed if m.kind == kind)
    return f"{expected - missing} of {expected}" if missing else str(expected or "")


def missed(coverage: Coverage) -> Iterator[tuple[str, str, str, str, str]]:
    """Architecture, kind, modules, sites, reason: one row for all misses with one reason."""
    for record in _sorted(coverage):
        rows: Counter[tuple[str, str]] = Counter()
        modules: dict[tuple[str, str], list[str]] = {}
        for m in record.missed:
            rows[m.kind, m.reason] += m.count
            modules.setdefault((m.kind, m.reason), []).append(m.module)
        for (kind, reason), count in rows.items():
            first, *more = modules[kind, reason]
            yield record.name, kind, f"{first} and {len(more)} more" if more else first, str(count), reason


def surplus(coverage: Coverage) -> Iterator[tuple[str, str, str, str]]:
    """Architecture, kind, module, sites: what is found and was not counted in eager mode."""
    for record in _sorted(coverage):
        yield from ((record.name, kind, module, str(n)) for kind, sites in record.surplus.items() for module, n in sites.items())


def broken(coverage: Coverage) -> Iterator[tuple[str, str, str]]:
    """Architecture, graphs, and why Dynamo ended them: one row for each kind of break."""
    for record in _sorted(coverage):
        yield from ((record.name, str(record.graphs), in_words(reason)) for reason in record.breaks)


def wrong(coverage: Coverage) -> list[str]:
    """A sentence for each architecture that failed, or whose logits are not eager's."""
    return [
        f"FAILED: {r.name}: {r.failed}" if r.failed else f"WRONG: {r.name}: logits differ from eager's by {r.error:.2e}, more than {TOLERANCE:.0e}"
        for r in coverage.wrong
    ]


def _sorted(coverage: Coverage) -> list[Record]:
    return sorted(coverage.records.values(), key=lambda r: r.name)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("graphs", "models", "in one graph", "sites", "error", *KINDS) else "left")
    for row in rows:
        table.add_row(*row)
    return table
