"""Where values come from: the way back through views, pieces and small arithmetic to the projection that made them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.unify import label
from hfgraph.graph.values import val

aten = torch.ops.aten
# Products with a matrix of weights, in any library, and which argument is multiplied.
_PROJECTIONS = {
    "linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_grouped_mm": 0, "grouped_mm": 0, "grouped_mm_fallback": 0,
}  # fmt: skip
_VIEWS = frozenset({aten.to.dtype, aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default})
_PIECES = frozenset({aten.slice.Tensor, aten.select.int, aten.unbind.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default})
_CLAMPS = frozenset({aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default})
_WITH_NUMBERS = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})


def trail(node: Node) -> list[Node]:
    """The node, and what it was made of: back through views, pieces, casts, clamps, numbers, biases and scales to a projection."""
    found = [node]
    while not is_projection(found[-1]):
        before = _before(found[-1])
        if before is None:
            break
        found.append(before)
    return found


def is_projection(node: Node) -> bool:
    """A product with a matrix of weights."""
    return node.op == "call_function" and label(node) in _PROJECTIONS


def projected(node: Node) -> Node | None:
    """What a projection is of, stripped of views."""
    given = node.args[_PROJECTIONS[label(node)]]
    while isinstance(given, Node) and given.target in _VIEWS:
        given = given.args[0]
    return given if isinstance(given, Node) else None


def is_piece(node: Node) -> bool:
    """A part of a tensor, or of a list of parts."""
    return node.target in _PIECES or node.target is operator.getitem


def _before(node: Node) -> Node | None:
    """The one tensor that a node is a view, a piece or a small change of."""
    if node.op != "call_function":
        return None
    if _is_view(node) or _is_with_number(node):
        return node.args[0]  # type: ignore[return-value]
    operands = node.all_input_nodes if node.target in _WITH_NUMBERS else []
    return _without_weights(node, operands) if len(operands) == 2 else None


def _without_weights(node: Node, operands: list[Node]) -> Node | None:
    """Of a sum or product, the operand that a bias or a scale meets: the other one is given from outside, as it is or row by row."""
    given = [_is_given(a) for a in operands] if node.target in (aten.add.Tensor, aten.mul.Tensor) else []
    return operands[given.index(False)] if given.count(True) == 1 else None


def _is_given(node: Node) -> bool:
    while node.op == "call_function" and (_is_view(node) or node.target in (aten.index.Tensor, aten.index_select.default) or _is_with_number(node)):
        node = node.args[0]  # type: ignore[assignment]
    return node.op in ("placeholder", "get_attr")


def _is_view(node: Node) -> bool:
    return node.target in _VIEWS or is_piece(node)


def _is_with_number(node: Node) -> bool:
    return node.target in _CLAMPS or (node.target in _WITH_NUMBERS and isinstance(node.args[0], Node) and not isinstance(node.args[1], Node))


@dataclass(frozen=True)
class FromOneProjection:
    """Asks that two tensors are parts of one projection, or two projections of one input: what makes a product a gated one.

    An attention output that is multiplied by a gate, or the output of a recurrence, is neither.
    """

    first: str
    second: str

    def __call__(self, leaves: Mapping[str, Node]) -> str | None:
        one, two = (trail(leaves[n]) for n in (self.first, self.second))
        if _are_parts(one, two) or _are_siblings(one[-1], two[-1]):
            return None
        made = f"{self.first} is made by {label(one[-1])}, {self.second} by {label(two[-1])}"
        return f"{self.first} and {self.second} are neither parts of one projection nor projections of one input: {made}"

    def examples(self, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Two projections, one that is split in the middle, one whose parts alternate."""
        x = tensors[self.first]
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        turned = eye.flip(0)
        halves = F.linear(x, torch.cat([eye, turned])).chunk(2, -1)
        both = F.linear(x, torch.stack([eye, turned], 1).flatten(0, 1))
        for first, second in ((F.linear(x, eye), F.linear(x, turned)), halves, (both[..., ::2], both[..., 1::2])):
            yield {**tensors, self.first: first, self.second: second}


@dataclass(frozen=True)
class FromWeights:
    """Asks that a tensor is a projection by weights. Scores of attention, products of two activations, are not."""

    name: str

    def __call__(self, leaves: Mapping[str, Node]) -> str | None:
        made = trail(leaves[self.name])[-1]
        return None if is_projection(made) and _has_weights(made) else f"{self.name} is no projection by weights: it is made by {label(made)}"

    def examples(self, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """A projection as it is, and scaled."""
        x = tensors[self.name]
        logits = F.linear(x, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).flip(0))
        for value in (logits, logits * 0.5):
            yield {**tensors, self.name: value}


def _has_weights(projection: Node) -> bool:
    """A batch of matrices may be activations (the keys of all heads), also where it comes from outside (from a cache)."""
    matrix = projection.args[_PROJECTIONS[label(projection)] + 1]
    return label(projection) not in ("matmul", "bmm", "baddbmm") or (isinstance(matrix, Node) and val(matrix).ndim == 2)


def _are_parts(one: list[Node], two: list[Node]) -> bool:
    """The two trails meet, and each takes another piece of the value where they do."""
    meeting = next((n for n in one if n in two), None)
    if meeting is None:
        return False
    first, second = ([n.args[1:] for n in t[: t.index(meeting)] if is_piece(n)] for t in (one, two))
    return bool(first and second) and first != second


def _are_siblings(one: Node, two: Node) -> bool:
    if not (is_projection(one) and is_projection(two)) or one.args == two.args:
        return False
    x = projected(one)
    return x is not None and x is projected(two)
