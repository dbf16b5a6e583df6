"""What surrounds the Triton kernels of mixtures of experts, on fake CUDA tensors: nothing waits for the device, what is launched, what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from moe_cases import OP, REFUSED, SETTINGS, SIZES, Size, laid_out, made, refuses
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from hfgraph.graph.values import val
from hfgraph.lower import lower
from hfgraph.options import Options

pytest.importorskip("triton")
from hfgraph.kernels.moe import _kernels, triton
from hfgraph.kernels.moe._config import CONFIGS

KERNEL = OP.implementations["triton"]


def on_gpu(given: dict[str, Any], mode: FakeTensorMode) -> dict[str, Any]:
    """The same arguments with fake tensors on a GPU."""
    with mode:
        return {n: torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a for n, a in given.items()}


# --- no waiting ---------------------------------------------------------------------------------------


class StaysOnTheDevice(TorchDispatchMode):
    """Every result is on the GPU; a fake tensor has no values to ask for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        moved = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor) and t.device.type != "cuda"]
        assert not moved, f"{func} brings a tensor to the {moved[0].device}"
        return result


class Launched:
    """In a kernel's place: keeps what it would be launched with."""

    def __init__(self) -> None:
        self.grid, self.given = (0,), {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grid = grid
        return lambda **given: self.given.update(given)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Launched]:
    recorded = {n: Launched() for n in ("up", "down")}
    for name, kernel in recorded.items():
        monkeypatch.setattr(_kernels, name, kernel)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    return recorded


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_is_asked_of_the_device(setting: str, launched: dict[str, Launched]) -> None:
    for size in (SIZES["decode"], SIZES["bulk"]):
        given = on_gpu(made(size, torch.bfloat16, setting), mode := FakeTensorMode())
        with mode, StaysOnTheDevice():
            got = triton.moe(**given)
        assert (got.shape, got.dtype, got.device.type) == (given["x"].shape, torch.bfloat16, "cuda") and got.is_contiguous()
        assert all(isinstance(n, int) and n > 0 for k in launched.values() for n in k.grid)
        tiles = launched["up"].given["tiles"]
        assert tiles == launched["down"].given["tiles"] and launched["up"].grid[0] % tiles == 0


ASKS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda t: t.max().item(),
    "a list": lambda t: t.tolist(),
    "a copy": lambda t: t.cpu(),
    "a size that data decide": lambda t: t.bincount(),
    "an if": lambda t: bool(t.sum() > 3),
}


@pytest.mark.parametrize("what", ASKS)
def test_asking_would_show(what: str) -> None:
    with FakeTensorMode():
        order, ends = triton.sorted_by_expert(torch.zeros(6, 2, dtype=torch.int64, device="cuda"), 4)
        assert (order.shape, ends.shape, ends.dtype) == ((12,), (4,), torch.int32)
        with pytest.raises(Exception, match=r"brings a tensor|data-dependent|aten._local_scalar_dense|aten.bincount"), StaysOnTheDevice():
            ASKS[what](ends)


# --- how it is cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_there_are_tiles_enough_and_no_more_than_needed_at_worst(config: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for pairs, experts in ((1, 1), (3, 8), (16, 3), (17, 3), (300, 7), (1000, 64)):
        bound = config.tiles(pairs, experts)
        for _ in range(20):
            counts = torch.randint(0, experts, (pairs,), generator=generator).bincount(minlength=experts)
            assert int(((counts + config.rows - 1) // config.rows).sum()) <= bound
        busy = min(pairs, experts)
        worst = [1] * (busy - 1) + [pairs - busy + 1]  # all but one have a single row
        assert sum(-(-n // config.rows) for n in worst) == bound


@pytest.mark.parametrize(
    ("tokens", "layout", "rows"),
    [(1, None, 16), (8, None, 16), (9, None, 64), (300, None, 128), (300, "turned matrices", 128), (300, "one turned", 128), (300, "within others", 16)],
)
def test_the_tile_follows_from_what_the_host_knows(tokens: int, layout: str | None, rows: int, launched: dict[str, Launched]) -> None:
    """Few rows to an expert, or memory in which rows begin anywhere: the smallest."""
    given = made(Size(tokens, 8, 4, 64, 32), torch.bfloat16)
    given = on_gpu(laid_out(given, layout) if layout else given, mode := FakeTensorMode())
    with mode:
        triton.moe(**given)
    assert launched["up"].given["ROWS"] == launched["down"].given["ROWS"] == rows


# --- what it takes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what: str) -> None:
    assert refuses(KERNEL.accepts, REFUSED[what])


def test_the_number_of_tokens_may_be_a_symbol() -> None:
    mode = FakeTensorMode(shape_env=(shapes := ShapeEnv()))
    given = on_gpu(made(SIZES["decode"], torch.bfloat16), mode)
    tokens = shapes.create_unbacked_symint()
    with mode:
        for name in ("x", "expert_ids", "expert_weights"):
            given[name] = torch.empty(tokens, given[name].shape[1], dtype=given[name].dtype, device="cuda")
        assert KERNEL.accepts(**given) is True and not shapes.guards
        wide = torch.empty(8, 192, tokens, dtype=torch.bfloat16, device="cuda")
        assert KERNEL.accepts(**{**given, "gate_up": wide}) is False


# --- in a graph ---------------------------------------------------------------------------------------


def test_it_runs_on_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfgraph.lower.evaluated", val)  # the reference selects rows by tensors, for which PyTorch without CUDA refuses fakes on a GPU
    given = made(SIZES["decode"], torch.bfloat16, "biases")
    names = [n for n, a in given.items() if isinstance(a, Tensor)]
    for asked, count in (({}, 0), ({"moe": "reference"}, 0), ({"moe": "triton"}, 1)):
        gm = make_fx(lambda *args: OP(**dict(zip(names, args, strict=True))), pre_dispatch=True, tracing_mode="fake")(*(given[n] for n in names))
        for node in gm.graph.nodes:
            if isinstance(value := val(node), FakeTensor):
                node.meta["val"] = on_gpu({"": value}, value.fake_mode)[""]
        assert lower(gm, Options(kernels=asked).kernels) == count == len(gm.graph.find_nodes(op="call_function", target=KERNEL.target))
