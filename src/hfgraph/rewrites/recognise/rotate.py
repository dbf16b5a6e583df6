"""One tensor turned by position, however it is written: the linear region around a sum of two products is evaluated, with random
tables in the place of its cosines and sines, and which dims pair, with which sign, is read off."""

from __future__ import annotations

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import Found, Recogniser, Refusal, View
from hfgraph.graph.values import val
from hfgraph.kernels.rotate import rotate
from hfgraph.rewrites.linear import MOVES, Region, regions, structure
from hfgraph.rewrites.rotation import Rotation, rotation
from hfgraph.rewrites.spellings import ROTATIONS

aten = torch.ops.aten


def recognise(node: Node, view: View) -> Found | Refusal | None:
    refusal = None
    for region in regions(node, view):
        key = ("rotation", structure(region))
        if key not in view.memo:
            view.memo[key] = rotation(region)
        read = view.memo[key]
        if isinstance(read, Rotation):
            return _found(region, read, view)
        if isinstance(read, str):
            refusal = refusal or Refusal(read, region.end, region.nodes)
    return refusal


def _found(region: Region, read: Rotation, view: View) -> Found:
    cos, sin = region.tables[read.cos], region.tables[read.sin]
    if val(cos).is_complex():
        cos = view.call(aten.resolve_conj.default, cos, before=region.end) if val(cos).is_conj() else cos
        both = view.call(aten.view_as_real.default, cos, before=region.end)
        cos, sin = (view.call(aten.select.int, both, -1, i, before=region.end) for i in (0, 1))
    changed = {n: v for n, v in read.attributes if v}
    private = tuple(n for n in region.nodes if n.target not in MOVES)
    return Found((region.end,), rotate, {"x": region.x, "cos": cos, "sin": sin, **changed}, region.nodes, private)


RULE = Recogniser(frozenset({aten.add.Tensor, aten.view_as_real.default}), recognise, rotate, ROTATIONS)
