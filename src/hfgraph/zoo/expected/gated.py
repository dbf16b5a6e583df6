"""Gated MLPs: a value's two projections, one of them behind an activation, multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hfgraph.zoo.expected.products import ACTIVATIONS, OPAQUE, PIECES, PRODUCTS
from hfgraph.zoo.expected.watch import Watch


@dataclass(frozen=True)
class _Made:
    """Where a value comes from: the product, what that was of, which piece of it, and the activations on the way."""

    product: int
    source: int
    piece: tuple[Any, ...]
    activations: tuple[str, ...] = ()


class GatedMLPs(Watch):
    """Products of two pieces of one projection, or of two projections of one value, one of them behind an activation."""

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        floats = [t for t in ins if t.is_floating_point()]
        if name in PRODUCTS:
            source = next((t for t in (floats[1:] if "addmm" in name else floats) if not isinstance(t, nn.Parameter)), ins[0])
            self.notes[id(outs[0])] = _Made(id(outs[0]), id(source), (id(outs[0]),))
            return
        made = [t for t in ins if self.note(t) is not None]
        if not made and name in PIECES and floats and not isinstance(ins[0], nn.Parameter):
            self.notes[id(ins[0])] = _Made(id(ins[0]), id(ins[0]) + 1, (id(ins[0]),))
            made = [ins[0]]
        if name == "mul" and len(made) == len(ins) == 2:
            self.multiplied(self.note(ins[0]), self.note(ins[1]), outs[0])
        elif name == "add" and len(made) == 2 and self.note(made[0]).product != self.note(made[1]).product:
            self.notes[id(outs[0])] = _Made(id(outs[0]), id(outs[0]) + 1, (id(outs[0]),))
        elif made and name not in OPAQUE | {"scaled_dot_product_attention"} and len({self.note(t).piece for t in made}) == 1:
            self.carried(name, args, kwargs, ins, made[0], outs)

    def multiplied(self, a: _Made, b: _Made, out: Tensor) -> None:
        if a.piece == b.piece:
            self.notes[id(out)] = _Made(a.product, a.source, a.piece, a.activations + b.activations)
        elif (a.product == b.product or a.source == b.source) and bool(a.activations) != bool(b.activations):
            self.counts.add("glu")

    def carried(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], source: Tensor, outs: list[Tensor]) -> None:
        others = [t for t in ins if self.note(t) is None and not isinstance(t, nn.Parameter) and t.is_floating_point() and t.ndim > 1]
        if others:
            return
        old = self.note(source)
        for i, out in enumerate(outs):
            if out.is_floating_point():
                piece = (hash((old.piece, i, str(args[1:]), str(kwargs))), *old.piece[-1:]) if name in PIECES else old.piece
                self.notes[id(out)] = _Made(old.product, old.source, piece, old.activations + ((name,) if name in ACTIVATIONS else ()))
