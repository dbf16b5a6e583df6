"""From the softmax down to the product of queries and keys: every step on the way is one that is understood."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import Refusal
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.rewrites.attending.factors import Bias, Factor, Parts, Step
from hfgraph.rewrites.attending.low import is_mask
from hfgraph.rewrites.attending.numbers import constant, held, operand
from hfgraph.rewrites.attending.walk import Scores, Stuck

aten = torch.ops.aten
PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default})


def read_scores(softmax: Node) -> Scores | Refusal | None:
    """The steps below a softmax over the last dim; None where it is not over scores of queries and keys."""
    given = arguments(softmax)
    top = given["self"]
    if given["dim"] not in (-1, val(softmax).ndim - 1) or not isinstance(top, Node) or val(top).ndim < 3 or not holds_product(top):
        return None
    scores = Scores()
    try:
        _descend(scores, top)
    except Stuck as e:
        return Refusal(str(e), e.at, tuple(scores.nodes))
    return scores


def holds_product(node: Any, depth: int = 24) -> bool:
    """A product of two activations is reached through few elementwise steps."""
    level = {node} if isinstance(node, Node) else set[Node]()
    for _ in range(depth):
        if any(n.target in PRODUCTS for n in level):
            return True
        level = {o for n in level if n.target in _STEPS for o in _operands(n) if isinstance(o, Node)}
    return False


def _operands(node: Node) -> list[Any]:
    """Where a step's scores may come from."""
    if node.target is aten.cat.default:
        return arguments(node)["tensors"][:1]
    return [a for a in node.args[:3] if isinstance(a, Node)]


def _descend(scores: Scores, node: Node) -> None:
    scores.nodes.append(node)
    if node.target in PRODUCTS:
        _product(scores, node)
        return
    step = _STEPS.get(node.target)
    if step is None:
        raise Stuck(f"{label(node)} stands between the product of queries and keys and the softmax", node)
    _descend(scores, step(scores, node))


def _product(scores: Scores, node: Node) -> None:
    """`baddbmm` adds and scales as well."""
    if node.target is not aten.baddbmm.default:
        return
    given = arguments(node)
    if given["beta"] not in (0, 1):
        raise Stuck(f"baddbmm with beta = {given['beta']}", node)
    _scaled(scores, float(given["alpha"]), node)
    if given["beta"] == 1 and isinstance(given["self"], Node) and constant(given["self"]) != 0:
        _not_capped(scores, node)
        _take_added(scores, given["self"], scores.scale / float(given["alpha"]))


def _scaled(scores: Scores, factor: float, node: Node) -> None:
    """A factor counts for what lies below it only."""
    if not factor:
        raise Stuck("scores are multiplied by zero", node)
    scores.scale *= factor


# --- steps: each takes down what it does, and returns where to go on -----------------------------------


def _through(scores: Scores, node: Node) -> Node:
    if not val(node).is_floating_point():
        raise Stuck(f"the scores become {val(node).dtype}", node)
    scores.casts.append(val(node).dtype)
    return operand(node)


def _reshape(scores: Scores, node: Node) -> Node:
    """Sequences and heads may be one dim or two; queries and keys stay where they are."""
    below = operand(node)
    if not all(same_size(a, b) for a, b in zip(val(below).shape[-2:], val(node).shape[-2:], strict=True)):
        raise Stuck("the scores are reshaped", node)
    return below


def _multiply(scores: Scores, node: Node) -> Node:
    a, b = node.args[:2]
    kept, factor = (a, constant(b)) if constant(a) is None else (b, constant(a))
    if factor is None or not isinstance(kept, Node):
        raise Stuck("scores are multiplied by a tensor", node)
    inner = kept
    while inner.target is aten.to.dtype:
        inner = operand(inner)
    if inner.target is aten.tanh.default:
        return _softcap(scores, node, kept, inner, factor)
    _scaled(scores, factor, node)
    return kept


def _divide(scores: Scores, node: Node) -> Node:
    number = constant(node.args[1])
    if number is None or number == 0:
        raise Stuck(f"scores are divided by {node.args[1]}", node)
    _scaled(scores, 1.0 / number, node)
    return operand(node)


def _softcap(scores: Scores, node: Node, kept: Node, tanh: Node, cap: float) -> Node:
    """``cap * tanh(s / cap)``, with any scale on s."""
    if scores.softcap or scores.scale != 1.0:
        raise Stuck("scores are capped and then scaled", node)
    scores.softcap = cap
    scores.nodes += [n for n in (kept, tanh) if n is not node]
    scores.scale *= cap  # what divides below undoes it
    return operand(tanh)


def _tanh(scores: Scores, node: Node) -> Node:
    raise Stuck("tanh without the factor of a softcap", node)


def _add(scores: Scores, node: Node) -> Node:
    a, b, alpha = (arguments(node)[name] for name in ("self", "other", "alpha"))
    if alpha != 1:
        raise Stuck(f"a sum with alpha = {alpha}", node)
    kept, other = (a, b) if holds_product(a) else (b, a)
    _not_capped(scores, node)
    if constant(other) is not None and not is_mask(constant(other), val(node).dtype):
        _is_for_all_keys(scores, node)
        return kept
    if not isinstance(other, Node) or not isinstance(kept, Node):
        raise Stuck(f"{other} is added to the scores", node)
    _take_added(scores, other, scores.scale)
    return kept


def _subtract(scores: Scores, node: Node) -> Node:
    """The row's maximum, which a softmax does not see; or a mask of large numbers."""
    kept, other = operand(node), node.args[1]
    largest = [other] if isinstance(other, Node) else []
    largest += [operand(n) for n in largest if n.target is operator.getitem]
    _not_capped(scores, node)
    if not any(_is_largest(n, kept) for n in largest) or not same_size(val(largest[0]).shape[-1], 1):
        if not isinstance(other, Node) or arguments(node)["alpha"] != 1:
            raise Stuck(f"{other} is subtracted from the scores", node)
        _take_added(scores, other, -scores.scale)
        return kept
    _is_for_all_keys(scores, node)
    scores.nodes += largest
    return kept


def _is_largest(node: Node, scores: Node) -> bool:
    return node.target in (aten.amax.default, aten.max.dim) and node.args[0] is scores and node.args[1] in (-1, [-1])


def _is_for_all_keys(scores: Scores, node: Node) -> None:
    """What is the same for all keys of a query a softmax does not see, unless a sink stands beside them that it is not added to."""
    if scores.sinks is not None:
        raise Stuck("something is added to all scores but the sink's", node)
    scores.shifted = True


def _floor(scores: Scores, node: Node) -> Node:
    """Scores that fall below a mask's are lifted to it: they count for nothing either way."""
    kept, other = operand(node), node.args[1]
    number = constant(other)
    bound = None if number is None else held(number * scores.scale, val(node).dtype)
    if bound is None or not is_mask(number, val(node).dtype) or scores.scale <= 0:
        raise Stuck(f"scores are bounded by {other}", node)
    scores.floor = max(scores.floor, bound)
    return kept


def _where(scores: Scores, node: Node) -> Node:
    negated = not holds_product(node.args[1])
    kept, other = (2, 1) if negated else (1, 2)
    _masked(scores, node, node.args[0], node.args[other], negated)
    return operand(node, kept)


def _masked_fill(scores: Scores, node: Node) -> Node:
    _masked(scores, node, node.args[1], node.args[2], True)
    return operand(node)


def _masked(scores: Scores, node: Node, condition: Any, fill: Any, negated: bool) -> None:
    number = constant(fill)
    value = None if number is None else held(number * scores.scale, val(node).dtype)
    if value is None or not is_mask(value, val(node).dtype) or not isinstance(condition, Node):
        low = fill if value is None or value == number else f"{number:g} * {scores.scale:g}"
        raise Stuck(f"masked scores become {low}, which is not low enough to mask", node)
    _not_capped(scores, node)
    found = Parts()
    found.mask(condition, value, negated)
    _take(scores, found, Step(Factor(condition, negated), value), val(node).dtype)


def _take_added(scores: Scores, node: Node, factor: float) -> None:
    found = Parts()
    found.added(node, factor)
    if scores.floored and found.unread:
        raise Stuck("scores are bounded, and what is added to them may be a mask itself", node)
    found.summed = bool(found.fills)
    _take(scores, found, Step(Bias(node, factor)), val(node).dtype)
    scores.lowered |= bool(found.fills)


def _take(scores: Scores, found: Parts, step: Step, dtype: torch.dtype) -> None:
    """Parts that a step adds in a dtype, as they are once the scores have gone through all casts above it."""
    parts = scores.parts
    found.fills = {max(f, scores.floor) for f in found.fills}
    stacked = bool(found.fills) and scores.lowered
    parts.take(found, scores.casts[::-1])
    parts.stacked = (parts.stacked or stacked) and not scores.floored
    parts.retold &= not scores.floored and all(torch.finfo(c).max >= torch.finfo(dtype).max for c in scores.casts)
    parts.steps.append(step)


def _not_capped(scores: Scores, node: Node) -> None:
    if scores.softcap:
        raise Stuck("something is added to the scores, or masks them, before they are capped", node)


def _sink(scores: Scores, node: Node) -> Node:
    """One more column of scores, of a key without a value."""
    joined, dim = arguments(node)["tensors"], arguments(node)["dim"]
    if len(joined) != 2 or dim not in (-1, val(node).ndim - 1) or scores.sinks is not None:
        raise Stuck("scores are concatenated with something else than one sink", node)
    kept, sink = joined
    if not same_size(val(sink).shape[-1], 1):
        raise Stuck("more than one sink for each query", node)
    if scores.scale != 1.0 or scores.softcap or scores.parts != Parts():
        raise Stuck("the sink is scaled, capped or masked together with the scores", node)
    scores.sinks = sink
    return kept


_STEPS: dict[Any, Callable[[Scores, Node], Node]] = {
    aten.to.dtype: _through,
    aten.reshape.default: _reshape,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.tanh.default: _tanh,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.cat.default: _sink,
    aten.maximum.default: _floor,
    aten.clamp_min.default: _floor,
    aten.clone.default: _through,
}
