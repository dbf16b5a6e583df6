"""Ops: one plain PyTorch function is reference, schema, fake implementation and fallback.

An op is registered as ``CompositeImplicitAutograd``: it stays whole in pre-dispatch graphs, where rules see it,
and is inlined by AOTAutograd, so that gradients and Inductor's fusion come from the reference itself. An
*implementation* (a kernel) is a second, opaque operator with the same schema; the lowering stage puts it in place
of the op where it applies.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfgraph.errors import InvalidOp
from hfgraph.graph.inputs import Inputs

NAMESPACE = "hfgraph"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
OPS: dict[str, Op] = {}
# Devices that kernels are for, and their dispatch keys. ROCm is "cuda" to PyTorch.
_DISPATCH = {"cuda": "CUDA", "cpu": "CPU"}


@dataclass(frozen=True)
class Cost:
    """Work of one call: floating-point operations and bytes moved. Either may be a sympy expression."""

    flops: Any = 0
    bytes: Any = 0


@dataclass(frozen=True)
class Implementation:
    """One kernel of an op.

    ``when(*args)`` says, from shapes, dtypes and scalars alone, whether it can take a call; ``auto`` whether the
    lowering picks it unasked, always or for some calls, which it may only where ``benchmarks/`` shows a gain over the inlined reference; ``native``
    whether its module loads a library, compiling it if need be, that registers the kernel itself.
    """

    op: str
    name: str
    device: str
    module: str
    when: Callable[..., bool]
    auto: bool | Callable[..., bool]
    target: torch._ops.OpOverload
    native: bool = False

    def load(self) -> Callable[..., Any]:
        """Import the kernel's module (triton, a compiler) and return its function, named after the op."""
        return getattr(importlib.import_module(self.module), self.op)

    def accepts(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self.when(*args, **kwargs))

    def wins(self, *args: Any, **kwargs: Any) -> bool:
        """It takes the call, and the lowering should pick it unasked."""
        auto = self.auto(*args, **kwargs) if callable(self.auto) else self.auto
        return auto and self.accepts(*args, **kwargs)

    def problem(self) -> str | None:
        """Why it cannot run on this machine, in words; None where it can. The first time, a native one is compiled."""
        return importlib.import_module(self.module).problem() if self.native else None


@dataclass(eq=False)
class Op:
    """A function of tensors and scalars that rules can recognise, with everything known about it."""

    name: str
    reference: Callable[..., Any]
    cost: Callable[..., Cost]
    inputs: Inputs
    shardings: Mapping[str, tuple[Any, Any]]
    target: torch._ops.OpOverload
    digest: str
    counted_as: str = ""
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def impl(self, name: str, *, device: str, load: str, when: Callable[..., bool], auto: bool | Callable[..., bool] = False, native: bool = False) -> None:
        """Attach a kernel. ``load`` is a module relative to the op's package that defines a function named after the op.

        A native one also defines ``problem()``, which loads a library that registers the kernel for the operator named
        ``OP__NAME`` and ``device``, and returns None, or says in words why it cannot.
        """
        if name in self.implementations or name == "reference":
            raise InvalidOp(f"op {self.name!r} already has an implementation {name!r}; give the new one another name.")
        if device not in _DISPATCH:
            raise InvalidOp(f"implementation {name!r} of op {self.name!r} is for device {device!r}; expected one of {', '.join(_DISPATCH)}.")
        module = self.reference.__module__ + load
        kernel_name = f"{self.name}__{name}"
        # A library's kernel is for the device, and goes before one for all devices, which loads it when called too early.
        target = _register_opaque(kernel_name, self, "CompositeExplicitAutograd" if native else _DISPATCH[device], module)
        self.implementations[name] = Implementation(self.name, name, device, module, when, auto, target, native)


def op(
    *, cost: Callable[..., Cost], inputs: Inputs, shardings: Mapping[str, tuple[Any, Any]] | None = None, counted_as: str = ""
) -> Callable[[Callable[..., Any]], Op]:
    """Register a plain PyTorch function as an op.

    Args:
        cost: same parameters as the function, returns a `Cost`; sizes may be symbolic.
        inputs: describes valid arguments; tests, benchmarks and tracing use it.
        shardings: name -> (placement per tensor argument, placement per output): ways to compute the op on shards
            that need no communication. Placements are ``torch.distributed.tensor`` ones.
        counted_as: the op under whose name reports count this one, where it is a part of that; its own name otherwise.

    Raises:
        InvalidOp: the function cannot be given a schema. That it must not write its arguments shows only when it runs:
            the generic tests of ops check it.
    """

    def register(reference: Callable[..., Any]) -> Op:
        name = reference.__name__
        if name in OPS:
            raise InvalidOp(f"an op named {name!r} exists already, in {OPS[name].reference.__module__}.")
        try:
            schema = torch.library.infer_schema(reference, mutates_args=())
        except ValueError as e:
            raise InvalidOp(f"op {name!r} cannot be given a schema: {e}") from e
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, reference, "CompositeImplicitAutograd")
        target = getattr(getattr(torch.ops, NAMESPACE), name).default
        digest = hashlib.sha256(inspect.getsource(reference).encode()).hexdigest()
        new = Op(name, reference, cost, inputs, shardings or {}, target, digest, counted_as or name)
        OPS[name] = new
        return new

    return register


def _register_opaque(name: str, owner: Op, key: str, module: str) -> torch._ops.OpOverload:
    """An opaque operator with the op's schema: kernel for a dispatch key, the reference for fakes and for gradients."""
    schema = torch.library.infer_schema(owner.reference, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{NAMESPACE}::{name}"

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), owner.name)(*args, **kwargs)

    _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(qualified, _contiguous_fake(owner.reference), lib=_LIBRARY)
    setup, backward = _recompute_gradient(owner)
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _contiguous_fake(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels write fresh contiguous outputs, whatever strides the reference would have."""

    def fake(*args: Any, **kwargs: Any) -> Any:
        out = reference(*args, **kwargs)
        if isinstance(out, Tensor):
            return torch.empty(out.shape, dtype=out.dtype, device=out.device)
        return tuple(torch.empty(o.shape, dtype=o.dtype, device=o.device) for o in out)

    return fake


def _recompute_gradient(owner: Op) -> tuple[Callable[..., None], Callable[..., Any]]:
    """A backward that differentiates the reference at the saved inputs: never zeros, whatever the kernel."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        ctx.save_for_backward(*[a for a in inputs if isinstance(a, Tensor)])
        ctx.args = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.is_tensor = [isinstance(a, Tensor) for a in inputs]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # The dispatcher leaves out trailing arguments that have their defaults.
        needs = (*ctx.needs_input_grad, *(False for _ in ctx.args))[: len(ctx.args)]
        saved = iter(ctx.saved_tensors)
        args = [next(saved).detach() if is_tensor else a for is_tensor, a in zip(ctx.is_tensor, ctx.args, strict=True)]
        wanted = [a.requires_grad_() for a, need in zip(args, needs, strict=True) if need and isinstance(a, Tensor)]
        with torch.enable_grad():
            out = owner.reference(*args)
        outs = [out] if isinstance(out, Tensor) else list(out)
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None]
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
        return tuple(next(found) if need and is_tensor else None for need, is_tensor in zip(ctx.needs_input_grad, ctx.is_tensor, strict=False))

    return setup, backward
