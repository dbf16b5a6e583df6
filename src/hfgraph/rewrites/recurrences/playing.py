"""Runs a region on numbers, in float64 whatever the model's dtypes are, writes included, with few heads and sequences where there are many."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from hfgraph.graph.evaluate import CannotEvaluate, Sizes, data, plain, shape, size, value_inputs
from hfgraph.graph.small import wider
from hfgraph.graph.values import val
from hfgraph.rewrites.recurrences.region import Region
from hfgraph.rewrites.recurrences.spread import same_along

aten = torch.ops.aten
# Operators whose arguments hold sizes of tensors.
_SIZED = frozenset(
    {aten.reshape.default, aten.expand.default, aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format,
     aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default}
)  # fmt: skip
_FEWER = (2, 3)  # sequences, and heads or channels
_MOST = 1 << 25  # elements of one value: 256 MB


class Player:
    """Plays a region. What cannot be run on numbers, and what depends on it, is left out.

    Attributes:
        values: the float tensors of the region, and those that it begins with, by node.
    """

    def __init__(self, region: Region, sizes: Sizes) -> None:
        self._sizes = sizes
        self._fewer = _shrunk(region, sizes)
        generator = torch.Generator().manual_seed(0)
        self._known: dict[Node, frozenset[Node]] = {}
        self._env: dict[Node, Any] = {n: self._begun(n, generator) for n in region.begin}
        with torch.no_grad(), _disable_current_modes():
            for node in region.nodes:
                with suppress(CannotEvaluate):
                    self._env[node] = self._run(node)
        self.values = {n: v for n, v in self._env.items() if isinstance(v, Tensor) and v.is_floating_point()}

    def _shape(self, node: Node) -> tuple[int, ...]:
        return tuple(self._fewer.get(s, s) for s in shape(node, self._sizes))

    def _begun(self, node: Node, generator: torch.Generator) -> Tensor:
        """Random numbers, the same along dims along which the model's are."""
        whole, same = self._shape(node), same_along(node)
        return _random(tuple(1 if d - len(whole) in same else size for d, size in enumerate(whole)), generator).expand(whole)

    def _run(self, node: Node) -> Any:
        if isinstance(val(node), Tensor) and prod(self._shape(node)) > _MOST:
            raise CannotEvaluate(f"{node.name} is too large")
        needed = set(value_inputs(node))
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self._value(n) if n in needed else self._blank(n))
        if node.target in _SIZED:
            args = tuple([self._fewer.get(s, s) if isinstance(s, int) else s for s in a] if isinstance(a, list | tuple) else a for a in args)
        try:
            result = node.target(*self._filled(args), **self._filled(kwargs))  # type: ignore[operator]
        except Exception as e:
            raise CannotEvaluate(f"{node.name} cannot be evaluated ({type(e).__name__})") from e
        return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result

    def _filled(self, arguments: Any) -> Any:
        return tree_map(wider, plain(arguments, self._sizes))

    def _value(self, node: Node) -> Any:
        """A value of the region, or a constant, which goes with it."""
        if node not in self._env:
            if node.op != "call_function" or data(node, self._known):
                raise CannotEvaluate(f"it depends on {node.name}")
            self._env[node] = self._run(node)
        return self._env[node]

    def _blank(self, node: Node) -> Any:
        """A size, or an operand that only lends its shape."""
        value = val(node)
        if not isinstance(value, Tensor):
            return size(value, self._sizes)
        return torch.empty(self._shape(node), dtype=torch.float64 if value.is_floating_point() else value.dtype)


def _random(sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rows of heads have about the length of one, so that what is multiplied on over many tokens does not grow without bounds."""
    values = torch.rand(sizes, generator=generator, dtype=torch.float64) * 2 - 1
    return values * sizes[-1] ** -0.5 if len(sizes) > 3 else values


def _shrunk(region: Region, sizes: Sizes) -> Mapping[int, int]:
    """Smaller numbers for those of sequences and of heads, or of channels where there are no heads, unless another size is the same number."""
    laid_out = []
    for cut in {c.base: c for c in region.cuts}.values():
        own = list(shape(cut.base, sizes))
        length = own.pop(cut.dim)
        laid_out.append((own, (length, cut.padded)))
    kept = {n for own, tokens in laid_out for n in (*own[2:], *tokens)}
    many = [{own[i] for own, _ in laid_out if len(own) > i} for i in range(2)]
    return {n: few for found, few in zip(many, _FEWER, strict=True) if len(found) == 1 for n in found if n > few and n not in kept}
