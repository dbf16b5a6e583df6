"""What every pass must hold on every graph, derived from `PIPELINE`: adding a pass adds its tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from captured import aten, captured, cloned, differences, gradients, text, traced
from graph_cases import EXAMPLES, Example, norm
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from hfgraph.errors import IllegalGraph
from hfgraph.graph.capture import capture, copied
from hfgraph.graph.legal import LEGAL, problem
from hfgraph.graph.op import Op
from hfgraph.graph.values import evaluated, tensors
from hfgraph.kernels import all_ops
from hfgraph.options import Options
from hfgraph.pipeline import PIPELINE, Context, Done, Pass, run

OPS = all_ops()
CONTEXT = Context(Options(merge_always=True))
every_pass = pytest.mark.parametrize("at", range(len(PIPELINE)), ids=[f"{p.stage}: {p.name}" for p in PIPELINE])
every_example = pytest.mark.parametrize("name", EXAMPLES)
every_size = pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])

# --- what is wrong with a pass ------------------------------------------------------------------------


def faults(step: Pass, before: GraphModule, after: GraphModule, args: Sequence[Any], context: Context = CONTEXT) -> list[str]:
    """What a pass got wrong: `after` is `before` with the pass run once; both are run on `args`."""
    found = differences(_seeded(before), _seeded(after), args, atol=_rounding(after))
    if any(isinstance(a, Tensor) and a.requires_grad for a in args):
        pairs = list(zip(gradients(_seeded(before), args), gradients(_seeded(after), args), strict=True))
        found += [f"gradient {i}" for i, (wanted, got) in enumerate(pairs) if not _close(wanted, got)]
    illegal = problem(after, step.stage)
    if illegal:
        found.append(f"not legal: {illegal}")
    return found + _misrecorded(after, args) + _unstable(step, after, context)


def _rounding(gm: GraphModule) -> float:
    """A softmax that a model spells out and PyTorch's attention sum in another order."""
    return 1e-6 if any(n.target is all_ops()["attention"].target for n in gm.graph.nodes) else 0.0


def _seeded(gm: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        torch.manual_seed(1)
        return gm(*args)

    return call


def _close(wanted: Tensor | None, got: Tensor | None) -> bool:
    """Gradients may be summed in another order."""
    if wanted is None or got is None:
        return wanted is got
    return torch.allclose(got, wanted, rtol=1e-5 if wanted.dtype is torch.float32 else 2e-2, atol=1e-5, equal_nan=True)


class _Recorded(Interpreter):
    """Runs a graph and compares each tensor with the fake value recorded for it: later passes and Inductor believe those."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.found: list[str] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for real, fake in zip(*(list(tensors(v)) for v in (value, n.meta.get("val"))), strict=False):
            if real.dtype != fake.dtype or real.ndim != fake.ndim or (not _has_symbols(fake) and _layout(real) != _layout(fake)):
                self.found.append(f"{n.name} is {_layout(real)} {real.dtype}, recorded as {_layout(fake)} {fake.dtype}")
        return value


def _has_symbols(fake: Tensor) -> bool:
    return any(not isinstance(s, int) for s in (*fake.shape, *fake.stride()))


def _layout(t: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides; the stride of a dim of one element means nothing."""
    return [(size, 0 if size == 1 else stride) for size, stride in zip(t.shape, t.stride(), strict=True)]


def _misrecorded(after: GraphModule, args: Sequence[Any]) -> list[str]:
    running = _Recorded(after)
    running.run(*cloned(list(args)))
    return running.found


def _unstable(step: Pass, after: GraphModule, context: Context) -> list[str]:
    again = copied(after)
    done = step.run(again, context)
    changed = "" if text(again) == text(after) else ", and changed the graph"
    return [f"the second run reports {done.changes} changes{changed}"] if done.changes or changed else []


class Trail:
    """The stages of one captured function, and the real arguments of its calls."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = passes
        self.stages: list[GraphModule] = []
        self.calls: list[list[Any]] = []
        self.graphs = 0

    def backend(self, gm: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        self.graphs += 1
        current = capture(gm, example_inputs)
        self.stages, self.calls = [copied(current)], []
        for step in self.passes:
            step.run(current, CONTEXT)
            current.recompile()
            self.stages.append(copied(current))

        def call(*args: Any) -> Any:
            self.calls.append(cloned(list(args)))
            return current(*args)

        return call

    def faults(self, at: int) -> list[str]:
        return [f for args in self.calls for f in faults(self.passes[at], self.stages[at], self.stages[at + 1], args)]


def walk(example: Example, dynamic: bool | None, passes: Sequence[Pass] = PIPELINE) -> Trail:
    """Capture a function, run the passes one by one, and call the result; with dynamic sizes at a second size, too."""
    torch._dynamo.reset()
    trail = Trail(passes)
    compiled = torch.compile(example.function, backend=trail.backend, dynamic=dynamic, fullgraph=True)
    for batch, length in [(3, 5), (2, 7)] if dynamic else [(3, 5)]:
        compiled(*example.make(batch, length, True))
    return trail


@cache
def trail(name: str, dynamic: bool | None) -> Trail:
    return walk(EXAMPLES[name], dynamic)


# --- every pass on every graph ------------------------------------------------------------------------


@every_size
@every_example
@every_pass
def test_it_keeps_the_function_and_runs_out_of_work(name: str, dynamic: bool | None, at: int) -> None:
    """Results, inputs written, aliasing and gradients are those of the graph before; the stage is legal; a second run finds nothing."""
    found = trail(name, dynamic).faults(at)
    assert not found, f"pass {PIPELINE[at].name!r} on {name!r}: {'; '.join(found)}"


@every_example
def test_with_dynamic_sizes_one_graph_serves_all(name: str) -> None:
    seen = trail(name, True)
    assert seen.graphs == 1 and len(seen.calls) == 2, f"{name}: a size became a number"


@every_size
@every_example
def test_the_whole_pipeline_is_eagers_function(name: str, dynamic: bool | None) -> None:
    def change(gm: GraphModule) -> None:
        run(gm, CONTEXT)
        once = text(gm)
        rows = run(gm, CONTEXT)
        assert [r.changes for r in rows] == [0] * len(PIPELINE) and text(gm) == once, f"the second run changes the graph of {name!r}: {rows}"

    example = EXAMPLES[name]
    args = example.make(3, 5, False)
    seen = captured(example.function, *cloned(list(args)), change=change, dynamic=dynamic)
    found = differences(_seeded(example.function), _seeded(seen.compiled), args, atol=_rounding(seen.graph))
    assert not found, f"{name}: {'; '.join(found)}"


@every_pass
def test_it_is_told_from_the_others(at: int) -> None:
    step = PIPELINE[at]
    assert step.stage in LEGAL and step.name and [p.name for p in PIPELINE].count(step.name) == 1


def test_the_examples_give_every_pass_something_to_do() -> None:
    """Lowering aside, which does nothing where no kernel is asked for: below it gets one. Giving names never changes a graph."""
    trails = [trail(name, None) for name in EXAMPLES]
    changing = [i for i, p in enumerate(PIPELINE) if p.stage != "lower" and "a name" not in p.name]
    idle = [PIPELINE[i].name for i in changing if all(text(t.stages[i]) == text(t.stages[i + 1]) for t in trails)]
    assert not idle, f"no example gives {', '.join(idle)} work; add one to graph_cases.py"


# --- lowering, to a kernel for the CPU that computes the reference ------------------------------------


@pytest.fixture(scope="module", params=OPS.values(), ids=OPS)
def op_with_a_kernel(request: pytest.FixtureRequest) -> Iterator[Op]:
    """An op with a kernel that does what kernels must: the reference's values, in new contiguous tensors."""
    op = request.param
    room = ModuleType(f"{op.reference.__module__}.{KERNEL}")
    setattr(room, op.name, lambda *args, **kwargs: tree_map(lambda t: t.clone(memory_format=torch.contiguous_format), op.reference(*args, **kwargs)))
    sys.modules[room.__name__] = room
    op.impl(KERNEL, device="cpu", load=f".{KERNEL}", when=lambda *_, **__: True)
    yield op
    del op.implementations[KERNEL], sys.modules[room.__name__]


KERNEL = "for_test_every_pass"


def lowered(op: Op, name: str, dynamic: bool | None) -> tuple[int, list[str]]:
    """An example's calls of an op, all lowered to its kernel, and what is wrong then."""
    lowering = next(p for p in PIPELINE if p.stage == "lower")
    context, target = Context(Options(kernels={op.name: KERNEL})), op.implementations[KERNEL].target
    seen = trail(name, dynamic)
    before = seen.stages[PIPELINE.index(lowering)]
    gm = copied(before)
    wanted = sum(n.target is op.target for n in gm.graph.nodes)
    done = lowering.run(gm, context)
    gm.recompile()
    assert done.changes == wanted == sum(n.target is target for n in gm.graph.nodes)
    return wanted, [f for args in seen.calls for f in faults(lowering, before, gm, args, context)] if wanted else []


# Rounding points of their own, in the op's attributes: what a kernel accepts is for tests/kernels.
LOWERED = [n for n in EXAMPLES if "autocast" not in n and "another dtype" not in n]


@every_size
def test_lowering_to_a_kernel(op_with_a_kernel: Op, dynamic: bool | None) -> None:
    """Kernels return contiguous tensors: a view of the result, after a graph break for instance, may exist in the reference's layout only."""
    if op_with_a_kernel.name == "moe":
        pytest.skip("no example has experts: products are added up in another order than the model's; tests/kernels/test_moe_cpp.py lowers them")
    found = {name: lowered(op_with_a_kernel, name, dynamic) for name in LOWERED}
    assert sum(count for count, _ in found.values()), f"no example in graph_cases.py is recognised as {op_with_a_kernel.name}"
    wrong = [f"{name}: {f}" for name, (_, faulty) in found.items() for f in faulty]
    assert not wrong, "; ".join(wrong)


# --- passes that are wrong in one way each ------------------------------------------------------------


def _pass(change: Callable[[GraphModule], Any], stage: str = "recognise") -> Pass:
    def once(gm: GraphModule, _: Context) -> Done:
        change(gm)
        gm.recompile()
        return Done()

    return Pass(stage, change.__name__.strip("_"), once)


def _drop_a_write(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is aten.index_copy_.default:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def _return_the_source_of_a_copy(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is aten.mul.Tensor and node.args[1] == 1:
            node.replace_all_uses_with(node.args[0])


def _copy_what_is_returned(gm: GraphModule) -> None:
    output = gm.graph.output_node()
    first = output.args[0][0]
    if first.target is aten.clone.default:
        return
    with gm.graph.inserting_before(output):
        fresh = gm.graph.call_function(aten.clone.default, (first,))
    fresh.meta["val"] = evaluated(fresh)
    output.args = ((fresh, *output.args[0][1:]),)


def _make_outputs_one(gm: GraphModule) -> None:
    output = gm.graph.output_node()
    output.args = ((output.args[0][0], output.args[0][0], *output.args[0][2:]),)


def _cut_the_gradient(gm: GraphModule) -> None:
    output = gm.graph.output_node()
    first = output.args[0][0]
    if first.target is not aten.detach.default:
        with gm.graph.inserting_before(output):
            cut = gm.graph.call_function(aten.detach.default, (first,))
        cut.meta["val"] = first.meta["val"]
        output.args = ((cut, *output.args[0][1:]),)


def _round_once_more(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is aten.to.dtype and node.args[1] is torch.float32:
            node.args = (node.args[0], torch.bfloat16)


def _add_something_each_time(gm: GraphModule) -> None:
    with gm.graph.inserting_before(gm.graph.output_node()):
        more = gm.graph.call_function(aten.ones.default, ([1],))
    more.meta["val"] = torch.ones(1)


def _another_order(gm: GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is aten.linear.default and "moved" not in node.meta:
            node.meta["moved"] = True
            node.args = (node.args[0], node.args[1], None)
    output = gm.graph.output_node()
    if not output.meta.get("turned"):
        output.meta["turned"] = True
        with gm.graph.inserting_before(output):
            columns = gm.graph.call_function(aten.transpose.int, (output.args[0][0], 0, 1))
            copy = gm.graph.call_function(aten.clone.default, (columns,), {"memory_format": torch.contiguous_format})
            back = gm.graph.call_function(aten.transpose.int, (copy, 0, 1))
        for node in (columns, copy, back):
            node.meta["val"] = evaluated(node)
        output.args = ((back, *output.args[0][1:]),)


def _record_another_layout(gm: GraphModule) -> None:
    node = _last(gm)
    with node.meta["val"].fake_mode:
        node.meta["val"] = torch.empty(node.meta["val"].movedim(-1, 0).shape).movedim(0, -1)


WRONG: dict[Callable[[GraphModule], None], tuple[str, str]] = {
    _drop_a_write: ("static cache, index_copy_", "inputs written"),
    _return_the_source_of_a_copy: ("outputs are fresh", "sharing"),
    _copy_what_is_returned: ("outputs share", "sharing"),
    _make_outputs_one: ("equal results, both returned", "sharing"),
    _cut_the_gradient: ("block", "gradient 0"),
    _round_once_more: ("weight of another dtype", "results"),
    _add_something_each_time: ("block", "the second run reports 0 changes, and changed the graph"),
    _another_order: ("block", "results"),
    _record_another_layout: ("two norms of one input, and one of a norm", "recorded as"),
}


@pytest.mark.parametrize("wrong", WRONG, ids=[w.__name__.strip("_") for w in WRONG])
def test_a_wrong_pass_is_caught(wrong: Callable[[GraphModule], None]) -> None:
    name, symptom = WRONG[wrong]
    found = walk(EXAMPLES[name], None, [_pass(wrong)]).faults(0)
    assert any(symptom in f for f in found), f"{symptom} expected, found {found}"


def test_a_pass_that_does_nothing_is_no_fault() -> None:
    for name in ("block", "outputs share", "static cache, index_copy_"):
        assert walk(EXAMPLES[name], True, [_pass(lambda gm: None)]).faults(0) == []


# --- graphs that are not legal ------------------------------------------------------------------------


def _use_before_definition(gm: GraphModule) -> None:
    nodes = [n for n in gm.graph.nodes if n.op == "call_function"]
    nodes[-1].append(nodes[0])


def _a_method(gm: GraphModule) -> None:
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    with gm.graph.inserting_after(node):
        gm.graph.call_method("relu", (node,)).meta["val"] = node.meta["val"]


def _a_function_of_python(gm: GraphModule) -> None:
    _last(gm).target = _helper


def _helper(*args: Any) -> Any:
    return args[0]


def _no_value(gm: GraphModule) -> None:
    del _last(gm).meta["val"]


def _a_constant_without_a_value(gm: GraphModule) -> None:
    gm.register_buffer("ghost", next(n.meta["val"] for n in gm.graph.nodes if isinstance(n.meta.get("val"), Tensor)))
    with gm.graph.inserting_before(_last(gm)):
        gm.graph.get_attr("ghost").meta["val"] = gm.ghost


def _another_spelling(gm: GraphModule) -> None:
    node = _last(gm)
    with gm.graph.inserting_after(node):
        gm.graph.call_function(aten.square.default, (node,)).meta["val"] = node.meta["val"]


def _an_op_nobody_registered(gm: GraphModule) -> None:
    library = torch.library.Library("hfgraph", "FRAGMENT")
    if not hasattr(torch.ops.hfgraph, "nobody"):
        library.define("nobody(Tensor x) -> Tensor")
    _LIBRARIES.append(library)
    node = _last(gm)
    with gm.graph.inserting_after(node):
        gm.graph.call_function(torch.ops.hfgraph.nobody.default, (node,)).meta["val"] = node.meta["val"]


_LIBRARIES: list[torch.library.Library] = []


def _a_kernel_for_another_device(gm: GraphModule) -> None:
    node = _last(gm)
    kernel = next(i for op in OPS.values() for i in op.implementations.values() if i.device == "cuda")
    with gm.graph.inserting_after(node):
        gm.graph.call_function(kernel.target, (node, None, 1e-6)).meta["val"] = node.meta["val"]


def _last(gm: GraphModule) -> Any:
    return next(n for n in reversed(gm.graph.nodes) if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor))


ALL = frozenset(LEGAL)
# How to break a graph: the stages that must refuse it, and what they say.
ILLEGAL: dict[Callable[[GraphModule], None], tuple[frozenset[str], str]] = {
    _use_before_definition: (ALL, "lint: "),
    _a_method: (ALL, "is a call_method of relu"),
    _a_function_of_python: (ALL, "which is no operator"),
    _no_value: (ALL, "has no recorded value"),
    _a_constant_without_a_value: (ALL, "ghost is a constant without a value"),
    _another_spelling: (frozenset({"canonical"}), "is not in canonical form"),
    _an_op_nobody_registered: (frozenset({"recognise", "fuse", "merge"}), "calls hfgraph.nobody.default, which is no registered op"),
    _a_kernel_for_another_device: (frozenset({"lower"}), "for cuda on another device"),
}


@pytest.mark.parametrize(("broken", "stage"), [(b, s) for b, (stages, _) in ILLEGAL.items() for s in sorted(stages)])
def test_an_illegal_graph_is_refused_by_name(broken: Callable[[GraphModule], None], stage: str) -> None:
    _, words = ILLEGAL[broken]
    gm = traced(lambda x, w: norm(x, w) + 1, torch.randn(2, 3), torch.ones(3), tidied=True)
    steps = [Pass(stage, "sound", lambda gm, _: Done()), _pass(broken, stage)]
    done: list[str] = []
    with pytest.raises(IllegalGraph) as raised:
        run(gm, CONTEXT, steps, after=lambda step, _: done.append(step.name))
    assert str(raised.value).startswith(f"after stage {stage!r} the graph is not legal: ") and words in str(raised.value)
    assert str(raised.value).endswith(". Please report this with the model's name.")
    assert done == ["sound"], "only the pass that broke the graph is blamed"


@pytest.mark.parametrize("check", sorted({c for checks in LEGAL.values() for c in checks}, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_every_check_of_legality_can_fail(check: Callable[[GraphModule], str | None]) -> None:
    said = []
    for broken in ILLEGAL:
        gm = traced(lambda x, w: norm(x, w) + 1, torch.randn(2, 3), torch.ones(3), tidied=True)
        assert check(gm) is None
        broken(gm)
        said.append(check(gm))
    assert any(said), f"nothing in ILLEGAL breaks {check.__name__}; add a case"


def test_a_row_for_each_pass() -> None:
    gm = traced(lambda x, w: norm(x, w) + 1, torch.randn(2, 3), torch.ones(3))
    seen: list[str] = []
    rows = run(gm, CONTEXT, after=lambda step, done: seen.append(f"{step.name}: {done.changes}"))
    assert [(r.stage, r.name) for r in rows] == [(p.stage, p.name) for p in PIPELINE]
    assert seen == [f"{r.name}: {r.changes}" for r in rows] and all(r.seconds >= 0 for r in rows)
    assert rows[-1].nodes == len(gm.graph.nodes)
