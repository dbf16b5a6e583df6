"""Small questions about FX nodes, asked all over the engine."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch._prims_common import is_contiguous_or_false
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

# Higher-order operators that come out of a retrace as they went in. The others are
# not captured: activation checkpointing would lose its recomputation, a custom autograd function its own backward.
KNOWN_HIGHER_ORDER = frozenset({"cond", "flex_attention"})


def val(node: Node) -> Any:
    """The fake value recorded for a node; None where there is none (e.g. grad-mode switches)."""
    return node.meta.get("val")


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a node's value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors(v)


def evaluated(node: Node) -> Any:
    """A node's value, computed on the fake values of its inputs."""
    args, kwargs = map_arg((node.args, node.kwargs), val)
    fake = next((v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)), None)
    mode: Any = getattr(fake, "fake_mode", None) or nullcontext()  # arithmetic on sizes needs none
    with mode, torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def is_symbol(value: Any) -> bool:
    """A size or number that is only known at run time."""
    return isinstance(value, SymInt | SymFloat | SymBool)


def same_size(a: Any, b: Any) -> bool:
    """Two sizes are equal for all values of their symbols, without adding a guard."""
    return a is b or bool(statically_known_true(a == b))


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Two shapes are equal for all values of their symbols, without adding a guard."""
    return a.ndim == b.ndim and all(same_size(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Same shape, dtype, device and strides."""
    return a.dtype == b.dtype and a.device == b.device and same_shape(a, b) and all(same_size(x, y) for x, y in zip(a.stride(), b.stride(), strict=True))


def same_places(a: Tensor, b: Tensor) -> bool:
    """Same layout, but for the strides of dimensions of size one, which no element's place depends on."""
    same = a.dtype == b.dtype and a.device == b.device and same_shape(a, b)
    return same and all(same_size(n, 1) or same_size(x, y) for n, x, y in zip(a.shape, a.stride(), b.stride(), strict=True))


def is_dense(value: Tensor) -> bool:
    """Known to be contiguous, without adding a guard."""
    return bool(is_contiguous_or_false(value))


@cache
def parameters(target: OpOverload) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of an operator's arguments, in order."""
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments)


def arguments(node: Node) -> dict[str, Any]:
    """An operator node's arguments by name, defaults filled in: two spellings of one call compare equal."""
    assert isinstance(node.target, OpOverload)
    named = {}
    for i, (name, default) in enumerate(parameters(node.target)):
        named[name] = node.args[i] if i < len(node.args) else node.kwargs.get(name, default)
    return named


@cache
def written(target: OpOverload) -> tuple[str, ...]:
    """Names of the arguments that an operator writes. `detach_` writes no values."""
    if target is torch.ops.aten.detach_.default:
        return ()
    return tuple(a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


# Operators that write without saying so: running statistics, in training.
_WRITES_UNSAID = {torch.ops.aten.batch_norm.default: ("training", "running_mean", "running_var"),
                  torch.ops.aten.instance_norm.default: ("use_input_stats", "running_mean", "running_var")}  # fmt: skip


def _unsaid(node: Node) -> list[Node]:
    switch, *names = _WRITES_UNSAID.get(node.target, ("",))  # type: ignore[arg-type]
    if not switch:
        return []
    given = arguments(node)
    return [given[n] for n in names if given[switch] is not False and isinstance(given[n], Node)]


def written_nodes(node: Node) -> list[Node]:
    """The inputs that a node writes in place; of a higher-order operator whose branches write anything, all that it has."""
    if isinstance(node.target, OpOverload):
        names = written(node.target)
        if not names:
            return _unsaid(node)
        given = arguments(node)
        found = [given[n] for n in names]
        return [x for f in found for x in (f if isinstance(f, list | tuple) else [f]) if isinstance(x, Node)]
    if isinstance(node.target, HigherOrderOperator):
        known, inner = node.target.name() in KNOWN_HIGHER_ORDER, (n for b in branches(node) for n in b.nodes)
        return [] if known and not any(written_nodes(n) for n in inner) else list(node.all_input_nodes)
    return []


def branches(node: Node) -> list[Graph]:
    """The graphs that a higher-order operator runs on its operands."""
    owner = node.graph.owning_module
    assert owner is not None, "without its module nothing is known of what a graph calls"
    found = (operator.attrgetter(str(i.target))(owner) for i in node.all_input_nodes if i.op == "get_attr")
    return [m.graph for m in found if isinstance(m, GraphModule)]


@cache
def is_random(target: Any) -> bool:
    """An operator that draws from a generator."""
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def is_pure(node: Node) -> bool:
    """Calling the node twice with equal inputs gives equal results and changes nothing else."""
    if node.op != "call_function":
        return False
    if isinstance(node.target, OpOverload):
        return not written_nodes(node) and not is_random(node.target)
    return getattr(node.target, "__module__", None) in ("_operator", "math") or node.target is operator.getitem


def drop_dead(graph: Graph) -> int:
    """Remove nodes without users, but for those that write or switch modes. Returns how many went."""
    before = len(graph.nodes)
    graph.eliminate_dead_code(lambda n: n.is_impure() or bool(written_nodes(n)))
    return before - len(graph.nodes)


def autocast_is_on(region: tuple[Any, ...]) -> bool:
    """Around the graph, or in the region: autocast casts the inputs of some operators, but not those of their twins."""
    return len(region) > 1 or any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def regions(graph: Graph) -> dict[Node, tuple[Any, ...]]:
    """For each node the grad mode and autocast regions around it: equal calls in different regions differ."""
    stack: list[Any] = []
    grad: Any = None
    found: dict[Node, tuple[Any, ...]] = {}
    current: tuple[Any, ...] = (None,)
    for node in graph.nodes:
        found[node] = current
        if node.op != "call_function":
            continue
        if node.target is torch._C._set_grad_enabled:
            grad = node.args[0]
        elif node.target is torch.amp.autocast_mode._enter_autocast:
            stack.append(node)
        elif node.target is torch.amp.autocast_mode._exit_autocast and stack:
            stack.pop()
        else:
            continue
        current = (grad, *stack)
    return found


def is_trained(graph: Graph) -> bool:
    """Gradients may be asked for."""
    # Values recorded while tracing are detached; Dynamo's are not.
    inputs = [n.meta.get("example_value", val(n)) for n in graph.nodes if n.op == "placeholder"]
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs)
