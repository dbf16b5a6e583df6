"""What every recogniser must hold, derived from its examples: adding a recogniser adds its tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from captured import captured, cloned, differences, same, text
from rule_cases import DTYPES
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from hfgraph.graph.canonical import tidy
from hfgraph.graph.inputs import Switch
from hfgraph.graph.match import Matcher
from hfgraph.graph.op import Op
from hfgraph.graph.recogniser import Example, Found, Recogniser, View
from hfgraph.graph.replacing import RULES
from hfgraph.graph.rewrite import Outcome, apply_rules
from hfgraph.kernels import all_ops
from hfgraph.rewrites import STAGES, all_rules

all_ops()
RECOGNISERS = {r.name: r for r in all_rules() if isinstance(r, Recogniser)}
every_recogniser = pytest.mark.parametrize("rule", RECOGNISERS.values(), ids=RECOGNISERS)
every_example = pytest.mark.parametrize(
    ("rule", "example"), [pytest.param(r, e, id=f"{n}-{e.name.replace(' ', '_')}") for n, r in RECOGNISERS.items() for e in r.examples]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
SEED = 3
# How far a result may be from float64 beyond what the example itself is, relative to the largest value: another order of summation.
SLACK = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NOTICEABLE = 1e-3


def graph_of(example: Example, args: tuple[Tensor, ...], symbolic: bool = False) -> GraphModule:
    """The canonical graph of an example; with `symbolic`, every size is a symbol that varies in models."""
    given: list[Any] = list(args)
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=True)) if symbolic else nullcontext()
    if isinstance(mode, FakeTensorMode):
        given = [_symbolic(mode, example, t, f"a{i}") for i, t in enumerate(args)]
    with mode:
        gm = make_fx(example.function, pre_dispatch=True, tracing_mode="real" if symbolic else "fake")(*given)
    tidy(gm)
    gm.recompile()
    return gm


def _symbolic(mode: FakeTensorMode, example: Example, value: Tensor, name: str) -> Any:
    sizes = [DimDynamic.STATIC if s in example.fixed else DimDynamic.DUCK for s in value.shape]
    return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes), source=ConstantSource(name))


def applied(rule: Recogniser, gm: GraphModule, **options: Any) -> Outcome:
    outcome = apply_rules(gm, [rule], **options)
    gm.graph.lint()
    gm.recompile()
    return outcome


def sites(rule: Recogniser, gm: GraphModule) -> list[Found]:
    """What the recogniser sees before anything is asked about its surroundings."""
    matcher = Matcher(gm.graph)
    view = View(gm.graph, matcher.aliases, matcher.numbers, matcher.added)
    seen = [rule.recognise(n, view) for n in list(gm.graph.nodes) if n.op == "call_function" and rule.begins_at(n.target) and n.users]
    return [s for s in seen if isinstance(s, Found)]


def copied(gm: GraphModule) -> GraphModule:
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    return GraphModule(gm, graph)


def made_by(gm: GraphModule, op: Op) -> list[Node]:
    return [n for n in gm.graph.nodes if n.target is op.target]


def wrong(example: Example, args: tuple[Tensor, ...], got: Tensor) -> str:
    """How a result differs from the example's, judged in float64; nothing, where it does not. It may be laid out densely where the example's is not."""
    eager = example.function(*cloned(list(args)))
    if (got.dtype, got.shape) != (eager.dtype, eager.shape):
        return f"{got.dtype} {tuple(got.shape)} instead of {eager.dtype} {tuple(eager.shape)}"
    if got.stride() != eager.stride() and not got.is_contiguous():
        return f"strides {got.stride()} instead of {eager.stride()}"
    if torch.equal(got, eager):
        return ""
    exact = example.function(*(a.double() if a.is_floating_point() else a for a in args)).double()
    off, allowed = ((x.double() - exact).abs().max().item() for x in (got, eager))
    allowed += SLACK[eager.dtype] * exact.abs().max().item()
    return "" if off <= allowed else f"{off:.2g} from float64, {allowed:.2g} allowed"


def runs(example: Example, args: tuple[Tensor, ...]) -> bool:
    try:
        example.function(*args)
    except RuntimeError:
        return False
    return True


# --- it finds its op, once ----------------------------------------------------------------------------


@every_dtype
@every_example
def test_finds_its_op_once(rule: Recogniser, example: Example, dtype: torch.dtype) -> None:
    args = example.make(dtype, SEED)
    if not runs(example, args):
        assert dtype not in (torch.float32, torch.bfloat16), "an example must run in float32 and bfloat16"
        pytest.skip("PyTorch does not run the example in this dtype")
    gm = graph_of(example, args)
    outcome = applied(rule, gm)
    assert len(outcome.applied) == 1, [e.reason for e in outcome.missed]
    assert len(made_by(gm, rule.op)) == 1
    found = wrong(example, args, gm(*cloned(list(args))))
    assert not found, found


@every_example
def test_finds_nothing_on_the_second_run(rule: Recogniser, example: Example) -> None:
    gm = graph_of(example, example.make(torch.float32, SEED))
    applied(rule, gm)
    once = text(gm)
    assert applied(rule, gm).applied == [] and text(gm) == once


@every_example
def test_symbolic_sizes(rule: Recogniser, example: Example) -> None:
    """Found with symbols for sizes, of which none becomes a number; right for another batch, too."""
    args = example.make(torch.float32, SEED)
    gm = graph_of(example, args, symbolic=True)
    env = next(n.meta["val"] for n in gm.graph.nodes if n.op == "placeholder").fake_mode.shape_env
    fixed = dict(env.replacements)
    outcome = applied(rule, gm)
    assert len(outcome.applied) == 1, [e.reason for e in outcome.missed]
    assert dict(env.replacements) == fixed, "rewriting fixed a size"
    found = wrong(example, args, gm(*cloned(list(args))))
    assert not found, found
    batch = args[0].shape[0]
    larger = tuple(torch.cat([a, a.flip(0)]) if a.ndim and a.shape[0] == batch and batch not in example.fixed else a for a in args)
    if runs(example, larger):
        found = wrong(example, larger, gm(*cloned(list(larger))))
        assert not found, f"at another batch: {found}"


@every_example
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_through_dynamo(rule: Recogniser, example: Example, dynamic: bool) -> None:
    args = example.make(torch.float32, SEED)
    for a in args if dynamic else ():
        for dim, size in enumerate(a.shape):
            if size > 1 and size not in example.fixed:
                torch._dynamo.mark_dynamic(a, dim)
    outcomes: list[Outcome] = []

    def change(gm: GraphModule) -> None:
        tidy(gm)
        outcomes.append(apply_rules(gm, [rule]))

    result = captured(example.function, *args, change=change).result
    assert [len(o.applied) for o in outcomes] == [1], [e.reason for o in outcomes for e in o.missed]
    found = wrong(example, args, result)
    assert not found, found


# --- where it must not apply --------------------------------------------------------------------------


@every_example
def test_another_user_of_a_private_value_forbids_it(rule: Recogniser, example: Example) -> None:
    """Each private value in turn is returned as well. A smaller site, to which the value is not private, may be found instead."""
    args = example.make(torch.float32, SEED)
    names = [n.name for s in sites(rule, graph_of(example, args)) for n in s.private if n not in s.outputs]
    for name in names:
        gm = graph_of(example, args)
        node = next(n for n in gm.graph.nodes if n.name == name)
        output = gm.graph.output_node()
        output.args = ((output.args[0], node),)
        gm.recompile()
        before = copied(gm)
        blocked = all(node in s.private and node not in s.outputs for s in sites(rule, gm))
        outcome = applied(rule, gm)
        found = differences(before, gm, list(args), strides=False) if outcome.applied else []
        assert not found, f"{name} returned as well: {found}"
        if blocked and sites(rule, before):
            assert outcome.applied == [], f"{name} is computed twice"
            assert any(f"{name} is needed by" in e.reason for e in outcome.missed), [e.reason for e in outcome.missed]


@every_example
def test_a_write_in_between_forbids_it(rule: Recogniser, example: Example) -> None:
    """Each tensor that the op would read is written after the first node of the site and before its last."""
    args = example.make(torch.float32, SEED)
    given = {n.name for s in sites(rule, graph_of(example, args)) for n in s.args.values() if isinstance(n, Node) and n.op == "placeholder"}
    for name in sorted(given):
        gm = graph_of(example, args)
        target = next(n for n in gm.graph.nodes if n.name == name)
        site = sites(rule, gm)[0]
        if not target.meta["val"].is_floating_point() or min((*site.private, *site.outputs)) is site.place:
            continue
        with gm.graph.inserting_before(site.place):
            write = gm.graph.call_function(torch.ops.aten.mul_.Tensor, (target, 1.5))
        write.meta["val"] = target.meta["val"]
        gm.recompile()
        before = copied(gm)
        outcome = applied(rule, gm)
        assert differences(before, gm, list(args), strides=False) == [], f"{name} is written in between"
        assert outcome.applied == [] and any("writes one of the values in between" in e.reason for e in outcome.missed), [e.reason for e in outcome.missed]


# --- what is known of a node is kept ------------------------------------------------------------------


@every_example
def test_metadata_is_kept(rule: Recogniser, example: Example) -> None:
    gm = graph_of(example, example.make(torch.float32, SEED))
    for node in gm.graph.nodes:
        node.meta["nn_module_stack"] = {"k": ("L['self'].model.layers.slice(None)[3].attention", torch.nn.Module)}
        node.meta["stack_trace"] = 'File "/somewhere/modeling_x.py", line 64, in forward\n'
    outcome = applied(rule, gm)
    assert [n for n in gm.graph.nodes if rule.name in n.meta.get(RULES, ())]
    assert outcome.applied[0].source == "modeling_x.py:64" and outcome.applied[0].module
    for node in gm.graph.nodes:
        if node.op == "call_function":
            assert node.meta.get("val") is not None and node.meta.get("nn_module_stack") and node.meta.get("stack_trace"), node


# --- mutants die --------------------------------------------------------------------------------------


def mutants(op: Op, node: Node) -> Iterator[tuple[str, str, Any]]:
    """Each number of a call doubled, dropped or flipped, each tensor replaced: argument, what was done, new value."""
    for name, value in op.bind(node.args, node.kwargs).items():
        if isinstance(op.inputs[name], Switch) or isinstance(value, bool):
            yield name, "flipped", type(value)(1 - value)
        elif isinstance(value, int) and value < 0:  # stands for "unbounded"
            yield name, "bounded", 1
        elif isinstance(value, int | float) and not isinstance(value, bool):
            for what, new in (("doubled", 2 * value), ("dropped", type(value)(0))) if value else (("set", type(value)(1)),):
                yield name, what, new
        elif isinstance(value, Node) and isinstance(value.meta["val"], Tensor):
            yield name, "replaced", value


def mutated(gm: GraphModule, op: Op, name: str, value: Any) -> GraphModule:
    mutant = copied(gm)
    (node,) = made_by(mutant, op)
    given = op.bind(node.args, node.kwargs)
    if isinstance(value, Node):  # ones, or for truth values their opposite
        old = given[name]
        with mutant.graph.inserting_before(node):
            kind = torch.ops.aten.logical_not.default if value.meta["val"].dtype is torch.bool else torch.ops.aten.ones_like.default
            value = mutant.graph.call_function(kind, (old,))
    node.args, node.kwargs = (), {**given, name: value}
    mutant.recompile()
    return mutant


def notices(example: Example, gm: GraphModule) -> bool:
    """Whether a graph's result is noticeably another than the example's, on one of two draws; an error is noticed."""
    for seed in (SEED, SEED + 1):
        args = example.make(torch.float32, seed)
        wanted = example.function(*cloned(list(args)))
        try:
            got = gm(*cloned(list(args)))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return True
        if got.shape != wanted.shape or not ((got - wanted).abs().max() <= NOTICEABLE * wanted.abs().max()):
            return True
    return False


@every_example
def test_mutants_die(rule: Recogniser, example: Example) -> None:
    gm = graph_of(example, example.make(torch.float32, SEED))
    applied(rule, gm)
    (node,) = made_by(gm, rule.op)
    assert not notices(example, gm), "the op itself is taken for a mutant"
    lives = {(name, what) for name, what, value in mutants(rule.op, node) if not notices(example, mutated(gm, rule.op, name, value))}
    unlisted = sorted(f"{name} {what}" for name, what in lives if name not in example.equal)
    assert not unlisted, f"{', '.join(unlisted)} goes unnoticed; choose other arguments, or list them in `equal`"
    needless = [n for n in example.equal if n not in {name for name, _ in lives}]
    assert not needless, f"{', '.join(needless)} is listed in `equal` although it matters"


# --- the registry, and proof that these tests can fail ------------------------------------------------


@every_recogniser
def test_described_completely(rule: Recogniser) -> None:
    assert rule.stage in STAGES and rule.name and len(rule.digest) == 64
    assert rule.anchors and rule.op.name in all_ops()
    names = [e.name for e in rule.examples]
    assert names and len(names) == len(set(names)), "each example has a name of its own"
    for example in rule.examples:
        assert set(example.equal) <= set(rule.op.signature.parameters), f"{example.name}: `equal` names what {rule.op.name} does not have"
        one, two = (example.make(torch.float32, SEED) for _ in range(2))
        assert same(one, two), f"{example.name}: equal seeds must make equal arguments"


FALSE: dict[str, Callable[[Found], Found]] = {
    "tables swapped": lambda f: replace(f, args={**f.args, "cos": f.args["sin"], "sin": f.args["cos"]}),
    "turned the other way": lambda f: replace(f, args={**f.args, "reverse": 1}),
    "other pairs": lambda f: replace(f, args={**f.args, "interleaved": 1}),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_recogniser_is_caught(name: str) -> None:
    right = RECOGNISERS["rotate"]

    def recognise(node: Node, view: View) -> Any:
        found = right.recognise(node, view)
        return FALSE[name](found) if isinstance(found, Found) else found

    example = right.examples[0]
    args = example.make(torch.float32, SEED)
    gm = graph_of(example, args)
    assert len(applied(replace(right, recognise=recognise), gm).applied) == 1
    assert wrong(example, args, gm(*args)) and notices(example, gm)


@every_example
def test_sabotage_is_caught(rule: Recogniser, example: Example) -> None:
    """Results three per cent off."""
    args = example.make(torch.float32, SEED)
    gm = graph_of(example, args)
    applied(rule, gm, sabotage=rule.name)
    assert wrong(example, args, gm(*args))


def test_wrong_layouts_and_dtypes_are_caught() -> None:
    example = RECOGNISERS["rotate"].examples[0]
    args = example.make(torch.float32, SEED)
    result = example.function(*args)
    assert wrong(example, args, result) == ""
    assert "strides" in wrong(example, args, result.movedim(-1, 0).contiguous().movedim(0, -1))
    assert "float64" in wrong(example, args, result.double()) and math.prod(result.shape) > 1
