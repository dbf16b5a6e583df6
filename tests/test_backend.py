"""The backend as `torch.compile` sees it: options, reports, cache tags, lowering, what it does when it cannot work."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import hfgraph
from hfgraph import backend, pipeline
from hfgraph.entries import entries
from hfgraph.errors import HfgraphError, IllegalGraph, InvalidRule, KernelRefused, MetaModel, NothingCompiled, NotRewritten
from hfgraph.graph.capture import capture
from hfgraph.kernels import all_ops
from hfgraph.lower import lower
from hfgraph.options import Options

EAGER = {"inductor": False, "strict": True}


class Norm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Net(nn.Module):
    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Norm(dim), nn.Linear(dim, dim)) for _ in range(2))
        self.norm = Norm(dim)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


class Split(Net):
    """Dynamo makes two graphs of it."""

    def forward(self, x):
        x = self.layers[0](x)
        torch._dynamo.graph_break()
        return self.norm(x)


def compiled(model, **options):
    return torch.compile(model, backend="hfgraph", options={**EAGER, **options})


def canonical(function, *args):
    """The captured graph of one call."""
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(capture(gm, example_inputs))
        return gm

    torch.compile(function, backend=keep, fullgraph=True)(*args)
    return graphs[0]


# --- results ------------------------------------------------------------------------------------------


def test_through_inductor_it_gives_the_models_results() -> None:
    net, x = Net(), torch.randn(2, 3, 16)
    torch.testing.assert_close(torch.compile(net, backend="hfgraph")(x), net(x))


def test_a_mode_of_inductor_is_passed_on() -> None:
    net, x = Norm(16), torch.randn(2, 16)
    torch.testing.assert_close(torch.compile(net, backend="hfgraph", mode="reduce-overhead")(x), net(x))


def test_gradients_are_eagers_through_inductor() -> None:
    net, x = Net(), torch.randn(2, 3, 16)
    twin = copy.deepcopy(net)
    net(x).square().sum().backward()
    torch.compile(twin, backend="hfgraph")(x).square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert a.grad.abs().sum() > 0
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-5)


def test_disabled_rules_do_not_apply() -> None:
    net, x = Net(), torch.randn(2, 3, 16)
    compiled(net)(x)
    assert hfgraph.last_report().counts == {"rms_norm": 3, "add_rms_norm": 2}
    torch._dynamo.reset()
    compiled(net, disable=["add_rms_norm"])(x)
    assert hfgraph.last_report().counts == {"rms_norm": 3}
    torch._dynamo.reset()
    compiled(net, disable=["rms_norm"])(x)
    assert hfgraph.last_report().counts == {}


# --- reports ------------------------------------------------------------------------------------------


def test_the_report_names_modules_and_source_lines() -> None:
    found = hfgraph.explain(Net(), torch.randn(2, 3, 16))
    recognised = [s for s in found.sites if s.status == "recognised"]
    assert [s.module for s in recognised] == ["layers.0.0", "layers.1.0", "norm"]
    assert all(s.source.startswith("test_backend.py:") for s in recognised)
    assert all(s.steps == ("rms_norm", "rms_norm_weight") for s in recognised)
    assert found.counts == {"rms_norm": 3, "add_rms_norm": 2}
    json.dumps(found.to_dict())
    assert "layers.*.*" in str(found) and "add_rms_norm" in str(found)


def test_a_near_miss_is_told_in_words() -> None:
    def shared(x):
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6), mean

    found = hfgraph.explain(shared, torch.randn(3, 8))
    assert found.counts == {}
    assert [s.reason for s in found.near_misses] == ["rms_norm: 5 of 5 nodes matched, then mean has 2 users, pattern has 1"]
    assert "mean has 2 users" in str(found)


def test_a_graph_called_for_several_layers_counts_each_time() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Norm(8) for _ in range(3))

        @torch.compiler.disable(recursive=False)
        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    with torch.no_grad():
        assert hfgraph.explain(Layers(), torch.randn(2, 8)).counts == {"rms_norm": 3}


def test_the_last_report_holds_all_graphs_of_one_call() -> None:
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        compiled(Split())(x)
        assert [len(g.sites) for g in hfgraph.last_report().graphs] == [1, 1]
        compiled(Net())(x)
    assert len(hfgraph.last_report().graphs) == 1
    assert hfgraph.last_report().counts["rms_norm"] == 3


@pytest.mark.parametrize(
    ("compile_it", "name"),
    [
        (lambda f, m: torch.compile(m, **f), "Net"),
        (lambda f, m: torch.compile(m.forward, **f), "Net"),
        (lambda f, m: (m.compile(**f), m)[1], "Net"),
        (lambda f, m: torch.compile(lambda x: m(x), **f), ""),
    ],
    ids=["module", "forward", "in place", "function"],
)
def test_the_last_report_knows_whose_it_is(compile_it, name: str) -> None:
    compile_it({"backend": "hfgraph", "options": {"inductor": False}}, Net())(torch.randn(2, 3, 16))
    assert hfgraph.last_report().model == name


def test_every_pass_has_its_row() -> None:
    compiled(Net())(torch.randn(2, 3, 16))
    rows = hfgraph.last_report().graphs[0].rows
    assert [(r.stage, r.name) for r in rows] == [(p.stage, p.name) for p in pipeline.PIPELINE]
    assert all(r.seconds >= 0 and r.nodes > 0 for r in rows)


def test_merged_values_are_counted_whatever_the_pass_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = [replace(p, name="in other words") for p in pipeline.PIPELINE]
    monkeypatch.setattr(backend, "run", lambda gm, context, after: pipeline.run(gm, context, renamed, after))
    assert hfgraph.explain(lambda x: torch.tanh(x) * torch.tanh(x), torch.ones(3)).graphs[0].merged == 1


def test_explain_does_not_use_up_the_users_recompilations() -> None:
    net = Norm(8)
    for n in range(1, 14):
        assert hfgraph.explain(net, torch.randn(n, 8)).counts == {"rms_norm": 1}


def counting():
    """A backend of the user's, and how often it was called."""
    calls = []
    return calls, lambda gm, _: (calls.append(1), gm)[1]


@pytest.mark.parametrize("look", [hfgraph.explain, hfgraph.verify], ids=["explain", "verify"])
def test_looking_leaves_the_user_all_recompilations(look) -> None:
    """Also where the user compiles code that others share: what the user has compiled stays, and nothing is compiled anew."""
    calls, backend = counting()
    net, other, x = Split(), Split(), torch.randn(2, 3, 16)
    with torch.no_grad():
        mine = torch.compile(other, backend=backend)
        mine(x)
        assert len(calls) == 2
        for _ in range(9):
            look(net, x)
            mine(x)
        assert len(calls) == 2
        for n in range(2, 9):
            torch.compile(net, backend=backend, dynamic=False)(torch.randn(n, 3, 16))
    assert len(calls) == 2 + 2 * 7


def test_looking_leaves_no_graph_behind() -> None:
    calls, backend = counting()

    def plain(x):
        return x * 2 + 1

    for _ in range(9):
        hfgraph.explain(plain, torch.ones(3))
    assert not entries(plain.__code__)
    torch.compile(plain, backend=backend)(torch.ones(3))
    assert len(calls) == len(entries(plain.__code__)) == 1


@pytest.mark.parametrize("look", [hfgraph.explain, hfgraph.verify], ids=["explain", "verify"])
def test_recompilations_that_the_user_has_used_up_are_named(look) -> None:
    def plain(x):
        return x * 2 + 1

    used_up = torch.compile(plain, backend="eager", dynamic=False)
    for n in range(1, 11):
        used_up(torch.ones(n))
    with pytest.raises(NothingCompiled, match=r"has compiled this code 8 times before, and that is its limit .* Call torch\._dynamo\.reset\(\)"):
        look(plain, torch.ones(3))


# --- when it cannot work ------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args, **_kwargs):
        raise ValueError("made to fail")

    monkeypatch.setattr(backend, "run", fails)


@pytest.mark.usefixtures("broken")
def test_a_graph_it_fails_on_runs_unrewritten_with_a_warning_and_a_reason() -> None:
    net, x = Net(), torch.randn(2, 3, 16)
    with pytest.warns(NotRewritten, match="made to fail.*Results are not affected"):
        out = torch.compile(net, backend="hfgraph", options={"inductor": False})(x)
    torch.testing.assert_close(out, net(x))
    assert hfgraph.last_report().graphs[0].unrewritten == "ValueError: made to fail"
    assert "graph 0 was not rewritten: ValueError: made to fail" in str(hfgraph.last_report())


@pytest.mark.usefixtures("broken")
def test_strict_raises_instead() -> None:
    with pytest.raises(Exception, match="made to fail"):
        compiled(Net())(torch.randn(2, 3, 16))


@pytest.mark.parametrize("fault", [IllegalGraph("fuse", "made to fail"), InvalidRule("glu", "made to fail", "Mend it")], ids=lambda e: type(e).__name__)
def test_a_bug_of_ours_never_ends_a_compilation(fault: HfgraphError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args, **_kwargs):
        raise fault

    monkeypatch.setattr(backend, "run", fails)
    net, x = Net(), torch.randn(2, 3, 16)
    with pytest.warns(NotRewritten, match="made to fail"):
        out = torch.compile(net, backend="hfgraph", options={"inductor": False})(x)
    torch.testing.assert_close(out, net(x))
    assert hfgraph.last_report().graphs[0].unrewritten == f"{type(fault).__name__}: {fault}"
    torch._dynamo.reset()
    with pytest.raises(Exception, match="made to fail"):
        compiled(net)(x)


def test_what_was_asked_for_and_cannot_be_is_an_error_without_strict() -> None:
    with pytest.raises(Exception, match="it runs on cuda, the tensors are on cpu") as found:
        torch.compile(Norm(64), backend="hfgraph", options={"kernels": {"rms_norm": "triton"}})(torch.randn(4, 64))
    assert isinstance(found.value.inner_exception, KernelRefused)


def test_a_result_that_nothing_uses_is_no_fault() -> None:
    def function(x):
        m = x.mean(-1)
        m.sum()
        return m.unsqueeze(-1) * 2

    x = torch.randn(2, 3)
    assert torch.equal(compiled(function)(x), function(x))


def test_checkpointed_regions_go_to_inductor_as_they_are() -> None:
    net = Net()

    def step(x):
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)

    x = torch.randn(2, 3, 16, requires_grad=True)
    out = compiled(step)(x)
    torch.testing.assert_close(out, net(x))
    assert "activation checkpointing" in hfgraph.last_report().graphs[0].unrewritten


def test_a_model_on_meta_is_refused_by_name() -> None:
    with pytest.raises(Exception, match=r"MetaModel: \d+ tensors are on the meta device and hold no values \(layers\.0\.0\.weight") as found:
        compiled(Net().to("meta"))(torch.randn(2, 3, 16, device="meta"))
    assert isinstance(found.value.inner_exception, MetaModel)


def test_weights_on_meta_are_refused_only_where_they_are_computed_with() -> None:
    """The shape of a tensor without values is a shape like any other."""

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.template = nn.Parameter(torch.empty(2, 3, device="meta"))

        def forward(self, x):
            return x.expand_as(self.template) + self.template.shape[1]

    assert torch.equal(compiled(Shaped())(torch.ones(3)), torch.full((2, 3), 4.0))
    assert torch.equal(compiled(lambda x, like: x.expand_as(like) + 1)(torch.ones(3), torch.empty(2, 3, device="meta")), torch.full((2, 3), 2.0))
    assert compiled(lambda x: x + 1)(torch.empty(3, device="meta")).is_meta


@pytest.mark.parametrize(
    ("function", "here"),
    [(lambda weight, ids: weight[ids] * 2, [0, 1, 2]), (lambda x, y: x + y.to(x.device), [1.0, 2.0, 3.0]), (lambda x, number: x * number, 2.0)],
    ids=["an index on the cpu", "moved within", "a number"],
)
def test_tensors_on_two_devices_are_no_mistake_by_themselves(function, here) -> None:
    given = torch.empty(4, 3, device="meta"), torch.tensor(here)
    out = compiled(function)(*given)
    assert out.is_meta and out.shape == function(*given).shape


def test_devices_that_do_not_fit_together_dynamo_tells() -> None:
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="on the same device"):
        compiled(Net())(torch.randn(2, 3, 16, device="meta"))


def test_bad_options_are_told_with_the_valid_ones() -> None:
    with pytest.raises(Exception, match=r"no option 'indutcor'\. Did you mean 'inductor'\? Options: disable, inductor") as found:
        torch.compile(Net(), backend="hfgraph", options={"indutcor": False})(torch.randn(2, 3, 16))
    assert isinstance(found.value.inner_exception, HfgraphError)


# --- cache keys ---------------------------------------------------------------------------------------


def test_the_cache_tag_follows_options_rules_ops_and_sources(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    plain = backend.cache_tag(Options())
    assert plain == backend.cache_tag(Options(strict=True, inductor_config={"x": 1}))  # neither changes a graph
    assert plain != backend.cache_tag(Options(disable=("rms_norm",)))
    assert plain != backend.cache_tag(Options(kernels={"rms_norm": "reference"}))
    backend.source_digest.cache_clear()
    monkeypatch.setattr(all_ops()["rms_norm"], "digest", "another body")
    changed = backend.cache_tag(Options())
    backend.source_digest.cache_clear()
    assert changed != plain


def test_the_tag_reaches_inductors_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.compile_fx as inductor

    seen = []
    real = inductor.compile_fx
    monkeypatch.setattr(inductor, "compile_fx", lambda *a, **k: (seen.append(torch.compiler.config.cache_key_tag), real(*a, **k))[1])
    torch.compile(Norm(4), backend="hfgraph")(torch.randn(2, 4))
    assert seen == [backend.cache_tag(Options())]
    assert torch.compiler.config.cache_key_tag == ""


# --- lowering: decisions for a GPU, made on fake tensors ----------------------------------------------


def on_gpu(gm):
    """The graph with its fake values on a GPU."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            with value.fake_mode:
                node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return gm


def recognised(x):
    gm = canonical(lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6), x)
    pipeline.run(gm, pipeline.Context(Options()), pipeline.PIPELINE[:-1])
    return gm


def targets(gm) -> set[str]:
    return {str(n.target) for n in gm.graph.nodes if n.op == "call_function"}


def test_without_a_measured_gain_the_reference_is_inlined() -> None:
    gm = on_gpu(recognised(torch.randn(4, 64)))
    assert lower(gm, {}) == 0
    assert targets(gm) == {"hfgraph.rms_norm.default"}


def test_a_kernel_asked_for_is_used() -> None:
    gm = on_gpu(recognised(torch.randn(4, 64)))
    assert lower(gm, {"rms_norm": "triton"}) == 1
    assert targets(gm) == {"hfgraph.rms_norm__triton.default"}


def test_a_kernel_leaves_the_layout_as_the_model_has_it() -> None:
    gm = on_gpu(recognised(torch.randn(3, 5, 8).transpose(0, 1)))
    strides = [n.meta["val"].stride() for n in gm.graph.find_nodes(op="output")[0].all_input_nodes]
    assert lower(gm, {"rms_norm": "triton"}) == 1
    assert targets(gm) == {"hfgraph.rms_norm__triton.default", "aten.permute.default", "aten.clone.default"}
    assert [n.meta["val"].stride() for n in gm.graph.find_nodes(op="output")[0].all_input_nodes] == strides == [(8, 40, 1)]


def test_a_kernel_is_refused_where_no_copy_can_restore_the_layout() -> None:
    gm = on_gpu(recognised(torch.randn(4, 128)[:, ::2]))
    node = gm.graph.find_nodes(op="call_function", target=torch.ops.hfgraph.rms_norm.default)[0]
    node.meta["val"] = torch.empty_strided((4, 64), (128, 2), device="meta")
    with pytest.raises(KernelRefused, match=r"it returns contiguous tensors, and the model goes on with strides \(128, 2\)"):
        lower(gm, {"rms_norm": "triton"})


def test_a_kernel_that_cannot_run_is_refused_in_words() -> None:
    with pytest.raises(KernelRefused, match="it runs on cuda, the tensors are on cpu"):
        lower(recognised(torch.randn(4, 64)), {"rms_norm": "triton"})
    with pytest.raises(KernelRefused, match=r"it does not take these arguments \(\(4, 64\) torch.float64"):
        lower(on_gpu(recognised(torch.randn(4, 64, dtype=torch.float64))), {"rms_norm": "triton"})
