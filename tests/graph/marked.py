"""Rules for the engine's own tests: a pattern, and an operator that computes the pattern, so that any difference is the engine's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import count
from typing import Any

import torch

from hfgraph.graph.inputs import Dims, Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule

_LIBRARY = torch.library.Library("hfgraph_tests", "FRAGMENT")
_NUMBER = count()
_TYPES = {Dims: "Tensor", Scalar: "float", Dtype: "ScalarType"}


def marked(pattern: Callable[..., Any], inputs: Inputs, outputs: int = 1, computes: Callable[..., Any] | None = None, **more: Any) -> Rule:
    """A rule that puts one operator, whole in the graph, in place of `pattern`.

    Args:
        outputs: how many tensors the pattern returns.
        computes: what the operator runs; the pattern itself, unless a test needs a false one.
    """
    name = f"mark{next(_NUMBER)}"
    arguments = ", ".join(f"{_TYPES[type(a)]}{'?' if a.optional else ''} {n}" for n, a in inputs.items())
    returns = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
    _LIBRARY.define(f"{name}({arguments}) -> {returns}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, computes or pattern, "CompositeImplicitAutograd")
    target = getattr(torch.ops.hfgraph_tests, name).default

    def replacement(**given: Any) -> Any:
        return target(*(given[n] for n in inputs))

    assert list(inspect.signature(pattern).parameters) == list(inputs)
    return Rule(pattern, replacement, inputs=inputs, name=more.pop("name", pattern.__name__.strip("_")), **more)
