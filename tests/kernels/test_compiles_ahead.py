"""Every kernel x configuration compiles for every GPU we claim, without spills and within shared memory. No GPU needed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

import aot  # noqa: E402
import triton.language as tl  # noqa: E402
from aot import TARGETS, Target  # noqa: E402

from hfgraph.kernels import all_ops  # noqa: E402
from hfgraph.kernels.launch import Launch  # noqa: E402

LAUNCHES = aot.launches()


@pytest.mark.parametrize("name", LAUNCHES)
def test_compiles_within_limits(name: str) -> None:
    for target in TARGETS:
        used = aot.needs(aot.compiled(LAUNCHES[name], target))
        assert used.spilled == 0, f"{name} spills on {target.name}: {used}. Fewer elements per thread, or more warps."
        assert used.shared <= target.shared, f"{name} needs {used.shared} bytes of shared memory, {target.name} has {target.shared}"


def test_every_room_with_a_triton_kernel_is_here() -> None:
    assert {n.split("/")[0] for n in LAUNCHES} == {op.name for op in all_ops().values() if "triton" in op.implementations}


@triton.jit
def _greedy(x, out, N: tl.constexpr):
    """Keeps N values alive across a reduction: with one warp far more than registers hold."""
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(out + at, value / tl.sum(value))


def test_the_check_sees_spills() -> None:
    """Few registers allowed: by the option for it on NVIDIA, by asking for many resident waves on AMD."""
    for target, few in ((TARGETS[1], {"maxnreg": 32}), (TARGETS[3], {"waves_per_eu": 8})):
        greedy = Launch("greedy", _greedy, {"x": "*fp32", "out": "*fp32"}, {"N": 8192}, {"num_warps": 1, "enable_fp_fusion": False, **few})
        assert aot.needs(aot.compiled(greedy, target)).spilled > 0


def test_rounding_points_survive_compilation() -> None:
    """A cast down and up again is arithmetic: no compiler stage may drop the pair."""
    launch = LAUNCHES["rms_norm/one_pass-1x2048-8warps-dense-bf16-weight_bf16_bf16-scale_None-round_bf16-out_bf16"]
    without = replace(launch, constexprs={**launch.constexprs, "ROUND": None})
    # 2048 elements over 256 threads, 8 each, are rounded before the weight and at the end. The second rounding may be that of a
    # multiplication in bfloat16, which gives the same number: a product of two bfloat16 is exact in float32.
    assert [_roundings(each, TARGETS[1], r"(?:cvt\.rn\.|mul\.rn\.|mul\.)bf16(x2)?\b") for each in (launch, without)] == [16, 8]
    # This target has no such cast; adding 0x7fff and the last kept bit is one instruction. 512 threads, 4 elements each.
    assert [_roundings(each, TARGETS[3], r"v_add3_u32\b()") for each in (launch, without)] == [8, 4]


def _roundings(launch: Launch, target: Target, instruction: str) -> int:
    text = aot.compiled(launch, target).asm["ptx" if target.gpu.backend == "cuda" else "amdgcn"]
    return sum(2 if wide else 1 for wide in re.findall(instruction, text))
