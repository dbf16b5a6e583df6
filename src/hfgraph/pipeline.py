"""The stages, on one screen. The runner times each pass, lints, checks that the graph is legal, and notes what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from torch.fx import GraphModule

from hfgraph.errors import IllegalGraph
from hfgraph.graph.canonical import tidy
from hfgraph.graph.cost import Costs, Work, total
from hfgraph.graph.cse import merge_equal
from hfgraph.graph.legal import problem
from hfgraph.graph.rewrite import Event, Outcome, apply_rules
from hfgraph.lower import lower
from hfgraph.masks import share_masks
from hfgraph.merge import NAME as MERGED
from hfgraph.merge import merge
from hfgraph.options import Options
from hfgraph.rewrites import rules
from hfgraph.rewrites.recurrences.naming import name_recurrences


@dataclass(frozen=True)
class Context:
    """What a pass may look at besides the graph."""

    options: Options
    sabotage: str | None = None


@dataclass
class Done:
    """What a pass did: a number of changes, and the events of its rules.

    Attributes:
        named: what was found and left as it is; the reason is a note.
    """

    changes: int = 0
    applied: list[Event] = field(default_factory=list)
    missed: list[Event] = field(default_factory=list)
    named: list[Event] = field(default_factory=list)


class Id(Enum):
    """Passes that others ask for; what a pass is called is for people."""

    MERGE_EQUAL = auto()


@dataclass(frozen=True)
class Pass:
    """One named step; it changes the graph in place, and leaves it legal for `stage`."""

    stage: str
    name: str
    run: Callable[[GraphModule, Context], Done]
    id: Id | None = None


def _counted(step: Callable[[GraphModule], int]) -> Callable[[GraphModule, Context], Done]:
    return lambda gm, _: Done(step(gm))


def _rewritten(stage: str) -> Callable[[GraphModule, Context], Done]:
    def run(gm: GraphModule, context: Context) -> Done:
        active = [r for r in rules(stage) if r.name not in context.options.disable]
        outcome: Outcome = apply_rules(gm, active, sabotage=context.sabotage)
        return Done(len(outcome.applied), outcome.applied, outcome.missed)

    return run


def _merged(gm: GraphModule, context: Context) -> Done:
    if MERGED in context.options.disable:
        return Done()
    found, missed = merge(gm, always=context.options.merge_always, sabotage=context.sabotage == MERGED)
    return Done(sum(not e.reason for e in found), found, missed)


PIPELINE: tuple[Pass, ...] = (
    Pass("canonical", "one spelling, no no-ops, no hidden mutation", _counted(tidy)),
    Pass("recognise", "spellings become ops", _rewritten("recognise")),
    Pass("recognise", "recurrences get a name", lambda gm, _: Done(named=name_recurrences(gm.graph))),
    Pass("recognise", "equal values are computed once", _counted(merge_equal), Id.MERGE_EQUAL),
    Pass("fuse", "neighbouring ops become one", _rewritten("fuse")),
    Pass("merge", "linears of one input become one", _merged),
    Pass("lower", "each op gets its implementation", lambda gm, context: Done(lower(gm, context.options.kernels))),
    Pass("lower", "masks that layers share are made once", _counted(share_masks)),
)


@dataclass(frozen=True)
class Row:
    """One line of the report: a pass, what it did, how long it took, and the work of the graph that it left."""

    stage: str
    name: str
    changes: int
    nodes: int
    seconds: float
    work: Work


def run(gm: GraphModule, context: Context, passes: Sequence[Pass] = PIPELINE, after: Callable[[Pass, Done], None] | None = None) -> list[Row]:
    """Run `passes` on a captured graph, in place.

    Args:
        after: called after each pass, for reports.

    Raises:
        IllegalGraph: a pass left a graph that its stage does not allow.
    """
    rows = []
    known: Costs = {}
    for step in passes:
        start = time.perf_counter()
        done = step.run(gm, context)
        seconds = time.perf_counter() - start
        found = problem(gm, step.stage)
        if found is not None:
            raise IllegalGraph(step.stage, found)
        rows.append(Row(step.stage, step.name, done.changes, len(gm.graph.nodes), seconds, total(gm.graph, known)))
        if after is not None:
            after(step, done)
    gm.recompile()
    return rows
