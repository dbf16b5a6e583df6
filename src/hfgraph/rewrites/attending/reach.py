"""How far the numbers in a mask reach. A table that is longer shows nothing new.

Masks are evaluated at a few lengths, and what is seen there has to hold at all. It does where a mask is made of conditions that are linear in positions,
piece by piece: pieces end where the mask's numbers say, added up or multiplied with each other. Another operator may do something else at any length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import SymInt
from torch._ops import OpOverload
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, evaluate, value_inputs
from hfgraph.graph.unify import label
from hfgraph.graph.values import is_symbol, parameters, val

aten = torch.ops.aten
VIEWS = frozenset(
    {aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.permute.default, aten.expand.default, aten.reshape.default, aten.clone.default,
     aten.contiguous.default, aten.detach.default, aten.lift_fresh_copy.default, aten.to.dtype}
)  # fmt: skip
FILLED = frozenset(
    {aten.zeros.default, aten.ones.default, aten.full.default, aten.scalar_tensor.default, aten.zeros_like.default, aten.ones_like.default,
     aten.full_like.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}
)  # fmt: skip
COUNTED = frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step})
_LINEAR = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.div.Tensor, aten.neg.default})
BY_ELEMENT = _LINEAR | frozenset(
    {aten.abs.default, aten.sign.default, aten.floor.default, aten.ceil.default, aten.trunc.default, aten.div.Tensor_mode, aten.floor_divide.default,
     aten.remainder.Scalar, aten.remainder.Tensor, aten.minimum.default, aten.maximum.default, aten.clamp.default, aten.clamp_min.default,
     aten.clamp_max.default, aten.where.self, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther, aten.masked_fill.Scalar,
     aten.masked_fill.Tensor, aten.logical_and.default, aten.logical_or.default, aten.logical_not.default, aten.logical_xor.default,
     aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor,
     aten.bitwise_not.default, aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar,
     aten.le.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor}
)  # fmt: skip
ALONG = frozenset(
    {aten.cumsum.default, aten.diff.default, aten.flip.default, aten.roll.default, aten.cat.default, aten.stack.default, aten.index.Tensor,
     aten.repeat.default}
)  # fmt: skip
_CUT = frozenset({aten.triu.default, aten.tril.default, aten.slice.Tensor, aten.select.int})
_FOLLOWED = VIEWS | FILLED | COUNTED | BY_ELEMENT | ALONG | _CUT
# Arguments that are no numbers of a mask.
_OTHER = frozenset(
    {"dim", "dims", "size", "shape", "repeats", "n", "dtype", "device", "layout", "pin_memory", "memory_format", "implicit", "copy", "non_blocking"}
)
# Numbers from here on fill masks or end slices.
_HUGE = 2**40
# Dtypes that hold all positions, and all that is computed from them. In others, what is computed from positions goes wrong where they are large.
_WHOLE = (torch.bool, torch.int64, torch.int32, torch.float32, torch.float64)


def reach(roots: Sequence[Node], given: Collection[Node] = ()) -> Counter[int]:
    """Numbers that go into some values, each as often as it does, by whichever way.

    Args:
        given: nodes to stop at.

    Raises:
        CannotEvaluate: something is done to positions after which no number tells where it changes.
    """
    order = below(roots, given)
    symbolic = _symbolic(order)
    found: dict[Node, Counter[int]] = {n: Counter() for n in given}
    for node in order:
        if node in symbolic:
            _check(node, _FOLLOWED)
            found[node] = Counter(_numbers_of(node))
            for operand in value_inputs(node):
                found[node].update(found[operand] if operand in found else _of_constant(operand))
    return sum((found.get(r) or _of_constant(r) for r in roots), Counter())


def beyond(numbers: Counter[int]) -> int:
    """A length past all that numbers reach to, however they are added up or multiplied."""
    return min(math.prod((n + 1) ** min(times, 64) for n, times in numbers.items() if n > 1), _HUGE) + numbers[1] + 5


def below(roots: Sequence[Node], given: Collection[Node] = (), inputs: Callable[[Node], Iterable[Node]] = value_inputs) -> list[Node]:
    """What values are computed from, themselves included, in graph order; nothing that is `given`, nor what that is computed from."""
    seen, stack = set(given), [r for r in roots if r not in given]
    found = set[Node]()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            found.add(node)
            stack += inputs(node)
    return sorted(found)


def is_linear(root: Node) -> bool:
    """Whether a value depends on positions by sums and constant factors alone, up to the dtype it is in."""
    try:
        order = below([root])
        for node in _symbolic(order):
            _check(node, VIEWS | FILLED | COUNTED | _LINEAR | {aten.cumsum.default, aten.slice.Tensor, aten.repeat.default})
        return not any(_truncates(n) for n in order)
    except CannotEvaluate:
        return False


def arithmetic(nodes: Iterable[Node]) -> list[int]:
    """The distinct numbers in comparisons and arithmetic, rounded up; what they divide by where they are small."""
    return sorted({n for node in nodes if isinstance(node.target, OpOverload) and node.op == "call_function" for n in _given_numbers(node) if n > 1})


def _symbolic(order: Sequence[Node]) -> dict[Node, None]:
    """Those of some nodes, in order, that depend on a size which is a symbol."""
    found: dict[Node, None] = {}
    for node in order:
        if any(i in found or is_symbol(val(i)) for i in node.all_input_nodes) or any(is_symbol(s) for s in val(node).shape):
            found[node] = None
    return found


def _check(node: Node, followed: Collection[Any]) -> None:
    """Raises CannotEvaluate: no number tells where the results of this node change."""
    if node.op == "call_function" and node.target not in followed:
        raise CannotEvaluate(f"{label(node)} may do anything at lengths that were not tried")
    if val(node).dtype not in _WHOLE and node.target in COUNTED | _LINEAR | {aten.to.dtype, aten.cumsum.default} and not _of_truth(node):
        raise CannotEvaluate(f"positions are rounded to {val(node).dtype}")


def _truncates(node: Node) -> bool:
    """Floats become whole numbers."""
    return node.target is aten.to.dtype and not val(node).is_floating_point() and any(val(i).is_floating_point() for i in value_inputs(node))


def _of_truth(node: Node) -> bool:
    """A boolean in another dtype, or what sums and products make of one alone."""
    operands, same = value_inputs(node), FILLED | {aten.to.dtype, aten.rsub.Scalar}
    return bool(operands) and all(val(i).dtype is torch.bool or (val(i).dtype == val(node).dtype and i.target in same) for i in operands)


def _of_constant(node: Node) -> Counter[int]:
    """The largest and the smallest number of a tensor that no symbol goes into, and how long it is."""
    (value,) = evaluate([node], {}, {})
    sizes = value.double().abs()
    sizes = sizes[sizes.isfinite() & (sizes > 0)]
    ends = [sizes.max().item(), sizes.min().item()] if len(sizes) else []
    return Counter({*_sized(ends), *_sized([max(value.shape, default=1)])})


def _numbers_of(node: Node) -> Iterator[int]:
    yield from _given_numbers(node)
    if node.target in FILLED | COUNTED | ALONG | _CUT:
        shape = val(node).shape
        yield from _sized([max((s for s in shape if isinstance(s, int)), default=1)])
        yield from (n for s in shape for n in _in_expression(s))


def _given_numbers(node: Node) -> Iterator[int]:
    """The numbers among a node's arguments, but for how far it counts."""
    names = [name for name, _ in parameters(node.target)]  # type: ignore[arg-type]
    other = _OTHER | {"end"} if node.target in COUNTED else _OTHER
    for name, value in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        for number in (value if isinstance(value, list | tuple) else [value]) if name not in other else ():
            if isinstance(number, Node):
                yield from _in_expression(val(number))
            elif isinstance(number, int | float) and not isinstance(number, bool):
                yield from _sized([number])


def _in_expression(value: Any) -> Iterator[int]:
    """The numbers in an expression of sizes."""
    if isinstance(value, SymInt):
        yield from _sized([int(n) for n in sympy.sympify(value.node.expr).atoms(sympy.Integer)])


def _sized(numbers: Iterable[float]) -> Iterator[int]:
    for number in numbers:
        size = abs(number) if abs(number) >= 1 or not number else 1 / abs(number)
        if 1 <= size < _HUGE:
            yield math.ceil(size)
