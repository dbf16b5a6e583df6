"""Names recurrences: a region is played on random numbers, and a recurrence of the library on the same ones, token by token. Nothing is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.origin import origin
from hfgraph.graph.rewrite import Event
from hfgraph.graph.trials import trials
from hfgraph.graph.values import written_nodes
from hfgraph.rewrites import modules
from hfgraph.rewrites.recurrences.cuts import cuts
from hfgraph.rewrites.recurrences.playing import Player
from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence
from hfgraph.rewrites.recurrences.region import Region, regions, steps
from hfgraph.rewrites.recurrences.roles import Cast, casts, given, views

_FEW = 3  # tokens on which a cast is tried before it is on all
_CLOSE = 1e-6
# A recurrence begins with few values; where many are joined, something else goes on, and they fit in too many ways.
_MANY, _MOST_TRIES = 16, 2000


@cache
def all_kinds() -> tuple[Recurrence, ...]:
    """Every recurrence that has a name, by the names of their files."""
    return tuple(module.KIND.named(name) for name, module in modules("recurrences.kinds"))


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
    sizes = next(iter(trials((*region.begin, *region.nodes), ())), None)
    if sizes is None or len(region.begin) > _MANY:
        return []
    played = _Played(region, Player(region, sizes).values)
    offered = given(region, played.values, sizes)
    found: list[Named] = []
    tries = ((kind, form, cast) for kind in all_kinds() for form in kind.forms for cast in casts(form, offered))
    for kind, form, cast in islice(tries, _MOST_TRIES):
        if not any(cast.overlaps(f.cast) for f in found):
            output = played.output(kind, form, cast)
            found += [] if output is None else [Named(kind, form, cast, output, _behind(output, region))]
    return found


class _Played:
    """The values of a region, among which outputs of recurrences are looked for."""

    def __init__(self, region: Region, values: Mapping[Node, Tensor]) -> None:
        self.values = values
        self._inside = {n: values[n] for n in region.nodes if n in values}
        self._state = values[region.state] if region.state else None
        self._padded = region.cuts[0].padded if region.cuts else 1
        self._views: dict[tuple[int, ...], list[tuple[Node, Tensor]]] = {}

    def output(self, kind: Recurrence, form: Form, cast: Cast) -> Node | None:
        """The first value that is what a recurrence puts out."""
        if self._state is not None and tuple(self._state.shape[1:]) != kind.state_shape(cast.sizes):
            return None
        few = _run(kind, form, cast, self._state, _FEW)
        tokens = next(g.value.shape[1] for g in cast.inputs.values() if not g.constant)
        alike = [(n, v) for n, v in self._shaped((few.shape[0], tokens, *few.shape[2:])) if _same(v[:, : few.shape[1]], few)]
        if not alike:
            return None
        whole = _run(kind, form, cast, self._state, tokens)
        return next((n for n, v in alike if _same(v, whole)), None)

    def _shaped(self, wanted: tuple[int, ...]) -> list[tuple[Node, Tensor]]:
        """The values that have a shape, in any order of dims."""
        if wanted not in self._views:
            self._views[wanted] = [(n, v) for n, value in self._inside.items() for v in views(value, wanted, self._padded)]
        return self._views[wanted]


def _run(kind: Recurrence, form: Form, cast: Cast, state: Tensor | None, tokens: int) -> Tensor:
    inputs = {n: g.value if g.constant else g.value[:, :tokens] for n, g in cast.inputs.items()}
    return kind.run(form, inputs, cast.sizes, state)


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
