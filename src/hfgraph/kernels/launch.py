"""What a Triton kernel's room says about its launches, so that they can be compiled on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One way in which a kernel may be launched. A room's ``triton.py`` lists all of its own in a tuple named ``AOT``.

    Args:
        name: says which way, in test names.
        kernel: the ``triton.jit`` function.
        signature: argument -> Triton type ("*bf16", "i32", "fp32"), without the constexprs.
        constexprs: argument -> value; also arguments that Triton specialises away (None, and integers equal to 1).
        options: ``num_warps`` and the like.
        aligned: arguments that Triton may take for divisible by 16; it compiles such a launch apart.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
