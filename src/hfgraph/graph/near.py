"""What nearly matched: once no rule fires any more, the place where each leftover began like a rule, and its first difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.fx import Node

from hfgraph.graph.match import CHEAP, Match, Matcher
from hfgraph.graph.pattern import Pattern
from hfgraph.graph.rule import Rule
from hfgraph.graph.unify import NearMiss
from hfgraph.graph.variants import Variant, grows, patterns, variants

Guard = Callable[[Rule, Variant, Match], "str | None"]
# How far an attempt comes depends on where it begins, so every operator is tried that is not much more common than the rarest.
_COMMON, _FEW = 4, 16


def near_misses(matcher: Matcher, rules: Sequence[Rule], dtypes: tuple[torch.dtype, ...], guard: Guard) -> list[tuple[Rule, NearMiss]]:
    """The nearest miss of each place, over all rules. A rule that adds a step to an op has missed nothing."""
    found = [(r, m) for r in rules if not grows(r, dtypes[0]) and _worth_trying(r, dtypes[0], matcher) for m in _misses(r, matcher, dtypes, guard)]
    # The sort is stable: of equally near ones, the larger pattern's.
    found.sort(key=lambda rm: (-rm[1].reached / rm[1].of, -rm[1].reached, not rm[1].whole))
    kept: list[tuple[Rule, NearMiss]] = []
    seen: set[object] = set()
    for rule, miss in found:
        place = {*miss.fitted, miss.at}
        if seen.isdisjoint(place):
            kept.append((rule, miss))
            seen |= place
    return sorted(kept, key=lambda rm: rm[1].node)


def _worth_trying(rule: Rule, dtype: torch.dtype, matcher: Matcher) -> bool:
    """At least half of a pattern's operators, casts aside, occur in what is left of the graph."""
    return any(_occurs_by_half(p, matcher) for p in patterns(rule, dtype))


def _occurs_by_half(pattern: Pattern, matcher: Matcher) -> bool:
    needed = [p for p in pattern.operators if p.target not in CHEAP]
    return 2 * sum(bool(matcher.index.get(p.target)) for p in needed) >= len(needed)


def _misses(rule: Rule, matcher: Matcher, dtypes: tuple[torch.dtype, ...], guard: Guard) -> Iterator[NearMiss]:
    for variant in variants(rule, dtypes):
        if not _occurs_by_half(variant.pattern, matcher):
            continue
        for anchor in _anchors(variant.pattern, matcher):
            for node in matcher.index[anchor.target]:
                miss = matcher.attempt(variant.pattern, anchor, node, lambda m, v=variant: guard(rule, v, m)) if node.users else None
                if isinstance(miss, NearMiss) and (miss.whole if rule.everyday else _is_near(miss)):
                    yield miss


def _anchors(pattern: Pattern, matcher: Matcher) -> list[Node]:
    anchors = matcher.anchors(pattern)
    most = max(_COMMON * len(matcher.index[anchors[0].target]), _FEW) if anchors else 0
    return [a for a in anchors if len(matcher.index[a.target]) <= most]


def _is_near(miss: NearMiss) -> bool:
    """At least half of the pattern fitted, and more than one operator."""
    return miss.reached >= min(2, miss.of) and 2 * miss.reached >= miss.of
