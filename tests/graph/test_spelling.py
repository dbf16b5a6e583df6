"""The spelling table, line by line: what becomes what, and where it must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import cloned, differences, find, holds, ops, text, traced
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hfgraph.graph.canonical import tidy
from hfgraph.graph.legal import problem
from hfgraph.graph.spelling import SPELLINGS, respell, unspelled

aten = torch.ops.aten
X = torch.linspace(-3, 3, 32).reshape(4, 8)
HALF, WIDE, INTS = X.bfloat16(), X.double(), torch.arange(-4, 4)
X4 = torch.linspace(-3, 3, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)


def canonical(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> list[str]:
    """Operators after `tidy`, once nothing that eager shows has changed and the graph is legal."""
    gm = holds(function, *args, change=tidy, dynamic=dynamic)
    assert problem(gm, "canonical") is None
    return ops(gm)


# A line says: this call, on this, is spelled so. An empty list means that nothing is left of it.
SPELLED: dict[str, tuple[Callable[..., Any], Tensor, list[str]]] = {
    "to, same dtype": (lambda x: x.to(torch.float32) + 1, X, ["add"]),
    "float of float": (lambda x: x.float() + 1, X, ["add"]),
    "to, other dtype": (lambda x: x.to(torch.bfloat16), X, ["to"]),
    "half": (lambda x: x.half(), X, ["to"]),
    "to a tensor's dtype": (lambda x: aten.to.other(x, x.double()), X, ["to"]),
    "to device and dtype": (lambda x: x.to("cpu", torch.bfloat16), X, ["to"]),
    "to the same device": (lambda x: x.to("cpu") + 1, X, ["add"]),
    "type_as, same": (lambda x: x.type_as(x) + 1, X, ["add"]),
    "type_as, other": (lambda x: x.type_as(x.double()), X, ["to"]),
    "unsqueeze from the front": (lambda x: x.unsqueeze(1), X, ["unsqueeze"]),
    "a mean that gets its dim back": (lambda x: x.mean(-1).unsqueeze(-1), X, ["mean"]),
    "a mean that nothing else needs in the end": (lambda x: (lambda m: (m.sum(), m.unsqueeze(-1))[1])(x.mean(-1)), X, ["mean"]),
    "a view that alone leaves": (lambda x: (x * 2)[:], X, ["mul"]),
    "flatten of one dim as an output": (lambda x: (x * 2).flatten(0, 0), X, ["mul"]),
    "alias": (lambda x: aten.alias(x) + 1, X, ["add"]),
    "view": (lambda x: x.view(8, 4), X, ["reshape"]),
    "view of the same shape": (lambda x: x.view(4, 8) + 1, X, ["add"]),
    "reshape": (lambda x: x.reshape(-1, 4), X, ["reshape"]),
    "flatten": (lambda x: x.flatten(), X, ["reshape"]),
    "flatten of one dim": (lambda x: x.flatten(0, 0) + 1, X, ["add"]),
    "unflatten": (lambda x: x.unflatten(-1, (2, 4)), X, ["reshape"]),
    "view_as": (lambda x: x.view_as(x) + 1, X, ["add"]),
    "reshape_as": (lambda x: x.reshape_as(x.t()), X, ["reshape"]),
    "expand to the same": (lambda x: x.expand(4, 8) + 1, X, ["add"]),
    "expand": (lambda x: x.expand(2, 4, 8), X, ["expand"]),
    "slice of everything": (lambda x: x[:, :] + 1, X, ["add"]),
    "slice up to the size": (lambda x: x[:4, :8] + 1, X, ["add"]),
    "slice beyond the size": (lambda x: x[:9, :100] + 1, X, ["add"]),
    "transpose": (lambda x: x.transpose(0, 1), X, ["permute"]),
    "swapaxes": (lambda x: x.swapaxes(-1, 0), X, ["permute"]),
    "t": (lambda x: x.t(), X, ["permute"]),
    "T": (lambda x: x.T + 1, X, ["permute", "add"]),
    "mT": (lambda x: x.transpose(-2, -1), X4, ["permute"]),
    "permute": (lambda x: x.permute(0, -1, 1, 2), X4, ["permute"]),
    "square": (lambda x: x.square(), X, ["pow"]),
    "x * x": (lambda x: x * x, X, ["pow"]),
    "pow 2.0": (lambda x: x.pow(2.0), X, ["pow"]),
    "** 2": (lambda x: x**2, X, ["pow"]),
    "pow -0.5 in single": (lambda x: (x.abs() + 0.1).float().pow(-0.5), X, ["abs", "add", "rsqrt"]),
    "expand_as": (lambda x: x[:, :1].expand_as(x), X, ["slice", "expand"]),
    "max of two": (lambda x: torch.max(x, x * 2), X, ["mul", "maximum"]),
    "min of two": (lambda x: torch.min(x, x * 2), X, ["mul", "minimum"]),
    "multiply": (lambda x: torch.multiply(x, 3), X, ["mul"]),
    "concat": (lambda x: torch.concat([x, x], -1), X, ["cat"]),
    "concatenate": (lambda x: torch.concatenate([x, x], -1), X, ["cat"]),
    "contiguous of contiguous": (lambda x: x.contiguous() + 1, X, ["add"]),
    "dropout in eval": (lambda x: F.dropout(x, 0.5, False) + 1, X, ["add"]),
    "dropout of nothing": (lambda x: F.dropout(x, 0.0, True) + 1, X, ["add"]),
    "mean over 1 of 2": (lambda x: x.mean(1, keepdim=True), X, ["mean"]),
    "x * 1, inside": (lambda x: x * 1 + 1, X, ["add"]),
    "x / 1.0, inside": (lambda x: x / 1.0 + 1, X, ["add"]),
    "clone, inside": (lambda x: x.clone() + 1, X, ["add"]),
    "clone that is written": (lambda x: x.clone().add_(1), X, ["add"]),
    "a chain": (lambda x: x.view(4, 8).to(torch.float32).contiguous()[:, :].expand(4, 8) + 1, X, ["add"]),
}

# Here the table must keep its hands off: each line once looked like one above.
KEPT: dict[str, tuple[Callable[..., Any], Tensor, list[str]]] = {
    "x + 0 turns -0.0 into 0.0": (lambda x: x + 0, -torch.zeros(4), ["add"]),
    "x - 0 is no spelling either": (lambda x: x - 0, -torch.zeros(4), ["sub"]),
    "contiguous of a transpose": (lambda x: x.t().contiguous(), X, ["permute", "contiguous"]),
    "contiguous of every other": (lambda x: x[:, ::2].contiguous(), X, ["slice", "contiguous"]),
    "contiguous in channels last": (lambda x: x.contiguous(memory_format=torch.channels_last), X4, ["contiguous"]),
    "to(copy=True)": (lambda x: x.to(torch.float32, copy=True), X, ["to"]),
    "to(memory_format)": (lambda x: x.to(torch.float32, memory_format=torch.channels_last), X4, ["to"]),
    "x * 1 that promotes": (lambda x: x * 1.0, INTS, ["mul"]),
    "x / 1 of integers": (lambda x: x / 1 + 0.5, INTS, ["div", "add"]),
    "x * 1 as an output": (lambda x: x * 1, X, ["mul"]),
    "clone as an output": (lambda x: x.clone(), X, ["clone"]),
    "view of a clone as an output": (lambda x: x.clone().view(-1), X, ["clone", "reshape"]),
    "clone that is written and read": (lambda x: ((y := x.clone()).view(-1), y.add_(1)), X, ["clone", "reshape", "add_"]),
    "clone into another layout": (lambda x: x.t().clone(memory_format=torch.contiguous_format) * 2, X, ["permute", "clone", "mul"]),
    "pow 2.0 of integers gives floats": (lambda x: x.pow(2.0), INTS, ["pow"]),
    "x * x of booleans gives booleans": (lambda x: (m := x > 0) * m, X, ["gt", "mul"]),
    "square of booleans": (lambda x: (x > 0).square(), X, ["gt", "square"]),
    "pow -0.5 of bfloat16 is no rsqrt": (lambda x: x.pow(-0.5), torch.linspace(0.01, 9, 999).bfloat16(), ["pow"]),
    "pow -0.5 of float16 is no rsqrt": (lambda x: x.pow(-0.5), torch.linspace(0.01, 9, 999).half(), ["pow"]),
    "pow -0.5 of integers": (lambda x: torch.pow(x.abs() + 1, -0.5), INTS, ["abs", "add", "pow"]),
    "slice from the second": (lambda x: x[1:], X, ["slice"]),
    "slice to the last but one": (lambda x: x[:, :-1], X, ["slice"]),
    "slice with a step": (lambda x: x[::2], X, ["slice"]),
    "slice of nothing": (lambda x: x[2:1], X, ["slice"]),
    "slice from before the start": (lambda x: x[-2:], X, ["slice"]),
    "flatten that copies": (lambda x: x.t().flatten(), X, ["permute", "reshape"]),
    "softmax in another dtype": (lambda x: x.softmax(-1, dtype=torch.float64), X, ["softmax"]),
    "mean in another dtype": (lambda x: x.mean(-1, dtype=torch.float64), X, ["mean"]),
    "sum of everything": (lambda x: x.sum(), X, ["sum"]),
    "slice of everything as an output": (lambda x: x[:], X, ["slice"]),
    "view of the same shape as an output": (lambda x: x.view(4, 8), X, ["view"]),
    "view of the same shape beside the whole": (lambda x: (h := x * 2, h.expand(4, 8)), X, ["mul", "expand"]),
    "two views of the whole": (lambda x: (lambda h: (h[:], h[:]))(x * 2), X, ["mul", "slice"]),
    "view beside what was written": (lambda x: (lambda h: (h.add_(1)[:], h))((x * 2).t()[::3]), X, ["mul", "permute", "slice", "add_", "slice"]),
    "view reshaped in place": (lambda x: (lambda h: (h[:].unsqueeze_(0), h.sum(-1)))(x * 2), X, ["mul", "slice", "unsqueeze_", "sum"]),
    "view of what is reshaped in place": (lambda x: (lambda h, v: (h.unsqueeze_(0), v.sum(-1)))(h := x * 2, h[:]), X, ["mul", "slice", "unsqueeze_", "sum"]),
    "a mean that is needed as well": (lambda x: (lambda m: (m.unsqueeze(-1), m))(x.mean(-1)), X, ["mean", "unsqueeze"]),
    "t of a vector": (lambda x: x[0].t() + 1, X, ["select", "t", "add"]),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spelled(name: str) -> None:
    function, x, expected = SPELLED[name]
    assert canonical(function, x) == expected


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    function, x, expected = KEPT[name]
    assert canonical(function, x) == expected


@pytest.mark.parametrize("name", [n for n in {**SPELLED, **KEPT} if "boolean" not in n and "zeros" not in n])
def test_symbolic_sizes(name: str) -> None:
    """With symbolic sizes a spelling may be left out, but never be wrong."""
    function, x, _ = {**SPELLED, **KEPT}[name]
    canonical(function, x, dynamic=True)


@pytest.mark.parametrize("name", [n for n, (_, x, _) in {**SPELLED, **KEPT}.items() if x is X])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """A spelling is right in every float dtype, bit for bit; traced without Dynamo, as regions play no part."""
    function, x, _ = {**SPELLED, **KEPT}[name]
    x = x.to(dtype)
    gm = traced(function, x)
    before = traced(function, x)
    tidy(gm)
    gm.recompile()
    assert unspelled(gm) is None
    assert differences(before, gm, [x]) == []


def _chained(x: Tensor) -> Tensor:
    return torch.multiply(x, x)


# Several steps in a row, each made possible by the one before. The graph must come out canonical, and stay so.
CHAINED: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "multiply(x, x)": (_chained, ["pow"]),
    "x * clone of x": (lambda x: x.clone() * x, ["pow"]),
    "x * (x * 1)": (lambda x: x * (x * 1), ["pow"]),
    "x * cast of x": (lambda x: x.float() * x, ["pow"]),
    "h *= h": (lambda x: (h := x + 1).mul_(h), ["add", "pow"]),
    "square_": (lambda x: (x + 1).square_(), ["add", "pow"]),
    "pow_(2.0)": (lambda x: (x + 1).pow_(2.0), ["add", "pow"]),
    "multiply_": (lambda x: (x + 1).multiply_(3), ["add", "mul"]),
    "pow_(-0.5)": (lambda x: (x.abs() + 1).pow_(-0.5), ["abs", "add", "rsqrt"]),
    "half += float": (lambda x: x.half().add_(x), ["to", "add", "to"]),
    "half += float, twice": (lambda x: x.half().add_(x).add_(x), ["to", "add", "to", "add", "to"]),
    "clone of clone": (lambda x: x.clone().clone() + 1, ["add"]),
    "view of view": (lambda x: x.view(8, 4).view(4, 8).view(4, 8) + 1, ["reshape", "reshape", "add"]),
}


@pytest.mark.parametrize("name", CHAINED)
def test_chains_reach_canonical_form(name: str) -> None:
    function, expected = CHAINED[name]
    assert canonical(function, X) == expected


@pytest.mark.parametrize("name", {**SPELLED, **KEPT, **{n: (f, X, o) for n, (f, o) in CHAINED.items()}})
def test_tidy_twice_is_tidy_once(name: str) -> None:
    function, x, _ = {**SPELLED, **KEPT, **{n: (f, X, o) for n, (f, o) in CHAINED.items()}}[name]
    gm = traced(function, x, tidied=True)
    once = text(gm)
    assert tidy(gm) == 0
    assert text(gm) == once


# Grad-mode regions: a view or a copy under no_grad has no gradient, so it is not nothing.
REGIONS: dict[str, Callable[..., Any]] = {
    "view": lambda x: x.view(x.shape),
    "slice": lambda x: x[:],
    "expand": lambda x: x.expand(4, 8),
    "reshape": lambda x: x.reshape(4, 8),
    "alias": lambda x: aten.alias(x),
    "clone": lambda x: x.clone(),
    "x * 1": lambda x: x * 1,
    "to": lambda x: x.to(torch.float32),
    "contiguous": lambda x: x.contiguous(),
    "flatten": lambda x: x.flatten(0, 0),
    "square": lambda x: x * x,
    "dropout": lambda x: F.dropout(x, 0.5, False),
}


@pytest.mark.parametrize("name", REGIONS)
def test_no_grad_cuts_gradients(name: str) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            y = REGIONS[name](x)
        return y * w

    holds(function, X.clone().requires_grad_(), torch.linspace(1, 2, 8).requires_grad_(), change=tidy)


@pytest.mark.parametrize("name", REGIONS)
def test_the_same_with_gradients(name: str) -> None:
    holds(lambda x, w: REGIONS[name](x) * w, X.clone().requires_grad_(), torch.linspace(1, 2, 8).requires_grad_(), change=tidy)


@pytest.mark.parametrize("reduce", [lambda x: x.mean(-1), lambda x: x.sum(1), lambda x: x.amax(-1)], ids=["mean", "sum", "amax"])
def test_a_reduction_with_its_dim_stands_where_the_reduction_stood(reduce: Callable[[Tensor], Tensor]) -> None:
    """What it reads is written in between."""

    def function(x: Tensor) -> Tensor:
        s = reduce(x)
        x.add_(1)
        return s.unsqueeze(-1) * 2

    assert "unsqueeze" not in canonical(function, X)


@pytest.mark.parametrize("reduced", [False, True], ids=["the view", "the reduction"])
def test_a_reduction_and_its_dim_in_two_grad_modes_stay_two(reduced: bool) -> None:
    def function(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not reduced):
            s = x.mean(-1)
        with torch.set_grad_enabled(reduced):
            s = s.unsqueeze(-1)
        return s * x

    assert "unsqueeze" in ops(holds(function, X.clone().requires_grad_(), change=tidy))


SQUARES: dict[str, Callable[[Tensor], Tensor]] = {"x * x": lambda x: x * x, "square": lambda x: x.square()}


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize(("dtype", "kept"), [(torch.float16, True), (torch.bfloat16, True), (torch.float32, False), (torch.float64, False)])
def test_autocast_runs_a_power_in_float32_and_a_product_as_it_is(name: str, dtype: torch.dtype, kept: bool) -> None:
    """On CUDA: on fake tensors it shows without one."""
    torch.set_autocast_enabled("cuda", True)  # the context manager would not, without a GPU
    try:
        with FakeTensorMode():
            x = torch.empty(4, 8, device="cuda", dtype=dtype)
            gm = traced(SQUARES[name], x, tidied=True)
            assert gm(x).dtype == SQUARES[name](x).dtype
            assert (ops(gm) == ["mul"]) == (kept and name == "x * x"), "torch.square is a power to autocast"
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("name", SQUARES)
def test_a_square_in_an_autocast_region_of_the_graph(name: str) -> None:
    def function(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return SQUARES[name](x @ x.t()), SQUARES[name](x)

    assert canonical(function, X).count("pow") == 1


def test_keyword_arguments_survive() -> None:
    """Operators called by keyword, as graphs of `torch.export` and of other tools do."""

    def function(x: Tensor) -> Any:
        return (
            aten.slice.Tensor(x, dim=1, start=2, end=6, step=2),
            aten.slice.Tensor(x, 0, 0, 4, step=3),
            aten.view.default(x, size=[8, 4]),
            aten.permute.default(x, dims=[1, 0]),
            aten.transpose.int(x, dim0=1, dim1=0),
            aten.mean.dim(x, dim=[1], keepdim=True),
            aten.mul.Tensor(x, other=x),
            aten.pow.Tensor_Scalar(x, exponent=2.0),
            aten.softmax.int(x, dim=1),
            aten.split.Tensor(x, split_size=3, dim=1),
        )

    gm = traced(function, X)
    tidy(gm)
    gm.recompile()
    assert unspelled(gm) is None
    assert differences(function, gm, [X]) == []


@pytest.mark.parametrize("dynamic", [None, True])
def test_symbolic_slices(dynamic: bool | None) -> None:
    """A slice up to its own size is nothing; up to another size it is something."""

    def function(x: Tensor, y: Tensor) -> Any:
        return x[:, : x.shape[1]] + 1, x[: y.shape[0]] + 2, x[y.shape[0] :]

    found = canonical(function, X, torch.ones(3), dynamic=dynamic)
    assert [o for o in found if o == "slice"] == ["slice", "slice"]


def test_dropout_in_training_stays() -> None:
    gm = traced(lambda x: F.dropout(x, 0.5, True) + 1, X, tidied=True)
    assert ops(gm) == ["dropout", "add"]


def test_every_line_of_the_table_is_reached() -> None:
    """A line that no case above reaches is a line nobody tested."""
    reached = set()
    for function, x, _ in [*SPELLED.values(), *KEPT.values()]:
        reached |= {n.target for n in traced(function, x).graph.nodes}
    reached |= {n.target for n in traced(lambda x: (x.amax(1), x.softmax(1), x.chunk(2, 1), x.split(3, 1), x.split([3, 5], 1), x.sum(1)), X).graph.nodes}
    missing = [str(t) for t in SPELLINGS if t not in reached]
    assert not missing, f"no case in test_spelling.py traces to {', '.join(missing)}; add a line to SPELLED"


def test_dims_count_from_the_end() -> None:
    gm = traced(lambda x: (x.amax(1), x.softmax(1), x.chunk(2, 1), x.split(3, 1), x.split([3, 5], 1), x.sum((0, 1)), x.mean(0), x.select(1, 2)), X, tidied=True)
    for name, at in (("amax", 1), ("softmax", 1), ("chunk", 2), ("split", 2), ("split_with_sizes", 2), ("sum", 1), ("mean", 1), ("select", 1)):
        dims = find(gm, name).args[at]
        assert all(d < 0 for d in (dims if isinstance(dims, list | tuple) else [dims])), name


def test_a_wrong_line_is_caught() -> None:
    """Sabotage: a table that takes x + 0 for nothing fails the comparison of this file."""
    gm = traced(lambda x: x + 0, X)
    node = find(gm, "add")
    node.replace_all_uses_with(node.args[0])
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert differences(lambda x: x + 0, gm, cloned([-torch.zeros(4)])) != []
    with pytest.raises(AssertionError):
        holds(lambda x: x * 2, X, change=lambda g: find(g, "mul").replace_all_uses_with(find(g, "mul").args[0]))


def test_respell_counts_what_it_changes() -> None:
    assert respell(traced(lambda x: x + 1, X)) == 0
    assert respell(traced(lambda x: x.view(8, 4).t(), X)) == 2
