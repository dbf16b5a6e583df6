"""Which products are gated MLPs: told by where the factors come from. Each way that models write, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import differences
from rule_cases import graph_of
from torch import Tensor

from hfgraph.graph.rewrite import Outcome, apply_rules
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.kernels import all_ops
from hfgraph.rewrites import rules

all_ops()
D = 8
SHAPES = {"x": (2, 5, D), "other": (2, 5, D), "w": (D, D), "v": (D, D), "packed": (2 * D, D), "experts": (2, D, 2 * D), "bias": (D,), "chosen": (4, D)}
Case = Callable[..., Any]


def tensors(case: Case) -> dict[str, Tensor]:
    """Seeded values for the parameters of a case, by name."""
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(SHAPES[n], generator=generator) for n in case.__code__.co_varnames[: case.__code__.co_argcount]}


def recognised(case: Case) -> Outcome:
    given = tensors(case)
    gm = graph_of(case, given)
    outcome = apply_rules(gm, rules("recognise"))
    gm.graph.lint()
    gm.recompile()
    assert differences(case, gm, list(given.values())) == []
    return outcome


def _halves(x, packed):
    gate, up = F.linear(x, packed).chunk(2, -1)
    return F.silu(gate) * up


def _second_half(x, packed):
    up, gate = F.linear(x, packed).split(D, -1)
    return up * F.gelu(gate)


def _slices(x, packed):
    h = F.linear(x, packed)
    return F.silu(h[..., :D]) * h[..., D:]


def _alternating(x, packed):
    h = F.linear(x, packed)
    return F.silu(h[..., ::2]) * h[..., 1::2]


def _selected(x, packed):
    h = F.linear(x, packed).view(*x.shape[:-1], 2, D)
    return F.silu(h[..., 0, :]) * h[..., 1, :]


def _unbound(x, packed):
    gate, up = F.linear(x, packed).unflatten(-1, (2, D)).unbind(-2)
    return F.silu(gate) * up


def _adapted(x, packed, w, other):
    """A low-rank update beside the packed projection."""
    gate, up = (F.linear(x, packed) + F.linear(F.linear(x, w), packed)).chunk(2, -1)
    return F.silu(gate) * up


def _experts(x, experts):
    gate, up = torch.bmm(x, experts).chunk(2, -1)
    return up * F.silu(gate)


def _experts_with_bias(x, experts, chosen):
    h = torch.bmm(x, experts) + chosen[torch.tensor([1, 0])].repeat(1, 2)[:, None]
    return F.silu(h[..., :D]) * h[..., D:]


def _sibling_experts(x, experts):
    return F.silu(torch.bmm(x, experts[..., :D])) * torch.bmm(x, experts[..., D:])


GATED: dict[str, Case] = {
    "two projections": lambda x, w, v: F.silu(F.linear(x, w)) * F.linear(x, v),
    "the other order": lambda x, w, v: F.linear(x, v) * F.silu(F.linear(x, w)),
    "with a bias": lambda x, w, v, bias: F.silu(F.linear(x, w, bias)) * F.linear(x, v, bias),
    "a bias of one": lambda x, w, v, bias: F.gelu(F.linear(x, w) + bias, approximate="tanh") * F.linear(x, v),
    "as matrix products": lambda x, w, v: F.silu(x @ w) * (x @ v),
    "of rows": lambda x, w, v, bias: F.silu(torch.addmm(bias, x.view(-1, D), w)) * torch.addmm(bias, x.view(-1, D), v),
    "scaled by vectors and numbers": lambda x, w, v, bias: F.silu(F.linear(x, w) * (bias * 3.0)) * (F.linear(x, v) * 0.5),
    "squared ReLU": lambda x, w, v: F.relu(F.linear(x, w)).square() * F.linear(x, v),
    "clamped": lambda x, w, v: F.silu(F.linear(x, w).clamp(max=1.0)) * F.linear(x, v).clamp(-1.0, 1.0),
    "clamped after activation": lambda x, w, v: F.silu(F.linear(x, w)).clamp(max=0.5) * F.linear(x, v).clamp(min=-1.0, max=1.0),
    "in another dtype": lambda x, w, v: (F.silu(F.linear(x, w).bfloat16()) * F.linear(x, v).bfloat16()).float(),
    **{f.__name__.strip("_"): f for f in (_halves, _second_half, _slices, _alternating, _selected, _unbound, _adapted)},
    **{f.__name__.strip("_"): f for f in (_experts, _experts_with_bias, _sibling_experts)},
}


@pytest.mark.parametrize("name", GATED)
def test_a_gated_product_is_found(name: str) -> None:
    outcome = recognised(GATED[name])
    cores = [e for e in outcome.applied if e.rule in CORES]
    assert len(cores) == 1, [e.reason for e in outcome.missed]
    assert not [e for e in outcome.missed if e.rule in CORES]


CORES = {r.name for r in rules("recognise") if isinstance(r, Rule) and isinstance(r.where, FromOneProjection)}


def _half_of_each(x, other, packed):
    return F.silu(F.linear(x, packed)[..., :D]) * F.linear(other, packed)[..., D:]


def _one_half_twice(x, packed):
    h = F.linear(x, packed)
    return F.silu(h[..., :D]) * (h[..., :D] * 2)


def _attention(x, w, v):
    """Gated attention: the gate is a projection of what the queries are projections of."""
    q = F.linear(x, v)
    return F.silu(F.linear(x, w)) * F.scaled_dot_product_attention(q, q, q, is_causal=True)


def _parts_of_the_input(x, w, v):
    return F.silu(F.linear(x[:, :2], w)) * F.linear(x[:, 2:4], v)


NOT_GATED: dict[str, tuple[Case, str]] = {
    "an attention output": (_attention, "gate is made by linear, up by attention"),
    "a recurrence": (lambda x, w, v: F.silu(F.linear(x, w)) * F.linear(x, v).cumsum(1), "gate is made by linear, up by cumsum"),
    "the residual": (lambda x, w: F.silu(F.linear(x, w)) * x, "gate is made by linear, up by placeholder"),
    "a projection of something else": (lambda x, other, w, v: F.silu(F.linear(x, w)) * F.linear(other, v), "gate is made by linear, up by linear"),
    "other rows of the input": (_parts_of_the_input, "gate is made by linear, up by linear"),
    "parts of two projections": (_half_of_each, "gate is made by linear, up by linear"),
    "one half twice": (_one_half_twice, "gate is made by linear, up by linear"),
    "itself": (lambda x, w: F.silu(F.linear(x, w)) * F.linear(x, w), "gate is made by linear, up by linear"),
    "inputs": (lambda x, other: F.silu(x) * other, "gate is made by placeholder, up by placeholder"),
}


@pytest.mark.parametrize("name", NOT_GATED)
def test_what_only_looks_like_one_is_left_alone(name: str) -> None:
    case, made = NOT_GATED[name]
    outcome = recognised(case)
    assert [e.rule for e in outcome.applied if e.rule != "attention"] == []
    reason = f"neither parts of one projection nor projections of one input: {made}"
    assert len([e for e in outcome.missed if reason in e.reason]) == 1, [e.reason for e in outcome.missed]


@pytest.mark.parametrize(
    "case",
    [
        lambda x, w, v: F.silu(F.linear(x, w)[..., :1]) * F.linear(x, v),  # one gate for a whole row
        lambda x, w, v: torch.sigmoid(F.linear(x, w)) * F.linear(x, v),  # no activation of an MLP
        lambda x, w, v: F.silu(F.linear(x, w)) + F.linear(x, v),
    ],
)
def test_other_combinations_are_none(case: Case) -> None:
    assert recognised(case).applied == []


def _softcapped(x):
    return 5.0 * torch.tanh(x / 5.0)


@pytest.mark.parametrize("case", [lambda x, packed: _softcapped(F.linear(x, packed)), lambda x, w: _softcapped((x @ w * 0.3).float())])
def test_capped_logits_are_found(case: Case) -> None:
    assert [e.rule for e in recognised(case).applied] == ["softcap"]


def _capped_scores(x, w, other):
    q, k = (F.linear(h, w).view(2, 5, 2, D // 2).transpose(1, 2) for h in (x, other))
    return _softcapped(q @ k.transpose(-1, -2) * 0.5).softmax(-1)


def test_capped_scores_are_left_to_attention() -> None:
    """Also where the keys come from outside, as those of a cache do."""
    for case in (_capped_scores, lambda x, other: _softcapped(x[:, None] @ other[:, None].transpose(-1, -2))):
        outcome = recognised(case)
        assert outcome.applied == [] and ["x is no projection by weights: it is made by matmul" in e.reason for e in outcome.missed] == [True]
