"""Graph breaks in words: reason, explanation, hints and place, each once."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import hfgraph
from hfgraph.breaks import Break, gathered, parsed, watched
from hfgraph.causes import CAUSES

MESSAGE = """Data-dependent branching
  Explanation: Detected data-dependent branching. Dynamo does not support it.

      The branch condition involves a tensor
  Hint: Use `torch.cond`.
  Hint: Please report an issue to PyTorch.

  Developer debug context: attempted <function f at 0x7f96ab2e4e00>
"""


def test_a_message_in_its_parts() -> None:
    found = parsed(MESSAGE, count=3)
    assert found == Break("Data-dependent branching", "Detected data-dependent branching. Dynamo does not support it.", ("Use `torch.cond`.",), count=3)
    assert found.to_dict()["words"] == CAUSES["Data-dependent branching"].words and found.to_dict()["hints"] == ("Use `torch.cond`.",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Encountered graph break when attempting to trace CALL: f(x):\n\n" + MESSAGE, "Data-dependent branching"),
        ("Failed to handle graph break gracefully. Skipping the function.\n\nGraph break encountered:\n\n" + MESSAGE, "Data-dependent branching"),
        ("generic_jump TensorVariable()", "Data-dependent branching"),
        ("call to lazy", "call to lazy"),
        ("", "unknown"),
    ],
)
def test_the_reason_comes_first(text: str, reason: str) -> None:
    assert parsed(text).reason == reason


def test_each_place_once_and_what_has_none_too() -> None:
    a, b = Break("x", source="m.py:1"), Break("x", source="m.py:2")
    found = gathered([a, b, a], {"x\n  Hint: h": 4, "y": 1})
    assert [(f.reason, f.source, f.count) for f in found] == [("x", "m.py:1", 2), ("x", "m.py:2", 2), ("y", "", 1)]


def test_the_logger_is_as_it_was() -> None:
    logger = logging.getLogger("torch._dynamo.symbolic_convert.__graph_breaks")
    before = logger.level, logger.propagate, list(logger.handlers)
    with watched():
        assert logger.handlers != before[2]
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        if x.sum() > 0:  # on data
            x = x + 1
        torch._dynamo.graph_break()
        return x.sin()


def test_explain_names_each_place() -> None:
    for _ in range(2):  # Dynamo itself tells a place only the first time
        report = hfgraph.explain(Branching(), torch.ones(3))
        assert sorted(b.code for b in report.breaks) == ["if x.sum() > 0:  # on data", "torch._dynamo.graph_break()"]
        assert all(b.source.startswith("test_breaks.py:") and b.count == 1 for b in report.breaks)
        assert set(report.graph_breaks.values()) == {1}
        assert any("torch.cond" in hint for b in report.breaks for hint in b.hints)
        torch._dynamo.reset()


def test_the_last_report_has_the_breaks_that_ended_its_graphs() -> None:
    torch.compile(Branching(), backend="hfgraph", options={"inductor": False})(torch.ones(3))
    found = hfgraph.last_report()
    assert [b.code for b in found.breaks][:1] == ["if x.sum() > 0:  # on data"]
    assert found.graphs[-1].ended is None
