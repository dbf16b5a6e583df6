"""Triton kernels of mixtures of experts against the reference; see `test_triton_numbers.py` for where they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU; test_in_interpreter.py runs this file in the interpreter", allow_module_level=True)

from kernel_cases import DTYPES  # noqa: E402
from moe_cases import LAYOUTS, OP, SETTINGS, SIZES, Size, far_values, laid_out, one_by_one  # noqa: E402
from moe_cases import check as judge  # noqa: E402
from moe_cases import made as on_cpu  # noqa: E402
from test_triton_numbers import callable_here, poisoned  # noqa: E402, F401

from hfgraph.kernels.moe._config import CONFIGS, Config, config_for, is_regular  # noqa: E402

# The interpreter's NumPy says so where exp(-x) overflows, which gives the right sigmoid, and where infinities meet.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")]
KERNEL = OP.implementations["triton"].load()
UNEVEN = Size(16, 2, 2, 80, 48)  # one expert has a full tile and some rows more; sizes fill no block, but rows are aligned
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def made(size: Size, dtype: torch.dtype, setting: str = "silu", scale: float = 1.0) -> dict[str, Any]:
    return on_device(on_cpu(size, dtype, setting, scale))


def on_device(given: Mapping[str, Any]) -> dict[str, Any]:
    return {n: a.to(DEVICE) if isinstance(a, Tensor) else a for n, a in given.items()}


def check(given: Mapping[str, Any]) -> Tensor:
    """Accepted, inputs left alone, and right; returns the result."""
    assert OP.implementations["triton"].accepts(**given)
    before = {n: t.clone() for n, t in given.items() if isinstance(t, Tensor)}
    got = KERNEL(**given)
    assert all(torch.equal(given[n], t) for n, t in before.items()), "an input was written to"
    judge(got, given)
    return got


# --- numbers ------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_reference(setting: str, dtype: torch.dtype) -> None:
    check(made(UNEVEN, dtype, setting))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    check(made(SIZES[size], torch.bfloat16, "biases"))


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scales(scale: float, dtype: torch.dtype) -> None:
    check(made(UNEVEN, dtype, "biases", scale if dtype is not torch.float16 else min(scale, 10.0)))  # float16 holds no more


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_every_tile(config: Config) -> None:
    """One expert has a few rows more than a tile, another has none. Sizes that fill blocks, and some columns more."""
    dtype = torch.float32 if config.size == 4 else torch.bfloat16
    for width, inner in ((config.depth, config.columns), (config.columns + 16, 2 * config.columns)):
        given = made(Size(config.rows + 3, 1, 2, width, inner), dtype)
        assert config_for(config.rows + 3, 2, config.size, is_regular(given["gate_up"]) and is_regular(given["down"])) is config
        check({**given, "expert_ids": torch.ones_like(given["expert_ids"])})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    for dtype, setting in ((torch.float32, "biases"), (torch.bfloat16, "biases, interleaved")):
        check(laid_out(made(UNEVEN, dtype, setting), layout))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("setting", ["biases", "biases, interleaved", "no gate, biases", "weights first", "weights in float32", "clamped after"])
def test_it_rounds_where_the_reference_rounds(setting: str, dtype: torch.dtype) -> None:
    """Sums of whole numbers are exact in any order, and so is one product alone: what is left are the roundings, and the results are equal."""
    given = made(UNEVEN, dtype, setting) | {"activation": "relu2"}
    for name in ("x", "gate_up"):
        given[name] = torch.randint(-15, 16, given[name].shape).to(given[name])
    given["gate_up"] /= 256
    given["down"] = torch.randint(1, 16, given["down"].shape).to(given["down"])
    given["down"][:, torch.arange(80)[:, None] % 48 != torch.arange(48)] = 0
    got = KERNEL(**given)
    assert torch.equal(got, OP.reference(**given))
    wide = OP.reference(**{n: a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()})
    assert (got != wide.to(dtype)).float().mean() > 0.05, "roundings in between change nothing here"


@pytest.mark.parametrize(("tokens", "router", "experts"), [("fp32", "fp32", "bf16"), ("bf16", "fp16", "fp32"), ("fp16", "bf16", "bf16")])
@pytest.mark.parametrize("first", [0, 1])
def test_unlike_dtypes(tokens: str, router: str, experts: str, first: int) -> None:
    """What multiplies first or last is rounded as PyTorch's promotion says, and the sum is in the wider dtype."""
    given = made(UNEVEN, DTYPES[experts], "biases")
    check({**given, "x": given["x"].to(DTYPES[tokens]), "expert_weights": given["expert_weights"].to(DTYPES[router]), "weights_first": first})


@every_dtype
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "gelu_new", "relu2", "swish"])
def test_far_values_and_nan(activation: str, dtype: torch.dtype) -> None:
    given = on_device(far_values(activation, dtype))
    torch.testing.assert_close(KERNEL(**given), one_by_one(given), rtol=2e-6 if dtype is torch.float32 else 1e-2, atol=1e-30, equal_nan=True)


# --- which experts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [3, 40])
def test_all_tokens_to_one_expert(tokens: int) -> None:
    """Twice the same for each token; none is dropped, however many tiles the expert needs."""
    given = made(Size(tokens, 2, 5, 48, 40), torch.float32)
    given["expert_ids"] = torch.full_like(given["expert_ids"], 4)
    check(given)


def test_experts_that_nobody_chose_are_not_read() -> None:
    given = made(Size(3, 2, 12, 24, 16), torch.float32, "biases")
    idle = torch.ones(12, dtype=torch.bool, device=DEVICE)
    idle[given["expert_ids"].unique()] = False
    spoilt = {n: a.clone() if isinstance(a, Tensor) else a for n, a in given.items()}
    for name in ("gate_up", "down", "gate_up_bias", "down_bias"):
        spoilt[name][idle] = torch.nan
    assert torch.equal(KERNEL(**given), KERNEL(**spoilt))


def test_nan_stays_in_its_row() -> None:
    """Others of its tile keep their values, also those of a tile that its row fills up."""
    given = made(Size(40, 2, 3, 64, 48), torch.float32, "biases")
    clean = KERNEL(**given)
    for row in (0, 17):
        given["x"][row, 1] = torch.nan
    got, kept = KERNEL(**given), torch.arange(40, device=DEVICE) % 17 != 0
    kept[34] = True
    assert got[~kept].isnan().all() and torch.equal(got[kept], clean[kept])


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_nothing_to_do(ids: torch.dtype) -> None:
    given = made(Size(0, 2, 4, 8, 8), torch.bfloat16)
    assert KERNEL(**{**given, "expert_ids": given["expert_ids"].to(ids)}).shape == (0, 8)


# --- an operator --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck looks at it inside of autograd functions
def test_operator_contract() -> None:
    """Schema, fake implementation, autograd registration and gradient of the opaque operator."""
    given = OP.bind((), made(Size(3, 2, 2, 8, 8), torch.float32, "biases, interleaved"))
    wanted = [t.requires_grad_() for t in given.values() if isinstance(t, Tensor) and t.is_floating_point()]
    with callable_here(OP) as target:
        torch.library.opcheck(target, tuple(given.values()))
        seed = torch.randn_like(want := OP.reference(**given))
        for ours, theirs in zip(*(torch.autograd.grad(o, wanted, seed) for o in (target(**given), want)), strict=True):
            assert torch.equal(ours, theirs)


# --- sabotage -----------------------------------------------------------------------------------------


MUTANTS: list[tuple[str, dict[str, Any]]] = [
    *(("swish, clamps, offset", mutant) for mutant in ({"alpha": 1.5}, {"gate_max": None}, {"up_min": None}, {"up_max": None}, {"up_offset": 0.0})),
    *(("biases, interleaved", mutant) for mutant in ({"interleaved": 0}, {"gate_up_bias": None}, {"down_bias": None}, {"weights_first": 1})),
    ("clamped after", {"act_max": None}),
    ("gelu", {"activation": "gelu_tanh"}),
]


@pytest.mark.parametrize(("setting", "mutant"), MUTANTS)
def test_the_check_kills_mutants(setting: str, mutant: dict[str, Any]) -> None:
    """A kernel that forgets one argument, or takes it for another, is caught."""
    given = made(UNEVEN, torch.float32, setting)
    with pytest.raises(AssertionError, match="error to float64"):
        judge(KERNEL(**{**given, **mutant}), given)


def test_a_tile_too_few_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no program writes are NaN."""
    given = made(Size(5, 1, 5, 16, 16), torch.float32)
    given["expert_ids"] = torch.arange(5, device=DEVICE)[:, None]
    check(given)
    enough = Config.tiles
    monkeypatch.setattr(Config, "tiles", lambda *a: enough(*a) - 1)
    with pytest.raises(AssertionError):
        judge(KERNEL(**given), given)
