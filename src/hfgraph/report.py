"""What hfgraph did to a model: sites, near misses in words, graphs, time. As objects, a dict, and text."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from torch.fx import GraphModule

from hfgraph.graph.op import OPS
from hfgraph.graph.origin import module_path, source_line
from hfgraph.graph.rewrite import RULES, Event
from hfgraph.pipeline import Done, Pass, Row


@dataclass(frozen=True)
class Site:
    """One place in the model.

    Attributes:
        rule: the op it was recognised as, the fusion applied, or the rule that nearly matched.
        status: "recognised", "fused" or "near miss".
        module: path of the module, e.g. `model.layers.0.input_layernorm`; empty where unknown.
        source: file and line of the model's code.
        reason: for a near miss, what was found and what was expected.
        steps: the rules that led here, in order.
    """

    rule: str
    status: str
    module: str
    source: str
    reason: str = ""
    steps: tuple[str, ...] = ()


@dataclass
class GraphReport:
    """One graph that Dynamo handed over."""

    nodes: int
    name: str = ""
    sites: list[Site] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    merged: int = 0
    capture_seconds: float = 0.0
    compile_seconds: float = 0.0
    unrewritten: str = ""
    calls: int = 1

    def note(self, gm: GraphModule, step: Pass, done: Done) -> None:
        """Take down what a pass did."""
        if step.stage == "recognise" and done.applied:
            self.sites = _recognised(gm)
        if step.stage == "fuse":
            self.sites += [_site(e, "fused") for e in done.applied]
        self.sites += [_site(e, "near miss") for e in done.missed]
        if "computed once" in step.name:
            self.merged = done.changes

    @property
    def rewrite_seconds(self) -> float:
        return sum(r.seconds for r in self.rows)


def _recognised(gm: GraphModule) -> list[Site]:
    ops = {op.target: name for name, op in OPS.items()}
    return [
        Site(ops[n.target], "recognised", module_path(n), source_line(n), steps=n.meta.get(RULES, ()))
        for n in gm.graph.nodes
        if n.target in ops
    ]  # fmt: skip


def _site(event: Event, status: str) -> Site:
    return Site(event.rule, status, event.module, event.source, event.reason)


@dataclass
class Report:
    """The graphs of one model or function, and what was done to them."""

    graphs: list[GraphReport] = field(default_factory=list)
    graph_breaks: dict[str, int] = field(default_factory=dict)  # Dynamo's reasons, as counted by `explain`

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
        sites, graphs = [asdict(s) for s in self.sites], [_summary(g) for g in self.graphs]
        return {"counts": self.counts, "sites": sites, "graphs": graphs, "graph_breaks": self.graph_breaks}

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
        "capture_seconds": graph.capture_seconds,
        "compile_seconds": graph.compile_seconds,
        "passes": [asdict(r) for r in graph.rows],
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
        _LAST = Report()
    if call is not None:
        call.f_trace_lines = False  # a mark that lives exactly as long as the call
    _LAST.graphs.append(graph)


def _outermost_call() -> FrameType | None:
    """The frame in which a compiled callable was entered from outside. Graphs after a graph break are compiled inside it."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code.co_name in ("compile_wrapper", "_fn") and frame.f_code.co_filename.replace("\\", "/").endswith("torch/_dynamo/eval_frame.py"):
            found = frame
        frame = frame.f_back
    return found
