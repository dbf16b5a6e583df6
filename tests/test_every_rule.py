"""What every rule must hold, derived from the rule alone: adding a rule adds its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from captured import captured, cloned, differences, same, text
from rule_cases import DTYPES, TOLERANCE, Case, cases, coarsest, commuted, error, graph_of, judge, parameters, rewritten
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from hfgraph.graph.canonical import tidy
from hfgraph.graph.inputs import Dtype, Scalar, Switch
from hfgraph.graph.match import CHEAP
from hfgraph.graph.replacing import RULES
from hfgraph.graph.rewrite import apply_rules, variants
from hfgraph.graph.rule import Rule
from hfgraph.kernels import all_ops
from hfgraph.rewrites import STAGES, all_rules, rules

all_ops()
RULES_BY_NAME = {r.name: r for r in all_rules() if isinstance(r, Rule)}
every_rule = pytest.mark.parametrize("rule", RULES_BY_NAME.values(), ids=RULES_BY_NAME)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# Rule -> mutant -> why the mutant computes the same function on every input.
EQUIVALENT: dict[tuple[str, str], str] = {}


def accepted(rule: Rule, case: Case) -> bool:
    """The rule's own guard, on the tensors of the case."""
    return rule.when is None or rule.when(**case.arguments)


def own_cases(rule: Rule, dtype: torch.dtype, **more: Any) -> list[Case]:
    """Cases that the rule accepts and whose pattern it can see: a cast to the dtype that is there already vanishes."""
    found = [c for c in cases(rule.inputs, dtype, **more) if accepted(rule, c) and visible(rule, c)]
    assert found or dtype not in (torch.float32, torch.bfloat16), f"rule {rule.name}: no case in {dtype} that its guard accepts; widen its inputs"
    return found


def visible(rule: Rule, case: Case) -> bool:
    """Every operator of the pattern, as traced by the engine for this case's dtype, is in the case's graph."""
    absent = tuple(n for n in rule.inputs.tensors if case.arguments[n] is None)
    first = next(iter(case.tensors.values())).dtype
    whole = [v for v in variants(rule, (first,)) if set(v.absent) == set(absent)]
    targets = sorted(str(n.target) for n in graph_of(case.function(rule.pattern), case.tensors).graph.nodes if n.op == "call_function")
    return any(targets == sorted(str(n.target) for n in v.pattern.nodes if "sym_size" not in str(n.target)) for v in whole)


# --- it finds its own pattern, once -------------------------------------------------------------------


@every_dtype
@every_rule
def test_matches_its_own_pattern_once(rule: Rule, dtype: torch.dtype) -> None:
    for case in own_cases(rule, dtype, scales=(1.0,)):
        _, outcome = rewritten(rule, case)
        assert [e.rule for e in outcome.applied] == [rule.name], f"{case.name}: {[e.reason for e in outcome.missed]}"
        assert outcome.missed == [], case.name


@every_dtype
@every_rule
def test_equals_its_pattern_bit_for_bit(rule: Rule, dtype: torch.dtype) -> None:
    """At every input scale; shape, dtype and stride are kept, and so is what float64 says."""
    for case in own_cases(rule, dtype):
        gm, outcome = rewritten(rule, case)
        assert outcome.applied
        found = differences(case.function(rule.pattern), gm, list(case.tensors.values()))
        assert not found, f"{case.name}: {found}"
        got, wanted = gm(*case.tensors.values()), judge(rule.pattern, case)
        # Where the pattern itself underflows, overflows or takes its eps from the dtype, it is as far from float64.
        allowed = max(TOLERANCE[coarsest(case, got)], error(rule.pattern(**case.arguments), wanted))
        assert error(got, wanted) <= allowed, f"{case.name}: {error(got, wanted):.1e} from float64, {allowed:.0e} allowed"


@every_rule
def test_keeps_the_layout_of_strided_inputs(rule: Rule) -> None:
    """Inputs that are transposed, sliced with a step, and expanded; operands in both orders."""
    for case in own_cases(rule, torch.float32, scales=(1.0,)):
        for layout in LAYOUTS:
            strided = Case(layout, {n: LAYOUTS[layout](a) if isinstance(a, Tensor) and a.ndim > 1 else a for n, a in case.arguments.items()})
            for swap in (False, True):
                gm = graph_of(strided.function(rule.pattern), strided.tensors)
                if swap:
                    commuted(gm)
                    gm.recompile()
                before = graph_copy(gm)
                apply_rules(gm, [rule])
                gm.recompile()
                found = differences(before, gm, list(strided.tensors.values()))
                assert not found, f"{case.name}, {layout}, operands {'swapped' if swap else 'as written'}: {found}"


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "part of a wider row": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "last dim first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "one row for all": lambda t: t[:1].expand(t.shape),
}


def graph_copy(gm: GraphModule) -> GraphModule:
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(gm.graph, {}))
    return GraphModule(gm, copied)


@every_rule
def test_finds_nothing_on_the_second_run(rule: Rule) -> None:
    for case in own_cases(rule, torch.float32, scales=(1.0,)):
        gm, _ = rewritten(rule, case)
        once = text(gm)
        outcome = apply_rules(gm, [rule])
        assert outcome.applied == [] and text(gm) == once


@every_rule
def test_through_dynamo(rule: Rule) -> None:
    """Through Dynamo and the engine's own capture, with sizes static and dynamic, and through gradients."""
    case = own_cases(rule, torch.float32, scales=(1.0,))[0]
    for dynamic in (None, True):
        seen: list[int] = []

        def change(gm: GraphModule, seen: list[int] = seen) -> None:
            tidy(gm)
            seen.append(len(apply_rules(gm, [rule]).applied))

        function = case.function(rule.pattern)
        result = captured(function, *cloned(list(case.tensors.values())), change=change, dynamic=dynamic)
        assert seen == [1]
        assert same(result.result, function(*case.tensors.values()))


# --- operands, ranks, sizes --------------------------------------------------------------------------


@every_rule
def test_commuted_operands_still_match(rule: Rule) -> None:
    for case in own_cases(rule, torch.float32, scales=(1.0,)):
        gm = graph_of(case.function(rule.pattern), case.tensors)
        if not commuted(gm):
            continue
        gm.recompile()
        before = graph_copy(gm)
        assert len(apply_rules(gm, [rule]).applied) == 1
        gm.recompile()
        assert differences(before, gm, list(case.tensors.values())) == []


@every_rule
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_any_rank_where_it_says_so(rule: Rule, rank: int) -> None:
    for case in own_cases(rule, torch.bfloat16, scales=(1.0,)):
        open_rank = {n for n, d in rule.inputs.tensors.items() if d.any_rank}
        reshaped = Case(case.name, {n: with_rank(a, rank) if n in open_rank and a is not None else a for n, a in case.arguments.items()})
        gm, outcome = rewritten(rule, reshaped)
        assert len(outcome.applied) == 1, f"{case.name} at rank {rank}: {[e.reason for e in outcome.missed]}"
        assert differences(reshaped.function(rule.pattern), gm, list(reshaped.tensors.values())) == []


def with_rank(t: Tensor, rank: int) -> Tensor:
    while t.ndim > rank:
        t = t[0]
    while t.ndim < rank:
        t = torch.stack([t, t.flip(0)])
    return t


@every_rule
def test_symbolic_sizes(rule: Rule) -> None:
    """Matched once with every size a symbol; the guard stays a plain bool, and no size becomes a number."""
    for case in own_cases(rule, torch.bfloat16, scales=(1.0,)):
        gm = graph_of(case.function(rule.pattern), case.tensors, symbolic=True)
        fakes = dict(zip(case.tensors, (n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder"), strict=True))
        env = next(iter(fakes.values())).fake_mode.shape_env
        guards, fixed = len(env.guards), len(env.replacements)
        if rule.when is not None:
            assert type(rule.when(**{**case.arguments, **fakes})) is bool
        assert len(apply_rules(gm, [rule]).applied) == 1, case.name
        gm.recompile()
        assert (len(env.guards), len(env.replacements)) == (guards, fixed), f"{case.name}: rewriting guarded on a size"
        smaller = [t[: max(1, t.shape[0] - 1)] if t.ndim > 1 else t for t in case.tensors.values()]
        assert same(gm(*smaller), case.function(rule.pattern)(*smaller)), case.name


# --- where it must not apply -------------------------------------------------------------------------


@every_rule
def test_a_false_guard_leaves_the_graph_alone(rule: Rule) -> None:
    never = Rule(rule.pattern, rule.replacement, rule.inputs, when=lambda **_: False, name=rule.name)
    for case in own_cases(rule, torch.float32, scales=(1.0,)):
        before = text(graph_of(case.function(rule.pattern), case.tensors))
        gm, outcome = rewritten(never, case)
        assert outcome.applied == [] and text(gm) == before
        assert all(e.reason.endswith("then the rule's condition does not hold here") for e in outcome.missed)
        if not grows(rule):
            assert len(outcome.missed) == 1


def grows(rule: Rule) -> bool:
    """Rules that add a step to an op report no near misses: nothing was missed."""
    made = {n.target for v in variants(rule, (torch.float32,)) for n in v.replacement(torch.float32).nodes}
    return any(n.target in made for v in variants(rule, (torch.float32,)) for n in v.pattern.nodes)


@every_rule
def test_another_user_of_an_inner_value_forbids_it(rule: Rule) -> None:
    """Each inner value in turn is returned as well: the rule must leave the graph alone, unless the value is a cheap one."""
    for case in own_cases(rule, torch.float32, scales=(1.0,))[:2]:
        plain = graph_of(case.function(rule.pattern), case.tensors)
        outputs = set(plain.graph.output_node().all_input_nodes)
        inner = [n.name for n in plain.graph.nodes if n.op == "call_function" and n not in outputs]
        for name in inner:
            gm = graph_of(case.function(rule.pattern), case.tensors)
            node = next(n for n in gm.graph.nodes if n.name == name)
            also_returned(gm, node)
            before = text(gm)
            reference = graph_copy(gm)
            outcome = apply_rules(gm, [rule])
            gm.recompile()
            assert differences(reference, gm, list(case.tensors.values())) == [], f"{case.name}: {name} returned as well"
            if node.target in CHEAP:
                continue
            assert outcome.applied == [] and text(gm) == before, f"{case.name}: applied although {name} has another user"
            if not grows(rule):
                assert any("users, pattern has" in e.reason for e in outcome.missed), [e.reason for e in outcome.missed]


def also_returned(gm: GraphModule, node: Node) -> None:
    output = gm.graph.output_node()
    given = output.args[0]
    output.args = ((*(given if isinstance(given, list | tuple) else [given]), node),)
    gm.recompile()


@every_rule
def test_overlapping_copies(rule: Rule) -> None:
    """Two copies of the pattern on the same inputs, and one on the result of the first, all rewritten."""
    case = own_cases(rule, torch.float32, scales=(1.0,))[0]
    one = case.function(rule.pattern)

    def function(*given: Tensor) -> Any:
        first, second = one(*given), one(*given)
        third = one(tree_leaves(first)[0].sin().to(given[0].dtype), *given[1:])
        return first, second, third

    gm = graph_of(function, case.tensors)
    outcome = apply_rules(gm, [rule])
    gm.recompile()
    assert len(outcome.applied) == 3
    assert differences(function, gm, list(case.tensors.values())) == []


# --- what is known of a node is kept -----------------------------------------------------------------


@every_rule
def test_metadata_is_kept(rule: Rule) -> None:
    case = own_cases(rule, torch.float32, scales=(1.0,))[0]
    gm = graph_of(case.function(rule.pattern), case.tensors)
    for node in gm.graph.nodes:
        node.meta["nn_module_stack"] = {"k": ("L['self'].model.layers.slice(None)[3].norm", torch.nn.Module)}
        node.meta["stack_trace"] = 'File "/somewhere/modeling_x.py", line 64, in forward\n'
    outcome = apply_rules(gm, [rule])
    made = [n for n in gm.graph.nodes if rule.name in n.meta.get(RULES, ())]
    assert made and outcome.applied[0].source == "modeling_x.py:64" and outcome.applied[0].module
    for node in gm.graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta and node.meta["val"] is not None, node
            assert node.meta.get("nn_module_stack") and node.meta.get("stack_trace"), node


# --- mutants die -------------------------------------------------------------------------------------


Mutant = tuple[str, Callable[..., Any]]


def mutants(rule: Rule) -> Iterator[Mutant]:
    """The replacement with one argument falsified, or its result slightly wrong."""
    yield "result 3 % off", lambda **a: scaled(rule.replacement(**a), 1.03)
    for name, described in rule.inputs.items():
        if isinstance(described, Switch):
            yield f"{name} flipped", lambda name=name, **a: rule.replacement(**{**a, name: 1 - a[name]})
        elif isinstance(described, Scalar):
            yield f"{name} doubled", lambda name=name, **a: rule.replacement(**{**a, name: 2 * a[name]})
            yield f"{name} dropped", lambda name=name, **a: rule.replacement(**{**a, name: 0.0})
        elif isinstance(described, Dtype):
            yield f"{name} ignored", lambda name=name, **a: rule.replacement(**{**a, name: None})
        else:
            yield f"{name} replaced by ones", lambda name=name, **a: rule.replacement(**{**a, name: None if a[name] is None else torch.ones_like(a[name])})


def scaled(value: Any, by: float) -> Any:
    return tuple(v * by for v in value) if isinstance(value, tuple) else value * by


@cache
def telling(rule: Rule) -> tuple[Case, ...]:
    """Cases on which a mutant may show: every dtype and scale, and dtypes that differ from the tensors'."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for case in own_cases(rule, dtype):
            if all(a is not None for n, a in case.arguments.items() if n in rule.inputs.tensors):
                found.append(case)
                found += [Case(f"{case.name}, {n} in half", {**case.arguments, n: torch.float16}) for n, a in rule.inputs.items() if isinstance(a, Dtype)]
                scalars = {n: 1 if isinstance(a, Switch) else 0.7 for n, a in rule.inputs.items() if isinstance(a, Scalar)}
                found += [Case(f"{case.name}, {n} large", {**case.arguments, n: value}) for n, value in scalars.items()]
    return tuple(c for c in found if accepted(rule, c))


@cache
def expected(rule: Rule, case: Case) -> Any:
    return rule.pattern(**case.arguments)


def survives(rule: Rule, mutant: Callable[..., Any]) -> bool:
    """Whether the mutant equals the pattern on every case, bit for bit."""
    for case in telling(rule):
        wanted = expected(rule, case)
        try:
            got = mutant(**case.arguments)
        except (RuntimeError, TypeError):
            return False
        if not same(got, wanted):
            return False
    return True


@every_rule
def test_mutants_die(rule: Rule) -> None:
    alive = [name for name, mutant in mutants(rule) if survives(rule, mutant) and (rule.name, name) not in EQUIVALENT]
    assert not alive, f"rule {rule.name}: {', '.join(alive)} goes unnoticed; widen its inputs, or give the reason in EQUIVALENT"


@every_rule
def test_the_replacement_itself_survives(rule: Rule) -> None:
    """Otherwise every mutant would die for nothing."""
    assert survives(rule, rule.replacement)


def test_allowed_mutants_exist() -> None:
    for (name, mutant), reason in EQUIVALENT.items():
        assert mutant in [m for m, _ in mutants(RULES_BY_NAME[name])] and len(reason) > 20
        assert survives(RULES_BY_NAME[name], dict(mutants(RULES_BY_NAME[name]))[mutant]), f"{name}: {mutant} is caught; remove it from EQUIVALENT"


# --- the registry, and proof that these tests can fail -----------------------------------------------


@every_rule
def test_described_completely(rule: Rule) -> None:
    for function in (rule.pattern, rule.replacement, rule.when):
        if function is not None:
            assert parameters(function) == list(rule.inputs), (
                f"rule {rule.name}: {function.__name__} takes {parameters(function)}, inputs describe {list(rule.inputs)}"
            )
    assert rule.stage in STAGES and rule.name and len(rule.digest) == 64


def test_names_are_unique_and_larger_patterns_come_first() -> None:
    """`rules` promises: largest pattern first, so that a smaller one is the fallback of a larger."""
    names = [r.name for r in all_rules()]
    assert len(names) == len(set(names)) > 0
    assert {r.name for stage in STAGES for r in rules(stage)} == set(names)


FALSE = [
    ("eps doubled", lambda x, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 2 * eps)),
    ("eps dropped", lambda x, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0 * eps)),
    ("one rounding more", lambda x, eps: (x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)),
    ("another layout", lambda x, eps: (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).movedim(-1, 0).contiguous().movedim(0, -1)),
]


@pytest.mark.parametrize("name,wrong", FALSE, ids=[n for n, _ in FALSE])
def test_a_false_rule_is_caught(name: str, wrong: Callable[..., Any]) -> None:
    """Sabotage: the comparison of this file tells a false replacement from the pattern."""
    right = RULES_BY_NAME["rms_norm"]
    rule = Rule(right.pattern, wrong, right.inputs, name="false")
    assert not survives(rule, wrong), name


def test_a_rule_that_matches_nothing_is_caught() -> None:
    right = RULES_BY_NAME["rms_norm"]
    case = own_cases(right, torch.float32)[0]
    _, outcome = rewritten(right, case, body=lambda x, eps: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps))
    assert outcome.applied == []
