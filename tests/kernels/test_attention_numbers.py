"""Attention kernels against the reference; see `test_triton_numbers.py` for where they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU; test_in_interpreter.py runs this file in the interpreter", allow_module_level=True)

from attention_cases import CASES, SIZES, Sizes, arguments  # noqa: E402
from kernel_cases import DTYPES  # noqa: E402
from kernel_judge import check_sums  # noqa: E402
from test_triton_numbers import callable_here, poisoned  # noqa: E402, F401

from hfgraph.kernels import all_ops  # noqa: E402
from hfgraph.kernels.attention import _config  # noqa: E402

# The interpreter's NumPy says so where a query without any key gets NaN.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")]
OP = all_ops()["attention"]
KERNEL = OP.implementations["triton"].load()
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def check(made: Mapping[str, Any]) -> Tensor:
    """Accepted, inputs left alone, and right; returns the result."""
    assert OP.implementations["triton"].accepts(**made)
    before = {n: t.clone() for n, t in made.items() if isinstance(t, Tensor)}
    got = KERNEL(**made)
    assert all(torch.equal(made[n].nan_to_num(), t.nan_to_num()) for n, t in before.items()), "an input was written to"
    check_sums(OP, got, made)
    return got


@every_dtype
@every_size
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(sizes: Sizes, name: str, dtype: torch.dtype) -> None:
    check(arguments(sizes, dtype, name, DEVICE))


@every_dtype
@every_size
@pytest.mark.parametrize("scale", [1e-3, 10.0, 100.0])
def test_scales(sizes: Sizes, scale: float, dtype: torch.dtype) -> None:
    check(arguments(sizes, dtype, "sinks", DEVICE, scale=scale))


MUTANTS = [(n, m) for n, c in CASES.items() for m in c.mutants]


@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_the_check_kills_mutants(name: str, mutant: str) -> None:
    """A kernel that forgets one argument, or takes it for another, is caught in one of the sizes."""
    caught = []
    for sizes in SIZES.values():
        made = arguments(sizes, torch.float32, name, DEVICE)
        try:
            check_sums(OP, OP.reference(**{**made, mutant: CASES[name].mutants[mutant]}), made)
            caught.append(False)
        except AssertionError:
            caught.append(True)
    assert any(caught)


@pytest.mark.parametrize("width", [(8, 8), (1, 3), (128, 96), (63, 256), (256, 63)], ids=str)
@every_dtype
def test_widths(width: tuple[int, int], dtype: torch.dtype) -> None:
    for sizes in (Sizes(1, 2, 1, 33, 50, *width), Sizes(1, 2, 1, 1, 131, *width)):
        check(arguments(sizes, dtype, "mask_of_keys", DEVICE))


@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (5, 1)], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 130), (2, 257), (17, 16), (31, 64), (50, 33)])
def test_lengths_and_groups(queries: int, keys: int, heads: tuple[int, int]) -> None:
    for name in ("causal", "bias"):
        check(arguments(Sizes(2, *heads, queries, keys, 16, 16), torch.float32, name, DEVICE))


def _around(t: Tensor) -> Tensor:
    """A view of every other element of a slice; what lies between and around is NaN, or what would change a mask."""
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 3), True if t.dtype is torch.bool else float("nan") if t.is_floating_point() else 1)
    inner = wide[..., 2 : 2 + 2 * t.shape[-1] : 2]
    inner.copy_(t)
    return inner


def _swap(*dims: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.transpose(*dims).contiguous().transpose(*dims) if t.ndim > 2 else t


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "around": _around,
    "projected": _swap(-3, -2),
    "columns": _swap(-2, -1),
    "batch_inside": _swap(0, -1),
    "one_row": lambda t: t[..., :1, :].expand_as(t) if t.ndim > 1 else t,
    "one_head": lambda t: t[:, :1].expand_as(t) if t.ndim > 2 else t,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_size
def test_any_layout(sizes: Sizes, layout: str) -> None:
    made = arguments(replace(sizes, batch=2), torch.float16, "all", DEVICE)
    for chosen in ("q", "k", "v", "mask", "bias", "segments"):
        laid = {n: LAYOUTS[layout](t) if n == chosen else t for n, t in made.items()}
        check(laid)


@pytest.mark.parametrize("leading", [(), (2, 1, 2)], ids=str)
def test_leading_dims(leading: tuple[int, ...]) -> None:
    made = arguments(Sizes(4, 2, 2, 5, 20, 16, 8), torch.float32, "mask", DEVICE)
    shaped = {n: (t[0] if not leading else t.unflatten(0, leading)) if isinstance(t, Tensor) else t for n, t in made.items()}
    check(shaped)


@every_size
def test_keys_out_of_reach_are_not_read(sizes: Sizes) -> None:
    """NaN in every block of keys that no query may attend to, before the window and behind the last query."""
    made = arguments(replace(sizes, keys=640), torch.float32, "plain", DEVICE)
    for structure in ({"left": 20, "right": 0}, {"chunk": 128, "right": 0}):
        for position in ({"start": torch.tensor(300, device=DEVICE)}, {"offset": 300}):
            clean = {**made, **structure, **position}
            want = KERNEL(**clean)
            k, v = made["k"].clone(), made["v"].clone()
            for t in (k, v):
                t[..., :192, :] = t[..., 448:, :] = float("nan")
            assert torch.equal(KERNEL(**{**clean, "k": k, "v": v}), want)


def test_a_key_that_is_not_a_number_shows() -> None:
    """The check above can fail: the same within reach."""
    made = arguments(SIZES["few"], torch.float32, "causal", DEVICE)
    made["k"][..., 7, :] = float("nan")
    assert KERNEL(**made).isnan().all()


def test_few_queries_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parts as there are double blocks, one where nothing may be split; the same result up to rounding."""
    made = arguments(Sizes(1, 4, 2, 1, 500, 32, 32), torch.float32, "all", DEVICE)
    counts, results = [], []
    ask = _config.parts
    for most in (64, 3, 1):
        monkeypatch.setattr(_config, "MOST_PARTS", most)
        monkeypatch.setattr("hfgraph.kernels.attention.triton.parts", lambda *a: counts.append(ask(*a)) or counts[-1])
        results.append(check(made))
    assert counts[0] > counts[1] == 3 > counts[2] == 1
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


@pytest.mark.parametrize("empty", [{"queries": 0}, {"batch": 0}, {"v_width": 0}])
def test_no_elements(empty: dict[str, int]) -> None:
    made = arguments(replace(SIZES["few"], **empty), torch.bfloat16, "causal", DEVICE)
    assert KERNEL(**made).shape == OP.reference(**made).shape


def test_refuses_what_it_was_not_written_for() -> None:
    made = OP.bind((), arguments(SIZES["few"], torch.float16, "all", DEVICE))
    accepts = OP.implementations["triton"].accepts
    assert accepts(**made) and accepts(*made.values())
    wide = {n: torch.ones(1, 4, 3, 257, device=DEVICE) for n in "qkv"}
    refused = [wide, {"q": made["q"].double()}, {"q": made["q"].float()}, {"q": made["q"][:, :3]}, {"q": made["q"][0]}, {"mask": made["bias"]}]
    refused += [{"bias": made["bias"].double()}, {"bias": made["bias"][None]}, {"slopes": [0.5]}, {"start": torch.tensor(1.0)}, {"k": made["k"][..., :5]}]
    for changes in refused:
        assert not accepts(**{**made, **changes}), changes


@pytest.mark.parametrize("name", ["causal", "all"])
def test_operator_contract(name: str) -> None:
    """Schema, fake implementation, autograd registration and gradient of the opaque operator."""
    made = arguments(Sizes(1, 4, 2, 3, 20, 16, 8), torch.float32, name, DEVICE)
    bound = OP.bind((), made)
    wanted = [t.requires_grad_() for t in bound.values() if isinstance(t, Tensor) and t.is_floating_point()]
    with callable_here(OP) as target:
        torch.library.opcheck(target, tuple(bound.values()))
        seed = torch.randn_like(want := OP.reference(**made))
        for ours, theirs in zip(*(torch.autograd.grad(o, wanted, seed) for o in (target(**made), want)), strict=True):
            assert torch.equal(ours, theirs)
