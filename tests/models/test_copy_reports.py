"""B03 of our log of public failures: a copy made for the sake of an operator that writes is taken away, and it writes into what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recipes import PLAIN
from torch import Tensor

from hfgraph.graph.op import OPS
from hfgraph.graph.values import written
from hfgraph.kernels import all_ops

all_ops()


@pytest.fixture(scope="module", autouse=True)
def reverse_into() -> Iterator[None]:
    """Writes `source` back to front, value by value: with one storage for both, the second half reads what the first has written."""

    @torch.library.custom_op("hfgraph_b03::reverse_into", mutates_args={"target"})
    def reverse(source: Tensor, target: Tensor) -> None:
        for i in range(source.shape[0]):
            target[i] = source[-1 - i]

    @torch.library.custom_op("hfgraph_b03::reverse_all", mutates_args={"targets"})
    def reverse_all(source: Tensor, targets: list[Tensor]) -> None:
        for target in targets:
            reverse(source, target)

    yield


def _into(source: Tensor, target: Tensor) -> None:
    torch.ops.hfgraph_b03.reverse_into(source, target)


def source_copied(x: Tensor) -> Any:
    x = x * 2
    _into(x.clone(), x)
    return x + 1


def target_copied(x: Tensor) -> Any:
    x, y = x * 2, (x * 2).clone()
    _into(x, y)
    return x, y


def by_one(x: Tensor) -> Any:
    """A product with one is a copy as well."""
    x = x * 2
    y = x * 1
    _into(x, y)
    return x + y


def copy_of_a_copy(x: Tensor) -> Any:
    x = x + 1
    y = x.clone()
    z = y.clone()
    _into(y, z)
    return x + y * 2 + z * 4


def view_of_a_copy(x: Tensor) -> Any:
    x = x + 1
    y = x.clone()
    _into(x, y.view(-1)[:])
    return x - y


def into_a_view(x: Tensor) -> Any:
    """The original is written through a view, while the copy is read."""
    x = x + 1
    kept = x.clone()
    _into(kept, x[:])
    return kept * x


def several(x: Tensor) -> Any:
    x = x + 1
    a, b = x.clone(), x.clone()
    torch.ops.hfgraph_b03.reverse_all(x, [a, b])
    return a + 2 * b + 4 * x


def the_callers_tensor(x: Tensor) -> Any:
    kept = x.clone()
    _into(kept, x)
    return kept + 1


def in_place_operator(x: Tensor) -> Any:
    x = x + 1
    kept = x.clone()
    x.copy_(kept.flip(0))
    x[1:] += kept[:-1]
    return kept, x


def results_of_one_operator(x: Tensor) -> Any:
    values, order = x.sort()
    kept = values.clone()
    _into(kept, values)
    return values, kept, order


CASES = (
    source_copied, target_copied, by_one, copy_of_a_copy, view_of_a_copy, into_a_view, several, the_callers_tensor, in_place_operator,
    results_of_one_operator,
)  # fmt: skip


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_b03_a_copy_that_an_operator_needs_stays(function: Callable[[Tensor], Any], dynamic: bool | None) -> None:
    torch._dynamo.reset()
    x = torch.randn(7, generator=torch.Generator().manual_seed(3))
    given, expected = x.clone(), x.clone()
    got = torch.compile(function, backend="hfgraph", options=PLAIN, dynamic=dynamic, fullgraph=True)(given)
    want = function(expected)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert torch.equal(given, expected)  # what the caller's tensor holds afterwards


@pytest.mark.parametrize("name", OPS)
def test_b03_no_op_of_ours_writes(name: str) -> None:
    """So none of them, nor any kernel, needs two storages of one tensor."""
    op = OPS[name]
    assert [written(target) for target in (op.target, *(i.target for i in op.implementations.values()))] == [()] * (1 + len(op.implementations))
