"""Graph breaks in words: each kind is made here, and then what the words advise is done."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

import hfgraph
from hfgraph import zoo
from hfgraph.causes import CAUSES, cause_of, in_words
from hfgraph.zoo.table import Coverage

TABLE = Coverage.load(Path(__file__).parents[1] / "docs" / "coverage.json")
X = (torch.arange(12) / 2 - 2).reshape(3, 4)
LOCK = threading.Lock()
LOG = logging.getLogger("a_model")


def test_causes_have_the_names_that_dynamo_gives() -> None:
    registry = Path(torch._dynamo.__file__).with_name("graph_break_registry.json")
    names = {entry["Gb_type"] for entries in json.loads(registry.read_text(encoding="utf-8")).values() for entry in entries}
    assert [known for known in CAUSES if not any(name.startswith(known) for name in names)] == []


def test_what_has_no_words_keeps_dynamos_name() -> None:
    assert cause_of("call to lazy") is None and in_words("call to lazy") == "call to lazy"
    assert in_words("Unsupported context manager").endswith("such as a lock (Dynamo: Unsupported context manager)")


@pytest.mark.parametrize("name", [n for n, record in TABLE.records.items() if record.breaks])
def test_every_break_of_the_zoo_is_known_in_words(name: str) -> None:
    assert [reason for reason in TABLE.records[name].breaks if cause_of(reason) is None] == []


# --- the advice, taken: by the beginning of Dynamo's name, code that breaks, and the same as advised ---------------


def _locked(x: Tensor) -> Tensor:
    with LOCK:
        return x * 2


def _with_a_lock(x: Tensor) -> Tensor:
    return _locked(x + 1)


def _logged(x: Tensor) -> Tensor:
    x = x + 1
    LOG.warning("seen")
    return x * 2


def _printed(x: Tensor) -> Tensor:
    x = x + 1
    print("seen")
    return x * 2


def _seeded(x: Tensor) -> Tensor:
    x = x + 1
    torch.manual_seed(3)
    return x * 2


def _asked_for(x: Tensor) -> Tensor:
    x = x + 1
    torch._dynamo.graph_break()
    return x * 2


def _plain(x: Tensor) -> Tensor:
    return (x + 1) * 2


def _branching(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def _item(x: Tensor) -> Tensor:
    return x * x.max().item()


class Moved(nn.Module):
    """A buffer that `forward` assigns anew."""

    def __init__(self, assigned: bool) -> None:
        super().__init__()
        self.assigned = assigned
        self.table = nn.Buffer(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.to(x.dtype)
        if self.assigned:
            self.table = table
        return x + table


ADVISED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "Dynamic shape operator": (lambda x: x[x > 0].sum(), lambda x: torch.where(x > 0, x, 0).sum()),
    "Attempted to use `torch.nn.functional.one_hot`": (lambda x: F.one_hot(x.argmax(-1)).sum(0), lambda x: F.one_hot(x.argmax(-1), 4).sum(0)),
    "Unsupported Tensor.item() call": (_item, lambda x: x * x.max()),
    "Data-dependent branching": (_branching, lambda x: torch.where(x.sum() > 0, x + 1, x - 1)),
    "logging.Logger method not supported": (_logged, _plain),
    "Unsupported python_type() call": (Moved(True), Moved(False)),
    "Attempted to call function marked as skipped": (_seeded, _plain),
    "Unsupported context manager": (_with_a_lock, _plain),
    "Call to `torch._dynamo.graph_break()`": (_asked_for, _plain),
    "Failed to trace builtin operator": (_printed, _plain),
}


@pytest.mark.parametrize("name", ADVISED)
@torch.no_grad()
def test_advice_comes_true(name: str) -> None:
    breaking, advised = ADVISED[name]
    report = hfgraph.explain(breaking, X)  # type: ignore[arg-type]
    found = [b for b in report.breaks if b.reason.startswith(name)]
    assert found and all(b.cause for b in found), [b.reason for b in report.breaks]
    torch._dynamo.reset()
    want = breaking(X)
    assert torch.equal(torch.compile(advised, backend="hfgraph", options={"inductor": False}, fullgraph=True)(X), want)


@torch.no_grad()
def test_dynamo_leaves_out_a_logger_that_it_is_told_of() -> None:
    with torch._dynamo.config.patch(ignore_logging_functions={LOG.warning}):
        assert hfgraph.explain(_logged, X).breaks == []  # type: ignore[arg-type]


# --- experts -----------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    """One after the other those that were hit, as many models do."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.gate_up_proj = nn.Parameter(torch.randn(config.num_experts, 2 * 8, 4) / 2)
        self.down_proj = nn.Parameter(torch.randn(config.num_experts, 4, 8) / 2)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        mask = F.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        for expert in mask.sum(dim=(-1, -2)).nonzero():
            choice, rows = torch.where(mask[expert[0]])
            gate, up = F.linear(hidden_states[rows], self.gate_up_proj[expert[0]]).chunk(2, dim=-1)
            found = F.linear(self.act_fn(gate) * up, self.down_proj[expert[0]])
            out.index_add_(0, rows, found * top_k_weights[rows, choice, None])
        return out


@use_experts_implementation
class Decorated(Loop):
    """The same, as the advice says."""

    forward = Loop.forward


class Mixture(nn.Module):
    """A router and its experts."""

    def __init__(self, experts: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(4, 3, bias=False)
        self.experts = experts(SimpleNamespace(num_experts=3, _experts_implementation="grouped_mm"))

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.router(x).softmax(-1).topk(2)
        return self.experts(x, indices, weights)


@torch.no_grad()
def test_a_loop_over_experts_says_what_to_change_and_that_is_so() -> None:
    x, loop = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), Mixture(Loop)
    report = hfgraph.explain(loop, x)
    text = " ".join(str(report).split())
    assert "the size of a result depends on values" in text and "(Dynamo: Dynamic shape operator)" in text
    assert "model.set_experts_implementation('grouped_mm')" in text and "`use_experts_implementation`" in text
    assert "moe" not in report.counts
    torch._dynamo.reset()
    got = torch.compile(Mixture(Decorated), backend="hfgraph", options={"inductor": False}, fullgraph=True)(x)
    torch.testing.assert_close(got, loop(x), atol=1e-5, rtol=1e-5)
    assert hfgraph.last_report().counts["moe"] == 1


@torch.no_grad()
def test_a_model_that_has_other_experts_is_asked_for_them() -> None:
    model, inputs = zoo.build("mixtral", 1), zoo.inputs("mixtral", 1, 5, 1)
    model.set_experts_implementation("eager")
    assert hfgraph.explain(model, **inputs).breaks
    torch._dynamo.reset()
    model.set_experts_implementation("grouped_mm")
    report = hfgraph.explain(model, **inputs)
    assert report.breaks == [] and report.counts["moe"] == model.config.num_hidden_layers
