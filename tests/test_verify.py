"""`hfgraph.verify`: it holds on sound models, and fails on unsound ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import hfgraph
from hfgraph import stacking, verifying
from hfgraph.errors import MetaModel, NotAModel, NotAvailable, NothingCompiled, UnknownOption
from hfgraph.graph import replacing, rewrite
from hfgraph.graph.judge import Float64, Recorder, judge


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Block(nn.Module):
    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.first, self.second = Norm(dim), Norm(dim)
        self.up, self.down = nn.Linear(dim, 40), nn.Linear(40, dim)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(dim))

    def forward(self, x):
        self.seen.add_(x.float().mean((0, 1)))
        x = x + self.drop(self.down(torch.relu(self.up(self.first(x)))))
        return self.second(x), x


class Broken(nn.Module):
    """Dynamo splits it into two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Block(), Block()

    def forward(self, x):
        x, _ = self.a(x)
        torch._dynamo.graph_break()
        return self.b(x)[0]


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_holds_and_catches_every_sabotage(block: Block, dtype: torch.dtype) -> None:
    block = block.to(dtype)
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24).to(dtype), sabotage=True)
    assert verdict and verdict.ok, str(verdict)
    assert {"rms_norm", "rms_norm_weight", "add_rms_norm"} <= set(verdict.sabotage)
    assert all(verdict.sabotage.values())
    assert {(o.weights, o.side) for o in verdict.outputs} == {(w, s) for w in ("perturbed", "true") for s in ("rewritten", "compiled")}
    assert {s.rule for s in verdict.sites} == {"rms_norm", "add_rms_norm"}
    assert 0 < verdict.max_error < 1


def test_weights_buffers_and_mode_are_restored_exactly(block: Block) -> None:
    block.train()
    block.drop.eval()
    before = {k: v.clone() for k, v in block.state_dict().items() if k != "seen"}
    hfgraph.verify(block, torch.randn(2, 5, 24))
    assert all(torch.equal(v, block.state_dict()[k]) for k, v in before.items())
    assert block.training and block.first.training and not block.drop.training


def test_graph_breaks_are_verified_graph_by_graph() -> None:
    torch.manual_seed(0)
    verdict = hfgraph.verify(Broken(), torch.randn(2, 5, 24))
    assert verdict.ok
    assert {o.name.split(",")[0] for o in verdict.outputs} == {"graph 0", "graph 1"}


def test_written_inputs_are_compared_too(block: Block) -> None:
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24))
    returned = 2
    assert len({o.name for o in verdict.outputs}) > returned


def test_a_wrong_rewrite_fails_and_says_where(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rewrite._replace
    monkeypatch.setattr(rewrite, "_replace", lambda *a, falsify, **k: real(*a, falsify=True, **k))
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24))
    assert not verdict and not verdict.ok
    assert "DOES NOT HOLD" in str(verdict) and "WRONG at first" in str(verdict)
    assert not verdict.to_dict()["ok"]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_lost_shape_is_told_and_fits_into_json(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "judge", lambda *_: judge(torch.ones(2), torch.ones(3), torch.ones(3)))
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24))
    assert not verdict.ok and verdict.max_error == float("inf")
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["max_error"] is None


def test_a_graph_left_as_it_was_is_named() -> None:
    def step(x):
        return torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)

    verdict = hfgraph.verify(step, torch.randn(3, requires_grad=True))
    assert "activation checkpointing" in verdict.unrewritten[0] and verdict.unrewritten[0] in " ".join(str(verdict).split())


def test_an_unnoticed_sabotage_fails(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (replacing, rewrite):
        monkeypatch.setattr(place, "falsified", lambda graph, node, before: node)
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24), sabotage=True)
    assert not verdict.ok and not any(verdict.sabotage.values())


def test_a_function_is_verified_on_its_inputs() -> None:
    norm = Norm(16)
    assert hfgraph.verify(lambda x: norm(x) * 2, torch.randn(3, 16), sabotage=True).ok


# --- random numbers -----------------------------------------------------------------------------------


DRAWING = {
    "rand_like": lambda x: x + torch.rand_like(x),
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.5, training=True),
    "bernoulli": lambda x: x + torch.bernoulli(torch.full_like(x, 0.3)),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_draw_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    """Another mask would allow anything: so near to float64 a graph is only with eager's own, and sabotage is noticed."""
    norm, x = Norm(64).to(dtype), torch.randn(2, 8, 64).to(dtype)

    def drawing(x):
        return norm(DRAWING[name](x))

    torch.manual_seed(5)
    drawing(x)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    verdict = hfgraph.verify(drawing, x, sabotage=True)
    assert verdict.ok and verdict.sabotage and all(verdict.sabotage.values()), str(verdict)
    assert verdict.max_error < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert torch.equal(torch.get_rng_state(), after), "the model itself draws as it would have"


def test_where_inductor_draws_others_nothing_is_said_to_hold() -> None:
    norm = Norm(64)
    verdict = hfgraph.verify(lambda x: norm(x + torch.rand_like(x)), torch.randn(8, 64), options={"inductor_config": {"fallback_random": False}})
    assert not verdict.ok and verdict.right and {o.side for o in verdict.outputs} == {"rewritten"}
    assert verdict.unproven == ["graph 0 draws random numbers, and compiled it draws others than eager does: numbers cannot tell whether it is right"]
    assert "NOT PROVEN" in str(verdict) and verdict.unproven[0] in " ".join(str(verdict).split())
    assert verdict.to_dict()["unproven"] == verdict.unproven


def test_where_a_rewritten_graph_draws_others_nothing_of_it_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, real = Norm(64), verifying.run

    def also_draws(gm, context, *passes):
        real(gm, context, *passes)
        if not passes:
            with gm.graph.inserting_before(gm.graph.output_node()):
                gm.graph.call_function(torch.ops.aten.rand.default, ([3],))
            gm.recompile()

    monkeypatch.setattr(verifying, "run", also_draws)
    verdict = hfgraph.verify(lambda x: norm(x), torch.randn(8, 64), options={"inductor": False}, sabotage=True)
    assert not verdict.outputs and not verdict.sites and not verdict.sabotage and "rewritten it draws others" in verdict.unproven[0]


# --- options ------------------------------------------------------------------------------------------


def test_what_holds_with_options_is_proved_with_them(block: Block) -> None:
    verdict = hfgraph.verify(block, torch.randn(2, 5, 24), sabotage=True, options={"disable": ["add_rms_norm"], "inductor": False})
    assert verdict.ok and {s.rule for s in verdict.sites} == {"rms_norm"} and "add_rms_norm" not in verdict.sabotage
    with pytest.raises(UnknownOption, match="no option 'disabel'"):
        hfgraph.verify(block, torch.randn(2, 5, 24), options={"disabel": []})


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(24, 16), nn.Linear(24, 16)

    def forward(self, x):
        return self.gate(x) - self.up(x)


@pytest.mark.parametrize("inductor", [False, True])
def test_stacked_weights_are_verified_and_stay_where_they_are(inductor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, options = Siblings(), torch.randn(2, 5, 24), {"merge_always": True, "inductor": inductor}
    places, values = [p.data_ptr() for p in model.parameters()], [p.clone() for p in model.parameters()]
    assert hfgraph.verify(model, x, options=options).ok
    real = stacking._move
    monkeypatch.setattr(stacking, "_move", lambda parameters, block: (real(parameters, block), block.mul_(1.03)))
    torch._dynamo.reset()
    wrong = hfgraph.verify(model, x, options=options)
    assert {o.side for o in wrong.outputs if not o.ok} == {"compiled"}
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))


# --- errors -------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    with pytest.raises(NotAModel, match=r"hfgraph\.verify takes a torch\.nn\.Module .* not str\. Load a model first"):
        hfgraph.verify("gpt2", torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(NotAvailable, match=r"verify\(tp=\.\.\.\) is not available in this version"):
        hfgraph.verify(Norm(4), torch.ones(1, 4), tp=2)
    with pytest.raises(NothingCompiled, match="without compiling any graph"):
        hfgraph.verify(lambda: 3)
    with pytest.raises(MetaModel, match="meta device and hold no values"):
        hfgraph.verify(Norm(4).to("meta"), torch.ones(1, 4, device="meta"))
    with pytest.raises(MetaModel, match="meta device and hold no values"):
        hfgraph.explain(Norm(4).to("meta"), torch.ones(1, 4, device="meta"))


# --- the judge ----------------------------------------------------------------------------------------


def test_the_judge_allows_what_eager_is_off_and_no_more() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    eager = torch.tensor([1.0, 2.0 + 1e-3])
    assert judge(torch.tensor([1.0 + 1.1e-3, 2.0]), eager, exact).ok
    assert not judge(torch.tensor([1.0 + 1.3e-3, 2.0]), eager, exact).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_judge_sees_a_small_error_everywhere(dtype: torch.dtype) -> None:
    exact = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert judge(exact.to(dtype), exact.to(dtype), exact).ok
    assert not judge((exact * 1.01).to(dtype), exact.to(dtype), exact).ok


def test_the_judge_wants_the_same_shape_dtype_and_non_finite_values() -> None:
    x = torch.tensor([1.0, float("inf"), float("nan")])
    assert judge(x, x, x.double()).ok
    assert not judge(torch.tensor([1.0, float("-inf"), float("nan")]), x, x.double()).ok
    assert not judge(torch.tensor([1.0, float("nan"), float("nan")]), x, x.double()).ok
    assert not judge(x.double(), x, x.double()).ok
    assert not judge(x[:2], x, x.double()).ok
    assert not judge(torch.tensor([1, 2]), torch.tensor([1, 3]), torch.tensor([1, 3])).ok
    assert judge(torch.empty(0), torch.empty(0), torch.empty(0)).ok


def test_float64_ignores_the_casts_of_the_graph() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    low = graph.call_function(torch.ops.aten.to.dtype, (x, torch.bfloat16))
    graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (low, 3)))
    gm = torch.fx.GraphModule({}, graph)
    value = torch.randn(5)
    assert torch.equal(Float64(gm, {}).run(value), value.double() * 3)
    assert not torch.equal(Recorder(gm, {}).run(value).double(), value.double() * 3)


@pytest.mark.parametrize("draw", [torch.ops.aten.rand_like.default, torch.ops.aten.bernoulli.p])
def test_float64_draws_what_the_graph_draws(draw: torch._ops.OpOverload) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value = torch.rand(50)
    drawn = graph.call_function(draw, (x, 0.5) if draw is torch.ops.aten.bernoulli.p else (x,))
    drawn.meta["val"] = value
    graph.output(drawn)
    gm = torch.fx.GraphModule({}, graph)
    torch.manual_seed(1)
    want, after = gm(value), torch.get_rng_state()
    torch.manual_seed(1)
    got = Float64(gm, {}).run(value)
    assert got.dtype is torch.float64 and torch.equal(got, want.double()) and torch.equal(torch.get_rng_state(), after)


def test_a_recorded_value_is_a_copy() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    doubled = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    graph.output(graph.call_function(torch.ops.aten.zero_.default, (doubled,)))
    recorder = Recorder(torch.fx.GraphModule({}, graph), {doubled.name: "kept"})
    recorder.run(torch.ones(2))
    assert torch.equal(recorder.recorded["kept"], torch.full((2,), 2.0))
