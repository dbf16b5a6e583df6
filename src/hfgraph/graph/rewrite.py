"""The rewriter: applies rules to a canonical graph until none fires, keeping what is known of each node."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node

from hfgraph.errors import IllegalGraph
from hfgraph.graph.cost import NOTHING, Work, work
from hfgraph.graph.match import Match, Matcher
from hfgraph.graph.near import near_misses
from hfgraph.graph.origin import origin
from hfgraph.graph.pattern import Pattern, Wild
from hfgraph.graph.recogniser import Found, Recogniser, Refusal, View, misfit, obstacle
from hfgraph.graph.replacing import Change, erased, falsified, hand_over, inherited, replace_found, stand_in
from hfgraph.graph.rule import Rule
from hfgraph.graph.unify import NearMiss
from hfgraph.graph.values import drop_dead, evaluated, is_symbol, same_layout, val
from hfgraph.graph.variants import Variant, may_occur, size, variants

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


def apply_rules(gm: GraphModule, rules: Sequence[Rule | Recogniser], *, sabotage: str | None = None) -> Outcome:
    """Rewrite `gm` in place with `rules`, again and again until none fires. Larger patterns come first: smaller ones
    are their fallback. Recognisers come last: they see what patterns have made.

    Args:
        sabotage: name of a rule whose results are then falsified, to show that verification catches it.
    """
    dtypes = _float_dtypes(gm.graph)
    patterns = sorted((r for r in rules if isinstance(r, Rule)), key=lambda r: -size(r, dtypes[0]))
    recognisers = [r for r in rules if isinstance(r, Recogniser)]
    matcher = Matcher(gm.graph)
    view = View(gm.graph, matcher.aliases, matcher.numbers, matcher.added)
    outcome = Outcome()
    for _ in range(_MAX_ROUNDS):
        refused: list[Event] = []
        fired = sum(_apply(gm, matcher, r, dtypes, outcome, sabotage) for r in patterns)
        fired += sum(_recognise(gm, matcher, view, r, outcome, refused, sabotage) for r in recognisers)
        if not fired:
            break
    else:
        raise IllegalGraph("rewrite", f"rules still fire after {_MAX_ROUNDS} rounds: {', '.join(sorted({r.name for r in rules}))}")
    outcome.missed = [*(_missed(r, m) for r, m in near_misses(matcher, patterns, dtypes, partial(_guard, matcher))), *refused]
    if outcome.applied or recognisers:
        drop_dead(gm.graph)
    return outcome


def _recognise(gm: GraphModule, matcher: Matcher, view: View, rule: Recogniser, outcome: Outcome, refused: list[Event], sabotage: str | None) -> int:
    """Ask a recogniser about every anchor. Returns how many nodes went; takes down why it left others alone."""
    gone: set[Node] = set()
    for node in sorted(n for target, nodes in matcher.index.items() if rule.begins_at(target) for n in nodes):
        if not node.users or node in gone:
            continue
        found = rule.recognise(node, view)
        if isinstance(found, Found):
            differs = misfit(found)
            found = Refusal(differs, node, found.nodes) if differs else obstacle(found, view) or found
        if isinstance(found, Refusal):
            names = tuple(n.name for n in found.nodes if n is not found.at)
            refused.append(Event(rule.name, found.at.name, *origin(node), f"{rule.name}: {found.reason}", names))
        elif found is not None:
            done = replace_found(gm, matcher, rule.name, found, falsify=rule.name == sabotage)
            outcome.applied.append(Event(rule.name, done.new[0].name, *origin(done.new[0]), removed=done.removed, added=work(done.new)))
            gone.update(done.gone)
    return len(gone)


def _float_dtypes(graph: Graph) -> tuple[torch.dtype, ...]:
    """Float dtypes of the graph's tensors. Numbers lifted into 0-dim inputs do not count: all of them are float64."""
    found = {v.dtype for n in graph.nodes if isinstance(v := val(n), Tensor) and v.is_floating_point() and v.ndim}
    return tuple(sorted(found or {torch.float32}, key=str))


def _apply(gm: GraphModule, matcher: Matcher, rule: Rule, dtypes: tuple[torch.dtype, ...], outcome: Outcome, sabotage: str | None) -> int:
    """Apply a pattern wherever it matches. Returns how many nodes went."""
    gone: set[Node] = set()
    if not may_occur(rule, dtypes[0], matcher):
        return 0
    for variant in variants(rule, dtypes):
        anchor = matcher.anchor(variant.pattern)
        if anchor is None:
            continue
        for node in list(matcher.index[anchor.target]):
            if not node.users or node in gone:
                continue
            found = matcher.attempt(variant.pattern, anchor, node, partial(_guard, matcher, rule, variant))
            if isinstance(found, Match):
                done = _replace(gm, matcher, rule, variant, found, falsify=rule.name == sabotage)
                outcome.applied.append(Event(rule.name, done.new[0].name, *origin(done.new[0]), removed=done.removed, added=work(done.new)))
                gone.update(done.gone)
    return len(gone)


def _missed(rule: Rule, miss: NearMiss) -> Event:
    reason = f"{rule.name}: {miss.matched} of {miss.of} nodes matched, then {miss.reason}"
    return Event(rule.name, miss.at.name, *origin(miss.node), reason, tuple(n.name for n in miss.fitted))


def _guard(matcher: Matcher, rule: Rule, variant: Variant, match: Match) -> str | None:
    """The reason against a match: the rule's own condition, or a replacement that gives something else."""
    if rule.when is not None:
        tensors = {n: val(match.leaves[n]) if n in match.leaves else None for n in rule.inputs.tensors}
        verdict = rule.when(**tensors, **match.scalars)
        if not isinstance(verdict, bool):
            raise TypeError(f"the guard of rule {rule.name!r} returned {verdict!r}; it must return a bool also for symbolic sizes")
        if not verdict:
            return "the rule's condition does not hold here"
    against = rule.where(match.leaves) if rule.where is not None else None
    return against or _result_differs(matcher, match, variant)


# --- replacement -------------------------------------------------------------------------------------


def _dtype(match: Match) -> torch.dtype:
    """The dtype that a replacement is traced for: of the match's first float tensor."""
    return next((val(g).dtype for g in match.leaves.values() if val(g).is_floating_point()), torch.float32)


def _result_differs(matcher: Matcher, match: Match, variant: Variant) -> str | None:
    """Run the replacement on fake tensors: shape, dtype, device and strides must be those of what it replaces. Once for
    sites that are alike, within this graph: in another one, symbols of these names may mean other sizes."""
    dtype = _dtype(match)
    key = (variant, dtype, *(_signature(g) for g in match.leaves.values()), *(str(s) for s in match.scalars.values()), *(_signature(o) for o in match.outputs))
    if key not in matcher.verdicts:
        matcher.verdicts[key] = _compare_results(match, variant.replacement(dtype))
    return matcher.verdicts[key]


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


def _replace(gm: GraphModule, matcher: Matcher, rule: Rule, variant: Variant, match: Match, *, falsify: bool) -> Change:
    """Put the replacement in place of a match."""
    old = match.outputs
    replacement = variant.replacement(_dtype(match))
    meta = inherited(rule.name, old, [*match.nodes.values(), *match.copies])
    env: dict[Node, Any] = dict(zip(replacement.leaves, (match.leaves[n] for n in replacement.leaves.values()), strict=True))
    known = _known_values(replacement, old)
    with gm.graph.inserting_before(match.before):
        for p in replacement.nodes:
            args, kwargs = _filled((p.args, p.kwargs), env, match.scalars)
            env[p] = _instantiate(gm.graph, p, args, kwargs)
            if isinstance(env[p], Node):
                env[p].meta = {**meta, "val": known[p] if p in known else evaluated(env[p])}
        new = [env[o] for o in replacement.outputs]
        for n, o in zip(new, old, strict=True):
            stand_in(n, o)
        new = [falsified(gm.graph, n, match.before) for n in new] if falsify else new
    for n in dict.fromkeys([*(env[p] for p in replacement.nodes), *new]):
        if isinstance(n, Node):
            matcher.added(n, old[0])
    hand_over(matcher, old, new)
    inner = [n for n in env.values() if isinstance(n, Node) and n not in new and n not in match.leaves.values()]
    return Change([*new, *inner], *erased(gm.graph, matcher, [*match.nodes.values(), *match.copies]))


def _known_values(replacement: Pattern, old: Sequence[Node]) -> dict[Node, Any]:
    """Values of the replacement's nodes that follow from what it replaces, without evaluating it."""
    known = {p: val(o) for p, o in zip(replacement.outputs, old, strict=True)}
    for p in replacement.nodes:
        items = {u.args[1]: known[u] for u in p.users if u.target is operator.getitem and u in known}
        if items and isinstance(val(p), list | tuple) and len(items) == len(val(p)):
            known[p] = tuple(items[i] for i in range(len(items)))
    return known


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
