"""`torch.compile(model).generate()` runs the module inside, uncompiled: say so, once."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from torch._dynamo.eval_frame import OptimizedModule

from hfgraph.errors import CompiledModuleBypassed

_METHODS = frozenset({"generate", "generate_batch"})


@cache
def watch() -> None:
    """Notice when such a method is looked up on a module compiled with this backend.

    Dynamo forwards the look-up to the inner module; there is no hook for it, hence the wrapped `__getattr__`.
    """
    original = OptimizedModule.__getattr__

    def __getattr__(self: OptimizedModule, name: str) -> Any:
        if name in _METHODS and _is_ours(self):
            _warn(name)
        return original(self, name)

    OptimizedModule.__getattr__ = __getattr__  # type: ignore[method-assign]


def _is_ours(module: OptimizedModule) -> bool:
    """Dynamo wraps the backend several times; the innermost wrapper knows its name."""
    found: Any = getattr(module.__dict__.get("dynamo_ctx"), "callback", None)
    while (inner := getattr(found, "_torchdynamo_orig_backend", None)) is not None:
        found = inner
    return getattr(found, "compiler_name", "") == "hfgraph"


@cache
def _warn(name: str) -> None:
    warnings.warn(
        f"torch.compile(model).{name}() calls the module inside, which is not compiled. Compile in place instead: "
        f'model.compile(backend="hfgraph"), then model.{name}(...).',
        CompiledModuleBypassed,
        stacklevel=3,
    )
