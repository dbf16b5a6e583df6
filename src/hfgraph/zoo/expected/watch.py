"""Seeing every function that is called on tensors, and which module calls it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# These only ask about a tensor.
_QUESTIONS = frozenset({"get", "set", "size", "dim", "stride", "numel"})


@dataclass
class Places:
    """Which modules are running, the innermost last."""

    running: list[str] = field(default_factory=list)

    @property
    def here(self) -> str:
        return self.running[-1] if self.running else ""

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module) -> Iterator[Places]:
        paths = {module: path for path, module in model.named_modules()}
        places = cls()
        before = register_module_forward_pre_hook(lambda m, _: places.running.append(paths.get(m, places.here)))
        after = register_module_forward_hook(lambda *_: places.leave(), always_call=True)
        try:
            yield places
        finally:
            before.remove()
            after.remove()

    def leave(self) -> None:
        self.running.pop()


@dataclass
class Counts:
    """How often each module computes something, by kind."""

    places: Places
    found: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, kind: str, times: int = 1) -> None:
        self.found[kind][self.places.here] += times


def name_of(function: Any) -> str:
    """`aten::mul.Tensor`, `Tensor.__mul__`, `torch.mul` -> `mul`."""
    name = str(function).split(".")[1] if isinstance(function, torch._ops.OpOverload) else getattr(function, "__name__", str(function))
    name = name.strip("_")
    return name[1:] if name in ("rmul", "imul", "radd", "iadd", "rmatmul") else name


class Watch(TorchFunctionMode):
    """Keeps a note on tensors, and sees every function called on them."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.notes: dict[int, Any] = {}
        self._alive: list[Any] = []  # an address must not be used again

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = name_of(function)
        ins, outs = ([t for t in tree_leaves(v) if isinstance(t, Tensor)] for v in ((args, kwargs), out))
        if name not in _QUESTIONS and ins and outs:
            self._alive += [*ins, *outs]
            self.see(name, args, kwargs or {}, ins, outs)
        return out

    def note(self, tensor: Tensor) -> Any:
        return self.notes.get(id(tensor))

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        """A call of the function `name`."""
        raise NotImplementedError
