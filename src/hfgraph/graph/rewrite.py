"""The rewriter: applies rules to a canonical graph until none fires, keeping what is known of each node."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node

from hfgraph.errors import IllegalGraph
from hfgraph.graph.cost import NOTHING, Work, work
from hfgraph.graph.match import Match, Matcher
from hfgraph.graph.near import near_misses
from hfgraph.graph.origin import origin
from hfgraph.graph.pattern import Pattern, Wild
from hfgraph.graph.rule import Rule
from hfgraph.graph.unify import NearMiss
from hfgraph.graph.values import drop_dead, evaluated, is_symbol, same_layout, val
from hfgraph.graph.variants import Variant, may_occur, size, variants

# Meta keys of a rewritten node: the rules that made it, the node of the canonical graph whose value it computes, and all nodes
# of the canonical graph whose work it does.
RULES = "hfgraph_rules"
REPLACES = "hfgraph_replaces"
FROM = "hfgraph_from"
_MAX_ROUNDS = 20


@dataclass(frozen=True)
class Event:
    """One application of a rule, or one near miss of it.

    Attributes:
        node: the node that it made; of a near miss, the first that differs.
        reason: of a near miss, what was found and what was expected.
        fitted: of a near miss, the nodes that fitted; of a merge, those that became one.
        removed, added: of an application, the work of the nodes that went, and of those that came.
    """

    rule: str
    node: str
    module: str
    source: str
    code: str
    reason: str = ""
    fitted: tuple[str, ...] = ()
    removed: Work = NOTHING
    added: Work = NOTHING


@dataclass
class Outcome:
    """What a set of rules did to a graph."""

    applied: list[Event] = field(default_factory=list)
    missed: list[Event] = field(default_factory=list)


def apply_rules(gm: GraphModule, rules: Sequence[Rule], *, sabotage: str | None = None) -> Outcome:
    """Rewrite `gm` in place with `rules`, again and again until none fires. Larger patterns come first: smaller ones
    are their fallback.

    Args:
        sabotage: name of a rule whose results are then falsified, to show that verification catches it.
    """
    dtypes = _float_dtypes(gm.graph)
    rules = sorted(rules, key=lambda r: -size(r, dtypes[0]))
    matcher = Matcher(gm.graph)
    outcome = Outcome()
    for _ in range(_MAX_ROUNDS):
        fired = [n for r in rules for n in _apply(gm, matcher, r, dtypes, outcome, sabotage)]
        if not fired:
            break
    else:
        raise IllegalGraph("rewrite", f"rules still fire after {_MAX_ROUNDS} rounds: {', '.join(sorted({r.name for r in rules}))}")
    outcome.missed = [_missed(r, m) for r, m in near_misses(matcher, rules, dtypes, _guard)]
    if outcome.applied:
        drop_dead(gm.graph)
    return outcome


def _float_dtypes(graph: Graph) -> tuple[torch.dtype, ...]:
    """Float dtypes of the graph's tensors. Numbers lifted into 0-dim inputs do not count: all of them are float64."""
    found = {v.dtype for n in graph.nodes if isinstance(v := val(n), Tensor) and v.is_floating_point() and v.ndim}
    return tuple(sorted(found or {torch.float32}, key=str))


def _apply(
    gm: GraphModule, matcher: Matcher, rule: Rule, dtypes: tuple[torch.dtype, ...], outcome: Outcome, sabotage: str | None
) -> list[Node]:
    fired: list[Node] = []
    if not may_occur(rule, dtypes[0], matcher):
        return fired
    for variant in variants(rule, dtypes):
        anchor = matcher.anchor(variant.pattern)
        if anchor is None:
            continue
        for node in list(matcher.index[anchor.target]):
            if not node.users or node in fired:
                continue
            found = matcher.attempt(variant.pattern, anchor, node, partial(_guard, rule, variant))
            if isinstance(found, Match):
                done = _replace(gm, matcher, rule, variant, found, falsify=rule.name == sabotage)
                outcome.applied.append(Event(rule.name, done.new[0].name, *origin(done.new[0]), removed=done.removed, added=work(done.new)))
                fired.extend(done.gone)
    return fired


def _missed(rule: Rule, miss: NearMiss) -> Event:
    reason = f"{rule.name}: {miss.matched} of {miss.of} nodes matched, then {miss.reason}"
    return Event(rule.name, miss.at.name, *origin(miss.node), reason, tuple(n.name for n in miss.fitted))


def _guard(rule: Rule, variant: Variant, match: Match) -> str | None:
    """The reason against a match: the rule's own condition, or a replacement that gives something else."""
    if rule.when is not None:
        tensors = {n: val(match.leaves[n]) if n in match.leaves else None for n in rule.inputs.tensors}
        verdict = rule.when(**tensors, **match.scalars)
        if not isinstance(verdict, bool):
            raise TypeError(f"the guard of rule {rule.name!r} returned {verdict!r}; it must return a bool also for symbolic sizes")
        if not verdict:
            return "the rule's condition does not hold here"
    return _result_differs(match, variant)


# --- replacement -------------------------------------------------------------------------------------


def _dtype(match: Match) -> torch.dtype:
    """The dtype that a replacement is traced for: of the match's first float tensor."""
    return next((val(g).dtype for g in match.leaves.values() if val(g).is_floating_point()), torch.float32)


def _result_differs(match: Match, variant: Variant) -> str | None:
    """Run the replacement on fake tensors: shape, dtype, device and strides must be those of what it replaces."""
    dtype = _dtype(match)
    key = (variant, dtype, *(_signature(g) for g in match.leaves.values()), *(str(s) for s in match.scalars.values()), *(_signature(o) for o in match.outputs))
    if key not in _RESULTS:
        _RESULTS[key] = _compare_results(match, variant.replacement(dtype))
    return _RESULTS[key]


_RESULTS: dict[Any, str | None] = {}


def _signature(node: Node) -> tuple[Any, ...]:
    t = val(node)
    return (t.dtype, t.device, str(tuple(t.shape)), str(t.stride()))


def _compare_results(match: Match, replacement: Pattern) -> str | None:
    values = _run(replacement, {n: val(g) for n, g in match.leaves.items()}, match.scalars)
    for new, old in zip(values, match.outputs, strict=True):
        kept: Tensor = val(old)
        if not same_layout(new, kept):
            return f"the replacement would give {_layout(new)} instead of {_layout(kept)}"
    return None


def _layout(value: Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)} with strides {tuple(value.stride())}"


def _run(replacement: Pattern, leaves: dict[str, Any], scalars: dict[str, Any]) -> list[Any]:
    env: dict[Node, Any] = {p: leaves[n] for p, n in replacement.leaves.items() if n in leaves}
    mode = next(v.fake_mode for v in leaves.values())
    with mode, torch.no_grad():
        for p in replacement.nodes:
            args, kwargs = _filled((p.args, p.kwargs), env, scalars)
            env[p] = p.target(*args, **kwargs)  # type: ignore[operator]
    return [env[o] for o in replacement.outputs]


def _filled(value: Any, env: dict[Node, Any], scalars: dict[str, Any]) -> Any:
    """Arguments of a traced node with its wild values and nodes filled in."""
    if isinstance(value, Wild):
        return scalars[value.name]
    if isinstance(value, Node):
        return env[value]
    if isinstance(value, list | tuple):
        return type(value)(_filled(v, env, scalars) for v in value)
    if isinstance(value, dict):
        return {k: _filled(v, env, scalars) for k, v in value.items()}
    return value


class _Change(NamedTuple):
    """Nodes that came, results first, nodes that went, and the work those were."""

    new: list[Node]
    gone: list[Node]
    removed: Work


def _replace(gm: GraphModule, matcher: Matcher, rule: Rule, variant: Variant, match: Match, *, falsify: bool) -> _Change:
    """Put the replacement in place of a match."""
    old = match.outputs
    replacement = variant.replacement(_dtype(match))
    history = (*dict.fromkeys(r for g in match.nodes.values() for r in g.meta.get(RULES, ())), rule.name)
    done = tuple(dict.fromkeys(name for g in (*match.nodes.values(), *match.copies) for name in g.meta.get(FROM, (g.name,))))
    meta = {k: v for k, v in _richest(match).meta.items() if k not in ("val", RULES, REPLACES, FROM)}
    env: dict[Node, Any] = dict(zip(replacement.leaves, (match.leaves[n] for n in replacement.leaves.values()), strict=True))
    known = _known_values(replacement, old)
    with gm.graph.inserting_before(match.before):
        for p in replacement.nodes:
            args, kwargs = _filled((p.args, p.kwargs), env, match.scalars)
            env[p] = _instantiate(gm.graph, p, args, kwargs)
            if isinstance(env[p], Node):
                env[p].meta = {**meta, "val": known[p] if p in known else evaluated(env[p]), RULES: history, FROM: done}
        new = [env[o] for o in replacement.outputs]
        for n, o in zip(new, old, strict=True):
            if REPLACES in o.meta or RULES not in o.meta:
                n.meta[REPLACES] = o.meta.get(REPLACES, o.name)
        new = [_falsify(gm.graph, n, match.before) for n in new] if falsify else new
    for p in replacement.nodes:
        if isinstance(env[p], Node):
            matcher.added(env[p], old[0])
    for n, o in zip(new, old, strict=True):
        if falsify:
            matcher.added(n, old[0])
        o.replace_all_uses_with(n)
        matcher.aliases.inherit(n, o)
    inner = [n for n in env.values() if isinstance(n, Node) and n not in new and n not in match.leaves.values()]
    return _Change([*new, *inner], *_erase(gm.graph, matcher, [*match.nodes.values(), *match.copies]))


def _known_values(replacement: Pattern, old: Sequence[Node]) -> dict[Node, Any]:
    """Values of the replacement's nodes that follow from what it replaces, without evaluating it."""
    known = {p: val(o) for p, o in zip(replacement.outputs, old, strict=True)}
    for p in replacement.nodes:
        items = {u.args[1]: known[u] for u in p.users if u.target is operator.getitem and u in known}
        if items and isinstance(val(p), list | tuple) and len(items) == len(val(p)):
            known[p] = tuple(items[i] for i in range(len(items)))
    return known


def _richest(match: Match) -> Node:
    """The node that knows its module and source line."""
    ordered = [*match.outputs, *match.nodes.values()]
    return next((n for n in ordered if n.meta.get("nn_module_stack")), ordered[0])


def _instantiate(graph: Graph, p: Node, args: Any, kwargs: Any) -> Any:
    """A node of the replacement in the graph, or a number where it is a size known now."""
    if is_symbol(val(p)):
        if p.target is torch.ops.aten.sym_size.int:
            size = val(args[0]).shape[args[1]]
            if not isinstance(size, SymInt):
                return size
            args = (args[0], args[1] % val(args[0]).ndim)
        elif not any(isinstance(a, Node) for a in args):
            return p.target(*args)  # type: ignore[operator]
    return graph.call_function(p.target, args, kwargs)  # type: ignore[arg-type]


def _falsify(graph: Graph, node: Node, before: Node) -> Node:
    """Three per cent off: small enough to look plausible, large enough to matter."""
    with graph.inserting_before(before):
        wrong = graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.03))
    wrong.meta = {**node.meta}
    node.meta = {k: v for k, v in node.meta.items() if k != REPLACES}
    return wrong


def _erase(graph: Graph, matcher: Matcher, nodes: Iterable[Node]) -> tuple[list[Node], Work]:
    """Remove what nobody uses any more, last first. Returns it, and the work it was."""
    gone, removed = [], NOTHING
    for node in sorted(set(nodes), reverse=True):
        if not node.users:
            removed += work([node])
            graph.erase_node(node)
            matcher.removed(node)
            gone.append(node)
    return gone, removed
