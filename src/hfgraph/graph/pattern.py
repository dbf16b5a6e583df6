"""A pattern function becomes a small canonical graph, traced and cleaned exactly as models are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from hfgraph.errors import InvalidRule
from hfgraph.graph.canonical import tidy
from hfgraph.graph.inputs import Choice, Dims, Dtype, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import is_symbol, val

# Values that no model carries: where one shows up in a traced pattern, a scalar of the rule stands.
_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.complex32)


_KINDS = {torch.dtype: "dtype", str: "word", int: "number", float: "number"}


@dataclass(frozen=True)
class Wild:
    """A place in a pattern that binds a number, a dtype or a word by value."""

    name: str
    kind: str  # "number", "dtype" or "word"
    optional: bool

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if self.kind == "dtype":
            return isinstance(value, torch.dtype)
        if self.kind == "word":
            return isinstance(value, str)
        return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A traced pattern or replacement: nodes in order, leaves by parameter name, wild values inside arguments."""

    nodes: tuple[Node, ...]
    leaves: Mapping[Node, str]
    outputs: tuple[Node, ...]
    sizes: Mapping[sympy.Symbol, tuple[str, int]]
    dims: Mapping[str, Dims]
    dtypes: frozenset[torch.dtype] | None = None  # float dtypes its tensors may have; None: any

    @property
    def operators(self) -> list[Node]:
        """The nodes that compute tensors; the others compute sizes."""
        return [n for n in self.nodes if not is_symbol(val(n))]


def sentinels(rule: Rule, dtype: torch.dtype) -> dict[str, Any]:
    """One unmistakable value for each scalar of a rule whose tensors are in `dtype`."""
    found: dict[str, Any] = {}
    dtypes = (d for d in _DTYPES if d != dtype)
    for i, (name, a) in enumerate(rule.inputs.items()):
        if isinstance(a, Dtype):
            found[name] = next(dtypes)
        elif isinstance(a, Scalar):
            found[name] = 0.0718281828 + 0.013 * i if isinstance(a.example, float) else 7001 + 13 * i
        elif isinstance(a, Choice):
            found[name] = next(w for w in reversed(a.options) if w not in found.values())
    return found


def trace(rule: Rule, function: Callable[..., Any], dtype: torch.dtype, *, absent: tuple[str, ...] = (), whole: bool) -> Pattern:
    """Trace `rule.pattern` or `rule.replacement` with all tensors in `dtype` and every size symbolic.

    Args:
        absent: optional tensors that are None here.
        whole: every scalar of the rule must appear, as it must in a pattern.

    Raises:
        InvalidRule: the function cannot be traced, ignores a parameter, or does not depend on its inputs.
    """
    marks = sentinels(rule, dtype)
    tensors = {n: _fake(n, d, dtype) for n, d in rule.inputs.tensors.items() if n not in absent}

    def call(*given: Tensor) -> Any:
        return function(**dict(zip(tensors, given, strict=True)), **dict.fromkeys(absent), **marks)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sentinel dtypes are complex: casting one to a real dtype warns
            with _fakes():
                gm = make_fx(call, pre_dispatch=True)(*tensors.values())
    except Exception as e:
        found = f"{function.__name__} cannot be traced ({type(e).__name__}: {e})"
        raise InvalidRule(rule.name, found, f"Make it a plain function of {', '.join(rule.inputs)}") from e
    fixed = _fixed_sizes()
    if fixed:
        advice = "Use sizes as they are, and put the dtype that arithmetic is done in first among the dtypes"
        raise InvalidRule(rule.name, f"tracing {function.__name__} fixed a size ({fixed})", advice)
    tidy(gm)
    _count_sizes_from_end(gm.graph, rule, list(tensors))
    return _pattern(rule, function.__name__, gm.graph, list(tensors), marks, whole)


@cache
def _fakes() -> FakeTensorMode:
    """One mode for all patterns: operators that patterns share are evaluated once."""
    return FakeTensorMode(shape_env=ShapeEnv(duck_shape=True))


def _fixed_sizes() -> str:
    """The sizes that a trace fixed, in words. They are undone: patterns traced before it have the same symbols."""
    env: Any = _fakes().shape_env
    fixed = ", ".join(f"{a} = {b}" for a, b in env.replacements.items())
    if fixed:
        env.replacements.clear()
        env._replacements_version_counter += 1
        env._update_version_counter()
        _fakes.cache_clear()
        _fake.cache_clear()
    return fixed


# "..." is traced as this many dims.
_OPEN_DIMS = 2
# Sizes while tracing: different for every dim, and divisible where patterns split heads and features.
_HINTS = {n: 2 * (100 + i) for i, n in enumerate("ACEFGIJKLMNOPQRSUVWXYZ")} | {"B": 3, "T": 5, "H": 16, "D": 96}


@cache
def _fake(name: str, dims: Dims, dtype: torch.dtype) -> Tensor:
    """A parameter's tensor, whose sizes are symbols, one per letter."""
    real = torch.zeros(dims.shape(_HINTS), dtype=dims.dtype(dtype))
    duck = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC if f else DimDynamic.DUCK for f in dims.fixed])
    return _fakes().from_tensor(real, symbolic_context=duck, source=ConstantSource(f"pattern_{name}_{'_'.join(dims.names)}_{dtype}"))


def _count_sizes_from_end(graph: Graph, rule: Rule, names: list[str]) -> None:
    """`x.shape[-1]` was traced at one rank; where the rank is open, it must mean the last dim at every rank."""
    leaves = dict(zip((n for n in graph.nodes if n.op == "placeholder"), names, strict=True))
    for node in graph.nodes:
        if node.target is torch.ops.aten.sym_size.int and node.args[0] in leaves:
            leaf, dim = node.args
            dims = rule.inputs.tensors[leaves[leaf]]
            if dims.any_rank and dim >= _OPEN_DIMS:
                node.args = (leaf, dim - len(dims.names))


def _pattern(rule: Rule, what: str, graph: Graph, names: list[str], marks: dict[str, Any], whole: bool) -> Pattern:
    leaves = dict(zip((n for n in graph.nodes if n.op == "placeholder"), names, strict=True))
    seen: set[str] = set()
    for node in graph.nodes:
        node.args = _with_wilds(node.args, rule, marks, seen)
        node.kwargs = _with_wilds(node.kwargs, rule, marks, seen)
    missing = [n for n in marks if n not in seen]
    if whole and missing:
        raise InvalidRule(rule.name, f"{what} does not carry {', '.join(missing)} as written (was it folded into another number?)", "Use each scalar as it is")
    returned: Any = graph.output_node().args[0]
    outputs = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
    if not all(isinstance(o, Node) and o not in leaves for o in outputs):
        raise InvalidRule(rule.name, f"{what} returns one of its inputs or a constant", "Return computed tensors only")
    nodes = tuple(n for n in graph.nodes if n.op == "call_function")
    pattern = Pattern(nodes, leaves, outputs, _size_symbols(leaves, rule.inputs.tensors), rule.inputs.tensors)
    if whole:
        _check_connected(rule, pattern)
    return pattern


def _with_wilds(value: Any, rule: Rule, marks: dict[str, Any], seen: set[str]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_with_wilds(v, rule, marks, seen) for v in value]) if not hasattr(value, "_fields") else value
    if isinstance(value, dict):
        return {k: _with_wilds(v, rule, marks, seen) for k, v in value.items()}
    if isinstance(value, float | int | torch.dtype | str) and not isinstance(value, bool):
        for name, mark in marks.items():
            if type(value) is type(mark) and value == mark:
                seen.add(name)
                described = rule.inputs[name]
                assert not isinstance(described, Dims)
                return Wild(name, _KINDS[type(mark)], described.optional)
    return value


def _size_symbols(leaves: Mapping[Node, str], dims: Mapping[str, Dims]) -> dict[sympy.Symbol, tuple[str, int]]:
    """Where to read each size symbol at a site: parameter and dim, counted from the end where the rank is open."""
    found: dict[sympy.Symbol, tuple[str, int]] = {}
    for node, name in leaves.items():
        rank = val(node).ndim
        for dim, size in enumerate(val(node).shape):
            open_dim = dims[name].any_rank and dim < _OPEN_DIMS
            if not open_dim and isinstance(size, SymInt) and isinstance(size.node.expr, sympy.Symbol):
                found.setdefault(size.node.expr, (name, dim - rank))
    return found


def _check_connected(rule: Rule, pattern: Pattern) -> None:
    """Outputs that meet only in inputs could bind values of different layers."""
    group: dict[Node, Node] = {n: n for n in pattern.nodes}

    def find(n: Node) -> Node:
        while group[n] is not n:
            n = group[n]
        return n

    for node in pattern.nodes:
        for source in node.all_input_nodes:
            if source in group:
                group[find(node)] = find(source)
    if len({find(o) for o in pattern.outputs}) > 1:
        raise InvalidRule(rule.name, "the outputs are connected only through the inputs", "Write one rule for each output and pair them in a later one")
