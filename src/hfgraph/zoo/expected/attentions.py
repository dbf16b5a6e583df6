"""Attentions: a softmax between two products."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hfgraph.zoo.expected.products import OPAQUE, PRODUCTS
from hfgraph.zoo.expected.watch import Watch


class Attentions(Watch):
    """Calls of SDPA, and softmaxes of a product that is multiplied on."""

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        if name == "scaled_dot_product_attention":
            self.counts.add("attention")
        elif name in PRODUCTS - {"linear"}:
            weights = [t for t in ins if self.note(t) == "weights"]
            self.counts.add("attention", len(weights) > 0)
            if not weights and not any(isinstance(t, nn.Parameter) for t in ins) and outs[0].ndim >= 3:
                self.notes[id(outs[0])] = "scores"
        elif name == "softmax":
            if any(self.note(t) == "scores" for t in ins):
                self.notes[id(outs[0])] = "weights"
        elif name not in OPAQUE - {"cat"} and outs[0].is_floating_point():
            kept = next((self.note(t) for t in ins if self.note(t)), None)
            if kept is not None and outs[0].ndim >= 3:
                self.notes[id(outs[0])] = kept
