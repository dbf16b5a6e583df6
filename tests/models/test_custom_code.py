"""Models that nobody has listed: every rule applies by dataflow."""

from __future__ import annotations

import pytest
import torch
from custom import MODELS, VOCAB
from recipes import compiled
from torch import Tensor, nn

import hfgraph
from hfgraph.zoo.record import farthest

PLAIN = {"inductor": False, "strict": True, "merge_always": True}
NOTES = {
    "relative bias": {"full, bias as a tensor"},
    "oddly packed": {"causal"},
    "looped": {"sliding window of 4"},
    "gated residual": {"causal"},
    "nested": {"full"},
}


def made(name: str) -> nn.Module:
    """Weights that hide nothing: norms away from one, biases away from zero."""
    torch.manual_seed(1)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tokens(batch: int = 2, length: int = 10) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_everything_is_found(name: str) -> None:
    model, x = made(name), tokens()
    torch.testing.assert_close(compiled(model, options=PLAIN)(x), model(x), atol=1e-5, rtol=0)
    report = hfgraph.last_report()
    assert report.counts == MODELS[name][1] and not report.near_misses
    assert {s.note for s in report.sites if s.rule == "attention"} == NOTES[name]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_symbolic_sizes(name: str) -> None:
    """The same sites, and other sizes give what the model gives."""
    model = made(name)
    f = compiled(model, options=PLAIN, dynamic=True)
    for x in (tokens(), tokens(3, 17)):
        torch.testing.assert_close(f(x), model(x), atol=1e-5, rtol=0)
    assert hfgraph.last_report().counts == MODELS[name][1]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_bfloat16(name: str) -> None:
    x = tokens()
    exact, model = made(name).double()(x), made(name).bfloat16()
    assert farthest(compiled(model, options=PLAIN)(x), exact) <= 1.1 * farthest(model(x), exact)
    assert hfgraph.last_report().counts["attention"] == MODELS[name][1]["attention"]


@pytest.mark.parametrize("name", ["oddly packed", "looped"])
@torch.no_grad()
def test_through_inductor(name: str) -> None:
    model, x = made(name), tokens()
    torch.testing.assert_close(compiled(model, options={**PLAIN, "inductor": True})(x), model(x), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_changed_weight_shows() -> None:
    """The comparison above can fail."""
    model, x = made("nested"), tokens()
    f = compiled(model, options=PLAIN)
    before = f(x)
    next(model.stages.parameters()).mul_(1.5)
    assert farthest(f(x), before) > 1e-2
    torch.testing.assert_close(f(x), model(x), atol=1e-5, rtol=0)
