"""Attention in any spelling: `scaled_dot_product_attention`, or a softmax between two products. What its mask allows is found by evaluating it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.alias import varies
from hfgraph.graph.evaluate import data
from hfgraph.graph.recogniser import Found, Recogniser, Refusal, View
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.kernels.attention import attention
from hfgraph.rewrites.attending.arguments import masking_arguments, per_head, split_heads
from hfgraph.rewrites.attending.examples import EXAMPLES
from hfgraph.rewrites.attending.factors import Bias, Factor, Parts, Step, same_conditions
from hfgraph.rewrites.attending.gate import Gate, read_gate
from hfgraph.rewrites.attending.heads import Values, queries_and_keys, read_values, size, taken_apart, ungrouped
from hfgraph.rewrites.attending.low import loses
from hfgraph.rewrites.attending.scores import read_scores
from hfgraph.rewrites.attending.structure import Structure
from hfgraph.rewrites.attending.walk import Scores

aten = torch.ops.aten


def recognise(node: Node, view: View) -> Found | Refusal | None:
    if node.target is aten.scaled_dot_product_attention.default:
        return _of_sdpa(node, view)
    return _of_softmax(node, view)


def _of_sdpa(node: Node, view: View) -> Found | Refusal | None:
    given = arguments(node)
    if given["dropout_p"]:
        return Refusal(f"dropout with p = {given['dropout_p']}", node)
    q, mask = given["query"], given["attn_mask"]
    if mask is not None and val(mask).dtype not in (torch.bool, val(q).dtype):
        return Refusal(f"the mask is {val(mask).dtype}, queries are {val(q).dtype}", node)
    width = val(q).shape[-1]
    scale = given["scale"] if given["scale"] is not None else 1 / width**0.5 if isinstance(width, int) else None
    if not isinstance(scale, float | int):
        return Refusal("the scale is not a number", node)
    parts = Parts()
    if mask is not None and val(mask).dtype is torch.bool:
        parts.condition(mask)
    elif mask is not None:
        parts.added(mask)
        parts.steps.append(Step(Bias(mask)))
        parts.fills.discard(float("-inf"))  # a query without keys gets zeros here, not NaN
    base = Structure(right=0, offset=None if same_size(val(q).shape[-2], val(given["key"]).shape[-2]) else 0) if given["is_causal"] else None
    k, v, repeats = _ungrouped(given["key"], given["value"], view, node)
    masking = masking_arguments(parts, q, k, view, node, base)
    if isinstance(masking, Refusal):
        return masking
    return Found((node,), attention, {"q": q, "k": k, "v": v, **masking.named, "scale": float(scale)}, (node, *repeats), note=masking.words)


def _of_softmax(node: Node, view: View) -> Found | Refusal | None:
    scores = read_scores(node)
    if scores is None:
        return None
    values = read_values(node, isinstance(scores, Scores) and scores.sinks is not None, view)
    if values is None or isinstance(scores, Refusal):
        return scores if isinstance(scores, Refusal) and values is not None else None
    return values if isinstance(values, Refusal) else _of_products(scores, values, view)


def _of_products(scores: Scores, values: Values, view: View) -> Found | Refusal:
    """Attention between the product of queries and keys and that of weights and values."""
    gate = _gate(scores, values, view)
    if isinstance(gate, Refusal):
        return gate
    nodes = (*scores.nodes, *values.nodes, *(gate.nodes if gate is not None else ()))
    output, sink = nodes[-1], gate.sinks if gate is not None else scores.sinks
    operands = queries_and_keys(scores.product, view, output)
    if operands is None:
        return Refusal("the product of queries and keys has operands that do not fit", scores.product, nodes)
    if (rounded := _rounded(scores, values, nodes)) is not None:
        return rounded
    q, k = _for_a_positive_scale(operands[0], scores.scale, view, output), operands[1]
    k, v, repeats = _ungrouped(k, values.v, view, output)
    then: list[tuple[Any, ...]] = [(aten.permute.default, list(values.order))] if values.order else []
    top = scores.nodes[0]
    parts = scores.parts
    if values.zeroed and (not _zeroes_what_is_masked(values.zeroed, parts, view) or sink is not None):
        return Refusal("the weights are masked in another way than the scores", output, nodes)
    split = taken_apart(scores.nodes)
    if val(q).ndim == 3 and split is not None:
        heads = split.args[1][:2]  # type: ignore[index]
        if val(v).ndim == 3:
            then.insert(0, (aten.reshape.default, [size(q, 0, view, output), size(q, 1, view, output), size(v, 2, view, output)]))
        q, k, v = (_with_heads(t, heads, view, output) for t in (q, k, v))
        parts = split_heads(parts, heads, val(split), view, output)  # type: ignore[arg-type]
    elif not val(q).ndim == val(top).ndim == val(v).ndim:
        return Refusal("queries, keys and values have another number of dims than their scores", top, nodes)
    masking = masking_arguments(parts, q, k, view, output, None, written_out=True, beside_sinks=sink is not None)
    if isinstance(masking, Refusal):
        return masking
    if gate is not None and masking.named.get("masked") == float("-inf"):
        return Refusal("a query without keys gives not-a-number, and with a sink it would give zeros", output, nodes)
    if values.zeroed:
        masking.named.pop("masked", None)  # a query without keys gets zeros
    sinks = None if sink is None else per_head(sink, q, k)
    if sink is not None and sinks is None:
        return Refusal("the sink is not one number for each head", sink, nodes)
    args: dict[str, Any] = {"q": q, "k": k, "v": v, **masking.named, "sinks": sinks, "scale": abs(scores.scale), "softcap": scores.softcap}
    return Found((output,), attention, args, (*nodes, *repeats), nodes[:-1], tuple(then), masking.words)


def _for_a_positive_scale(q: Node, scale: float, view: View, before: Node) -> Node:
    """The queries, with the sign of a scale: fused operators take a mask's -inf times it."""
    return q if scale > 0 else view.call(aten.neg.default, q, before=before)


def _rounded(scores: Scores, values: Values, nodes: tuple[Node, ...]) -> Refusal | None:
    """Scores or weights go through a dtype that is narrower than what they are made of or go into."""
    own, used = val(scores.product).dtype, val(values.nodes[-1]).dtype
    for what, steps, dtype in (("scores", scores.nodes, own), ("weights", values.nodes[1:-1], used)):
        for node in steps:
            if node.target is aten.to.dtype and (not val(node).is_floating_point() or loses(dtype, val(node).dtype)):
                return Refusal(f"the {what} are rounded to {val(node).dtype}", node, nodes)
    if len({own, val(values.v).dtype}) > 1:
        return Refusal(f"queries and keys are {own}, values are {val(values.v).dtype}", values.nodes[-1], nodes)
    return None


def _gate(scores: Scores, values: Values, view: View) -> Gate | Refusal | None:
    """A sink that stands behind the product."""
    gate = read_gate(values.nodes[0], values.nodes[-1], view) if scores.sinks is None and not values.order else None
    if gate is None or not scores.shifted:
        return gate
    return Refusal("the output is scaled by the sum of scores that something was added to for all keys", gate.nodes[-1], tuple(scores.nodes))


def _zeroes_what_is_masked(zeroed: frozenset[Factor], parts: Parts, view: View) -> bool:
    """Weights are masked by what their scores are masked by, which nothing writes in between."""
    read = {source for factor in (*zeroed, *parts.factors) for source in data(factor.node, {})}
    unchanged = not any(varies(f.node) for f in zeroed) and (zeroed == set(parts.factors) or not view.aliases.writes(list(read)))
    return unchanged and same_conditions(zeroed, parts.factors) and not parts.stacked and not parts.unread


def _with_heads(node: Node, heads: Any, view: View, before: Node) -> Node:
    """(B * H, ...) as (B, H, ...)."""
    if val(node).ndim != 3:
        return node
    length = size(node, 1, view, before) if -1 in heads else -1
    return view.call(aten.reshape.default, node, [*heads, length, size(node, 2, view, before)], before=before)


def _ungrouped(k: Node, v: Node, view: View, before: Node) -> tuple[Node, Node, list[Node]]:
    """Keys and values without the repetition of their heads, where both have the same."""
    (narrow_k, of_k), (narrow_v, of_v) = (ungrouped(n, view, before) for n in (k, v))
    fits = of_k and of_v and same_size(val(narrow_k).shape[1], val(narrow_v).shape[1])
    return (narrow_k, narrow_v, [*of_k, *of_v]) if fits else (k, v, [])


RULE = Recogniser(
    anchors=frozenset({aten.scaled_dot_product_attention.default, aten.softmax.int}),
    recognise=recognise,
    op=attention,
    examples=EXAMPLES,
)
