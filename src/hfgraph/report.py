"""What hfgraph did to a model: sites, near misses in words, graphs, time. As objects, a dict, text and a page."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any

from torch import nn
from torch.fx import GraphModule

from hfgraph.breaks import Break
from hfgraph.graph.cost import NOTHING, Work
from hfgraph.graph.op import OPS
from hfgraph.graph.origin import origin
from hfgraph.graph.replacing import FROM, NOTE, RULES
from hfgraph.graph.rewrite import Event
from hfgraph.graph.snapshot import Snapshot, snapshot
from hfgraph.pipeline import Done, Id, Pass, Row


@dataclass(frozen=True)
class Site:
    """One place in the model.

    Attributes:
        rule: the op it was recognised as (or counts as), the fusion applied, or the rule that nearly matched.
        status: "recognised", "fused" or "near miss".
        module: path of the module, e.g. `model.layers.0.input_layernorm`; empty where unknown.
        source: file and line of the model's code.
        reason: for a near miss, what was found and what was expected.
        steps: the rules that led here, in order.
        code: the text of the source line.
        node: the node that it became; for a near miss, the first that differs.
        nodes: the nodes of the canonical graph that it stands for; for a near miss, those that fitted.
        note: what was read off the site, e.g. of an attention what its mask allows, of linears why they stay apart.
    """

    rule: str
    status: str
    module: str
    source: str
    reason: str = ""
    steps: tuple[str, ...] = ()
    code: str = ""
    node: str = ""
    nodes: tuple[str, ...] = ()
    note: str = ""


@dataclass
class RuleRow:
    """What one rule did to one graph.

    Attributes:
        removed, added: work of the nodes that went and of those that came.
    """

    stage: str
    rule: str
    matches: int = 0
    near_misses: int = 0
    removed: Work = NOTHING
    added: Work = NOTHING


@dataclass
class GraphReport:
    """One graph that Dynamo handed over.

    Attributes:
        nodes: how many Dynamo's graph has.
        rows: the passes; `rules` what each rule did in them.
        captured: work of the graph as captured, before the first pass.
        before: the canonical graph; `after` the one handed to Inductor.
        merged: equal values computed once instead of again.
        unrewritten: why the graph was left as it was; empty where it was not.
        ended: the graph break at its end.
        calls: how often one call of the model runs it.
    """

    nodes: int
    name: str = ""
    sites: list[Site] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    rules: dict[tuple[str, str], RuleRow] = field(default_factory=dict)
    captured: Work = NOTHING
    before: Snapshot = Snapshot()  # noqa: RUF009  (frozen)
    after: Snapshot = Snapshot()  # noqa: RUF009
    merged: int = 0
    capture_seconds: float = 0.0
    compile_seconds: float = 0.0
    unrewritten: str = ""
    ended: Break | None = None
    calls: int = 1

    def note(self, gm: GraphModule, step: Pass, done: Done) -> None:
        """Take down what a pass did."""
        if step.stage == "canonical":
            self.before = snapshot(gm.graph)
        if step.stage == "recognise" and done.applied:
            self.sites = _recognised(gm)
        if step.stage == "fuse":
            made = {n.name: n for n in gm.graph.nodes}
            self.sites += [_site(e, "fused", made[e.node].meta.get(FROM, ()) if e.node in made else ()) for e in done.applied]
        if step.stage == "merge":
            self.sites += [replace(_site(e, "recognised" if e.reason else "fused", e.fitted), reason="", note=e.reason) for e in done.applied]
        self.sites += [replace(_site(e, "recognised", e.fitted), reason="", note=e.reason) for e in done.named]
        self.sites += [_site(e, "near miss", e.fitted) for e in done.missed]
        if step.id is Id.MERGE_EQUAL:
            self.merged = done.changes
        self._note_rules(step.stage, done)

    def _note_rules(self, stage: str, done: Done) -> None:
        for e in done.applied:
            row = self.rules.setdefault((stage, e.rule), RuleRow(stage, e.rule))
            row.matches, row.removed, row.added = row.matches + 1, row.removed + e.removed, row.added + e.added
        for e in done.named:
            row = self.rules.setdefault((stage, e.rule), RuleRow(stage, e.rule))
            row.matches += 1
        for e in done.missed:
            self.rules.setdefault((stage, e.rule), RuleRow(stage, e.rule)).near_misses += 1

    @property
    def rewrite_seconds(self) -> float:
        return sum(r.seconds for r in self.rows)


def _recognised(gm: GraphModule) -> list[Site]:
    ops = {op.target: op.counted_as for op in OPS.values()}
    found = []
    for n in gm.graph.nodes:
        if n.target in ops:
            module, source, code = origin(n)
            found.append(Site(ops[n.target], "recognised", module, source, "", n.meta.get(RULES, ()), code, n.name, n.meta.get(FROM, ()), n.meta.get(NOTE, "")))
    return found


def _site(event: Event, status: str, nodes: tuple[str, ...]) -> Site:
    return Site(event.rule, status, event.module, event.source, event.reason, (), event.code, event.node, nodes)


@dataclass
class Report:
    """The graphs of one model or function, and what was done to them.

    Attributes:
        model: class of the model; empty for a function.
        counted: every graph break, as `explain` counted them.
    """

    graphs: list[GraphReport] = field(default_factory=list)
    model: str = ""
    counted: list[Break] | None = None

    @property
    def breaks(self) -> list[Break]:
        """Where Dynamo ended a graph and began another, and why."""
        return self.counted if self.counted is not None else list(dict.fromkeys(g.ended for g in self.graphs if g.ended))

    @property
    def graph_breaks(self) -> dict[str, int]:
        """Reasons of graph breaks, and how often each in one call."""
        found: Counter[str] = Counter()
        for b in self.breaks:
            found[b.reason] += b.count
        return dict(found)

    @property
    def sites(self) -> list[Site]:
        """Every site in every graph; a graph that one call of the model runs several times counts each time."""
        return [s for g in self.graphs for _ in range(g.calls) for s in g.sites]

    @property
    def counts(self) -> dict[str, int]:
        """Sites recognised or fused, by op or rule."""
        return dict(Counter(s.rule for s in self.sites if s.status != "near miss"))

    @property
    def near_misses(self) -> list[Site]:
        return [s for s in self.sites if s.status == "near miss"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the graphs' nodes are left out."""
        return {
            "model": self.model,
            "counts": self.counts,
            "sites": [asdict(s) for s in self.sites],
            "graphs": [_summary(g) for g in self.graphs],
            "graph_breaks": self.graph_breaks,
            "breaks": [b.to_dict() for b in self.breaks],
        }

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page that needs no network: the model's layers, what was rewritten in them and what was not, and why.

        Raises:
            CannotWrite: the folder does not exist, or may not be written to.
        """
        from hfgraph.page import write

        write(self, path)

    def _repr_html_(self) -> str:
        """In a notebook, the page."""
        from hfgraph.page import framed

        return framed(self)

    def __str__(self) -> str:
        from hfgraph.tables import report_text

        return report_text(self)


def _summary(graph: GraphReport) -> dict[str, Any]:
    return {
        "name": graph.name,
        "nodes": graph.nodes,
        "calls": graph.calls,
        "merged": graph.merged,
        "unrewritten": graph.unrewritten,
        "ended": graph.ended and graph.ended.to_dict(),
        "capture_seconds": graph.capture_seconds,
        "compile_seconds": graph.compile_seconds,
        "captured": asdict(graph.captured),
        "passes": [asdict(r) for r in graph.rows],
        "rules": [asdict(r) for r in graph.rules.values()],
    }


# --- the reports of this process ----------------------------------------------------------------------

_LAST = Report()


def last_report() -> Report:
    """The report of the most recent compilation in this process: all graphs of one model, graph breaks included."""
    return _LAST


def record(graph: GraphReport) -> None:
    """Add a graph to the report of the user's call that is running; the first graph of another call starts a new one."""
    global _LAST
    call = _outermost_call()
    if call is None or call.f_trace_lines:
        _LAST = Report(model=_model_class(call))
    if call is not None:
        call.f_trace_lines = False  # a mark that lives exactly as long as the call
    _LAST.graphs.append(graph)


def _model_class(call: FrameType | None) -> str:
    """Class of the module whose compiled call this is; empty for a function."""
    compiled = call.f_locals.get("fn") if call is not None else None
    owner = getattr(compiled, "__self__", compiled)
    return type(owner).__name__ if isinstance(owner, nn.Module) else ""


def _outermost_call() -> FrameType | None:
    """The frame in which a compiled callable was entered from outside. Graphs after a graph break are compiled inside it."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code.co_name in ("compile_wrapper", "_fn") and frame.f_code.co_filename.replace("\\", "/").endswith("torch/_dynamo/eval_frame.py"):
            found = frame
        frame = frame.f_back
    return found
