"""The C++ kernel of mixtures of experts against the reference: every attribute, what it must not read, any number of threads, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from moe_cases import DTYPES, LAYOUTS, OP, REFUSED, SETTINGS, SIZES, Size, check, far_values, laid_out, made, one_by_one, refuses
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hfgraph.graph.op import NAMESPACE
from hfgraph.kernels.moe.fits import cpp_wins
from hfgraph.lower import lower

CPP = OP.implementations["cpp"]
if (_problem := CPP.problem()) is not None:
    pytest.skip(_problem, allow_module_level=True)
KERNEL: Any = CPP.target
pytestmark = pytest.mark.usefixtures("poisoned_cpu")
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_setting = pytest.mark.parametrize("setting", SETTINGS)
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


# --- numbers ------------------------------------------------------------------------------------------


@every_dtype
@every_setting
@every_size
def test_numbers(size: Size, setting: str, dtype: torch.dtype) -> None:
    for scale in (1.0, 1e-3, 1e3):
        given = made(size, dtype, setting, scale=scale)
        assert CPP.accepts(**given), "the guard refuses what the kernel takes"
        check(KERNEL(**given), given)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    for size in ("odd", "bulk", "many experts"):
        for setting in ("biases", "biases, interleaved"):
            given = made(SIZES[size], dtype, setting)
            laid = laid_out(given, layout)
            assert CPP.accepts(**laid)
            check(KERNEL(**laid), laid)
            if "turned matrices" not in layout:
                continue
            assert (KERNEL(**laid) - KERNEL(**given)).abs().max() <= 0.02 * KERNEL(**given).abs().max()


@every_dtype
@pytest.mark.parametrize("tokens", [3, 9, 40])
def test_all_tokens_to_one_expert(tokens: int, dtype: torch.dtype) -> None:
    given = made(Size(tokens, 2, 5, 48, 40), dtype)
    given["expert_ids"] = torch.full_like(given["expert_ids"], 4)  # twice the same for each
    check(KERNEL(**given), given)


@every_dtype
def test_one_expert_chosen_twice_counts_twice(dtype: torch.dtype) -> None:
    given = made(SIZES["decode"], dtype)
    given["expert_ids"][:] = 3
    given["expert_weights"][:] = 0.5
    once = {**given, "expert_ids": given["expert_ids"][:, :1], "expert_weights": given["expert_weights"][:, :1] * 2}
    torch.testing.assert_close(KERNEL(**given), KERNEL(**once), rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=0)


def test_nothing_to_do() -> None:
    assert KERNEL(**made(Size(0, 2, 4, 8, 8), torch.float32)).shape == (0, 8)


@every_dtype
def test_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    for size in ("odd", "some in bulk"):
        given = made(SIZES[size], dtype, "biases")
        clean = KERNEL(**given)
        given["x"][2, 1] = torch.nan
        got = KERNEL(**given)
        assert got[2].isnan().all()
        assert torch.equal(torch.cat([got[:2], got[3:]]), torch.cat([clean[:2], clean[3:]]))


@every_dtype
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "gelu_new", "relu2", "swish"])
def test_far_values_and_nan(activation: str, dtype: torch.dtype) -> None:
    given = far_values(activation, dtype)
    torch.testing.assert_close(KERNEL(**given), one_by_one(given), rtol=2e-6 if dtype is torch.float32 else 1e-2, atol=1e-30, equal_nan=True)


# --- what must not be read ----------------------------------------------------------------------------


@every_dtype
@every_size
def test_experts_that_nobody_chose_are_not_read(size: Size, dtype: torch.dtype) -> None:
    given = made(size, dtype, "biases")
    given["expert_ids"] %= max(1, size.experts - 1)
    given["expert_ids"][:] = torch.where(given["expert_ids"] == 1, 0, given["expert_ids"])
    idle = torch.ones(size.experts, dtype=torch.bool)
    idle[given["expert_ids"].unique()] = False
    spoilt = {n: a.clone() if isinstance(a, Tensor) else a for n, a in given.items()}
    for name in ("gate_up", "down", "gate_up_bias", "down_bias"):
        spoilt[name][idle] = torch.nan
    assert torch.equal(KERNEL(**given), KERNEL(**spoilt))


# --- threads ------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("setting", ["silu", "biases", "weights first"])
def test_threads_change_nothing(setting: str, dtype: torch.dtype) -> None:
    given = made(Size(4, 4, 16, 256, 300), dtype, setting)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(KERNEL(**given))
    finally:
        torch.set_num_threads(before)
    check(results[0], given)
    assert all(torch.equal(results[0], r) for r in results)


# --- an operator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["silu", "biases, interleaved"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck looks at it inside of autograd functions
def test_operator_contract(setting: str) -> None:
    given = OP.bind((), made(SIZES["odd"], torch.float32, setting))
    torch.library.opcheck(KERNEL, tuple(a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in given.values()))


def test_the_gradient_is_the_references() -> None:
    given = made(SIZES["odd"], torch.float32, "biases")
    given = {n: a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()}
    wanted = [a for a in given.values() if isinstance(a, Tensor) and a.requires_grad]
    seed = torch.randn_like(OP.reference(**given))
    ours, theirs = (torch.autograd.grad(f(**given), wanted, seed) for f in (KERNEL, OP.reference))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_call_before_loading_loads() -> None:
    given = made(SIZES["decode"], torch.float32)
    assert torch.equal(CPP.load()(**given), KERNEL(**given))
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::moe__cpp", "CPU")


# --- what it refuses ----------------------------------------------------------------------------------

ALSO_REFUSED: dict[str, dict[str, Any]] = REFUSED | {
    "half precision": dict.fromkeys(("x", "gate_up", "down"), torch.float16),
    "stepped tokens": {"x": torch.zeros(1, 128)[:, ::2]},
    "stepped matrices": {"gate_up": torch.zeros(8, 384, 128)[:, ::2, ::2]},
}


@pytest.mark.parametrize("what", ALSO_REFUSED)
def test_it_refuses(what: str) -> None:
    assert refuses(CPP.accepts, ALSO_REFUSED[what])


def test_what_only_the_run_knows_is_checked() -> None:
    given = made(SIZES["odd"], torch.float32, "biases")
    for bad, words in ((7, "expert 7 is chosen, and there are 7"), (-1, "expert -1 is chosen")):
        with pytest.raises(RuntimeError, match=words):
            KERNEL(**with_id(given, bad))
    with pytest.raises(RuntimeError, match="there are 4 tokens, choices of 5"):
        KERNEL(**{**given, "x": given["x"][:4]})


@every_dtype
@pytest.mark.parametrize("size", ("odd", "bulk"))
def test_an_id_past_the_last_stands_for_no_expert(size: str, dtype: torch.dtype) -> None:
    """As where a model keeps part of its experts, and the router chose another: nothing is added for it."""
    given = made(SIZES[size], dtype)
    experts, asked = SIZES[size].experts, with_id(given, SIZES[size].experts + 3)
    weights = given["expert_weights"].clone()
    weights[1, 1] = 0
    want = OP.reference(**given | {"expert_weights": weights})
    for got in (KERNEL(**asked), KERNEL(**with_id(given, experts)), OP.reference(**asked)):
        torch.testing.assert_close(got, want, atol=1e-5 if dtype is torch.float32 else 2e-2, rtol=1e-2)


def with_id(given: dict[str, Any], expert: int) -> dict[str, Any]:
    ids = given["expert_ids"].clone()
    ids[1, 1] = expert
    return {**given, "expert_ids": ids}


# --- in a graph ---------------------------------------------------------------------------------------


def test_it_is_lowered_to_but_not_in_training() -> None:
    given = made(SIZES["decode"], torch.bfloat16)
    assert _lowered(given) == 0, "in training the reference is differentiated and fused"
    with torch.no_grad():
        assert _lowered(given) == (1 if CPP.wins(**given) else 0)
        assert _lowered(given, {"moe": "cpp"}) == 1 and _lowered(given, {"moe": "reference"}) == 0


def test_it_is_picked_unasked_where_it_wins() -> None:
    few, many = Size(4, 2, 3, 16, 16), Size(97, 2, 3, 16, 16)
    turned = laid_out(made(few, torch.float32), "turned matrices")
    for wins, given in (
        (True, made(few, torch.bfloat16)), (True, made(many, torch.bfloat16)), (True, made(few, torch.float32)), (False, made(many, torch.float32)),
        (False, turned), (True, laid_out(made(few, torch.bfloat16), "turned matrices")),
    ):  # fmt: skip
        assert CPP.accepts(**given) and CPP.wins(**given) is wins
    unknown: Any = SimpleNamespace(numel=lambda: object())
    assert cpp_wins(**{**made(few, torch.bfloat16), "expert_ids": unknown}) and not cpp_wins(**{**made(few, torch.float32), "expert_ids": unknown})


def _lowered(given: dict[str, Any], asked: dict[str, str] | None = None) -> int:
    names = [n for n, a in given.items() if isinstance(a, Tensor)]
    gm = make_fx(lambda *args: OP(**dict(zip(names, args, strict=True))), pre_dispatch=True, tracing_mode="fake")(*(given[n] for n in names))
    for node in gm.graph.find_nodes(op="placeholder"):
        node.meta["val"].requires_grad_(node.meta["val"].is_floating_point() and torch.is_grad_enabled())
    lower(gm, asked or {})
    return len(gm.graph.find_nodes(op="call_function", target=KERNEL))


def test_with_a_growing_number_of_tokens_nothing_is_fixed() -> None:
    compiled = torch.compile(lambda *args: OP(*args) + 1, backend="hfgraph", options={"inductor": False, "strict": True, "kernels": {"moe": "cpp"}})
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (3, 5, 70):
            args = [a for a in made(Size(tokens, 2, 6, 32, 24), torch.bfloat16).values() if isinstance(a, Tensor)]
            for a in args[:3]:
                torch._dynamo.mark_dynamic(a, 0)
            assert torch.equal(compiled(*args), KERNEL(*args) + 1)


# --- sabotage -----------------------------------------------------------------------------------------

WRONG = {
    "three per cent off": lambda y: y * 1.03,
    "one element": lambda y: y.index_put((torch.tensor(0), torch.tensor(0)), y[0, 0] * 2 + 1),
    "not written": lambda y: torch.where(torch.arange(y.shape[1]) == 3, torch.nan, y),
    "another dtype": lambda y: y.double(),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_noticed(what: str) -> None:
    given = made(SIZES["odd"], torch.float32)
    with pytest.raises(AssertionError):
        check(WRONG[what](KERNEL(**given)), given)
