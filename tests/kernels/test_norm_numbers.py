"""RMSNorm kernels: cases from public bug reports that the generic tests would not make, and proof that the checks can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU; test_in_interpreter.py runs this file in the interpreter", allow_module_level=True)

import triton.language as tl  # noqa: E402
from kernel_cases import arguments, layouts, settings  # noqa: E402
from kernel_judge import check  # noqa: E402

from hfgraph.kernels import all_ops  # noqa: E402
from hfgraph.kernels.floats import narrow, widen  # noqa: E402

pytestmark = pytest.mark.gpu
OPS = {n: all_ops()[n] for n in ("rms_norm", "add_rms_norm")}
BF16 = torch.bfloat16


def kernel(name: str) -> Any:
    return OPS[name].implementations["triton"].load()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("value", [0.00390625, 15.8125])
def test_one_is_added_in_the_dtype_asked_for(name: str, value: float) -> None:
    """1 + w is 1.0 or 16.75 in bfloat16, 1.0039 or 16.8125 in float32."""
    results = []
    for setting in ("offset_in_single", "offset_in_place"):
        made = arguments(OPS[name], settings(OPS[name], BF16)[setting], BF16, DEVICE, sizes={"B": 16, "T": 4, "D": 64})
        made["weight"] = torch.full_like(made["weight"], value)
        got = kernel(name)(**made)
        check(OPS[name], got, made)
        results.append(got if name == "rms_norm" else got[0])
    assert (results[0] != results[1]).float().mean() > 0.1


@pytest.mark.parametrize("name", OPS)
def test_order_of_cast_and_weight(name: str) -> None:
    """With this weight the two orders differ in a quarter of the elements, so equality means the right one."""
    results = []
    for setting in ("rounds_then_weight", "rounds_last"):
        made = arguments(OPS[name], settings(OPS[name], BF16)[setting], BF16, DEVICE, sizes={"B": 32, "T": 32, "D": 64})
        made["weight"] = torch.full_like(made["weight"], 1.0078125)
        got = kernel(name)(**made)
        check(OPS[name], got, made)
        results.append(got if name == "rms_norm" else got[0])
    assert 0.15 < (results[0] != results[1]).float().mean() < 0.35


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("mutant", [{"eps": 1e-30}, {"offset": 0.0}, {"round_dtype": None, "out_dtype": BF16}, {"weight_dtype": None}])
def test_the_check_kills_mutants(name: str, mutant: dict[str, Any]) -> None:
    """A kernel that forgets one argument is caught."""
    op = OPS[name]
    setting = {"compute_dtype": torch.float32, "round_dtype": BF16, "offset": 1.0}
    if "weight_dtype" in mutant:
        setting = {"compute_dtype": torch.float32, "weight_dtype": torch.float32, "offset": 1.0, "out_dtype": BF16}
    caught = []
    for scale in op.inputs.scales:
        made = arguments(op, setting, BF16, DEVICE, scale=scale, sizes={"B": 8, "T": 8, "D": 128})
        if "residual" in made:
            made["residual"] = made["residual"] * scale
        check(op, kernel(name)(**made), made)
        try:
            check(op, kernel(name)(**{**made, **mutant}), made)
        except AssertionError:
            caught.append(scale)
    assert caught, f"{mutant} passes"
    # A lost eps shows only where the input is small: the reason for testing at several scales.
    assert 1e-3 in caught and (("eps" not in mutant) or 1e3 not in caught)


@pytest.mark.parametrize("name", OPS)
def test_the_check_kills_a_kernel_that_assumes_dense_rows(name: str) -> None:
    op = OPS[name]
    made = arguments(op, settings(op, BF16)["rounds_then_weight"], BF16, DEVICE, sizes={"B": 8, "T": 3, "D": 64})
    for layout, laid in layouts(op, made):
        if layout.startswith(("slice(x", "swapped(x", "stepped(", "expanded_rows(x")):
            dense = {n: v.as_strided(v.shape, torch.empty(v.shape).stride()) if isinstance(v, torch.Tensor) else v for n, v in laid.items()}
            with pytest.raises(AssertionError):
                check(op, kernel(name)(**dense), laid)


@pytest.mark.parametrize("name", OPS)
def test_refuses_what_it_was_not_written_for(name: str) -> None:
    op, single = OPS[name], torch.float32
    made = arguments(op, {"compute_dtype": single}, BF16, DEVICE, sizes={"B": 2, "T": 3, "D": 64})
    accepts = op.implementations["triton"].accepts
    assert accepts(*made.values()) and accepts(**made)
    wide, scalar = torch.ones(2, 3, 64, device=DEVICE), torch.ones((), device=DEVICE)
    refused = [{"compute_dtype": None}, {"compute_dtype": torch.float64}, {"weight": wide}, {"weight": scalar}, {"out_dtype": torch.float64}]
    refused += [{"weight": torch.ones(64, dtype=torch.float64)}, {"x": made["x"].double()}, {"weight_dtype": torch.float64}]
    for changes in refused:
        assert not accepts(**{**made, **changes}), changes
    narrow_rows = {n: v[..., :1] if n != "weight" and isinstance(v, torch.Tensor) else v for n, v in made.items()}
    assert not accepts(**narrow_rows)  # the weight would widen the result
    one = {**made, "weight": made["weight"][:1]}
    assert accepts(**one)
    check(op, kernel(name)(**one), one)


@triton.jit
def _casts(x, narrowed, back, N: tl.constexpr):
    at = tl.arange(0, N)
    value = narrow(tl.load(x + at), narrowed.dtype.element_ty)
    tl.store(narrowed + at, value)
    tl.store(back + at, widen(value))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # the interpreter's NumPy, about infinities
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_round_to_nearest_even(dtype: torch.dtype) -> None:
    """Every exponent, ties, numbers too small and too large, zeros of both signs, infinities, NaN with any payload."""
    high = torch.arange(0, 2**16, dtype=torch.int64)
    low = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0x1000, 0x3000, 0xFFFF])
    bits = (high[:, None] << 16 | low[None, :]).flatten()
    x = (bits - ((bits >> 31) << 32)).to(torch.int32).view(torch.float32).to(DEVICE)
    narrowed, back = torch.zeros(x.shape, dtype=dtype, device=DEVICE), torch.zeros_like(x)
    _casts[(1,)](x, narrowed, back, x.numel())
    assert torch.equal(narrowed.isnan(), x.isnan()) and torch.equal(back.isnan(), x.isnan())
    numbers = ~x.isnan()
    assert torch.equal(narrowed[numbers].view(torch.int16), x.to(dtype)[numbers].view(torch.int16))
    assert torch.equal(back[numbers].view(torch.int32), x.to(dtype)[numbers].float().view(torch.int32))
