"""A mask taken apart: the conditions that must all hold for a pair, and what is added to its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.alias import varies
from hfgraph.graph.sources import is_projection, trail
from hfgraph.graph.values import arguments, is_pure, val
from hfgraph.rewrites.attending.numbers import constant, is_broadcast, numbers, operand

aten = torch.ops.aten
# Scores from here on down are masks; what is less negative may still matter to a sum.
_MASKED = {torch.float16: -6.0e4}
_MASKED_BELOW = -1.0e30

_AND = frozenset({aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default})
_OR = frozenset({aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default})
_NOT = frozenset({aten.logical_not.default, aten.bitwise_not.default})


class Factor(NamedTuple):
    """A condition on pairs: `node` must be True, or False where `negated`."""

    node: Node
    negated: bool = False


class Bias(NamedTuple):
    """A tensor that is multiplied by a number and added to the scores."""

    node: Node
    factor: float = 1.0


class Step(NamedTuple):
    """What is done to scores: a tensor times a number is added, or those that fail a condition become `fill`."""

    what: Factor | Bias
    fill: float | None = None


@dataclass
class Parts:
    """What a mask is made of.

    Attributes:
        factors: conditions; a pair counts where all hold.
        biases: tensors added to the scores.
        fills: scores that masked pairs get.
        stacked: a pair that fails two conditions gets less than a fill: a mask is added to scores that one has been written
            into. That shows where a query has no key, for a softmax then prefers the pairs that fail one.
        unread: a bias may be a mask itself.
        steps: the same as it was done, last step first.
        retold: doing the steps again gives the mask: no bound or narrower dtype above them changes their numbers.
    """

    factors: list[Factor] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    fills: set[float] = field(default_factory=set)
    stacked: bool = False
    unread: bool = False
    steps: list[Step] = field(default_factory=list)
    retold: bool = True

    def condition(self, node: Node, negated: bool = False) -> None:
        """Take a boolean tensor apart; not one that is written to, which holds something else than it was made of."""
        if varies(node):
            self.factors.append(Factor(node, negated))
        elif negated == (node.target in _OR) and node.target in _AND | _OR and _is_bool(operand(node)) and _is_bool(operand(node, 1)):
            self.condition(operand(node), negated)
            self.condition(operand(node, 1), negated)
        elif node.target in _NOT:
            self.condition(operand(node), not negated)
        elif is_broadcast(node):
            self.condition(operand(node), negated)
        elif not negated and node.target is aten.masked_fill.Scalar and node.args[2] in (False, 0) and _is_bool(node):
            self.condition(operand(node))
            self.condition(operand(node, 1), True)
        elif not negated and node.target is aten.where.self and (rest := _kept_where(node)) is not None:
            self.condition(operand(node))
            self.condition(rest)
        else:
            self.factors.append(Factor(node, negated))

    def added(self, node: Node, factor: float = 1.0) -> None:
        """Take apart a tensor that, times a number, is added to the scores: masks to conditions, the rest stays a bias."""
        if varies(node) or not self._apart(node, factor):
            self.biases.append(Bias(node, factor))
            self.unread |= may_mask(node)

    def _apart(self, node: Node, factor: float) -> bool:
        step = _ADDED.get(node.target)
        if is_broadcast(node):
            self.added(operand(node), factor)
        elif node.target is aten.to.dtype and val(operand(node)).is_floating_point():
            inner = Parts()
            inner.added(operand(node), factor)
            self.take(inner, [val(node).dtype])
        elif step is not None and step(self, node, factor):
            return True
        elif (fill := _low(node, factor)) is not None:
            self.mask(node, fill, True)
        else:
            return False
        return True

    def take(self, inner: Parts, dtypes: Sequence[torch.dtype]) -> None:
        """Take over the parts of a tensor that is then cast, to one dtype after the other: the lowest number of one is infinite in another."""
        self.factors += inner.factors
        self.biases += inner.biases
        self.stacked |= inner.stacked
        self.unread |= inner.unread
        for fill in inner.fills:
            for dtype in dtypes:
                fill = torch.tensor(fill, dtype=torch.float64).to(dtype).item()
            self.fills.add(float(fill))

    def mask(self, condition: Node, fill: float, negated: bool) -> None:
        """Pairs that fail a condition get the score `fill`."""
        self.fills.add(fill)
        self.condition(condition, negated)


def same_conditions(some: Iterable[Factor], others: Iterable[Factor]) -> bool:
    """Each of the conditions is one of the others, and the other way round."""
    a, b = list(some), list(others)
    return all(any(x.negated == y.negated and _alike(x.node, y.node) for y in b) for x in a) and all(
        any(x.negated == y.negated and _alike(x.node, y.node) for x in a) for y in b
    )


def _alike(a: Any, b: Any) -> bool:
    """One value, or the same operator on such values: constants that a model makes anew each time are different nodes."""
    if not isinstance(a, Node) or not isinstance(b, Node) or a is b:
        return a is b or (type(a) is type(b) and a == b)
    if constant(a) is not None:
        return constant(a) == constant(b) and val(a).dtype == val(b).dtype
    same = a.op == b.op == "call_function" and a.target is b.target and is_pure(a) and not a.kwargs and not b.kwargs and len(a.args) == len(b.args)
    return same and all(_alike(x, y) for x, y in zip(a.args, b.args, strict=True))


def may_mask(bias: Node) -> bool:
    """A bias may be as low as a mask: it comes from outside, it is written to, or a number of that size went into it."""
    if varies(bias) or trail(bias)[-1].op != "call_function":
        return True
    low = -_MASKED.get(val(bias).dtype, _MASKED_BELOW)
    stack, seen = [bias], {bias}
    while stack:
        node = stack.pop()
        if any(isinstance(a, int | float) and abs(a) >= low for a in (*node.args, constant(node))):
            return True
        inputs = [] if is_projection(node) or node.target is aten.softmax.int else [n for n in node.all_input_nodes if n not in seen]
        seen.update(inputs)
        stack += inputs
    return False


def is_mask(value: Any, dtype: torch.dtype) -> bool:
    """A score so low that it masks."""
    return isinstance(value, int | float) and value <= _MASKED.get(dtype, _MASKED_BELOW)


def _add(parts: Parts, node: Node, factor: float) -> bool:
    a, b = node.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node) or arguments(node)["alpha"] != 1:
        return False
    for term in (a, b):
        inner = Parts()
        inner.added(term, factor)
        parts.stacked |= bool(inner.fills and parts.fills)
        parts.take(inner, [])
    return True


def _masked_fill(parts: Parts, node: Node, factor: float) -> bool:
    fill = constant(node.args[2])
    if fill is None or not is_mask(fill * factor, val(node).dtype):
        return False
    parts.mask(operand(node, 1), fill * factor, True)
    _rest(parts, operand(node), factor)
    return True


def _where(parts: Parts, node: Node, factor: float) -> bool:
    condition, kept, other = node.args
    for value, rest, negated in ((other, kept, False), (kept, other, True)):
        fill = constant(value)
        if fill is not None and is_mask(fill * factor, val(node).dtype):
            parts.mask(condition, fill * factor, negated)  # type: ignore[arg-type]
            if isinstance(rest, Node):
                _rest(parts, rest, factor)
            return True
    return False


def _scaled(parts: Parts, node: Node, factor: float) -> bool:
    """``(1 - keep) * low``, with keep a cast boolean."""
    low, other = node.args[1], node.args[0]
    if not isinstance(low, int | float) or not is_mask(low * factor, val(node).dtype) or not isinstance(other, Node):
        return False
    kept = _one_minus(other)
    if kept is None:
        return False
    parts.mask(kept, float(low) * factor, False)  # type: ignore[arg-type]
    return True


def _low(node: Node, factor: float) -> float | None:
    """The number that masks, of a tensor that holds nothing but it and zeros: ``full((n, n), low).triu(1)``."""
    low = [n * factor for n in numbers(node) or () if n != 0]
    return low[0] if len(low) == 1 and is_mask(low[0], val(node).dtype) else None


_ADDED: dict[Any, Callable[[Parts, Node, float], bool]] = {
    aten.add.Tensor: _add,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.mul.Tensor: _scaled,
}


def _rest(parts: Parts, node: Node, factor: float) -> None:
    """What a mask was written over: nothing where it is zero."""
    if constant(node) != 0:
        parts.added(node, factor)


def _one_minus(node: Node) -> Node | None:
    """The boolean that ``1 - cast(keep)`` was made of."""
    if node.target is aten.rsub.Scalar and node.args[1] == 1:
        source = operand(node)
    elif node.target is aten.sub.Tensor and constant(node.args[0]) == 1 and isinstance(node.args[1], Node):
        source = node.args[1]
    else:
        return None
    passed = [node]
    while source.target is aten.to.dtype and not _is_bool(source):
        passed.append(source)
        source = operand(source)
    return source if _is_bool(source) and not any(varies(n) for n in passed) else None


def _kept_where(node: Node) -> Node | None:
    """Of ``where(condition, kept, False)`` the boolean that is kept."""
    kept, other = node.args[1:3]
    return kept if isinstance(kept, Node) and _is_bool(kept) and constant(other) == 0 else None


def _is_bool(node: Node) -> bool:
    return isinstance(val(node), Tensor) and val(node).dtype is torch.bool
