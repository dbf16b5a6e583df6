"""What a model computes in eager mode, counted without hfgraph: attentions, rotations, gated MLPs, mixtures of experts and norms, from calls of
functions and modules. Names of functions and modules may be used here: this is the other side of the comparison."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"linear", "matmul", "bmm", "baddbmm", "mm", "addmm", "grouped_mm", "_grouped_mm", "grouped_mm_fallback", "einsum"}
ACTIVATIONS = {"silu", "gelu", "relu", "sigmoid", "tanh"}
PIECES = {"chunk", "split", "getitem", "select", "narrow", "unbind", "split_with_sizes"}
# Results that are values of their own, whatever they were computed from.
OPAQUE = {"layer_norm", "rms_norm", "sum", "mean", "cat", "stack", "conv1d", "topk", "softmax"}
# These only ask about a tensor.
QUESTIONS = {"get", "set", "size", "dim", "stride", "numel"}


def name_of(function: Any) -> str:
    """`aten::mul.Tensor`, `Tensor.__mul__`, `torch.mul` -> `mul`."""
    name = str(function).split(".")[1] if isinstance(function, torch._ops.OpOverload) else getattr(function, "__name__", str(function))
    return name.strip("_").removeprefix("r").removeprefix("i") if name.strip("_") in ("rmul", "imul", "radd", "iadd", "rmatmul") else name.strip("_")


@dataclass
class Counts:
    """Calls by what they compute; `rope` counts tensors."""

    found: Counter[str] = field(default_factory=Counter)


class _Watch(TorchFunctionMode):
    """Keeps a note on tensors, and sees every function called on them."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.notes: dict[int, Any] = {}
        self.alive: list[Any] = []  # an address must not be used again

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = name_of(function)
        ins, outs = ([t for t in tree_leaves(v) if isinstance(t, Tensor)] for v in ((args, kwargs), out))
        if name not in QUESTIONS and ins and outs:
            self.alive += [*ins, *outs]
            self.see(name, args, kwargs or {}, ins, outs)
        return out

    def note(self, tensor: Tensor) -> Any:
        return self.notes.get(id(tensor))

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        raise NotImplementedError


class Attentions(_Watch):
    """Calls of SDPA, and softmaxes of a product that is multiplied on."""

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        if name == "scaled_dot_product_attention":
            self.counts.found["attention"] += 1
        elif name in PRODUCTS - {"linear"}:
            weights = [t for t in ins if self.note(t) == "weights"]
            self.counts.found["attention"] += len(weights) > 0
            if not weights and not any(isinstance(t, nn.Parameter) for t in ins) and outs[0].ndim >= 3:
                self.notes[id(outs[0])] = "scores"
        elif name == "softmax":
            if any(self.note(t) == "scores" for t in ins):
                self.notes[id(outs[0])] = "weights"
        elif name not in OPAQUE - {"cat"} and outs[0].is_floating_point():
            kept = next((self.note(t) for t in ins if self.note(t)), None)
            if kept is not None and outs[0].ndim >= 3:
                self.notes[id(outs[0])] = kept


@dataclass(frozen=True)
class _Made:
    """Where a value comes from: the product, what that was of, which piece of it, and the activations on the way."""

    product: int
    source: int
    piece: tuple[Any, ...]
    activations: tuple[str, ...] = ()


class GatedMLPs(_Watch):
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
            self.counts.found["glu"] += 1

    def carried(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], source: Tensor, outs: list[Tensor]) -> None:
        others = [t for t in ins if self.note(t) is None and not isinstance(t, nn.Parameter) and t.is_floating_point() and t.ndim > 1]
        if others:
            return
        old = self.note(source)
        for i, out in enumerate(outs):
            if out.is_floating_point():
                piece = (hash((old.piece, i, str(args[1:]), str(kwargs))), *old.piece[-1:]) if name in PIECES else old.piece
                self.notes[id(out)] = _Made(old.product, old.source, piece, old.activations + ((name,) if name in ACTIVATIONS else ()))


@contextmanager
def rotations(counts: Counts) -> Iterator[None]:
    """Count tensors that functions named like a rotation return."""
    undo: list[tuple[Any, str, Any]] = []
    modules = [m for k, m in list(sys.modules.items()) if k.startswith("transformers.models.") and ".modeling_" in k]
    for module in modules:
        for owner in (module, *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__)):
            for name, value in list(vars(owner).items()):
                function = value.__func__ if isinstance(value, staticmethod) else value
                if inspect.isfunction(function) and _rotates(name, module):
                    undo.append((owner, name, value))
                    wrapped = _counting(function, counts)
                    setattr(owner, name, staticmethod(wrapped) if isinstance(value, staticmethod) else wrapped)
    try:
        yield
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _rotates(name: str, module: Any) -> bool:
    low = name.lower()
    if "compute" in low or "index" in low or low.startswith("rotate") or (name == "_apply_rotary_emb" and hasattr(module, "apply_rotary_pos_emb")):
        return False
    return "apply_rotary" in low or "apply_rope" in low or "rotary_emb" in low


def _counting(function: Callable[..., Any], counts: Counts) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        counts.found["rope"] += sum(t is not None for t in out) if isinstance(out, tuple | list) else 1
        return out

    return wrapped


@contextmanager
def mixtures(model: nn.Module, counts: Counts) -> Iterator[None]:
    """Count calls of modules that run the experts that a router chose."""
    found = [m for m in model.modules() if _mixes(m)]
    hooks = [m.register_forward_hook(lambda *_: counts.found.update(["moe"])) for m in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mixes(module: nn.Module) -> bool:
    """Its class is named after experts, not after shared ones, and it owns two tensors with a matrix for each of them, or a module
    that does; or it owns two modules with such a tensor each."""
    name = type(module).__name__
    if ("Experts" not in name and "MoE" not in name) or "Shared" in name:
        return False
    children = list(module.children())
    pairs = sum(type(m).__name__.endswith("ParallelExperts") for m in children) == 2
    return pairs or ("Experts" in name and (_stacks(module) >= 2 or any(type(m).__name__.endswith("ExpertGLU") for m in children)))


def _stacks(module: nn.Module) -> int:
    return sum(p.ndim == 3 for p in module.parameters(recurse=False))


def counted(model: nn.Module, inputs: dict[str, Any]) -> Counter[str]:
    """Run the model once; calls by what they compute."""
    counts = Counts()
    with ExitStack() as stack:
        stack.enter_context(rotations(counts))
        stack.enter_context(mixtures(model, counts))
        stack.enter_context(Attentions(counts))
        stack.enter_context(GatedMLPs(counts))
        model(**inputs)
    return counts.found
