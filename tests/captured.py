"""Graphs for the engine's tests: functions captured as models are, run before and after, compared bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from hfgraph.graph.capture import capture
from hfgraph.graph.match import label

aten = torch.ops.aten
Change = Callable[[GraphModule], Any]


def traced(function: Callable[..., Any], *args: Any, symbolic: bool = False, tidied: bool = False) -> GraphModule:
    """`function` as pre-dispatch ATen, without Dynamo: quick, for cases without regions and without inputs that are written."""
    gm = make_fx(function, pre_dispatch=True, tracing_mode="symbolic" if symbolic else "fake")(*args)
    if tidied:
        from hfgraph.graph.canonical import tidy

        tidy(gm)
    gm.recompile()
    return gm


def captured(function: Callable[..., Any], *args: Any, change: Change | None = None, dynamic: bool | None = None, grad: bool | None = None) -> Captured:
    """`function` through Dynamo and the engine's own capture, `change`d, and run once."""
    torch._dynamo.reset()
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        out = capture(gm, example_inputs)
        graphs.append(out)
        if change is not None:
            change(out)
            out.graph.lint()
            out.recompile()
        return out

    with torch.set_grad_enabled(torch.is_grad_enabled() if grad is None else grad):
        compiled = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
        result = compiled(*args)
    return Captured(graphs, result, compiled)


class Captured:
    """What `captured` saw: the graphs, the first result, and the compiled function for further calls."""

    def __init__(self, graphs: list[GraphModule], result: Any, compiled: Callable[..., Any]) -> None:
        self.graphs = graphs
        self.result = result
        self.compiled = compiled

    @property
    def graph(self) -> GraphModule:
        assert len(self.graphs) == 1, f"{len(self.graphs)} graphs"
        return self.graphs[0]


def ops(gm: GraphModule) -> list[str]:
    """The operators of a graph, in order, as people call them."""
    return [label(n) for n in gm.graph.nodes if n.op == "call_function"]


def find(gm: GraphModule, name: str, at: int = 0) -> Node:
    """The `at`-th node whose operator is called `name`."""
    return [n for n in gm.graph.nodes if n.op == "call_function" and label(n) == name][at]


def text(gm: GraphModule) -> str:
    """A graph as text: equal texts are equal graphs."""
    return str(gm.graph)


def cloned(args: Any) -> Any:
    """Copies that keep strides and gradients wanted; tensors that share storage keep sharing it."""
    return copy.deepcopy(tree_map(lambda t: t.detach().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t, args))


def same(a: Any, b: Any, *, strides: bool = True, atol: float = 0.0) -> bool:
    """Equal bit for bit, the sign of zero included, or within `atol`; NaN equals NaN."""
    ours, theirs = tree_leaves(a), tree_leaves(b)
    return len(ours) == len(theirs) and all(_same(x, y, strides, atol) for x, y in zip(ours, theirs, strict=True))


def _same(a: Any, b: Any, strides: bool, atol: float) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    if a.dtype != b.dtype or a.shape != b.shape or (strides and a.stride() != b.stride()):
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    if atol:
        return torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.signbit(), b.signbit())


def differences(before: Callable[..., Any], after: Callable[..., Any], args: Sequence[Any], *, strides: bool = True, atol: float = 0.0) -> list[str]:
    """What differs between two functions on one input: results, inputs written, who shares storage with whom, and who is whom."""
    one, two = cloned(list(args)), cloned(list(args))
    first, second = before(*one), after(*two)
    found = []
    if not same(first, second, strides=strides, atol=atol):
        found.append(f"results: {_described(first)} and {_described(second)}")
    if not same(one, two):
        found.append("inputs written")
    if _sharing(one, first) != _sharing(two, second):
        found.append(f"sharing: {_sharing(one, first)} and {_sharing(two, second)}")
    if _identity(one, first) != _identity(two, second):
        found.append(f"identity: {_identity(one, first)} and {_identity(two, second)}")
    return found


def _described(value: Any) -> str:
    return ", ".join(
        f"{t.dtype} {tuple(t.shape)} {t.stride()} sum {t.double().sum().item():.9g}" if isinstance(t, Tensor) else str(t) for t in tree_leaves(value)
    )


def _sharing(args: Any, outs: Any) -> list[int]:
    """For each output the first input or output with the same storage: two outputs that share show the same number."""
    tensors = [t for t in (*tree_leaves(args), *tree_leaves(outs)) if isinstance(t, Tensor)]
    storages = [t.untyped_storage()._cdata for t in tensors]
    return [storages.index(s) for s in storages]


def _identity(args: Any, outs: Any) -> list[int]:
    """For each output the first input or output that is the same object."""
    objects = [id(t) for t in (*tree_leaves(args), *tree_leaves(outs)) if isinstance(t, Tensor)]
    return [objects.index(o) for o in objects]


def gradients(function: Callable[..., Any], args: Iterable[Any]) -> list[Tensor | None]:
    """Gradients of the sum of squares of all float outputs, for each tensor that wants one."""
    args = cloned(list(args))
    outs = [t for t in tree_leaves(function(*args)) if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad]
    wanted = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.requires_grad]
    if not outs:
        return [None] * len(wanted)
    return list(torch.autograd.grad(sum((o.double() * (1 + o.double())).sum() for o in outs), wanted, allow_unused=True))


def holds(function: Callable[..., Any], *args: Any, change: Change, dynamic: bool | None = None, strides: bool = True) -> GraphModule:
    """Assert that `change` keeps what a captured function computes, writes, shares and differentiates to; return the changed graph."""
    seen = captured(function, *cloned(list(args)), change=change, dynamic=dynamic)
    found = differences(function, seen.compiled, args, strides=strides)
    assert not found, "; ".join(found)
    if any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(args)):
        for i, (wanted, got) in enumerate(zip(gradients(function, args), gradients(seen.compiled, args), strict=True)):
            assert (wanted is None) == (got is None), (
                f"gradient {i}: eager has {'none' if wanted is None else 'one'}, the graph {'none' if got is None else 'one'}"
            )
            if wanted is not None and got is not None:
                torch.testing.assert_close(got, wanted, msg=lambda m, i=i: f"gradient {i}: {m}")
    return seen.graph
