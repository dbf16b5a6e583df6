"""A rule as traced: its patterns over dtypes and optional tensors, and its replacement at a site's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import torch
from torch._ops import OpOverload

from hfgraph.graph.match import CHEAP, Matcher
from hfgraph.graph.op import NAMESPACE
from hfgraph.graph.pattern import Pattern, trace
from hfgraph.graph.rule import Rule

_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Variant:
    """A rule's pattern as traced for some dtypes, and without some of its optional tensors."""

    rule: Rule
    pattern: Pattern
    absent: tuple[str, ...]

    def replacement(self, dtype: torch.dtype) -> Pattern:
        """The replacement, traced for tensors in `dtype`."""
        return _traced(self.rule, self.rule.replacement, dtype, self.absent)


@cache
def _traced(rule: Rule, function: Callable[..., Any], dtype: torch.dtype, absent: tuple[str, ...]) -> Pattern:
    return trace(rule, function, dtype, absent=absent, whole=function is rule.pattern)


@cache
def variants(rule: Rule, dtypes: tuple[torch.dtype, ...]) -> tuple[Variant, ...]:
    """The distinct patterns of a rule: with and without its optional tensors, and over float dtypes, since casts that
    do nothing in one dtype vanish from its trace."""
    return tuple(v for absent in _absences(rule) for v in _over_dtypes(rule, dtypes, absent))


def _absences(rule: Rule) -> list[tuple[str, ...]]:
    optional = [n for n, d in rule.inputs.tensors.items() if d.optional]
    return [absent for count in range(len(optional) + 1) for absent in combinations(optional, count)]


def _over_dtypes(rule: Rule, dtypes: tuple[torch.dtype, ...], absent: tuple[str, ...]) -> list[Variant]:
    first = _traced(rule, rule.pattern, dtypes[0], absent)
    if dtypes[0] in _NARROW and not _names_a_dtype(first):  # no cast that would vanish in another dtype
        return [Variant(rule, first, absent)]
    found: dict[str, tuple[Pattern, set[torch.dtype]]] = {}
    for dtype in dtypes:
        pattern = _traced(rule, rule.pattern, dtype, absent)
        text = "\n".join(str((n.name, n.target, n.args, n.kwargs)) for n in pattern.nodes)
        found.setdefault(text, (pattern, set()))[1].add(dtype)
    only = len(found) == 1
    return [Variant(rule, replace(p, dtypes=None if only else frozenset(d)), absent) for p, d in found.values()]


def _names_a_dtype(pattern: Pattern) -> bool:
    """Whether a cast to a fixed dtype is part of the pattern; dtypes that the rule binds are not fixed."""
    return any(isinstance(a, torch.dtype) for n in pattern.nodes for a in (*n.args, *n.kwargs.values()))


def size(rule: Rule, dtype: torch.dtype) -> int:
    """The number of nodes in a rule's pattern."""
    return len(_traced(rule, rule.pattern, dtype, ()).nodes)


def may_occur(rule: Rule, dtype: torch.dtype, matcher: Matcher) -> bool:
    """Whether the graph has all operators of a pattern but casts: only then is it worth tracing for every dtype."""
    return any(all(matcher.index.get(p.target) for p in pattern.operators if p.target not in CHEAP) for pattern in patterns(rule, dtype))


def patterns(rule: Rule, dtype: torch.dtype) -> Iterator[Pattern]:
    """A rule's patterns over one dtype, with and without its optional tensors."""
    return (_traced(rule, rule.pattern, dtype, absent) for absent in _absences(rule))


def grows(rule: Rule, dtype: torch.dtype) -> bool:
    """A rule that adds a step to an op already recognised: where it does not apply, nothing was missed."""
    known = _ops_in(rule, rule.pattern, dtype)
    return bool(known) and not known.isdisjoint(_ops_in(rule, rule.replacement, dtype))


def _ops_in(rule: Rule, function: Callable[..., Any], dtype: torch.dtype) -> set[OpOverload]:
    targets = {p.target for absent in _absences(rule) for p in _traced(rule, function, dtype, absent).nodes}
    return {t for t in targets if isinstance(t, OpOverload) and t.namespace == NAMESPACE}
