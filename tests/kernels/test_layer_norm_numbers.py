"""LayerNorm kernels: what the generic tests would not see, and proof that their checks can fail on these ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU; test_in_interpreter.py runs this file in the interpreter", allow_module_level=True)

from kernel_cases import arguments, settings  # noqa: E402
from kernel_judge import check  # noqa: E402

from hfgraph.kernels import all_ops  # noqa: E402

pytestmark = pytest.mark.gpu
OPS = {n: all_ops()[n] for n in ("layer_norm", "add_layer_norm")}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SIZES = {"B": 8, "T": 8, "D": 128}


def kernel(name: str) -> Any:
    return OPS[name].implementations["triton"].load()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("width", [128, 9000])
def test_a_large_mean_does_not_cancel_the_variance(name: str, width: int) -> None:
    """Values around 1000 that differ by one: a mean of squares less a squared mean would be off by a tenth."""
    made = arguments(OPS[name], {}, FP32, DEVICE, sizes={"B": 2, "T": 2, "D": width})
    made["x"] = made["x"] + 1000
    check(OPS[name], kernel(name)(**made), made)
    h = made["x"] + made.get("residual", 0)
    naive = h.square().mean(-1, keepdim=True) - h.mean(-1, keepdim=True).square()
    wrong = (h - h.mean(-1, keepdim=True)) * torch.rsqrt(naive + made["eps"]) * made["weight"] + made["bias"]
    with pytest.raises(AssertionError):
        check(OPS[name], wrong if name == "layer_norm" else (wrong, h), made)


MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eps": ("default", {"eps": 1e-30}),
    "bias": ("default", {"bias": None}),
    "weight": ("default", {"weight": None}),
    "offset": ("offset", {"offset": 0.0}),
    "rounds before the weight": ("rounds_then_weight", {"round_dtype": None, "out_dtype": BF16}),
    "rounds after the weight": ("weight_in_single", {"out_dtype": None, "round_dtype": BF16, "weight_dtype": BF16}),
    "spelled for the operator": ("default", {"spelled": 1, "compute_dtype": FP32, "round_dtype": BF16}),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_kills_mutants(name: str, mutant: str) -> None:
    """A kernel that forgets one argument is caught, at some scale of the input."""
    op, (setting, change) = OPS[name], MUTANTS[mutant]
    caught = 0
    for scale in op.inputs.scales:
        made = arguments(op, settings(op, BF16)[setting], BF16, DEVICE, scale=scale, sizes=SIZES)
        if "residual" in made:
            made["residual"] = made["residual"] * scale
        check(op, kernel(name)(**made), made)
        try:
            check(op, kernel(name)(**{**made, **change}), made)
        except AssertionError:
            caught += 1
    assert caught, f"{mutant} passes"


@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_a_multiplier_is_not_forgotten_and_rounds_its_product(name: str) -> None:
    op = all_ops()[name]
    made = arguments(op, settings(op, BF16)["multiplied"], BF16, DEVICE, sizes=SIZES)
    run = op.implementations["triton"].load()
    check(op, run(**made), made)
    with pytest.raises(AssertionError):
        check(op, run(**{**made, "multiplier": 1.0}), made)
    exact = (made["x"].float() * 0.22 + made["residual"].float()).to(BF16)
    assert torch.equal(run(**made)[1], made["x"] * 0.22 + made["residual"]) and not torch.equal(run(**made)[1], exact)


@pytest.mark.parametrize("name", OPS)
def test_refuses_what_it_was_not_written_for(name: str) -> None:
    op = OPS[name]
    made = arguments(op, {}, BF16, DEVICE, sizes={"B": 2, "T": 3, "D": 64})
    accepts = op.implementations["triton"].accepts
    assert accepts(*made.values()) and accepts(**made)
    spelled = {"spelled": 1}
    refused = [{"divide": 1}, spelled, {**spelled, "compute_dtype": FP16}, {"compute_dtype": torch.float64}, {"compute_dtype": FP16}, {"round_dtype": FP16}]
    refused += [{"weight": made["weight"][:1]}, {"bias": made["bias"].double()}, {"x": made["x"].double()}, {"out_dtype": torch.float64}]
    for changes in refused:
        assert not accepts(**{**made, **changes}), changes
    for changes in ({**spelled, "compute_dtype": FP32}, {"round_dtype": FP32}, {"compute_dtype": FP32, "round_dtype": FP16}, {"weight": None, "bias": None}):
        assert accepts(**{**made, **changes}), changes
        check(op, op.implementations["triton"].load()(**{**made, **changes}), {**made, **changes})
