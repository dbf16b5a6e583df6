"""Runs a graph in float64 whatever its dtypes, and compares values: the judge of every numeric question."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from hfgraph.graph.draws import equal_draws, random_state, restore
from hfgraph.graph.values import is_random, val

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
# A value may be off by 1.2 times what eager itself is off, plus a share of the values' size. The share covers another
# order of summation in float32, and half to a quarter of the last place in the narrow types, where eager's own error
# says the rest: it stays far below any falsified rule.
_RATIO = 1.2
_FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
# Single elements stray further than all of them on average.
_STRAY = 8.0


class Recorder(Interpreter):
    """Runs a graph and keeps the values of some nodes, by the name of the node that `names` maps them to."""

    def __init__(self, gm: GraphModule, names: Mapping[str, str]) -> None:
        super().__init__(gm)
        self._names = names
        self.recorded: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names:
            self.recorded[self._names[n.name]] = _kept(value)
        return value


class Float64(Recorder):
    """Runs a graph with every float in float64. An operator that has no float64 kernel runs in its own dtypes, and so does one that draws
    random numbers, for in float64 it would draw others."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wide_args, wide_kwargs = tree_map(_widened, (args, kwargs))
        before = random_state() if is_random(target) else None
        try:
            value = super().call_function(target, wide_args, wide_kwargs)
            if before is None or equal_draws(before, random_state()):
                return value
            restore(before)
        except (RuntimeError, NotImplementedError):
            pass
        narrow_args, narrow_kwargs = self._as_traced(args, kwargs)
        return tree_map(_widened, super().call_function(target, narrow_args, narrow_kwargs))

    def run_node(self, n: Node) -> Any:
        self._node = n
        return super().run_node(n)

    def _as_traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments in the dtypes that the traced graph has."""
        traced = map_arg((self._node.args, self._node.kwargs), val)
        pairs = zip(tree_leaves((args, kwargs)), tree_leaves(traced), strict=True)
        dtypes = iter([t.dtype if isinstance(t, Tensor) else None for _, t in pairs])
        return tree_map(lambda a: a.to(d) if (d := next(dtypes)) is not None and isinstance(a, Tensor) and a.is_floating_point() else a, (args, kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


def _kept(value: Any) -> Any:
    """A copy: a value recorded now may be written later."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)


@dataclass(frozen=True)
class Error:
    """How far a value is from the judge's, and how far it may be: by its worst element, or on average (root mean
    square), whichever is nearer to its bound. `largest` is the worst element's distance in any case."""

    error: float
    allowed: float
    largest: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


_RIGHT, _WRONG = Error(0.0, 0.0, 0.0), Error(math.inf, 0.0, math.inf)


def judge(value: Tensor, eager: Tensor, exact: Tensor) -> Error:
    """Compare a value with float64, allowing what eager itself is off and a share of its size.

    Values that are not finite must be so in the same places as eager's; integers and booleans must be eager's.
    """
    if value.shape != eager.shape or value.dtype != eager.dtype:
        return _WRONG
    if not value.is_floating_point():
        return _RIGHT if torch.equal(value, eager) else _WRONG
    v, e, x = value.double(), eager.double(), exact.double()
    finite = v.isfinite() & e.isfinite() & x.isfinite()
    if not torch.equal(torch.nan_to_num(v[~finite], nan=7.0), torch.nan_to_num(e[~finite], nan=7.0)):
        return _WRONG
    if not finite.any():
        return _RIGHT
    v, e, x = v[finite], e[finite], x[finite]
    floor = _FLOOR.get(value.dtype, 0.0)
    largest = _max(v - x)
    found = [
        (largest, _RATIO * _max(e - x) + _STRAY * floor * _max(x)),
        (_rms(v - x), _RATIO * _rms(e - x) + floor * _rms(x)),
    ]
    error, allowed = max(found, key=lambda pair: pair[0] / max(pair[1], 1e-300))
    return Error(error, allowed, largest)


def _max(values: Tensor) -> float:
    return values.abs().max().item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def float_tensors(values: Any) -> list[Tensor]:
    """The tensors of a graph's outputs, in order."""
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def fresh_inputs(inputs: Sequence[Any], written: Collection[int]) -> list[Any]:
    """Inputs for one run: those that the graph writes are copied."""
    return [_copied(x) if i in written else x for i, x in enumerate(inputs)]


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
