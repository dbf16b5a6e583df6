"""Linears of one input, merged: results are eager's, and the weights stay the user's, whatever is done to them."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recipes import assert_equal, build, graphs, tiny, tokens
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, DynamicCache

import hfgraph
from hfgraph import merge, stacking
from hfgraph.errors import InvalidOption, NotStacked, UnknownRule
from hfgraph.options import Options

ALWAYS = {"inductor": False, "strict": True, "merge_always": True}
INDUCTOR = {**ALWAYS, "inductor": True}
both = pytest.mark.parametrize("options", [ALWAYS, INDUCTOR], ids=["plain", "inductor"])


class Block(nn.Module):
    """Attention and a gated MLP."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(48, n, bias=bias) for n in (64, 32, 32))
        self.gate, self.up, self.down = nn.Linear(64, 96, bias=False), nn.Linear(64, 96, bias=False), nn.Linear(96, 48)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, 16).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(b, t, 64)
        return self.down(F.silu(self.gate(y)) * self.up(y)), v


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each stacking moved."""
    found: list[int] = []
    real = stacking._move
    monkeypatch.setattr(stacking, "_move", lambda parameters, block: (found.append(len(parameters)), real(parameters, block))[1])
    return found


def compiled(model: Callable[..., Any], options: dict[str, Any] = ALWAYS, **how: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="hfgraph", options=options, **how)


def merged() -> int:
    """Groups that the last compilation merged."""
    return sum(s.rule == "merged_linear" and s.status == "fused" for s in hfgraph.last_report().sites)


def reasons() -> list[str]:
    return [s.reason for s in hfgraph.last_report().near_misses if s.rule == "merged_linear"]


def held(model: nn.Module) -> int:
    """Bytes of all storages that a model's parameters keep alive."""
    storages = [p.untyped_storage() for p in model.parameters()]
    return sum({s._cdata: s.nbytes() for s in storages}.values())


def together(*parameters: Tensor) -> bool:
    """One block in memory, in some order."""
    ordered = sorted(parameters, key=lambda p: p.data_ptr())
    one = len({p.untyped_storage()._cdata for p in ordered}) == 1
    return one and all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in pairwise(ordered))


def check(f: Callable[..., Any], model: Callable[..., Any], *args: Any) -> None:
    """A call gives what eager gives, in eager's layout."""
    got, want = f(*args), model(*args)
    assert_equal(got, want)
    assert [t.stride() for t in got] == [t.stride() for t in want]


# --- values -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dynamic", [None, True])
@torch.no_grad()
def test_a_block(options: dict[str, Any], dynamic: bool | None, moves: list[int]) -> None:
    block = Block()
    f = compiled(block, options, dynamic=dynamic)
    for shape in ((2, 5, 48), (2, 5, 48), (3, 9, 48)):
        check(f, block, torch.randn(shape))
    assert merged() == 2 and hfgraph.last_report().counts["merged_linear"] == 2
    assert together(block.q.weight, block.k.weight, block.v.weight) and together(block.q.bias, block.k.bias, block.v.bias)
    assert together(block.gate.weight, block.up.weight) and not together(block.q.weight, block.gate.weight)
    assert sorted(moves) == [2, 3, 3]  # once, for all calls and both graphs


@both
@torch.no_grad()
def test_bfloat16_is_as_near_to_float64_as_eager(options: dict[str, Any]) -> None:
    block, x = Block().bfloat16(), torch.randn(4, 33, 48).bfloat16()
    exact = copy.deepcopy(block).double()(x.double())
    eager = block(x)
    got = compiled(block, options)(x)
    for g, e, w in zip(got, eager, exact, strict=True):
        assert (g.double() - w).abs().max() <= 1.1 * (e.double() - w).abs().max()
    assert merged() == 2


@torch.no_grad()
def test_what_the_graph_holds() -> None:
    """One matmul for each group, on an input that stands after the model's own."""
    seen: list[torch.fx.GraphModule] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from hfgraph.backend import rewrite
        from hfgraph.pipeline import Context

        rewritten, _ = rewrite(gm, inputs, Context(Options(merge_always=True)))
        seen.append(stacking.lifted(rewritten, inputs)[0])
        return gm.forward

    torch.compile(Block(), backend=backend)(torch.randn(2, 5, 48))
    linears = [n for n in seen[0].graph.nodes if n.target is torch.ops.aten.linear.default]
    assert [tuple(n.args[1].meta["val"].shape) for n in linears] == [(128, 48), (192, 64), (48, 96)]
    names = [n.name for n in seen[0].graph.nodes if n.op == "placeholder"]
    assert len(names) == 1 + 10 + 3 and names[-3:] == ["hfgraph_stack0", "hfgraph_stack1", "hfgraph_stack2"]
    assert not any(n.target is torch.ops.aten.cat.default for n in seen[0].graph.nodes)


@torch.no_grad()
def test_inputs_keep_their_order_whatever_the_graph_calls_its_nodes() -> None:
    """In the code of a graph an input goes by its name, and another node may have it."""
    blocks, x = [Block() for _ in range(5)], torch.randn(2, 5, 48)

    def f(x: Tensor) -> tuple[Tensor, ...]:
        x = torch.stack([torch.stack([x, x + i]).sum(0) for i in range(4)]).mean(0)
        for block in blocks:
            x = x + block(x)[0]
        return (x,)

    check(compiled(f), f, x)
    assert merged() == 10


@torch.no_grad()
def test_inductor_takes_a_stack_for_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address is static, for cudagraphs, as those of parameters are."""
    import torch._inductor.compile_fx as inductor

    real, seen = inductor.get_static_input_idxs, []
    monkeypatch.setattr(inductor, "get_static_input_idxs", lambda n: (seen.append(real(n)), real(n))[1])
    block, x = Block(), torch.randn(2, 5, 48)
    with torch._inductor.utils.fresh_cache():
        check(compiled(block, INDUCTOR), block, x)
    assert len(seen[0]) == 10 + 3


@both
@torch.no_grad()
def test_from_inductors_cache(options: dict[str, Any]) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    with torch._inductor.utils.fresh_cache():
        for _ in range(2):
            torch._dynamo.reset()
            check(compiled(block, options), block, x)
            block = copy.deepcopy(block)


# --- memory -------------------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_there_is_no_second_copy(options: dict[str, Any]) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    before, size = [StorageWeakRef(p.untyped_storage()) for p in (block.q.weight, block.k.bias, block.up.weight, block.down.weight)], held(block)
    f = compiled(block, options)
    f(x)
    assert held(block) == size
    assert [r.expired() for r in before] == [True, True, True, False]
    stack = StorageWeakRef(block.q.weight.untyped_storage())
    block.to(torch.float64)  # nothing but the parameters holds a stack
    assert stack.expired() and not together(block.q.weight, block.k.weight)


@torch.no_grad()
def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    block = Block()
    compiled(block)(torch.randn(2, 5, 48))
    stack = StorageWeakRef(block.q.weight.untyped_storage())
    torch._dynamo.reset()
    del block
    import gc

    gc.collect()
    assert stack.expired()


# --- weights change -----------------------------------------------------------------------------------


def _in_place(block: Block) -> None:
    for p in block.parameters():
        p.mul_(1.5)


def _data(block: Block) -> None:
    block.k.weight.data.mul_(-2)
    block.v.bias.data.copy_(torch.randn(32))


def _optimizer(block: Block) -> None:
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1)
    with torch.enable_grad():
        block(torch.randn(2, 5, 48))[0].square().sum().backward()
    optimizer.step()


def _load(block: Block) -> None:
    block.load_state_dict(Block().state_dict())


def _assign(block: Block) -> None:
    block.load_state_dict({k: v.clone() for k, v in Block().state_dict().items()}, assign=True)


def _replace_data(block: Block) -> None:
    block.k.weight.data = torch.randn(32, 48)


def _new_parameter(block: Block) -> None:
    block.k.weight = nn.Parameter(torch.randn(32, 48))


def _there_and_back(block: Block) -> None:
    block.to(torch.float64).to(torch.float32)


IN_PLACE = [_in_place, _data, _optimizer, _load]
MOVED = [_assign, _replace_data, _new_parameter, _there_and_back]


@both
@pytest.mark.parametrize("change", [*IN_PLACE, *MOVED], ids=lambda c: c.__name__.strip("_"))
def test_changed_weights_are_seen(change: Callable[[Block], None], options: dict[str, Any], moves: list[int]) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    size = held(block)
    f = compiled(block, options)
    with torch.no_grad():
        check(f, block, x)
        before = f(x)[0]
        moves.clear()
        change(block)
        check(f, block, x)
        assert change is _there_and_back or (f(x)[0] - before).abs().max() > 1e-3
    assert bool(moves) == (change in MOVED), "moved without need" if moves else "not stacked again"
    assert together(block.q.weight, block.k.weight, block.v.weight) and held(block) == size


@torch.no_grad()
def test_a_dtype_of_its_own_for_each_graph(moves: list[int]) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    for dtype in (torch.float32, torch.float64, torch.float32):
        check(f, block.to(dtype), x.to(dtype))
    assert len(moves) == 9


# --- copies, files ------------------------------------------------------------------------------------


@torch.no_grad()
def test_state_dict() -> None:
    block = Block()
    before = {k: v.clone() for k, v in block.state_dict().items()}
    compiled(block)(torch.randn(2, 5, 48))
    after = block.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) and after[k].shape == v.shape for k, v in before.items())


@torch.no_grad()
def test_deepcopy_has_weights_of_its_own() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    f(x)
    other = copy.deepcopy(block)
    want = block(x)
    other.k.weight.zero_()
    assert_equal(f(x), want)
    check(compiled(other), other, x)
    assert held(other) == held(block)


@torch.no_grad()
def test_pickle_keeps_the_block(moves: list[int]) -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    compiled(block)(x)
    file = io.BytesIO()
    torch.save(block, file)
    assert file.tell() < held(block) + 20_000
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    moves.clear()
    torch._dynamo.reset()
    check(compiled(loaded), loaded, x)
    assert not moves and held(loaded) == held(block)


@torch.no_grad()
def test_save_pretrained(tmp_path: Path) -> None:
    model, ids = tiny("llama"), tokens(2, 11)
    want = model(ids, use_cache=False).logits
    compiled(model)(ids, use_cache=False)
    assert merged() == 4
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded(ids, use_cache=False).logits, want)
    torch._dynamo.reset()
    assert_equal(compiled(loaded)(ids, use_cache=False).logits, want)
    assert merged() == 4, reasons()
    assert not (tmp_path / "model.safetensors").stat().st_size > 1.1 * held(model) + 50_000


# --- who else uses the weights ------------------------------------------------------------------------


@torch.no_grad()
def test_memory_that_others_see_stays_where_it_is() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    state = block.state_dict()
    f = compiled(block)
    check(f, block, x)
    assert merged() == 0 and [r.split("but ")[1] for r in reasons()] == ["other tensors share its memory and would not follow"] * 2
    state["k.weight"].zero_()
    check(f, block, x)
    assert not block.k.weight.any()


@torch.no_grad()
def test_weights_put_in_place_of_stacked_ones_that_cannot_be() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    f(x)
    packed = torch.randn(3, 32, 48)
    block.k.weight.data = packed[1]
    with pytest.warns(NotStacked, match=r"3 weights that hfgraph had stacked .* of a new one other tensors share its memory"):
        check(f, block, x)
    packed.zero_()
    check(f, block, x)


class Tied(nn.Module):
    """Layers that share all of their weights, or one."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        one, two = self.layers
        for name in ("q", "k", "v", "gate", "up") if whole else ("k",):
            setattr(two, name, getattr(one, name))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for layer in self.layers:
            x = x + layer(x)[0]
        return (x,)


@torch.no_grad()
def test_layers_that_share_their_weights(moves: list[int]) -> None:
    model, x = Tied(whole=True), torch.randn(2, 5, 48)
    f = compiled(model)
    check(f, model, x)
    assert merged() == 4 and sorted(moves) == [2, 3, 3]
    model.layers[0].k.weight.mul_(3)
    check(f, model, x)
    assert model.layers[0].k is model.layers[1].k


@torch.no_grad()
def test_a_weight_of_two_groups_is_left_alone() -> None:
    model, x = Tied(whole=False), torch.randn(2, 5, 48)
    check(compiled(model), model, x)
    assert merged() == 2 and len(reasons()) == 2 and "a parameter has other siblings elsewhere" in reasons()[0]


class Lora(nn.Module):
    """As adapters wrap a linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))

    def merge(self) -> nn.Linear:
        self.base.weight.data += 2.0 * self.b.weight @ self.a.weight
        return self.base


@torch.no_grad()
def test_adapters() -> None:
    """Put on after the weights were stacked, changed, and merged into them."""
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block)
    check(f, block, x)
    block.q, block.v = Lora(block.q), Lora(block.v)
    check(f, block, x)
    assert merged() == 2 and together(block.q.base.weight, block.k.weight, block.v.base.weight)
    block.q.b.weight.mul_(2)
    check(f, block, x)
    want = block(x)
    block.q, block.v = block.q.merge(), block.v.merge()
    assert_equal(f(x), want)
    assert together(block.q.weight, block.k.weight, block.v.weight)


def test_adapters_are_trained_on_frozen_weights() -> None:
    """Weights that are not trained are merged where others are; gradients are eager's."""
    block, x = Block().requires_grad_(False), torch.randn(2, 5, 48)
    block.q = Lora(block.q)
    wanted = torch.autograd.grad(block(x)[0].square().sum(), [block.q.a.weight, block.q.b.weight])
    found = torch.autograd.grad(compiled(block, INDUCTOR)(x)[0].square().sum(), [block.q.a.weight, block.q.b.weight])
    assert_equal(found, wanted, 1e-4)
    assert merged() == 2


# --- graphs, models, threads, modes -------------------------------------------------------------------


@torch.no_grad()
def test_prefill_and_decode_find_one_stack(moves: list[int]) -> None:
    model = build("llama")
    f = compiled(model)
    caches = [DynamicCache(config=model.config), DynamicCache(config=model.config)]
    for ids in [tokens(2, 9), *(tokens(2, 1, seed=s) for s in range(3))]:
        assert_equal(f(ids, cache=caches[1]).logits, model(ids, cache=caches[0]).logits)
    assert graphs() >= 2 and sorted(moves) == [2, 2, 3, 3]


@torch.no_grad()
def test_one_graph_serves_many_layers(moves: list[int]) -> None:
    """Compiled layer by layer, each layer has its own stacks."""
    layers = [Block() for _ in range(4)]
    for layer in layers:
        layer.compile(backend="hfgraph", options=ALWAYS)
    x = torch.randn(2, 5, 48)
    for _ in range(2):
        for layer in layers:
            assert_equal(layer(x), layer.forward(x))
    assert sorted(moves) == [2] * 4 + [3] * 8 and graphs() == 1
    assert len({layer.q.weight.untyped_storage()._cdata for layer in layers}) == 4


@torch.no_grad()
def test_threads() -> None:
    """Two threads call one model for the first time, and another changes no weights but moves them all the while."""
    block, x = Block(), torch.randn(2, 5, 48)
    want, f, wrong = block(x), compiled(block), []

    def call() -> None:
        with torch.no_grad():
            for _ in range(50):
                got = f(x)
                if not all(torch.allclose(g, w, atol=1e-5, rtol=0) for g, w in zip(got, want, strict=True)):
                    wrong.append(got)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and together(block.q.weight, block.k.weight, block.v.weight)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@both
def test_modes(around: Any, options: dict[str, Any]) -> None:
    """Stacked under either, the weights can still be trained."""
    block, x = Block(), torch.randn(2, 5, 48)
    f = compiled(block, options)
    with around():
        check(f, block, x)
    assert merged() == 2 and not block.k.weight.is_inference() and block.k.weight.is_leaf and block.k.weight.requires_grad
    block(x)[0].sum().backward()
    assert block.k.weight.grad is not None
    with torch.no_grad():
        check(f, block, x)


def test_weights_that_may_be_trained_stay_apart() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    ends = [p.data_ptr() for p in block.parameters()]
    f = compiled(block)
    check(f, block, x)
    assert merged() == 0 and len(reasons()) == 2 and all("its weight may be trained" in r for r in reasons())
    assert [p.data_ptr() for p in block.parameters()] == ends
    with torch.no_grad():
        check(f, block, x)
    assert merged() == 2
    f(x)[0].sum().backward()
    assert block.v.weight.grad is not None and together(block.q.weight, block.v.weight, block.k.weight)


# --- what must not touch the weights ------------------------------------------------------------------


@torch.no_grad()
def test_explain_and_verify_leave_the_weights_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(merge.PAYS, ("cpu", None), float("inf"))
    block, x = Block(), torch.randn(2, 5, 48)
    ends = [p.data_ptr() for p in block.parameters()]
    assert hfgraph.explain(block, x).counts["merged_linear"] == 2
    verdict = hfgraph.verify(block, x, sabotage=True)
    assert verdict, str(verdict)
    assert verdict.sabotage["merged_linear"] and len([s for s in verdict.sites if s.rule == "merged_linear"]) == 5
    assert [p.data_ptr() for p in block.parameters()] == ends


# --- options ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_switched_off() -> None:
    block, x = Block(), torch.randn(2, 5, 48)
    check(compiled(block, {**ALWAYS, "disable": ["merged_linear"]}), block, x)
    assert "merged_linear" not in hfgraph.last_report().counts and not reasons()


@torch.no_grad()
def test_where_it_does_not_pay_groups_are_named_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PAYS", {("cpu", torch.float32): 9})
    block = Block()
    f = compiled(block, {"inductor": False, "strict": True}, dynamic=False)
    check(f, block, torch.randn(2, 5, 48))
    sites = [s for s in hfgraph.last_report().sites if s.rule == "merged_linear"]
    assert "10 rows in float32 are not faster at once" in " ".join(str(hfgraph.last_report()).split())
    assert [(s.rule, s.status, s.note) for s in sites] == [("merged_linear", "recognised", "apart: 10 rows in float32 are not faster at once on cpu")] * 2
    assert not together(block.q.weight, block.k.weight)
    check(f, block, torch.randn(1, 9, 48))
    assert merged() == 2


def test_the_option() -> None:
    assert Options.of({"merge_always": True}).merge_always and not Options().merge_always
    assert Options.of({"merge_always": True}).digest() != Options().digest()
    with pytest.raises(InvalidOption, match="option 'merge_always' is 1 \\(int\\); expected True or False"):
        Options.of({"merge_always": 1})
    with pytest.raises(UnknownRule, match="Did you mean 'merged_linear'"):
        Options.of({"disable": ["merged_linaer"]})
