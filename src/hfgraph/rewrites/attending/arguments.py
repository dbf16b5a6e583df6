"""The mask and bias of an attention as arguments of the op."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, evaluate
from hfgraph.graph.recogniser import Refusal, View
from hfgraph.graph.values import is_trained, same_size, val
from hfgraph.kernels.attention import SPELLED
from hfgraph.rewrites.attending.factors import Bias, Factor, Parts, Step
from hfgraph.rewrites.attending.heads import size
from hfgraph.rewrites.attending.mask import Masking, read_mask
from hfgraph.rewrites.attending.pairs import Pairs
from hfgraph.rewrites.attending.slopes import slopes_among
from hfgraph.rewrites.attending.structure import Structure

aten = torch.ops.aten


class Arguments(NamedTuple):
    """Arguments of the op, and what they say in words."""

    named: dict[str, Any]
    words: str


def masking_arguments(
    parts: Parts, q: Node, k: Node, view: View, before: Node, base: Structure | None, *, written_out: bool = False, beside_sinks: bool = False
) -> Arguments | Refusal:
    """Arguments of the op for a mask over the pairs of `q` and `k`.

    Args:
        before: where helper nodes may go.
        base: a structure that holds besides the mask.
        written_out: the model has a softmax of its own, which does with a query without keys what no fused operator does.
        beside_sinks: what is the same for all keys counts, too, and so no bias may be written in another way.
    """
    unfit = _unfit(parts, q, k)
    if unfit is not None:
        return Refusal(f"a mask or bias of shape {tuple(val(unfit).shape)} does not fit the scores", unfit)
    masking = read_mask(parts, q, k, view)
    if base is not None and not masking.structure.is_full:
        return Refusal("a causal attention has a mask with a structure of its own", before)
    structure = masking.structure if base is None else base
    slopes, biases = (None, parts.biases) if beside_sinks else slopes_among(parts.biases, q, k, view)
    named: dict[str, Any] = {
        "mask": _conjunction(masking.factors, view, before),
        "bias": _sum(biases, view, before),
        "segments": masking.segments,
        "start": _start(masking, view),
        "left": structure.left,
        "right": structure.right,
        "chunk": structure.chunk,
        "offset": structure.offset,
        "slopes": slopes,
    }
    found = _without_keys(parts, masking, structure, q, k, view, before, written_out)
    if isinstance(found, Arguments | Refusal):
        return found
    given = {n: a for n, a in {**named, "masked": found}.items() if a is not None}
    return Arguments(given, in_words(given, masking.reason))


def _without_keys(
    parts: Parts, masking: Masking, structure: Structure, q: Node, k: Node, view: View, before: Node, written_out: bool
) -> float | Arguments | Refusal | None:
    """The score of a masked key, which shows where a query has no other; or all arguments, where no number says it."""
    finite = any(math.isfinite(f) for f in parts.fills)
    strict = written_out and (is_trained(before.graph) or val(q).dtype is torch.float16)
    if finite and parts.unread:
        return _as_a_tensor(parts, q, k, view, before, written_out and (strict or parts.infinite))
    if not parts.fills or not (masking.factors or not _has_own_key(structure, masking, q, k)):
        return -math.inf if written_out and parts.unread and (strict or parts.infinite) else None
    if finite and (parts.stacked or (strict and parts.summed)):
        return _as_a_tensor(parts, q, k, view, before, strict)
    if len(parts.fills) > 1:
        return Refusal(f"masked scores are {' and '.join(str(f) for f in sorted(parts.fills))}", before)
    (fill,) = parts.fills
    return max(fill, SPELLED) if strict and finite else fill


def _as_a_tensor(parts: Parts, q: Node, k: Node, view: View, before: Node, spelled: bool) -> Arguments | Refusal:
    """Masks added to each other, as the model has them: a query without keys prefers the pairs that fail one to those that fail both.

    Args:
        spelled: what the softmax of a query without keys is, or its gradient, is left to the op's own softmax.
    """
    dtype, total = val(q).dtype, None
    if not parts.retold:
        return Refusal("masks are added to each other, and then bounded or rounded", before)
    if any(torch.tensor(f, dtype=torch.float64).to(dtype).isinf() for f in parts.fills if math.isfinite(f)):
        return Refusal(f"masks are added to each other, and {dtype} does not hold their numbers", before)
    for step in reversed(parts.steps):
        total = _after(step, total, view, before)
    assert total is not None
    found = masking_arguments(Parts(biases=[Bias(total)]), q, k, view, before, None, beside_sinks=True)
    if spelled and isinstance(found, Arguments):
        found.named["masked"] = -math.inf
    return found


def _after(step: Step, total: Node | None, view: View, before: Node) -> Node:
    """What is added to the scores in all, one step on."""
    if isinstance(step.what, Bias):
        added = _times(step.what, view, before)
        return added if total is None else view.call(aten.add.Tensor, total, added, before=before)
    node, negated = step.what
    if total is None:
        return view.call(aten.where.Scalar, node, *((step.fill, 0.0) if negated else (0.0, step.fill)), before=before)
    return view.call(*((aten.where.ScalarSelf, node, step.fill, total) if negated else (aten.where.ScalarOther, node, total, step.fill)), before=before)


def _has_own_key(structure: Structure, masking: Masking, q: Node, k: Node) -> bool:
    """Every query stands at the position of a key, which each structure lets it attend to."""
    if structure.is_full:
        return True
    if masking.start is not None:
        return False
    queries, keys = val(q).shape[-2], val(k).shape[-2]
    if structure.offset is None:
        return same_size(queries, keys) or same_size(queries, 1) or (isinstance(queries, int) and isinstance(keys, int) and queries <= keys)
    return isinstance(queries, int) and isinstance(keys, int) and 0 <= structure.offset <= keys - queries


def in_words(named: Mapping[str, Any], reason: str) -> str:
    """What an attention's arguments say of its mask: the structure, and what stays a tensor."""
    words = [*_shape_in_words(named["left"], named["right"]), *([f"chunks of {named['chunk']}"] if named["chunk"] else [])]
    words = words or ["full"]
    words += ["ALiBi"] if named.get("slopes") else []
    words += ["segments"] if "segments" in named else []
    words += ["first position known at run time"] if "start" in named else []
    if "mask" in named:
        words.append("padding as a tensor" if val(named["mask"]).ndim > 1 and same_size(val(named["mask"]).shape[-2], 1) else "mask as a tensor")
    words += ["bias as a tensor"] if "bias" in named else []
    return ", ".join(words) + (f" ({reason})" if reason else "")


def _shape_in_words(left: int, right: int) -> list[str]:
    if right == 0:
        return ["causal"] if left < 0 else [f"sliding window of {left + 1}"]
    if left < 0 and right < 0:
        return []
    return [f"from {left if left >= 0 else 'all'} before to {right if right >= 0 else 'all'} after"]


def _start(masking: Masking, view: View) -> Node | None:
    """The counter's value where the mask was made: it moves on later."""
    if masking.start is None or masking.reader is None:
        return None
    key = ("start", masking.start, masking.reader)
    if key not in view.memo:
        view.memo[key] = view.call(aten.clone.default, masking.start, before=masking.reader)
    return view.memo[key]


def _conjunction(factors: Sequence[Factor], view: View, before: Node) -> Node | None:
    """All conditions in one tensor; layers that share a mask share it, unless it is written to: then each reads it for itself."""
    if not factors:
        return None
    changes = any(view.aliases.is_written(f.node) for f in factors)
    key = ("conjunction", tuple(factors), before if changes else None)
    if key not in view.memo:
        place = before if changes else max(f.node for f in factors).next
        nodes = [view.call(aten.logical_not.default, f.node, before=place) if f.negated else f.node for f in factors]
        nodes = [n if val(n).dtype is torch.bool else view.call(aten.to.dtype, n, torch.bool, before=place) for n in nodes]
        both = nodes[0]
        for node in nodes[1:]:
            both = view.call(aten.__and__.Tensor, both, node, before=place)
        view.memo[key] = both
    return view.memo[key]


def _sum(biases: Sequence[Bias], view: View, before: Node) -> Node | None:
    nodes = [_times(b, view, before) for b in biases]
    total = nodes[0] if nodes else None
    for node in nodes[1:]:
        total = view.call(aten.add.Tensor, total, node, before=before)
    return total


def _times(bias: Bias, view: View, before: Node) -> Node:
    return bias.node if bias.factor == 1.0 else view.call(aten.mul.Tensor, bias.node, bias.factor, before=before)


def split_heads(parts: Parts, heads: Sequence[Any], scores: Tensor, view: View, before: Node) -> Parts:
    """Masks and biases of scores (B * H, Q, K) as those of `scores` (B, H, Q, K)."""

    def split(node: Node) -> Node:
        shape = val(node).shape
        if len(shape) != 3 or same_size(shape[0], 1) or not same_size(shape[0], scores.shape[0] * scores.shape[1]):
            return node
        key = ("split", node, before if view.aliases.is_written(node) else None)
        if key not in view.memo:
            tail = [size(node, dim, view, before) for dim in (1, 2)]
            view.memo[key] = view.call(aten.reshape.default, node, [*heads, *tail], before=before)
        return view.memo[key]

    def moved(part: Any) -> Any:
        return part._replace(node=split(part.node))

    steps = [Step(moved(s.what), s.fill) for s in parts.steps]
    return replace(parts, factors=[moved(f) for f in parts.factors], biases=[moved(b) for b in parts.biases], steps=steps)


def _unfit(parts: Parts, q: Node, k: Node) -> Node | None:
    """A mask or bias that does not broadcast to the scores."""
    scores = (*val(q).shape[:-1], val(k).shape[-2])
    for node in (*(f.node for f in parts.factors), *(b.node for b in parts.biases)):
        shape = val(node).shape
        if len(shape) > len(scores) or not all(same_size(a, 1) or same_size(a, b) for a, b in zip(shape[::-1], scores[::-1], strict=False)):
            return node
    return None


def per_head(sinks: Node, q: Node, k: Node) -> Node | None:
    """The (H,) vector that a tensor of sinks repeats for every query."""
    node: Any = sinks
    while isinstance(node, Node) and node.target in (aten.expand.default, aten.reshape.default, aten.to.dtype, aten.unsqueeze.default):
        node = node.args[0]
    if not isinstance(node, Node) or val(node).ndim != 1 or not same_size(val(node).shape[0], val(q).shape[-3]):
        return None
    try:
        for sizes in Pairs(q, k).few([Factor(sinks)]):
            numbers = (torch.arange(val(node).shape[0]) + 1 / 3).to(val(node).dtype)  # what any cast would round
            (values,) = evaluate([sinks], sizes, {node: numbers})
            if not torch.equal(*torch.broadcast_tensors(values, numbers.to(values.dtype)[:, None, None])):
                return None
    except CannotEvaluate:
        return None
    return node
