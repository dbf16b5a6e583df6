"""A mask taken apart: the conditions that must all hold for a pair, and what is added to its score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.alias import varies
from hfgraph.graph.values import arguments, is_pure, val
from hfgraph.rewrites.attending.low import is_mask, loses, may_be_infinite, may_mask
from hfgraph.rewrites.attending.numbers import constant, held, is_broadcast, numbers, operand

aten = torch.ops.aten
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
        unread: a bias may be a mask itself; `infinite`: it may even hold -inf.
        summed: masked pairs get a fill added to their scores.
        steps: the same as it was done, last step first.
        retold: doing the steps again gives the mask: no bound or narrower dtype above them changes their numbers.
    """

    factors: list[Factor] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    fills: set[float] = field(default_factory=set)
    stacked: bool = False
    unread: bool = False
    infinite: bool = False
    summed: bool = False
    steps: list[Step] = field(default_factory=list)
    retold: bool = True

    def condition(self, node: Node, negated: bool = False) -> None:
        """Take a boolean tensor apart; not one that is written to, which holds something else than it was made of."""
        stack = [Factor(node, negated)]
        while stack:
            factor = stack.pop()
            apart = None if varies(factor.node) else _all_of(*factor)
            if apart is None:
                self.factors.append(factor)
            else:
                stack += reversed(apart)

    def added(self, node: Node, factor: float = 1.0) -> None:
        """Take apart a tensor that, times a number, is added to the scores: masks to conditions, the rest stays a bias."""
        if varies(node) or not self._apart(node, factor):
            self.biases.append(Bias(node, factor))
            infinite = may_be_infinite(node)
            self.infinite |= infinite
            self.unread |= infinite or may_mask(node)

    def _apart(self, node: Node, factor: float) -> bool:
        step = _ADDED.get(node.target)
        if is_broadcast(node):
            self.added(operand(node), factor)
        elif node.target is aten.to.dtype and val(operand(node)).is_floating_point() and val(node).is_floating_point():
            inner = Parts()
            inner.added(operand(node), factor)
            if inner.biases and loses(val(operand(node)).dtype, val(node).dtype):
                return False
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
        self.infinite |= inner.infinite
        self.summed |= inner.summed
        for fill in inner.fills:
            for dtype in dtypes:
                fill = torch.tensor(fill, dtype=torch.float64).to(dtype).item()
            self.fills.add(float(fill))

    def mask(self, condition: Node, fill: float, negated: bool) -> None:
        """Pairs that fail a condition get the score `fill`."""
        self.fills.add(fill)
        self.condition(condition, negated)


def _all_of(node: Node, negated: bool) -> list[Factor] | None:
    """The conditions that hold exactly if this one does."""
    if negated == (node.target in _OR) and node.target in _AND | _OR and _is_bool(operand(node)) and _is_bool(operand(node, 1)):
        return [Factor(operand(node), negated), Factor(operand(node, 1), negated)]
    if node.target in _NOT:
        return [Factor(operand(node), not negated)]
    if is_broadcast(node):
        return [Factor(operand(node), negated)]
    if not negated and node.target is aten.masked_fill.Scalar and node.args[2] in (False, 0) and _is_bool(node):
        return [Factor(operand(node)), Factor(operand(node, 1), True)]
    if not negated and node.target is aten.where.self and (rest := _kept_where(node)) is not None:
        return [Factor(operand(node)), Factor(rest)]
    return None


def same_conditions(some: Iterable[Factor], others: Iterable[Factor]) -> bool:
    """Each of the conditions is one of the others, and the other way round."""
    a, b = list(some), list(others)
    known: dict[tuple[Node, Node], bool] = {}
    return all(any(x.negated == y.negated and _alike(x.node, y.node, known) for y in b) for x in a) and all(
        any(x.negated == y.negated and _alike(x.node, y.node, known) for x in a) for y in b
    )


def _alike(a: Any, b: Any, known: dict[tuple[Node, Node], bool]) -> bool:
    """One value, or the same operator on such values: constants that a model makes anew each time are different nodes. `known` remembers answers."""
    if not isinstance(a, Node) or not isinstance(b, Node) or a is b:
        return a is b or (type(a) is type(b) and a == b)
    if (a, b) not in known:
        known[a, b] = _made_alike(a, b, known)
    return known[a, b]


def _made_alike(a: Node, b: Node, known: dict[tuple[Node, Node], bool]) -> bool:
    if constant(a) is not None:
        return constant(a) == constant(b) and val(a).dtype == val(b).dtype
    same = a.op == b.op == "call_function" and a.target is b.target and is_pure(a) and not a.kwargs and not b.kwargs and len(a.args) == len(b.args)
    return same and all(_alike(x, y, known) for x, y in zip(a.args, b.args, strict=True))


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
    fill = _low_number(node.args[2], factor, node)
    if fill is None:
        return False
    parts.mask(operand(node, 1), fill, True)
    _rest(parts, operand(node), factor)
    return True


def _where(parts: Parts, node: Node, factor: float) -> bool:
    condition, kept, other = node.args
    for value, rest, negated in ((other, kept, False), (kept, other, True)):
        fill = _low_number(value, factor, node)
        if fill is not None:
            parts.mask(condition, fill, negated)  # type: ignore[arg-type]
            if isinstance(rest, Node):
                _rest(parts, rest, factor)
            return True
    return False


def _scaled(parts: Parts, node: Node, factor: float) -> bool:
    """``(1 - keep) * low``, with keep a cast boolean."""
    low, other = node.args[1], node.args[0]
    fill = _low_number(low, factor, node) if isinstance(low, int | float) else None
    kept = _one_minus(other) if fill is not None and isinstance(other, Node) else None
    if kept is None or fill is None:
        return False
    parts.mask(kept, fill, False)
    return True


def _low_number(value: Any, factor: float, node: Node) -> float | None:
    """The one number that an operand holds, times a factor, in a node's dtype, if it is so low that it masks."""
    number = constant(value)
    found = None if number is None else held(number * factor, val(node).dtype)
    return found if found is not None and is_mask(found, val(node).dtype) else None


def _low(node: Node, factor: float) -> float | None:
    """The number that masks, of a tensor that holds nothing but it and zeros: ``full((n, n), low).triu(1)``."""
    low = [held(n * factor, val(node).dtype) for n in numbers(node) or () if n != 0]
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
