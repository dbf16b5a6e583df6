"""Stacked parameters in memory: one block, of which the model's parameters are views.

A rewritten graph concatenates parameters. `lifted` makes each such stack an input of the graph, and `fed` provides it at
every call: it looks whether the parameters still lie side by side, and if they do, the stack is a view that costs
nothing. If not (the first call, weights moved or replaced since), it moves them there. There is never a second copy.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import GraphModule

from hfgraph.errors import NotStacked
from hfgraph.graph.capture import copied
from hfgraph.graph.memory import STACK, memory, obstacle
from hfgraph.graph.origin import INPUT
from hfgraph.graph.values import val

# Two threads may call two graphs of one model for the first time.
_LOCK = threading.Lock()


class Stack:
    """One stack: where its parameters stand among the inputs, and how to find or make the block."""

    def __init__(self, at: Sequence[int], parts: Sequence[Tensor], whole: Tensor) -> None:
        """`parts` and `whole` are fake: shapes and dtypes."""
        self.first, self.others = at[0], at[1:]
        self.shape, self.strides = tuple(whole.shape), tuple(whole.stride())
        sizes = [p.numel() * p.element_size() for p in parts]
        self.offsets = list(accumulate(sizes))[:-1]
        self.warned = False

    def __call__(self, inputs: Sequence[Any]) -> Tensor:
        """The parameters as one tensor."""
        found = self._found(inputs)
        return self._made(inputs) if found is None else found

    def _found(self, inputs: Sequence[Any]) -> Tensor | None:
        first = inputs[self.first]
        start = first.data_ptr()
        for i, offset in zip(self.others, self.offsets, strict=True):
            if inputs[i].data_ptr() != start + offset:
                return None
        try:
            return first.as_strided(self.shape, self.strides)
        except RuntimeError:  # side by side, and yet in storages of their own: mapped from a file
            return None

    def _made(self, inputs: Sequence[Any]) -> Tensor:
        parameters = [inputs[i] for i in (self.first, *self.others)]
        with _LOCK, torch.inference_mode(False), torch.no_grad():
            found = self._found(inputs)  # another thread may have been faster
            if found is not None:
                return found
            places = [place for p in parameters if (place := memory(p)) is not None]
            reason = obstacle(places) if len(places) == len(parameters) else "it is no plain parameter"
            if reason is not None:
                self._warn(len(parameters), reason)
                return torch.cat([p.detach() for p in parameters])
            block = torch.empty(self.shape, dtype=parameters[0].dtype, device=parameters[0].device)
            _move(parameters, block)
            return block

    def _warn(self, count: int, reason: str) -> None:
        if not self.warned:
            warnings.warn(_REPLACED.format(count=count, shape=self.shape, reason=reason), NotStacked, stacklevel=5)
            self.warned = True


_REPLACED = (
    "{count} weights that hfgraph had stacked into one of {shape} were replaced, and of a new one {reason}. They stay where "
    "they are and are copied at every call, which is slow. Compile the model again, or give them memory of their own (weight.data = weight.data.clone())."
)


def _move(parameters: Sequence[Tensor], block: Tensor) -> None:
    """Make `parameters` views of a block that holds their values; their old memory goes, one after the other."""
    end = 0
    for p in parameters:
        start, end = end, end + p.shape[0]
        block[start:end].copy_(p)
        p.data = block[start:end]


def lifted(gm: GraphModule, example_inputs: Sequence[Any]) -> tuple[GraphModule, list[Any], list[Stack]]:
    """Make each stack an input after all others. Returns a new graph, its example inputs, and the stacks in order."""
    if not any(STACK in n.meta for n in gm.graph.nodes):
        return gm, list(example_inputs), []
    gm = copied(gm)
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    position = {n: i for i, n in enumerate(placeholders)}
    examples, stacks, last = list(example_inputs), [], placeholders[-1]
    for node in [n for n in gm.graph.nodes if STACK in n.meta]:
        parts = node.args[0]
        with gm.graph.inserting_after(last):
            last = gm.graph.placeholder(f"hfgraph_stack{len(stacks)}")
        last.target = last.name  # of two names, one could be another node's in the generated code
        # For cudagraphs and for alignment Inductor takes it for a parameter, and it is one.
        last.meta = {"val": val(node), INPUT: last.name, "tensor_dict": {"_dynamo_static_input_type": "unguarded"}}
        last._dynamo_source = None  # type: ignore[attr-defined]
        examples.append(_example(val(node), example_inputs))
        stacks.append(Stack([position[p] for p in parts], [val(p) for p in parts], val(node)))
        node.replace_all_uses_with(last)
        gm.graph.erase_node(node)
    gm.recompile()
    return gm, examples, stacks


def _example(fake: Tensor, example_inputs: Sequence[Any]) -> Tensor:
    """In the fake mode that AOTAutograd will use; another would give its sizes symbols."""
    mode = detect_fake_mode(list(example_inputs))
    if mode is None:
        return fake
    with mode:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)


def fed(compiled: Callable[..., Any], stacks: Sequence[Stack]) -> Callable[..., Any]:
    """`compiled` with its stacks added to every call."""
    if not stacks:
        return compiled

    def call(*inputs: Any) -> Any:
        return compiled(*inputs, *[stack(inputs) for stack in stacks])

    return call


def stacked(gm: GraphModule) -> set[int]:
    """Positions of the inputs that a rewritten graph stacks."""
    parts = {p for n in gm.graph.nodes if STACK in n.meta for p in n.args[0]}
    return {i for i, p in enumerate(gm.graph.find_nodes(op="placeholder")) if p in parts}


def own_weights(inputs: Sequence[Any], positions: Collection[int]) -> list[Any]:
    """Copies of the parameters at these positions, for a call that must not move those of the model."""
    return [nn.Parameter(x.detach().clone(), x.requires_grad) if i in positions else x for i, x in enumerate(inputs)]
