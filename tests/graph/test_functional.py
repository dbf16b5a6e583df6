"""In-place operators: where they become out-of-place, where they must stay, and that nobody can tell the difference."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from captured import captured, find, gradients, holds, ops, traced
from torch import Tensor

from hfgraph.graph.alias import Aliases
from hfgraph.graph.canonical import tidy
from hfgraph.graph.cse import merge_equal
from hfgraph.graph.functional import functionalise
from hfgraph.graph.legal import problem
from hfgraph.graph.match import label
from hfgraph.graph.values import written_nodes

X = torch.linspace(-3, 3, 32).reshape(4, 8)
CACHE = torch.zeros(2, 3, 16, 4)
NEW = torch.linspace(-1, 1, 2 * 3 * 5 * 4).reshape(2, 3, 5, 4)


def writes(gm: Any) -> int:
    """How many nodes still write values in place; `detach_` on a new constant writes none."""
    return sum(bool(written_nodes(n)) and label(n) != "detach_" for n in gm.graph.nodes)


def _two_slices(x: Tensor) -> Any:
    k = x.new_empty(4, 16)
    k[:, :8].copy_(x)
    k[:, 8:].copy_(x * 2)
    return k * 1.5


def _overlapping_slices(x: Tensor) -> Any:
    k = x.new_zeros(4, 16)
    k[:, :8].copy_(x)
    k[:, 4:12].add_(x)
    k[:, 6] = 3
    return k * 1.5


def _mla_key(x: Tensor) -> Any:
    """A key made of two parts written into fresh memory, as in multi-head latent attention."""
    key = x.new_empty(4, 2, 8)
    key[..., :4] = x.view(4, 2, 4)
    key[..., 4:] = x[:, None, :4].expand(4, 2, 4)
    return key.transpose(0, 1) @ key.permute(1, 2, 0)


def _experts(x: Tensor) -> Any:
    """The inverse permutation of a mixture of experts."""
    order = x[:, 0].argsort()
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(4)
    return x[order] * 2 + 0 * inverse[:, None], x[order][inverse]


def _mask(x: Tensor) -> Any:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    scores = x @ x.t()
    scores.div_(8).add_(mask)
    return scores.softmax(-1)


def _routing(x: Tensor) -> Any:
    scores = x.softmax(-1)
    top = scores.topk(2).indices
    chosen = torch.zeros_like(scores)
    chosen.scatter_(1, top, 1)
    scores.masked_fill_(~chosen.bool(), 0.0)
    scores /= scores.sum(-1, keepdim=True)
    return scores


# All of these are on storage that is born in the graph, and nothing else reads the old value: no write is left.
SAFE: dict[str, Callable[[Tensor], Any]] = {
    "add_": lambda x: (x + 1).add_(2),
    "three in a row": lambda x: (x + 1).add_(2).mul_(3).clamp_(-1, 1),
    "operator": lambda x: _augmented(x),
    "read before": lambda x: (lambda h: (h.sum(), h.add_(1)))(x * 2),
    "view taken later": lambda x: (lambda h: h.add_(1).view(-1))(x * 2),
    "view read before": lambda x: (lambda h: (h.view(-1).sum(), h.add_(1)))(x * 2),
    "operand is a view of itself": lambda x: (lambda h: h.add_(h.flip(0)))(x * 2),
    "masked_fill_": lambda x: (x * 2).masked_fill_(x > 0, 0),
    "fill_, zero_": lambda x: ((x * 2).fill_(3), (x * 2).zero_()),
    "index_put_": lambda x: (x * 2).index_put_((torch.tensor([0, 2]),), torch.ones(8)),
    "index_put_ accumulating": lambda x: (x * 2).index_put_((torch.tensor([1, 1]),), torch.ones(8), accumulate=True),
    "index_copy_": lambda x: (x * 2).index_copy_(0, torch.tensor([3, 1]), torch.ones(2, 8)),
    "scatter_": lambda x: (x * 2).scatter_(1, torch.zeros(4, 1, dtype=torch.long), 5.0),
    "copy_ broadcasts": lambda x: torch.empty_like(x).copy_(x[0]),
    "copy_ casts": lambda x: torch.empty_like(x, dtype=torch.bfloat16).copy_(x),
    "half keeps its dtype": lambda x: x.half().add_(x).div_(3),
    "integers keep their dtype": lambda x: (x > 0).long().mul_(3).add_(2),
    "write into a slice": lambda x: _two_slices(x),
    "overlapping slices": lambda x: _overlapping_slices(x),
    "select, fill": lambda x: _filled_rows(x),
    "latent key": _mla_key,
    "inverse permutation": _experts,
    "mask": _mask,
    "routing": _routing,
    "pow_": lambda x: (x.abs() + 1).pow_(3),
    "pow_(2.0)": lambda x: (x + 1).pow_(2.0),
}


def _augmented(x: Tensor) -> Tensor:
    h = x * 2
    h += x
    h *= 3
    h -= 1
    h /= 2
    return h


def _filled_rows(x: Tensor) -> Tensor:
    h = x * 2
    h[0] = 7
    h[1:3, 2] = x[1:3, 0]
    h[:, -1] += 1
    return h


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", SAFE)
def test_safe(name: str, dynamic: bool | None) -> None:
    gm = holds(SAFE[name], X, change=tidy, dynamic=dynamic)
    assert problem(gm, "canonical") is None
    assert writes(gm) <= (2 if name == "select, fill" else 0)  # a slice of a slice stays a write, and what follows it


@pytest.mark.parametrize(
    "name", [n for n in SAFE if n not in ("half keeps its dtype", "copy_ casts", "integers keep their dtype", "inverse permutation", "routing")]
)
def test_safe_with_gradients(name: str) -> None:
    """(Routing writes into what softmax saves for its gradient, which eager refuses.)"""
    holds(SAFE[name], X.clone().requires_grad_(), change=tidy)


def _other_view_read_later(x: Tensor) -> Any:
    h = x * 2
    v = h.view(-1)
    h.add_(1)
    return v * 3


def _base_read_later(x: Tensor) -> Any:
    h = x * 2
    h.t().add_(1)
    return h * 3


def _slice_read_later(x: Tensor) -> Any:
    h = x * 2
    v = h[:, :4]
    v.add_(1)
    return v * 3, h


def _two_overlapping_views(x: Tensor) -> Any:
    h = x * 2
    a, b = h[:, :5], h[:, 3:]
    a.add_(1)
    b.mul_(2)
    return a * 1, b * 1


def _chunks(x: Tensor) -> Any:
    a, b = (x * 2).chunk(2, -1)
    a.add_(1)
    b.copy_(a)
    return a * 1, b * 1


def _through_expand(x: Tensor) -> Any:
    h = x * 2
    v = h[:1].expand(3, 8)
    h.add_(1)
    return v * 1


def _through_reshape(x: Tensor) -> Any:
    h = x * 2
    v = h.reshape(2, 2, 8).transpose(0, 1)[1]
    h.mul_(5)
    return v.sum(0), h


def _diagonal(x: Tensor) -> Any:
    h = x @ x.t()
    h.diagonal().add_(1)
    return h * 1


# Some other alias is read after the write: the write stays, or is made explicit, but its effect is seen.
UNSAFE: dict[str, Callable[[Tensor], Any]] = {
    "other view read later": _other_view_read_later,
    "base read later": _base_read_later,
    "slice and base read later": _slice_read_later,
    "two overlapping views": _two_overlapping_views,
    "chunks": _chunks,
    "through expand": _through_expand,
    "through reshape": _through_reshape,
    "diagonal": _diagonal,
    "view returned": lambda x: (lambda h: (h.view(-1), h.add_(1)))(x * 2),
    "strided view returned": lambda x: (x * 2)[:, ::2].add_(1),
    "transposed slice returned": lambda x: (x * 2).t()[::3].mul_(2),
    "column returned": lambda x: (x * 2)[:, 1].add_(1),
    "random": lambda x: (x * 0).bernoulli_(1.0),
    "in-place view": lambda x: (x * 2).t_().unsqueeze_(0).squeeze_(0),
}


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe(name: str, dynamic: bool | None) -> None:
    gm = holds(UNSAFE[name], X, change=tidy, dynamic=dynamic)
    assert problem(gm, "canonical") is None


def _static_cache(cache: Tensor, new: Tensor, at: Tensor) -> Any:
    cache.index_copy_(2, at, new)
    return cache.transpose(2, 3) @ new.new_ones(2, 3, 16, 1), cache[:, :, :8] * 2


def _sliced_cache(cache: Tensor, new: Tensor, at: Tensor) -> Any:
    before = cache[:, :, :5] * 1
    cache[:, :, 3:8] = new
    between = cache[:, :, :5].clone()
    cache[:, :, at] = new + 1
    return before, between, cache[:, :, :8] + 0.5


def _shifted_cache(cache: Tensor, new: Tensor, at: Tensor) -> Any:
    """A sliding window: roll and overwrite."""
    rolled = cache.roll(-1, dims=2)
    rolled[:, :, -5:] = new
    cache.copy_(rolled)
    return cache[:, :, -8:] * 2


def _counter(cache: Tensor, new: Tensor, at: Tensor) -> Any:
    at.add_(1)
    cache.index_add_(2, at, new)
    at.sub_(1)
    return cache.sum(), at * 2


# The caller sees these writes: they stay, in order with the reads around them.
MUTATED: dict[str, Callable[..., Any]] = {
    "static cache": _static_cache,
    "slice of a cache": _sliced_cache,
    "sliding cache": _shifted_cache,
    "counter": _counter,
    "input written and returned": lambda cache, new, at: cache.add_(1),
    "view of an input": lambda cache, new, at: (cache.view(-1)[:5].mul_(0).add_(2), cache.sum())[1],
    "input filled": lambda cache, new, at: (cache.fill_(3), cache[0] * 2)[1],
    "transposed input": lambda cache, new, at: (cache.transpose(1, 2).add_(new.sum()), cache * 2)[1],
}


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MUTATED)
def test_inputs_are_written(name: str, dynamic: bool | None) -> None:
    gm = holds(MUTATED[name], CACHE, NEW, torch.tensor([9, 2, 4, 11, 0]), change=tidy, dynamic=dynamic)
    assert problem(gm, "canonical") is None
    assert writes(gm) > 0


def test_the_second_call_sees_the_first_write() -> None:
    cache, at = CACHE.clone(), torch.tensor([9, 2, 4, 11, 0])
    seen = captured(_static_cache, CACHE.clone(), NEW, at, change=tidy)
    expected = CACHE.clone()
    for step in range(3):
        seen.compiled(cache, NEW * step, at + step)
        _static_cache(expected, NEW * step, at + step)
        assert torch.equal(cache, expected)


# Under no_grad an in-place operator changes values and leaves the history of gradients alone; out of place it would cut it.
@pytest.mark.parametrize("op", ["mul_", "add_", "clamp_min_", "masked_fill_", "slice"])
def test_no_grad_writes_keep_history(op: str) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        h = x * w
        with torch.no_grad():
            if op == "slice":
                h[:, :4] = 0.5
            elif op == "masked_fill_":
                h.masked_fill_(h > 1, 0.5)
            else:
                getattr(h, op)(2)
        return h + 1

    holds(function, X.clone().requires_grad_(), torch.linspace(1, 2, 8).requires_grad_(), change=tidy)


@pytest.mark.parametrize("op", ["pow_", "exp_", "addmm_", "cumsum_", "baddbmm_"])
def test_autocast_does_not_touch_in_place_operators(op: str) -> None:
    """Autocast casts `addmm` and `pow`, but not `addmm_` and `pow_`."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            low, high = x @ y, x.abs() + 1
            if op == "addmm_":
                return high.addmm_(x, y)
            if op == "baddbmm_":
                return high[None].expand(2, 8, 8).clone().baddbmm_(x[None].expand(2, 8, 8), y[None].expand(2, 8, 8))
            if op == "cumsum_":
                return low.cumsum_(-1) + 1
            return getattr(low, op)(*([2] if op == "pow_" else [])) + 1

    gm = holds(function, torch.linspace(-1, 1, 64).reshape(8, 8), torch.linspace(0, 2, 64).reshape(8, 8), change=tidy)
    assert problem(gm, "canonical") is None


def test_detached_write_is_seen() -> None:
    def function(x: Tensor) -> Any:
        h = x * 2
        h.detach().add_(1)
        return h * 3

    holds(function, X.clone().requires_grad_(), change=tidy)


def test_alias_classes() -> None:
    def function(x: Tensor, y: Tensor) -> Any:
        h = x * 2
        v, t = h.view(-1), h.t()
        a, b = h.chunk(2)
        return v + 1, t + 1, a + b, x[0] + y

    gm = captured(function, X, X[0]).graph
    aliases = Aliases(gm.graph)
    h, v, t, x = find(gm, "mul"), find(gm, "view"), find(gm, "t"), next(iter(gm.graph.nodes))
    assert aliases.roots(v) == aliases.roots(t) == aliases.roots(h) == frozenset([h])
    assert set(aliases.members(h)) >= {h, v, t, find(gm, "chunk"), find(gm, "getitem"), find(gm, "getitem", 1)}
    assert aliases.roots(find(gm, "select")) == frozenset([x])
    assert aliases.is_input(find(gm, "select")) and not aliases.is_input(v)
    assert not aliases.is_written(x) and aliases.writes([x, h]) == []


def test_results_of_one_operator_do_not_alias() -> None:
    """The weights of a router are scaled in place while its indices are read before and after."""

    def function(x: Tensor) -> Any:
        weights, indices = x.topk(2)
        order = indices.sort().values
        weights /= weights.sum(-1, keepdim=True)
        return weights, order, indices + 1

    gm = captured(function, X).graph
    aliases = Aliases(gm.graph)
    weights, indices = find(gm, "getitem"), find(gm, "getitem", 1)
    assert aliases.is_written(weights) and not aliases.is_written(indices)
    assert aliases.roots(weights).isdisjoint(aliases.roots(indices))
    assert aliases.members(find(gm, "topk"))[:3] == [find(gm, "topk"), weights, indices]
    holds(function, X, change=tidy)


def test_alias_classes_with_writes() -> None:
    def function(cache: Tensor, x: Tensor) -> Any:
        part = cache[:, :4]
        part.copy_(x[:, :4])
        return cache * 2

    gm = captured(function, X.clone(), X).graph
    aliases = Aliases(gm.graph)
    cache, x = list(gm.graph.nodes)[:2]
    write = find(gm, "copy_")
    assert aliases.is_written(cache) and aliases.is_written(find(gm, "slice")) and not aliases.is_written(x)
    assert aliases.writes([cache]) == [write] == aliases.writes([find(gm, "slice")])
    assert write in aliases.members(cache)


def _branches(p: Tensor, x: Tensor, *, write: Callable[[Tensor], Tensor]) -> Any:
    y, z = x * 2, x * 3
    before = y.sum() * 2 + z.sum()
    taken = torch.cond(p, write, lambda t: t.sum(), (y,))
    return before + y.sum() * 2 + z.sum(), taken


# What a branch does: whether it writes its operand.
BRANCHES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "in place": (lambda t: t.add_(1).sum(), True),
    "through a view": (lambda t: (t.view(-1)[:3].mul_(2), t.sum())[1], True),
    "in an inner branch": (lambda t: torch.cond(t.sum() < 9e9, lambda u: u.add_(1).sum(), lambda u: u.sum(), (t,)), True),
    "not at all": (lambda t: t.cos().sum(), False),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_what_a_branch_writes_is_written(name: str) -> None:
    write, writes_it = BRANCHES[name]
    function = partial(_branches, write=write)
    with torch.no_grad():
        gm = holds(function, torch.tensor(True), X, change=lambda g: (tidy(g), merge_equal(g)))
    aliases = Aliases(gm.graph)
    assert [aliases.is_written(find(gm, "mul", i)) for i in range(2)] == [writes_it, False]
    assert ops(gm).count("sum") == (3 if writes_it else 2), "of the value that no branch gets there is one sum"


def test_a_branch_that_returns_its_operand_shares_it() -> None:
    def function(p: Tensor, x: Tensor) -> Any:
        y = x * 2
        (taken,) = torch.cond(p, lambda t: (t.view(-1),), lambda t: (t.reshape(-1),), (y,))
        before = taken.sum()
        y.add_(1)
        return before - taken.sum() * 2

    with torch.no_grad():
        holds(function, torch.tensor(True), X, change=lambda g: (tidy(g), merge_equal(g)))


def test_writes_and_readers_are_told_in_the_order_of_the_graph() -> None:
    def function(*xs: Tensor) -> Any:
        for i, x in reversed(list(enumerate(xs))):
            x.add_(i)
        return [xs[5].view(-1) * n for n in (1, 2)] + [xs[5].t() + 1, xs[5].sum()]

    gm = captured(function, *(X + i for i in range(9))).graph
    aliases, inputs = Aliases(gm.graph), [n for n in gm.graph.nodes if n.op == "placeholder"]
    assert aliases.writes(inputs) == [n for n in gm.graph.nodes if label(n) == "add_"]
    read = aliases.readers(next(w for w in aliases.writes(inputs) if w.args[1] == 5))
    assert len(read) == 4 and read == [n for n in gm.graph.nodes if n in read]


def test_a_wrong_functionalisation_is_caught() -> None:
    """Sabotage: dropping a write to a cache, or reading before it, fails the comparison of this file."""

    def drop(gm: Any) -> None:
        tidy(gm)
        node = find(gm, "index_copy_")
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)

    with pytest.raises(AssertionError, match="inputs written"):
        holds(_static_cache, CACHE, NEW, torch.tensor([9, 2, 4, 11, 0]), change=drop)


def _calls(writes: int) -> int:
    """How many functions Python calls to clean a graph of so many writes to one buffer."""

    def function(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i in range(writes):
            out[:, i] = x[:, i] * 2
        return out

    gm = traced(function, X.new_empty(2, writes, 4))
    with cProfile.Profile() as profile:
        tidy(gm)
    assert ops(gm).count("select_scatter") == writes
    return sum(entry.callcount for entry in profile.getstats())


def test_many_writes_to_one_buffer_take_time_in_proportion() -> None:
    _calls(10)  # caches of PyTorch's
    assert _calls(400) < 5 * _calls(100)


def test_a_write_between_versions_is_read_in_order() -> None:
    """Each version of a value has its readers, some through views taken before the next."""

    def function(x: Tensor) -> Any:
        h = x * 2
        first = h.sum()
        h.add_(1)
        view = h[:, :4]
        second = view.sum()
        h.mul_(3)
        third = h.sum()
        h[:, 4:].copy_(x[:, 4:])
        h[:, :2] = third
        return first, second, third, h.t(), h

    holds(function, X, change=tidy)
    holds(function, X.clone().requires_grad_(), change=tidy)


def test_functionalise_leaves_pure_graphs_alone() -> None:
    gm = captured(lambda x: (x + 1).relu() @ x.t(), X).graph
    before = ops(gm)
    assert functionalise(gm) == 0
    assert ops(gm) == before


def test_gradients_helper_sees_a_missing_one() -> None:
    x = X.clone().requires_grad_()
    assert gradients(lambda x: x.detach() * 2, [x]) == [None]
    assert gradients(lambda x: x * 2, [x])[0] is not None
