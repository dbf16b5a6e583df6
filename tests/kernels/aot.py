"""Compile Triton kernels for GPUs that are not there, and read from the binaries what they need."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hfgraph.kernels import all_ops
from hfgraph.kernels.launch import Launch


@dataclass(frozen=True)
class Target:
    """A GPU generation; `shared` is the most shared memory that one block may have, in bytes."""

    name: str
    gpu: GPUTarget
    shared: int


TARGETS = (
    Target("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024),
    Target("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024),
    Target("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024),
    Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024),
)


@dataclass(frozen=True)
class Needs:
    """Bytes (registers on AMD) kept outside registers for want of them, and bytes of shared memory."""

    spilled: int
    shared: int


def launches() -> dict[str, Launch]:
    """Every launch that the rooms' Triton modules announce, by "op/launch"; a room that announces none is an error."""
    found: dict[str, Launch] = {}
    for op in all_ops().values():
        if "triton" not in op.implementations:
            continue
        module = importlib.import_module(op.implementations["triton"].module)
        announced = getattr(module, "AOT", ())
        assert announced, f"{module.__name__} has no AOT: list its kernels' launches there, so that they are compiled without a GPU."
        names = [f"{op.name}/{launch.name}" for launch in announced]
        assert len(set(names)) == len(names), f"{module.__name__}.AOT names a launch twice: {sorted({n for n in names if names.count(n) > 1})}"
        found |= dict(zip(names, announced, strict=True))
    return found


def compiled(launch: Launch, target: Target) -> Any:
    """The compiled kernel, with ``asm`` and ``metadata``."""
    names = launch.kernel.arg_names
    signature = {n: launch.signature.get(n, "constexpr") for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in launch.aligned}
    source = ASTSource(launch.kernel, signature, dict(launch.constexprs), attributes)
    return triton.compile(source, target=target.gpu, options=dict(launch.options))


def needs(kernel: Any) -> Needs:
    """Read the binary: for NVIDIA a stack frame means spills (the kernels declare no arrays), AMD counts them itself."""
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # What the driver itself reserves (1 KiB from sm_90 on) is in SHARED too; Triton's number is what the kernel asks for.
        return Needs(spilled=_total(r"(?:STACK|LOCAL):(\d+)", usage), shared=kernel.metadata.shared)
    text = kernel.asm["amdgcn"]
    # Scalars without a register of their own go to lanes of vector registers (sgpr_spill_count); those that reach memory are in the segment.
    spilled = _total(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", text)
    return Needs(spilled=spilled, shared=max(kernel.metadata.shared, _total(r"\.group_segment_fixed_size:\s+(\d+)", text)))


def _total(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    assert found, f"nothing in the compiler's output matches {pattern!r}; has its format changed?"
    return sum(map(int, found))
