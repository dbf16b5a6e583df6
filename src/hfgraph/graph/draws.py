"""Random numbers: ways of running one graph can be compared where they draw the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.values import arguments, is_random

State = Sequence[Tensor]


def random_state() -> State:
    """Of the CPU's generator, and of those of all GPUs, if they are in use."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpus]


def restore(state: State) -> None:
    """Make the generators draw again what they drew after `state`."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])


def equal_draws(a: State, b: State) -> bool:
    """Two runs that began in one state and ended in these have drawn the same: the state counts what was drawn, and as what."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def draws(graph: Graph) -> bool:
    """A graph that may draw random numbers."""
    return any(n.op == "call_function" and is_random(n.target) and not _is_sure(n) for n in graph.nodes)


def _is_sure(node: Node) -> bool:
    """Attention can drop weights, and mostly does not."""
    return arguments(node).get("dropout_p") == 0.0
