"""Which linears of a graph are siblings: by value, region and memory; and what keeps others apart, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hfgraph.graph.canonical import tidy
from hfgraph.graph.capture import capture
from hfgraph.graph.memory import Memory, are_adjacent, memory, obstacle, ordered
from hfgraph.graph.siblings import Siblings, siblings

D = 8


def w(rows: int = 16, *, dtype: torch.dtype = torch.float32, width: int = D) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width, dtype=dtype), requires_grad=False)


def b(rows: int = 16) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows), requires_grad=False)


def found(function: Callable[..., Any], *parameters: Any, dynamic: bool | None = None) -> tuple[list[int], list[str]]:
    """Sizes of the groups, and why others are none."""
    torch._dynamo.reset()
    seen: list[list[Siblings]] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        canonical = capture(gm, inputs)
        tidy(canonical)
        seen.append(siblings(canonical))
        return gm.forward

    torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(torch.randn(2, 3, D), *parameters)
    return [len(g.linears) for g in seen[0] if not g.reason], [g.reason for g in seen[0] if g.reason]


# --- one group ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [None, True])
def test_linears_of_one_value(dynamic: bool | None) -> None:
    def f(x: Tensor, *ws: Tensor) -> Any:
        return [F.linear(x, p) for p in ws]

    assert found(f, w(16), w(32), dynamic=dynamic) == ([2], [])
    assert found(f, *(w() for _ in range(5)), dynamic=dynamic) == ([5], [])
    assert found(f, w()) == ([], [])


def test_a_value_computed_twice_is_one() -> None:
    assert found(lambda x, p, q: (F.linear(x * 2, p), F.linear(x * 2, q)), w(), w()) == ([2], [])
    assert found(lambda x, p, q: (F.linear(x * 2, p), F.linear(x * 3, q)), w(), w()) == ([], [])
    assert found(lambda x, p, q: (F.linear(F.dropout(x), p), F.linear(F.dropout(x), q)), w(), w()) == ([], [])


def test_a_bias_on_all_or_on_none() -> None:
    def f(x: Tensor, p: Tensor, q: Tensor, r: Tensor, s: Tensor, c: Tensor, d: Tensor) -> Any:
        return F.linear(x, p, c), F.linear(x, q), F.linear(x, r, d), F.linear(x, s)

    assert found(f, w(), w(), w(), w(), b(), b()) == ([2, 2], [])
    assert found(f, w(), w(), w(), w(), *[b()] * 2) == ([2], []), "the bias of both cannot lie in two places"


# --- not one ------------------------------------------------------------------------------------------


def test_a_write_to_the_input_parts_them() -> None:
    def f(x: Tensor, p: Tensor, q: Tensor, r: Tensor) -> Any:
        first, second = F.linear(x, p), F.linear(x, q)
        x.add_(1)
        return first, second, F.linear(x, r)

    assert found(f, w(), w(), w()) == ([2], [])
    assert found(lambda x, p, q: (F.linear(x, p), x.add_(1), F.linear(x, q)), w(), w()) == ([], [])


def test_grad_modes_part_them() -> None:
    def f(x: Tensor, p: Tensor, q: Tensor) -> Any:
        with torch.no_grad():
            first = F.linear(x, p)
        return first, F.linear(x, q)

    assert found(f, w(), w()) == ([], [])


UNFIT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "computed": (lambda x, p, q: (F.linear(x, p * 2), F.linear(x, q * 2)), (w(), w()), "its weight is computed"),
    "computed bias": (lambda x, p, q, c: (F.linear(x, p, c + 1), F.linear(x, q, c - 1)), (w(), w(), b()), "its bias is computed"),
    "no parameters": (lambda x, p, q: (F.linear(x, p), F.linear(x, q)), (torch.randn(16, D), torch.randn(16, D)), "its weight is no plain parameter"),
    "not contiguous": (
        lambda x, p, q: (F.linear(x, p), F.linear(x, q)),
        tuple(nn.Parameter(torch.randn(D, 16).t(), requires_grad=False) for _ in range(2)),
        "its weight is no plain parameter",
    ),
    "few rows": (lambda x, p, q: (F.linear(x, p), F.linear(x, q)), (w(8), w(8)), "its 8 rows are few, or not aligned"),
    "odd rows": (lambda x, p, q: (F.linear(x, p), F.linear(x, q)), (w(17), w(17)), "its 17 rows are few, or not aligned"),
    "written": (lambda x, p, q: (F.linear(x, p), F.linear(x, q), p.add_(1), q.add_(1)), (w(), w()), "the graph writes its weight"),
    "bias on one": (lambda x, p, q, c: (F.linear(x, p, c), F.linear(x, q)), (w(), w(), b()), "its siblings have another dtype, or a bias where it has none"),
    "elsewhere": (
        lambda x, p, q, r: (F.linear(x, p), F.linear(x, q), F.linear(x + 1, q), F.linear(x + 1, r)),
        (w(), w(), w()),
        "a parameter has other siblings elsewhere",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_keeps_them_apart(name: str) -> None:
    function, parameters, reason = UNFIT[name]
    groups, reasons = found(function, *parameters)
    assert groups == [] and set(reasons) == {reason}


def test_weights_that_may_be_trained() -> None:
    weights = [w().requires_grad_() for _ in range(2)]

    def f(x: Tensor, p: Tensor, q: Tensor) -> Any:
        return F.linear(x, p), F.linear(x, q)

    assert found(f, *weights) == ([], ["its weight may be trained"])
    with torch.no_grad():
        assert found(f, *weights) == ([2], [])


def test_a_group_that_recurs_is_two_groups() -> None:
    def f(x: Tensor, p: Tensor, q: Tensor) -> Any:
        return F.linear(x, p), F.linear(x, q), F.linear(x + 1, q), F.linear(x + 1, p)

    assert found(f, w(), w()) == ([2, 2], [])


# --- memory -------------------------------------------------------------------------------------------


def places(*parameters: nn.Parameter) -> list[Memory]:
    found = [memory(p) for p in parameters]
    assert all(m is not None for m in found)
    return [m for m in found if m is not None]


def test_parameters_with_memory_of_their_own_can_be_moved() -> None:
    assert obstacle(places(w(), w())) is None and not are_adjacent(places(w(), w()))


def test_memory_that_another_tensor_sees_cannot() -> None:
    p, q = w(), w()
    seen = p.detach()
    assert obstacle(places(p, q)) == "other tensors share its memory and would not follow"
    del seen
    assert obstacle(places(p, q)) is None


def test_what_lies_together_stays_so() -> None:
    block = torch.randn(48, D)
    p, q, r = (nn.Parameter(block[16 * i : 16 * i + 16], requires_grad=False) for i in range(3))
    assert are_adjacent(places(p, q, r)) and obstacle(places(q, r)) is None
    assert ordered(places(r, p, q)) == [1, 2, 0] and ordered(places(p, w())) == [0, 1]
    assert obstacle(places(p, r)) is not None, "q and the block itself would not follow"
    del block
    assert obstacle(places(p, r)) is not None, "q would not follow"
    assert obstacle(places(r, q, p)) is None, "all of them move"


def test_what_is_no_plain_parameter_has_no_place() -> None:
    class Other(nn.Parameter):
        pass

    assert memory(torch.randn(3)) is None and memory(Other(torch.randn(3))) is None and memory(3) is None
    assert memory(nn.Parameter(torch.randn(3, 4).t())) is None
    with torch.inference_mode():
        assert memory(nn.Parameter(torch.randn(3))) is None
