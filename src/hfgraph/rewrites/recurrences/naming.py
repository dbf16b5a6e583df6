"""Names recurrences: a region is played on random numbers, and a recurrence of the library on the same ones, token by token. Nothing is replaced."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.origin import origin
from hfgraph.graph.rewrite import Event
from hfgraph.graph.trials import trials
from hfgraph.graph.values import written_nodes
from hfgraph.rewrites.recurrences import kinds
from hfgraph.rewrites.recurrences.cuts import cuts
from hfgraph.rewrites.recurrences.playing import Player
from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence
from hfgraph.rewrites.recurrences.region import Region, regions, steps
from hfgraph.rewrites.recurrences.roles import Cast, casts, given, views

_FEW = 3  # tokens on which a cast is tried before it is on all
_CLOSE = 1e-6


@cache
def all_kinds() -> tuple[Recurrence, ...]:
    """Every recurrence that has a name, by the names of their files."""
    found = sorted(pkgutil.iter_modules(kinds.__path__), key=lambda m: m.name)
    return tuple(importlib.import_module(f"{kinds.__name__}.{m.name}").KIND.named(m.name) for m in found)


@dataclass(frozen=True, eq=False)
class Named:
    """A recurrence in a graph: its output, what it is computed by, and what is known of it."""

    kind: Recurrence
    form: Form
    cast: Cast
    output: Node
    nodes: tuple[Node, ...]

    @property
    def note(self) -> str:
        """For the report: the state of one sequence, and what sets the form apart."""
        state = " x ".join(map(str, self.kind.state_shape(self.cast.true_sizes)))
        return "; ".join(filter(None, (f"state of {state} per sequence", self.form.note, "left as the model computes it")))


def name_recurrences(graph: Graph) -> list[Event]:
    """An event for each recurrence that is found; the reason is its note."""
    found, inside = [], set[Node]()
    for region in (*regions(graph, cuts(graph)), *steps(graph)):
        if not any(c.base in inside for c in region.cuts):
            for named in recognise(region):
                inside.update(named.nodes)
                found.append(Event(named.kind.name, named.output.name, *origin(named.output), named.note, tuple(n.name for n in named.nodes)))
    return found


def recognise(region: Region) -> list[Named]:
    """What a region computes that has a name: one recurrence, or several whose results it joins."""
    sizes = next(iter(trials(region.nodes, ())), None)
    if sizes is None:
        return []
    values = Player(region, sizes).values
    found: list[Named] = []
    offered, inside = given(region, values, sizes), {n: values[n] for n in region.nodes if n in values}
    state, padded = values[region.state] if region.state else None, region.cuts[0].padded if region.cuts else 1
    tries = ((kind, form, cast) for kind in all_kinds() for form in kind.forms for cast in casts(form, offered))
    for kind, form, cast in tries:
        if not any(cast.overlaps(f.cast) for f in found):
            output = _output(kind, form, cast, state, inside, padded)
            found += [] if output is None else [Named(kind, form, cast, output, _behind(output, region))]
    return found


def _output(kind: Recurrence, form: Form, cast: Cast, state: Tensor | None, inside: Mapping[Node, Tensor], padded: int) -> Node | None:
    """The first value of a region that is what the recurrence puts out."""
    if state is not None and tuple(state.shape[1:]) != kind.state_shape(cast.sizes):
        return None
    few = _run(kind, form, cast, state, _FEW)
    tokens = next(g.value.shape[1] for g in cast.inputs.values() if not g.constant)
    wanted = (few.shape[0], tokens, *few.shape[2:])
    alike = [(n, v) for n, value in inside.items() for v in views(value, wanted, padded) if _same(v[:, : few.shape[1]], few)]
    if not alike:
        return None
    whole = _run(kind, form, cast, state, tokens)
    return next((n for n, v in alike if _same(v, whole)), None)


def _run(kind: Recurrence, form: Form, cast: Cast, state: Tensor | None, tokens: int) -> Tensor:
    inputs = {n: g.value if g.constant else g.value[:, :tokens] for n, g in cast.inputs.items()}
    return kind.run(form, inputs, cast.sizes, state)[0]


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for one factor: what scales the queries may stand behind the values that are cut."""
    factor = (a * b).sum() / (b * b).sum()
    return bool((a - factor * b).abs().max() <= _CLOSE * a.abs().max()) and bool(a.abs().max() > 0)


def _behind(output: Node, region: Region) -> tuple[Node, ...]:
    """The nodes of a region that its output is computed by; where some of them write to others, all that stand before it."""
    before = [n for n in region.nodes if n <= output]
    if any(written_nodes(n) for n in before):
        return tuple(before)
    inside, found, stack = set(before), {output}, [output]
    while stack:
        new = [i for i in stack.pop().all_input_nodes if i in inside and i not in found]
        found.update(new)
        stack += new
    return tuple(n for n in before if n in found)
