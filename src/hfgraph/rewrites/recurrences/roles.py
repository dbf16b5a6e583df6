"""Which value of a region may be which input of a recurrence, by shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import Sizes, shape
from hfgraph.graph.values import val
from hfgraph.rewrites.recurrences.recurrence import Form, bound
from hfgraph.rewrites.recurrences.region import Region
from hfgraph.rewrites.recurrences.spread import same_along


@dataclass(frozen=True, eq=False)
class Given:
    """A value that a region begins with, with batch and tokens as its first dims, or with neither.

    Attributes:
        value: as it was played; `shape` the model's, with dims in the same order.
    """

    node: Node
    value: Tensor
    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True, eq=False)
class Cast:
    """Inputs of a form, and the sizes of its letters: as they were played, and in the model."""

    inputs: Mapping[str, Given]
    sizes: Mapping[str, int]
    true_sizes: Mapping[str, int]

    def overlaps(self, other: Cast) -> bool:
        """Whether a value has a role in both."""
        return not {g.node for g in self.inputs.values()}.isdisjoint(g.node for g in other.inputs.values())


def given(region: Region, values: Mapping[Node, Tensor], sizes: Sizes) -> list[Given]:
    """What a region begins with, laid out so that roles can be given to it."""
    if region.state is not None:
        return [_of_one_token(n, values[n], sizes) for n in region.joined if n in values and val(n).ndim]
    found = [_by_token(c.base, values, sizes, c.dim) for c in {c.base: c for c in region.cuts}.values()]
    batch, length = found[0].value.shape[:2]
    for node in region.joined:
        if node in values:
            value = values[node]
            found.append(Given(node, value.squeeze(), tuple(s for s in shape(node, sizes) if s != 1), True))
            found += [_by_token(node, values, sizes, d) for d in range(1, value.ndim) if value.shape[0] == batch and value.shape[d] == length]
    return found


def _of_one_token(node: Node, value: Tensor, sizes: Sizes) -> Given:
    """Dims along which it is all the same go."""
    same, whole = same_along(node), shape(node, sizes)
    kept = [i for i in range(value.ndim) if i == 0 or i - value.ndim not in same]
    narrow = value[tuple(slice(None) if i in kept else 0 for i in range(value.ndim))]
    return Given(node, narrow.unsqueeze(1), (whole[0], 1, *(whole[i] for i in kept[1:])), False)


def _by_token(node: Node, values: Mapping[Node, Tensor], sizes: Sizes, dim: int) -> Given:
    """Dims of one place behind batch and tokens go: they are there to be spread over others."""
    value, own = values[node].movedim(dim, 0).movedim(1, 0), list(shape(node, sizes))
    own.insert(1, own.pop(dim))
    kept = [i for i, size in enumerate(own) if i < 2 or size != 1]
    return Given(node, value.reshape([value.shape[i] for i in kept]), tuple(own[i] for i in kept), False)


def casts(form: Form, offered: list[Given]) -> Iterator[Cast]:
    """Every way to give the inputs of a form to different values of fitting shapes."""
    yield from _cast(form, offered, list(form.inputs), {})


def _cast(form: Form, offered: list[Given], left: list[str], chosen: dict[str, Given]) -> Iterator[Cast]:
    sizes = bound({n: _own(g.value.shape, g) for n, g in chosen.items()}, form.inputs)
    if sizes is None or len({g.value.shape[:2] for g in chosen.values() if not g.constant}) > 1:
        return
    if not left:
        true_sizes = bound({n: _own(g.shape, g) for n, g in chosen.items()}, form.inputs)
        if true_sizes is not None:
            yield Cast(dict(chosen), sizes, true_sizes)
        return
    name, *rest = left
    for g in offered:
        if g.constant == (name in form.constant) and all(g.node is not o.node for o in chosen.values()):
            yield from _cast(form, offered, rest, {**chosen, name: g})


def _own(sizes: tuple[int, ...], given: Given) -> tuple[int, ...]:
    """The dims behind batch and tokens."""
    return sizes if given.constant else sizes[2:]


def views(value: Tensor, wanted: tuple[int, ...], padded: int) -> Iterator[Tensor]:
    """A value with its dims in such an order that it has the shape that is wanted; tokens, the second dim, may be padded at their end,
    and where there is one it may have no dim."""
    value = value.unsqueeze(1) if value.ndim == len(wanted) - 1 and wanted[1] == 1 else value
    if value.ndim != len(wanted) or sorted(value.shape) not in (sorted(wanted), sorted((wanted[0], padded, *wanted[2:]))):
        return
    for order in permutations(range(value.ndim)):
        turned = value.permute(order)
        if turned.shape[1] == padded:
            turned = turned[:, : wanted[1]]
        if tuple(turned.shape) == wanted:
            yield turned
