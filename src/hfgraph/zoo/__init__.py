"""Every architecture, tiny: what a model computes in eager mode, counted without hfgraph, beside what hfgraph finds in it."""

from __future__ import annotations

from hfgraph.zoo.models import FAMILIES, build, class_name, family, inputs, logits, names

__all__ = ["FAMILIES", "build", "class_name", "family", "inputs", "logits", "names"]
