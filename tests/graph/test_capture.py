"""Capture: Dynamo's graph as plain ATen, and what would be lost on the way refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import captured, cloned, gradients, ops, same
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_leaves

import hfgraph
from hfgraph.graph.capture import Uncapturable, capture
from hfgraph.graph.memory import MEMORY
from hfgraph.graph.origin import INPUT, readable

X = torch.linspace(-3, 3, 3 * 5 * 8).reshape(3, 5, 8).clone()  # a view would be guarded on its base
W = torch.linspace(1, 2, 8)


def raw(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> tuple[GraphModule, Sequence[Any]]:
    """Dynamo's own graph, and its inputs."""
    torch._dynamo.reset()
    found: list[tuple[GraphModule, Sequence[Any]]] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append((gm, inputs))
        results = len(gm.graph.output_node().args[0])  # type: ignore[arg-type]
        return lambda *_: [None] * results  # not run: a checkpointed graph cannot be, as it is

    torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    return found[0]


def equal(function: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> GraphModule:
    """The captured graph, which must give what the function gives."""
    seen = captured(function, *cloned(list(args)), dynamic=dynamic)
    assert same(seen.result, function(*cloned(list(args))))
    return seen.graph


# --- numbers and sizes --------------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(W.clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def eps_of(gm: GraphModule) -> list[Any]:
    return [n.args[1] for n in gm.graph.nodes if n.target is torch.ops.aten.add.Tensor]


def test_floats_lifted_into_tensors_become_numbers_again_one_graph_each() -> None:
    """dynamic=True makes eps an input; the graph must hold the number, and another number must get another graph."""

    def function(x: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    seen = captured(function, X, 1e-6, dynamic=True)
    second = seen.compiled(X, 0.5)
    assert [eps_of(g) for g in seen.graphs] == [[1e-6], [0.5]]
    assert same(seen.result, function(X, 1e-6)) and same(second, function(X, 0.5))
    assert not same(seen.result, second), "both numbers must show"


def test_an_attribute_is_a_number_too() -> None:
    seen = captured(Norm(1e-6), X, dynamic=True)
    assert eps_of(seen.graph) == [1e-6]


def test_sizes_stay_symbols() -> None:
    def function(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * x.shape[1], -1) * x.shape[1]

    seen = captured(function, X, dynamic=True)
    other = torch.randn(4, 7, 8)
    assert same(seen.compiled(other), function(other)) and len(seen.graphs) == 1


@pytest.mark.parametrize("rounded", [lambda n: round(n), lambda n: round(n, 1)], ids=["whole", "one digit"])
def test_a_rounded_number_is_legal(rounded: Callable[[float], float]) -> None:
    """As where the padding of an image is taken off. Rounding is the one builtin that symbols leave in a graph."""

    def function(x: Tensor, height: float) -> Tensor:
        return x * rounded(x.shape[0] * height / 7)

    f = torch.compile(function, backend="hfgraph", dynamic=True, options={"inductor": False, "strict": True})
    assert same(f(X, 3.0), function(X, 3.0)) and same(f(X[:2], 3.0), function(X[:2], 3.0))


def test_item_of_a_tensor_stays_an_operator() -> None:
    """Only numbers that Dynamo lifted are read while tracing; a value that is computed is not known then."""

    def function(x: Tensor) -> Tensor:
        return x * x.sum().item()

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        seen = captured(function, X)
        other = X + 1
        assert same(seen.compiled(other), function(other)) and len(seen.graphs) == 1


# --- regions ------------------------------------------------------------------------------------------


def _autocast(x: Tensor, w: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        h = x @ torch.outer(w, w)
        y = h.float() + 1
        with torch.autocast("cpu", enabled=False):
            z = h.float() @ torch.outer(w, w)
    return h, y, z, x.float() @ torch.outer(w, w)


def test_casts_in_an_autocast_region_are_there() -> None:
    gm = equal(_autocast, X, W)
    assert ops(gm).count("_enter_autocast") == ops(gm).count("_exit_autocast") == 2
    dtypes = [n.meta["val"].dtype for n in gm.graph.nodes if n.target is torch.ops.aten.matmul.default]
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    casts = [n for n in gm.graph.nodes if n.target is torch.ops.aten.to.dtype and n.args[0].meta["val"].dtype != n.meta["val"].dtype]
    assert len(casts) == 2, "float() of a bfloat16 result is no no-op, twice"


def test_an_autocast_region_ends_with_the_trace() -> None:
    equal(_autocast, X, W)
    assert not torch.is_autocast_enabled("cpu")


def test_an_autocast_region_ends_where_the_trace_fails() -> None:
    gm, inputs = raw(_autocast, X, W)
    last = next(n for n in gm.graph.nodes if n.target is torch.amp.autocast_mode._exit_autocast)
    with gm.graph.inserting_before(last):
        gm.graph.call_function(operator.truediv, (1, 0))
    gm.recompile()
    with pytest.raises(ZeroDivisionError):
        capture(gm, inputs)
    assert not torch.is_autocast_enabled("cpu")


def test_no_grad_is_kept() -> None:
    def function(x: Tensor) -> Any:
        with torch.no_grad():
            y = x.cos()
        return y, x.sin()

    x = X.clone().requires_grad_()
    seen = captured(function, x, grad=True)
    assert ops(seen.graph).count("_set_grad_enabled") == 2
    assert [t.requires_grad for t in seen.result] == [False, True]


# --- vmap ---------------------------------------------------------------------------------------------


def _vmapped(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * torch.rsqrt(row.pow(2).mean() + 1e-6))(x) + 1


def _vmapped_with_a_free_tensor(x: Tensor) -> Tensor:
    scale = x[0, 0] * 2
    return torch.vmap(lambda row: row * scale)(x)


def _nested(x: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(lambda row: row.cumsum(0) * row.amax()))(x)


def _several_results(x: Tensor) -> Any:
    a, b = torch.vmap(lambda row: (row.sum(0), row.exp()), out_dims=(0, 1))(x)
    return torch.vmap(lambda r: r + 1)(a), b


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("function", [_vmapped, _vmapped_with_a_free_tensor, _nested, _several_results])
def test_vmap(function: Callable[..., Any], dynamic: bool | None) -> None:
    """Its results depend on the inputs of the call: a batched value that became a constant would not."""
    seen = captured(function, X, dynamic=dynamic)
    assert same(seen.result, function(X))
    assert not any("vmap" in str(n.target) for n in seen.graph.graph.nodes)
    other = X.flip(0).cos()
    assert same(seen.compiled(other), function(other))
    if dynamic:
        larger = torch.randn(4, 6, 8)
        assert same(seen.compiled(larger), function(larger)) and len(seen.graphs) == 1


def test_vmap_leaves_dynamos_graph_as_it_was() -> None:
    gm, inputs = raw(_nested, X)
    before = str(gm.graph)
    capture(gm, inputs)
    assert str(gm.graph) == before


def test_gradients_through_vmap() -> None:
    x = X.clone().requires_grad_()
    seen = captured(_vmapped, x, grad=True)
    torch.testing.assert_close(gradients(seen.compiled, [x]), gradients(_vmapped, [x]))


# --- what graphs may lack -----------------------------------------------------------------------------


def test_a_graph_without_tensor_inputs() -> None:
    def function() -> Tensor:
        return torch.arange(5) * 2 + torch.ones(5, dtype=torch.long)

    gm = equal(function)
    assert not [n for n in gm.graph.nodes if n.op == "placeholder"] and "arange" in ops(gm)


def test_a_graph_of_sizes_only() -> None:
    def function(n: int) -> Tensor:
        return torch.arange(n) * n

    seen = captured(function, 5, dynamic=True)
    assert same(seen.result, function(5)) and same(seen.compiled(7), function(7)) and len(seen.graphs) == 1


def test_constants_keep_their_values() -> None:
    table = torch.tensor([[0.5, -1.0], [2.0, 4.0]])

    def function(x: Tensor) -> Tensor:
        return x[..., :2] @ table + torch.tensor([1.0, 2.0])

    gm = equal(function, X)
    constants = [getattr(gm, str(n.target)) for n in gm.graph.nodes if n.op == "get_attr"]
    assert constants and not any(isinstance(c, FakeTensor) for c in constants)


def test_a_constant_without_a_value_is_refused() -> None:
    gm, inputs = raw(lambda x: x + 1, X)
    with next(n.meta["example_value"] for n in gm.graph.nodes if n.op == "placeholder").fake_mode:
        gm.register_buffer("made_up", torch.ones(8))
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    with gm.graph.inserting_before(node):
        node.args = (node.args[0], gm.graph.get_attr("made_up"))
    gm.recompile()
    with pytest.raises(Uncapturable, match="was computed while tracing and became a constant without a value"):
        capture(gm, inputs)


# --- higher-order operators ---------------------------------------------------------------------------


def test_cond_is_retraced_whole() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: t.cos() + 1, lambda t: t.sin() * 2, (x,))

    seen = captured(function, X + 1)
    assert "cond" in ops(seen.graph)
    assert same(seen.result, function(X + 1)) and same(seen.compiled(X - 1), function(X - 1)), "both branches must be there"


def test_flex_attention_is_retraced_whole() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def function(q: Tensor) -> Tensor:
        return flex_attention(q, q + 1, q * 2, score_mod=lambda score, b, h, i, j: score + (i - j))

    q = torch.randn(1, 2, 16, 16)
    gm, inputs = raw(function, q)
    out = capture(gm, inputs)
    assert ops(out).count("flex_attention") == 1
    torch.testing.assert_close(tuple(out(*inputs)), tuple(gm(*inputs)))


class Doubled(torch.autograd.Function):
    """Its backward is its own: seven times the gradient, where autograd would say two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * 7


def _custom(x: Tensor) -> Tensor:
    return Doubled.apply(x) + x.sin()


def _checkpointed(x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(lambda t: t.cos().exp(), x, use_reentrant=False) + x


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch itself, while Dynamo traces one
@pytest.mark.parametrize(("function", "what"), [(_custom, "a custom autograd function"), (_checkpointed, "activation checkpointing")])
def test_what_has_its_own_backward_is_refused_and_keeps_it(function: Callable[..., Any], what: str) -> None:
    x = X.clone().requires_grad_()
    gm, inputs = raw(function, x)
    with pytest.raises(Uncapturable, match=rf"the higher-order operator \w+ would not survive being traced again \({what}\)"):
        capture(gm, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="hfgraph", options={"inductor": False, "strict": True})
    torch.testing.assert_close(gradients(compiled, [x]), gradients(function, [x]))
    assert what in hfgraph.last_report().graphs[0].unrewritten


def test_the_custom_backward_differs_from_autograds() -> None:
    """Else the test above could not tell whether it was kept."""
    x = X.clone().requires_grad_()
    (kept,), (plain,) = gradients(_custom, [x]), gradients(lambda t: t * 2 + t.sin(), [x])
    assert not torch.allclose(kept, plain)


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x.cos()
    return y + 1


def test_an_inference_mode_region_is_refused() -> None:
    gm, inputs = raw(_inference, X)
    with pytest.raises(Uncapturable, match=r"an inference-mode region inside the graph would be lost in a retrace; torch.no_grad\(\) is kept"):
        capture(gm, inputs)


# --- states of PyTorch's ------------------------------------------------------------------------------


def _sdpa_kernel(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x, x)


def _deterministic(x: Tensor) -> Tensor:
    torch.use_deterministic_algorithms(True)
    y = x + 1
    torch.use_deterministic_algorithms(False)
    return y


def _default_dtype(x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    y = torch.ones(8)
    torch.set_default_dtype(torch.float32)
    return x + y


def _functional_gradient(x: Tensor) -> Any:
    return torch.func.grad(lambda t: t.sin().sum())(x)


def _in_a_branch(x: Tensor) -> Tensor:
    return torch.cond(x.sum() < 9e9, _sdpa_kernel, lambda t: t * 1, (x,))


STATES: dict[Callable[..., Any], str] = {
    _sdpa_kernel: r"torch\.nn\.attention\._sdpa_kernel changes a state.* \(torch\.nn\.attention\.sdpa_kernel\)",
    _deterministic: r"torch\._C\._set_deterministic_algorithms changes a state of PyTorch's inside the graph, and would be lost in a retrace",
    _default_dtype: r"torch\.set_default_dtype changes a state",
    _functional_gradient: r"_saved_tensors_hooks_disable changes a state",
    _in_a_branch: r"_sdpa_kernel changes a state",
}


@pytest.mark.parametrize("function", STATES, ids=[f.__name__.strip("_") for f in STATES])
def test_what_changes_a_state_is_refused(function: Callable[..., Any]) -> None:
    gm, inputs = raw(function, X)
    with pytest.raises(Uncapturable, match=STATES[function]):
        capture(gm, inputs)


@pytest.mark.parametrize("function", [_sdpa_kernel, _in_a_branch])
def test_the_backend_chosen_for_attention_runs(function: Callable[..., Any]) -> None:
    """On these inputs the backends round differently."""
    x = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    f = torch.compile(function, backend="hfgraph", options={"inductor": False, "strict": True})
    assert torch.equal(f(x), function(x)) and not torch.equal(f(x), F.scaled_dot_product_attention(x, x, x))
    assert "_sdpa_kernel" in hfgraph.last_report().graphs[0].unrewritten


def test_calls_without_tensors_that_change_nothing_are_no_reason() -> None:
    def function(x: Tensor, n: int) -> Tensor:
        torch._check(n > 0)
        torch._C._log_api_usage_once("a test")
        with torch.set_grad_enabled(False):
            y = torch.ones(3) + torch.arange(n).sum()
        return y + x[:n].sum()

    equal(function, X, 2, dynamic=True)


# --- tensors made of tensors --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*does not implement _stable_hash_for_caching:UserWarning")  # the class is torch's own
@pytest.mark.parametrize(
    "function", [lambda a, b: a * a + 1, lambda a, b: TwoTensor(b, b + 1) * 2, lambda a, b: (b * 2, a + 1)], ids=["an input", "made inside", "beside"]
)
def test_a_tensor_made_of_tensors_is_refused_in_words(function: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    a = TwoTensor(torch.ones(3), torch.full((3,), 2.0))
    out = torch.compile(function, backend="hfgraph", options={"strict": True})(a, X[0, 0, :3].clone())
    wanted = function(a, X[0, 0, :3])
    for got, expected in zip(tree_leaves(out), tree_leaves(wanted), strict=True):
        assert type(got) is type(expected) and torch.equal(getattr(got, "b", got), getattr(expected, "b", expected))
    assert "is a TwoTensor, a tensor made of other tensors" in hfgraph.last_report().graphs[0].unrewritten


# --- what is known of a node --------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Norm(1e-6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + 1
        return x


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_modules_and_source_lines_are_kept(dynamic: bool | None) -> None:
    gm = captured(Net(), X, dynamic=dynamic).graph
    roots = [n for n in gm.graph.nodes if n.target is torch.ops.aten.rsqrt.default]
    assert len(roots) == 2
    for i, node in enumerate(roots):
        path, kind = list(node.meta["nn_module_stack"].values())[-1]
        assert str(i) in path and kind is Norm
        assert "test_capture.py" in node.meta["stack_trace"] and "torch.rsqrt" in node.meta["stack_trace"]


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_notes_on_placeholders_are_kept(dynamic: bool | None) -> None:
    gm, inputs = raw(Net(), X, dynamic=dynamic)
    out = capture(gm, inputs)
    olds, news = ([n for n in g.graph.nodes if n.op == "placeholder"] for g in (gm, out))
    assert len(olds) == len(news) >= 3
    for old, new in zip(olds, news, strict=True):
        own = ("val", INPUT, MEMORY)
        assert {k: v for k, v in new.meta.items() if k not in own} == {k: v for k, v in old.meta.items() if k not in own}
        assert new.meta[INPUT] == readable(str(old.target))
        assert "val" in new.meta
        assert getattr(new, "_dynamo_source", None) is getattr(old, "_dynamo_source", None)
    assert any(hasattr(n, "_dynamo_source") for n in news)
    assert {k: v for k, v in out.meta.items() if k in gm.meta} == gm.meta


def test_every_operator_has_a_fake_value_of_dynamos_mode() -> None:
    gm, inputs = raw(Net(), X, dynamic=True)
    mode = next(v.fake_mode for n in gm.graph.nodes if isinstance(v := n.meta.get("example_value"), FakeTensor))
    values = [n.meta.get("val") for n in capture(gm, inputs).graph.nodes if n.op in ("placeholder", "call_function")]
    assert None not in values
    assert all(v.fake_mode is mode for v in values if isinstance(v, FakeTensor))


# --- the test of the tests ----------------------------------------------------------------------------


def test_a_number_that_is_not_read_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the repair of `item`, eps stays a value computed in the graph."""
    from torch.fx import Interpreter

    from hfgraph.graph import capture as module

    monkeypatch.setattr(module._Retrace, "call_method", Interpreter.call_method)
    assert not all(isinstance(e, float) for e in eps_of(captured(Norm(1e-6), X, dynamic=True).graph))


def test_an_autocast_region_that_is_not_entered_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx import Interpreter

    from hfgraph.graph import capture as module

    monkeypatch.setattr(module._Retrace, "call_function", Interpreter.call_function)
    with pytest.raises(AssertionError):
        test_casts_in_an_autocast_region_are_there()


def test_a_vmap_that_is_not_outlined_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfgraph.graph import capture as module

    monkeypatch.setattr(module, "_isolate_vmap", lambda gm: gm)
    with pytest.raises((AssertionError, RuntimeError, Uncapturable, torch._dynamo.exc.BackendCompilerFailed)):
        test_vmap(_nested, None)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch itself, while Dynamo traces one
@pytest.mark.parametrize("function", [_custom, _checkpointed])
def test_what_is_not_refused_would_be_lost(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from hfgraph.graph import capture as module

    monkeypatch.setattr(module, "_refuse_unsupported", lambda gm: None)
    with pytest.raises((pytest.fail.Exception, KeyError, RuntimeError)):  # captured all the same, or broken on the way
        test_what_has_its_own_backward_is_refused_and_keeps_it(function, "")


def test_notes_that_are_not_copied_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfgraph.graph import capture as module

    monkeypatch.setattr(module, "_copy_placeholder_meta", lambda *_: None)
    with pytest.raises(AssertionError):
        test_notes_on_placeholders_are_kept(None)
