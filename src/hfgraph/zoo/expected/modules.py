"""What functions and modules say of themselves by their names: rotations, mixtures of experts, norms."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hfgraph.zoo.expected.watch import Counts, Watch


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
        counts.add("rope", sum(t is not None for t in out) if isinstance(out, tuple | list) else 1)
        return out

    return wrapped


@contextmanager
def mixtures(model: nn.Module, counts: Counts) -> Iterator[None]:
    """Count calls of modules that run the experts that a router chose."""
    with _counted(model, _mixes, "moe", counts):
        yield


@contextmanager
def _counted(model: nn.Module, wanted: Callable[[nn.Module], bool], kind: str, counts: Counts) -> Iterator[None]:
    """Count calls of some modules, while they run."""
    hooks = [m.register_forward_pre_hook(lambda *_: counts.add(kind)) for m in model.modules() if wanted(m)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mixes(module: nn.Module) -> bool:
    """Its class is named after experts, not after shared ones, and it owns two tensors with a matrix for each of them, or a module
    that does; or it owns two modules with such a tensor each."""
    name = type(module).__name__
    shared = "Shared" in name and "shared" not in type(module).__module__  # there is a GraniteMoeShared, with experts of all kinds
    if shared or ("Experts" not in name and "MoE" not in name):
        return False
    children = list(module.children())
    pairs = sum(type(m).__name__.endswith("ParallelExperts") for m in children) == 2
    return pairs or ("Experts" in name and (_stacks(module) >= 2 or any(type(m).__name__.endswith("ExpertGLU") for m in children)))


def _stacks(module: nn.Module) -> int:
    return sum(p.ndim == 3 for p in module.parameters(recurse=False))


_NORMS = ("RMSNorm", "RMSNormGated", "L2Norm", "LayerNorm", "LayerNorm1P")
# Norms by name that compute something else: the inverse root mean square alone, or vectors of length one. Those of Llama 4's L2Norm have a root mean
# square of one.
_NO_NORMS = frozenset({"HYV4UnweightedRMSNorm", "HYV4VLUnweightedRMSNorm", "DoryL2Norm"})


@contextmanager
def norms(model: nn.Module, counts: Counts) -> Iterator[None]:
    """Count calls of modules that are norms by name, and of PyTorch's functions anywhere else."""
    inside = {path for path, module in model.named_modules() if _is_norm(module)}
    with _counted(model, _is_norm, "norm", counts), _NormFunctions(counts, inside):
        yield


def _is_norm(module: nn.Module) -> bool:
    """It holds no other one: a few models wrap a norm and a gate in a module named like a norm."""
    name = type(module).__name__
    return name.endswith(_NORMS) and name not in _NO_NORMS and not any(_is_norm(m) for m in module.children())


class _NormFunctions(Watch):
    def __init__(self, counts: Counts, inside: set[str]) -> None:
        super().__init__(counts)
        self.inside = inside

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        if name in ("layer_norm", "rms_norm") and self.counts.places.here not in self.inside:
            self.counts.add("norm")
