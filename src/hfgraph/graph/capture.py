"""Dynamo's graph -> plain ATen, still pre-dispatch: `linear`, attention and hfgraph's own ops stay whole."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._C._functorch import set_inplace_requires_grad_allowed
from torch._functorch import predispatch
from torch._guards import tracing
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from hfgraph.graph.memory import MEMORY, memory
from hfgraph.graph.origin import INPUT, readable
from hfgraph.graph.values import KNOWN_HIGHER_ORDER, tensors

_VMAP_ENTER, _VMAP_EXIT = predispatch._vmap_increment_nesting, predispatch._vmap_decrement_nesting


class Uncapturable(Exception):
    """The graph holds something that cannot be retraced; it goes to Inductor as it is. The text says what and why."""


def capture(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule:
    """Retrace a Dynamo graph into ATen operators, keeping sizes symbolic and each node's module path and source.

    Args:
        gm: as Dynamo hands it to a backend.
        example_inputs: the backend's inputs; used where a placeholder carries no fake value of its own.

    Raises:
        Uncapturable: the graph holds an operator that does not survive retracing.
    """
    _refuse_unsupported(gm)
    fakes = _fake_inputs(gm, example_inputs)
    with ExitStack() as stack:
        # Dynamo's fake tensors belong to Dynamo's fake mode; another mode would lose the sources of symbolic sizes.
        stack.enter_context(tracing(None))
        stack.enter_context(_mode_of(fakes))
        stack.enter_context(preserve_node_meta())
        run = _Retrace(_isolate_vmap(gm)).run
        out = make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*fakes)
    _refuse_fake_constants(out)
    _copy_placeholder_meta(gm, out, example_inputs)
    out.meta.update(gm.meta)
    return out


def _refuse_unsupported(gm: GraphModule) -> None:
    for module in gm.modules():  # the branches of higher-order operators among them
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                reason = _unsupported(node, _KEPT if module is not gm else _KEPT | _ISOLATED)
                if reason is not None:
                    raise Uncapturable(reason)


def _unsupported(node: Node, kept: frozenset[Any]) -> str | None:
    """Why a graph with this node in it would not be the same after a retrace."""
    if node.target is torch.autograd.grad_mode._enter_inference_mode:
        return "an inference-mode region inside the graph would be lost in a retrace; torch.no_grad() is kept"
    if isinstance(node.target, HigherOrderOperator) and node.target.name() not in KNOWN_HIGHER_ORDER:
        return f"the higher-order operator {node.target.name()} would not survive being traced again{_CAUSES.get(node.target.name(), '')}"
    if node.target not in kept and _sets_a_state(node):
        name = f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
        return f"{name} changes a state of PyTorch's inside the graph, and would be lost in a retrace{_CAUSES.get(name, '')}"
    subclass = next((type(t).__name__ for t in tensors(_dynamos(node)) if is_traceable_wrapper_subclass(t)), None)
    return f"{readable(node.name)} is a {subclass}, a tensor made of other tensors, whose operators are its own" if subclass else None


_CAUSES = {
    "tag_activation_checkpoint": " (activation checkpointing)",
    "autograd_function_apply": " (a custom autograd function)",
    "torch.nn.attention._sdpa_kernel": " (torch.nn.attention.sdpa_kernel)",
}
# Calls without tensors that a retrace records or repairs, that make a constant, or that count what is used.
_KEPT = frozenset(
    {torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast, torch.nn.attention._backend_from_string,
     torch._C._log_api_usage_once, set_inplace_requires_grad_allowed}
)  # fmt: skip
_ISOLATED = frozenset({_VMAP_ENTER, _VMAP_EXIT, predispatch.lazy_load_decompositions})  # in the outermost graph


def _sets_a_state(node: Node) -> bool:
    """A call that takes no value and gives none is there for what it changes elsewhere; operators apart, no retrace records it."""
    arithmetic = getattr(node.target, "__module__", "") in ("_operator", "math")
    recorded = arithmetic or isinstance(node.target, OpOverload | OpOverloadPacket | HigherOrderOperator)
    return node.op in ("call_function", "call_method") and not recorded and not any(_is_value(_dynamos(n)) for n in (node, *node.all_input_nodes))


def _is_value(value: Any) -> bool:
    return any(isinstance(v, Tensor | SymInt | SymFloat | SymBool | int | float) for v in tree_leaves(value))


def _dynamos(node: Node) -> Any:
    """The value that Dynamo recorded for a node."""
    return node.meta.get("example_value", node.meta.get("val"))


def _fake_inputs(gm: GraphModule, example_inputs: Sequence[Any]) -> list[Any]:
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    values = []
    for node, example in zip(placeholders, example_inputs, strict=True):
        value = _dynamos(node)
        values.append(example if value is None else value)
    mode = _mode_of(values)
    return [mode.from_tensor(v) if isinstance(v, Tensor) and not isinstance(v, FakeTensor) else v for v in values]


def _mode_of(values: Sequence[Any]) -> FakeTensorMode:
    for v in values:
        if isinstance(v, FakeTensor):
            return v.fake_mode
    for v in values:  # a graph of sizes only still has the shape environment of its symbols
        if isinstance(v, SymInt | SymFloat):
            return FakeTensorMode(shape_env=v.node.shape_env, static_shapes=False)
    return FakeTensorMode()


class _Retrace(Interpreter):
    """Runs Dynamo's graph node by node under make_fx, repairing what pre-dispatch tracing would record wrongly."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._autocasts: list[torch.autocast] = []

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().call_method(target, args, kwargs)
        # dynamic=True lifts floats such as eps into 0-dim inputs. float() reads the value and installs its guard.
        if target == "item" and isinstance(value, SymFloat) and value.node.hint is not None:
            return float(value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_function(target, args, kwargs)
        # make_fx records an autocast region without entering it, so that casts inside it would look like no-ops.
        if target is torch.amp.autocast_mode._enter_autocast:
            region = torch.autocast(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                region.__enter__()
            self._autocasts.append(region)
        elif target is torch.amp.autocast_mode._exit_autocast and self._autocasts:
            with torch._C.DisableTorchFunction():
                self._autocasts.pop().__exit__(None, None, None)
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().run(*args, **kwargs)
        finally:
            while self._autocasts:
                self._autocasts.pop().__exit__(None, None, None)


def _isolate_vmap(gm: GraphModule) -> GraphModule:
    """Replace each outermost vmap span by one call of a traced function of its inputs.

    Operators on batched tensors escape pre-dispatch recording: their results would become constants.
    """
    spans = _vmap_spans(gm)
    if not spans:
        return gm
    gm = copied(gm)
    for span in _vmap_spans(gm):
        _outline(gm, span)
    gm.graph.lint()
    gm.recompile()
    return gm


def copied(gm: GraphModule) -> GraphModule:
    """A copy of a graph with the same names and notes; it shares the module's constants."""
    graph = torch.fx.Graph()
    made: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, made))
    for old, new in made.items():
        new.meta = old.meta.copy()
        _copy_source(old, new)
    copy = GraphModule(gm, graph)
    copy.meta.update(gm.meta)
    return copy


def _copy_source(old: Node, new: Node) -> None:
    """Dynamo notes on a placeholder where its value comes from."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source  # type: ignore[attr-defined]


def _vmap_spans(gm: GraphModule) -> list[list[Node]]:
    spans: list[list[Node]] = []
    depth, current = 0, []
    for node in gm.graph.nodes:
        if node.target is _VMAP_ENTER:
            depth += 1
        if depth:
            current.append(node)
        if node.target is _VMAP_EXIT:
            depth -= 1
            if not depth:
                spans.append(current)
                current = []
    return spans


def _outline(gm: GraphModule, span: list[Node]) -> None:
    """Cut `span` out of the graph into a function, called in its place through `_trace_flat`."""
    inside = set(span)
    inputs = list(dict.fromkeys(a for n in span for a in n.all_input_nodes if a not in inside))
    outputs = [n for n in span if any(u not in inside for u in n.users)]
    body = torch.fx.Graph()
    env = {n: body.placeholder(n.name) for n in inputs}
    for node in span:
        env[node] = body.node_copy(node, lambda n: env[n])
    body.output(tuple(env[n] for n in outputs))
    function = _Outlined(GraphModule(gm, body))
    with gm.graph.inserting_before(span[0]):
        call = gm.graph.call_function(function, tuple(inputs))
        for i, node in enumerate(outputs):
            item = gm.graph.call_function(operator.getitem, (call, i))
            node.replace_all_uses_with(item, delete_user_cb=lambda u: u not in inside)
            item.meta = node.meta.copy()
        call.meta = {k: v for k, v in span[0].meta.items() if k != "example_value"}
    for node in reversed(span):
        gm.graph.erase_node(node)


class _Outlined:
    """A vmap span: traced below pre-dispatch, where vmap is already resolved, then run inline."""

    def __init__(self, body: GraphModule) -> None:
        self.body = body
        self.__name__ = self.__qualname__ = "vmap_span"
        self.__module__ = __name__

    def __call__(self, *args: Any) -> Any:
        with disable_proxy_modes_tracing():
            flat = make_fx(Interpreter(self.body).run, _allow_non_fake_inputs=True)(*args)
        return Interpreter(flat).run(*args)


def _refuse_fake_constants(gm: GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), FakeTensor):
            raise Uncapturable(f"{node.name} was computed while tracing and became a constant without a value")


def _copy_placeholder_meta(source: GraphModule, target: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Placeholders keep Dynamo's names and notes: AOTAutograd reads sources and static addresses from them. Those of
    parameters note where these lie in memory."""
    olds = [n for n in source.graph.nodes if n.op == "placeholder"]
    news = [n for n in target.graph.nodes if n.op == "placeholder"]
    for old, new, example in zip(olds, news, example_inputs, strict=True):
        value = new.meta.get("val")
        new.meta = {**old.meta, "val": value, INPUT: readable(str(old.target))}
        if (place := memory(example)) is not None:
            new.meta[MEMORY] = place
        _copy_source(old, new)
