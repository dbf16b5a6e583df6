"""Equal values are computed once, where they are equal: regions, randomness, writes, the sign of zero, outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import captured, cloned, find, holds, ops
from torch import Tensor

from hfgraph.graph.alias import Aliases
from hfgraph.graph.canonical import tidy
from hfgraph.graph.cse import ValueNumbers, merge_equal

X = torch.linspace(-3, 3, 32).reshape(4, 8)
W = torch.linspace(1, 2, 8)


def merge(gm: Any) -> None:
    tidy(gm)
    merge_equal(gm)
    gm.graph.eliminate_dead_code()


def merged(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> list[str]:
    return ops(holds(function, *args, change=merge, dynamic=dynamic))


def _rope_tables(x: Tensor) -> Any:
    cos, sin = x.cos(), x.sin()
    q = x * cos.unsqueeze(0) + x * sin.unsqueeze(0)
    k = (x + 1) * cos.unsqueeze(0) + (x + 1) * sin.unsqueeze(0)
    return q + k


MERGED: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "twice the same": (lambda x: x.cos() + x.cos().sum(), ["cos", "sum", "add"]),
    "a chain": (lambda x: (x * 2).cos().sum() + (x * 2).cos(), ["mul", "cos", "sum", "add"]),
    "views of equal values": (lambda x: (x * 2).view(-1).sum() + (x * 2).view(-1), ["mul", "reshape", "sum", "add"]),
    "lists": (lambda x: x.chunk(2)[0] + x.chunk(2)[1], ["chunk", "getitem", "getitem", "add"]),
    "default given or not": (lambda x: x.softmax(-1).sum() + x.softmax(1), ["softmax", "sum", "add"]),
    "rotary tables": (_rope_tables, ["cos", "sin", "unsqueeze", "mul", "unsqueeze", "mul", "add", "add", "mul", "mul", "add", "add"]),
    "an output and an inner value": (lambda x: (x.cos(), x.cos().sum()), ["cos", "sum"]),
}

APART: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "1 and 1.0 are two constants": (lambda x: ((x > 0).long() * 2).sum() + ((x > 0).long() * 2.0).sum(), ["gt", "to", "mul", "sum", "mul", "sum", "add"]),
    "True and 1": (lambda x: ((x > 0) * True).any() | ((x > 0) * 1).any(), ["gt", "any", "mul", "any", "__or__"]),
    "0.0 and -0.0": (lambda x: (x.relu() * 0.0, (x.relu() * -0.0) / 3), ["relu", "mul", "mul", "div"]),
    "two dtypes": (lambda x: x.half().sum() + x.bfloat16().sum(), ["to", "sum", "to", "sum", "add"]),
    "two outputs": (lambda x: (x.cos(), x.cos()), ["cos", "cos"]),
    "operands the other way round": (lambda x: (x - 1 - x) + (x - (1 + x)), ["sub", "sub", "add", "sub", "add"]),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged(name: str) -> None:
    function, expected = MERGED[name]
    assert merged(function, X) == expected


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    function, expected = APART[name]
    assert merged(function, X) == expected


@pytest.mark.parametrize("name", [*MERGED, *(n for n in APART if n != "True and 1")])
def test_symbolic(name: str) -> None:
    merged({**MERGED, **APART}[name][0], X, dynamic=True)


def _inner_and_two_outputs(x: Tensor) -> Any:
    inner = x * 2
    return x * 2, x * 2, inner.sum()


def _view_and_two_outputs(x: Tensor) -> Any:
    inner = (x * 2).sum()
    return (x * 2).view(-1), (x * 2).t(), inner


def _three_outputs_late(x: Tensor) -> Any:
    a = (x * 2).sum()
    b = (x * 2).mean()
    return a, x * 2, b, x * 2, x * 2


def _twice_of_an_operator_with_two_results(x: Tensor) -> Any:
    return x.topk(2, 1).values, x.topk(2, 1).values, x.topk(2, 1).indices.sum()


@pytest.mark.parametrize("function", [_inner_and_two_outputs, _view_and_two_outputs, _three_outputs_late, _twice_of_an_operator_with_two_results])
def test_outputs_stay_apart(function: Callable[..., Any]) -> None:
    """Whoever gets two outputs may write into one of them."""
    merged(function, X)
    seen = captured(function, X.clone(), change=merge)
    outs = [o for o in seen.compiled(X.clone()) if o.ndim]
    kept = [o.clone() for o in outs[1:]]
    outs[0].fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(outs[1:], kept, strict=True))


def test_grad_regions() -> None:
    def function(x: Tensor, w: Tensor) -> Any:
        with torch.no_grad():
            frozen = (x * w).sum()
        live = (x * w).sum()
        with torch.no_grad():
            again = (x * w).sum()
        return frozen + live * 2 + again

    found = merged(function, X.clone().requires_grad_(), W.clone().requires_grad_())
    assert found.count("mul") >= 3


def test_autocast_regions() -> None:
    def function(x: Tensor, y: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            low = x @ y
        high = x @ y
        with torch.autocast("cpu", torch.float16):
            half = x @ y
        with torch.autocast("cpu", enabled=False):
            plain = x @ y
        return low.float().sum() + high + half.float().mean() + plain

    found = merged(function, X @ X.t(), X @ X.t())
    assert found.count("matmul") == 4


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.5, True),
        lambda x: torch.rand_like(x),
        lambda x: torch.bernoulli(x.sigmoid()),
        lambda x: torch.randn(4, 8),
        lambda x: torch.multinomial(x.softmax(-1), 8),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0],
        lambda x: F.alpha_dropout(x, 0.5, True),
        lambda x: F.rrelu(x - 4, training=True),
        lambda x: torch.empty_like(x).normal_(),
    ],
)  # fmt: skip
def test_random_draws_stay_apart(draw: Callable[[Tensor], Tensor]) -> None:
    """Two draws are two draws; under one seed they are eager's."""
    seen = captured(lambda x: draw(x) * 1.5 - draw(x), X.clone(), change=merge)
    torch.manual_seed(3)
    expected = draw(X) * 1.5 - draw(X)
    torch.manual_seed(3)
    assert torch.equal(seen.compiled(X.clone()), expected)


def test_batch_norm_in_training_updates_its_statistics_twice() -> None:
    """The operator's schema says that it is functional; it is not."""

    def function(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, training=True).cos() + F.batch_norm(x, mean, var, training=True)

    holds(function, X, torch.zeros(8), torch.ones(8), change=merge)


def _reads_around_a_write(cache: Tensor, x: Tensor) -> Any:
    before = (cache * 2).sum()
    cache[:, :2] = x[:, :2]
    middle = (cache * 2).sum()
    cache.add_(1)
    return before, middle, (cache * 2).sum()


@pytest.mark.parametrize("dynamic", [None, True])
def test_reads_around_a_write(dynamic: bool | None) -> None:
    assert merged(_reads_around_a_write, X, X * 3, dynamic=dynamic).count("sum") == 3


def test_views_around_a_write() -> None:
    def function(cache: Tensor, x: Tensor) -> Any:
        a = cache[:, :2] + 1
        cache.view(-1)[0].fill_(5)
        return a, cache[:, :2] + 1, cache[0].sum()

    merged(function, X, X)


def test_value_numbers() -> None:
    def function(x: Tensor, y: Tensor) -> Any:
        return x.cos() + x.cos() * y.cos(), x.half() * 1, x * 2.0 + x * 2, torch.rand(2), torch.rand(2)

    gm = captured(function, X, X + 1).graph
    numbers = ValueNumbers(gm.graph, Aliases(gm.graph))
    a, b, c = (find(gm, "cos", i) for i in range(3))
    assert numbers.same(a, b) and numbers.same(a, a)
    assert not numbers.same(a, c)
    assert not numbers.same(find(gm, "rand"), find(gm, "rand", 1))
    doubles = [n for n in gm.graph.nodes if n.op == "call_function" and len(n.args) == 2 and n.args[1] == 2]
    assert len(doubles) == 2 and not numbers.same(*doubles)


def test_value_numbers_of_written_values_are_their_own() -> None:
    gm = captured(_reads_around_a_write, X.clone(), X).graph
    numbers = ValueNumbers(gm.graph, Aliases(gm.graph))
    reads = [n for n in gm.graph.nodes if n.op == "call_function" and n.args[1:] == (2,)]
    assert len(reads) == 3
    assert not any(numbers.same(a, b) for a in reads for b in reads if a is not b)


def test_merging_twice_finds_nothing() -> None:
    for function, _ in [*MERGED.values(), *APART.values()]:
        gm = captured(function, X, change=merge).graph
        assert merge_equal(gm) == 0


def test_a_wrong_merge_is_caught() -> None:
    """Sabotage: merging the two reads around a write fails the comparison of this file."""

    def wrong(gm: Any) -> None:
        tidy(gm)
        first, second = find(gm, "sum"), find(gm, "sum", 1)
        second.replace_all_uses_with(first)

    with pytest.raises(AssertionError, match="results"):
        holds(_reads_around_a_write, X, X * 3, change=wrong)
    assert cloned([X])[0] is not X
