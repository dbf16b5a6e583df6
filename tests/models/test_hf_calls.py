"""Hugging Face's own calls, through hfgraph: every way in which a model is run gives eager's results."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from recipes import PLAIN, assert_equal, build, compiled, graphs, norms_found, tiny, tokens
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache

import hfgraph
from hfgraph.errors import CompiledModuleBypassed, HfgraphError


def compare(model: nn.Module, *args: Any, atol: float = 1e-5, f: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """One call in eager and through hfgraph, all outputs equal, all norms found. Returns the compiled call's output."""
    want = model(*args, **kwargs)
    got = (compiled(model) if f is None else f)(*args, **kwargs)
    assert_equal(got, want, atol)
    norms_found(model)
    return got


# --- forward -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_plain_forward(name: str) -> None:
    """The cache that the model makes for itself is an output too."""
    out = compare(build(name), tokens(2, 11))
    assert out.cache.get_seq_length() == 11


@torch.no_grad()
def test_without_a_cache(name: str) -> None:
    compare(build(name), tokens(2, 11), use_cache=False)


@torch.no_grad()
def test_dynamic_cache(name: str) -> None:
    """Prefill and decode on a growing cache; the caches end up equal."""
    model = build(name)
    f = compiled(model)
    caches = [DynamicCache(config=model.config), DynamicCache(config=model.config)]
    for ids in [tokens(2, 9), *(tokens(2, 1, seed=s) for s in range(4))]:
        want = model(ids, cache=caches[0])
        got = f(ids, cache=caches[1])
        assert_equal(got.logits, want.logits)
    assert_equal(caches[1], caches[0])
    norms_found(model)


@torch.no_grad()
def test_static_cache(name: str) -> None:
    """Prefill and decode on a cache of fixed size, which the graph writes; each side has its own."""
    model = build(name)
    f = compiled(model)
    caches = [StaticCache(config=model.config, max_cache_len=24), StaticCache(config=model.config, max_cache_len=24)]
    for ids in [tokens(2, 9), *(tokens(2, 1, seed=s) for s in range(4))]:
        want = model(ids, cache=caches[0])
        got = f(ids, cache=caches[1])
        assert_equal(got.logits, want.logits)
    assert_equal(caches[1], caches[0])
    assert any(layer.keys.abs().sum() > 0 for layer in caches[1].layers)
    norms_found(model)


@torch.no_grad()
def test_left_padded_batch(name: str) -> None:
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :9] = 0
    mask[1, :5] = 0
    compare(build(name), tokens(3, 12), attention_mask=mask, use_cache=False)


@torch.no_grad()
def test_inputs_embeds(name: str) -> None:
    compare(build(name), inputs_embeds=torch.randn(2, 11, 64), use_cache=False)


@torch.no_grad()
def test_hidden_states_and_attentions(name: str) -> None:
    """What a caller asks to see is complete and equal: the residual stream after each layer, and the weights of attention."""
    model = build(name, attn_implementation="eager")
    out = compare(model, tokens(2, 11), output_hidden_states=True, output_attentions=True, use_cache=False)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert len(out.attentions) == model.config.num_hidden_layers


@torch.no_grad()
def test_last_logits_only(name: str) -> None:
    out = compare(build(name), tokens(2, 11), logits_to_keep=1, use_cache=False)
    assert out.logits.shape[1] == 1


@torch.no_grad()
def test_loss(name: str) -> None:
    ids = tokens(2, 11)
    out = compare(build(name), ids, labels=ids, use_cache=False)
    assert out.loss.isfinite()


# --- generate ------------------------------------------------------------------------------------------

GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.3, "top_k": 20}
BEAMS: dict[str, Any] = {"do_sample": False, "num_beams": 3}


def generated(model: nn.Module, ids: Tensor, **how: Any) -> Tensor:
    torch.manual_seed(7)
    return model.generate(ids, max_new_tokens=6, **how)


@pytest.mark.parametrize("how", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3"])
def test_generate(name: str, how: dict[str, Any]) -> None:
    model, ids = build(name), tokens(2, 7)
    want = generated(model, ids, **how)
    model.compile(backend="hfgraph", options=PLAIN)
    assert torch.equal(generated(model, ids, **how), want)
    assert graphs() >= 2  # prefill and decode were compiled
    norms_found(model)


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_generate_from_a_left_padded_batch(name: str) -> None:
    model, ids = build(name), tokens(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    mask[1, :2] = 0
    want = generated(model, ids, attention_mask=mask, **GREEDY)
    model.compile(backend="hfgraph", options=PLAIN)
    assert torch.equal(generated(model, ids, attention_mask=mask, **GREEDY), want)
    norms_found(model)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generate_with_a_static_cache(name: str) -> None:
    model, ids = build(name), tokens(2, 7)
    want = generated(model, ids, cache_implementation="static", disable_compile=True, **GREEDY)
    model.compile(backend="hfgraph", options=PLAIN)
    assert torch.equal(generated(model, ids, cache_implementation="static", disable_compile=True, **GREEDY), want)
    norms_found(model)


@pytest.mark.parametrize("inductor", [False, True], ids=["plain", "inductor"])
def test_compile_config(inductor: bool) -> None:
    """`generate` compiles by itself where a static cache and a `CompileConfig` are given: only decode steps."""
    model, ids = build("llama"), tokens(2, 7)
    want = generated(model, ids, **GREEDY)
    how = CompileConfig(backend="hfgraph", mode="default") if inductor else CompileConfig(backend="hfgraph", mode=None, options=PLAIN)
    how._compile_all_devices = True  # otherwise transformers compiles on accelerators only
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, cache_implementation="static", compile_config=how)
    assert torch.equal(model.generate(ids, generation_config=config), want)
    assert graphs() == 1
    norms_found(model)


def test_compiled_module_is_bypassed_by_generate_and_says_so() -> None:
    """`torch.compile(model).generate()` runs the module inside: hfgraph warns once, in words."""
    from hfgraph import bypass

    bypass._warn.cache_clear()
    model, ids = build("llama"), tokens(1, 5)
    f = compiled(model)
    with pytest.warns(CompiledModuleBypassed, match=r'model\.compile\(backend="hfgraph"\)') as caught:
        out = generated(f, ids, **GREEDY)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert graphs() == 0
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        generated(f, ids, **GREEDY)
    assert not [w for w in again if issubclass(w.category, CompiledModuleBypassed)]
    assert out.shape == (1, 11)


def test_no_such_warning_where_nothing_is_bypassed() -> None:
    from hfgraph import bypass

    bypass._warn.cache_clear()
    model, ids = build("llama"), tokens(1, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.compile(model, backend="eager").generate(ids, max_new_tokens=2, do_sample=False)
        model.compile(backend="hfgraph", options=PLAIN)
        model.generate(ids, max_new_tokens=2, do_sample=False)
    assert graphs() >= 2


# --- ways to compile, modes around the call ------------------------------------------------------------


@torch.no_grad()
def test_compile_in_place(name: str) -> None:
    model, ids = build(name), tokens(2, 11)
    want = model(ids).logits
    model.compile(backend="hfgraph", options=PLAIN)
    assert_equal(model(ids).logits, want)
    norms_found(model)


@torch.no_grad()
def test_compiled_forward() -> None:
    model, ids = build("llama"), tokens(2, 11)
    want = model(ids).logits
    model.forward = compiled(model.forward)
    assert_equal(model(ids).logits, want)
    norms_found(model)


@torch.no_grad()
def test_compiled_function(name: str) -> None:
    """A function around the model, with work of its own."""
    model = build(name)

    def score(ids: Tensor) -> Tensor:
        return model(ids, use_cache=False).logits.log_softmax(-1).gather(-1, ids[..., None]).sum()

    ids = tokens(2, 11)
    assert_equal(compiled(score)(ids), score(ids), 1e-4)
    norms_found(model)


@pytest.mark.parametrize("dynamic", [True, None, False])
@torch.no_grad()
def test_dynamic(name: str, dynamic: bool | None) -> None:
    """Two lengths and two batch sizes; with symbolic sizes from the start there is one graph for all of them."""
    model = build(name)
    f = compiled(model, dynamic=dynamic, fullgraph=True)
    for shape in ((2, 11), (3, 7), (1, 5)):
        compare(model, tokens(*shape), f=f, use_cache=False)
    # Sizes of 1 are always specialised.
    assert graphs() <= {True: 2, None: 3, False: 3}[dynamic]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad, nullcontext])
def test_grad_modes(name: str, around: Any) -> None:
    model = build(name)
    with around():
        out = compare(model, tokens(2, 11), use_cache=False)
    assert out.logits.requires_grad == (around in (torch.enable_grad, nullcontext))


@torch.no_grad()
def test_ambient_autocast(name: str) -> None:
    model, ids = build(name), tokens(2, 11)
    with torch.autocast("cpu", torch.bfloat16):
        out = compare(model, ids, atol=0, use_cache=False)
    assert out.logits.dtype == torch.bfloat16


class Autocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(ids, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden.float())


@torch.no_grad()
def test_autocast_inside(name: str) -> None:
    compare(Autocast(build(name)), tokens(2, 11), atol=0)


@torch.no_grad()
def test_bfloat16(name: str) -> None:
    compare(build(name).bfloat16(), tokens(2, 11), atol=0, use_cache=False)


# --- graph breaks --------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """A model with a break between its layers and its head, and a branch that depends on data."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model.model(ids, use_cache=False).last_hidden_state
        print("half way")
        hidden = hidden * (2 if hidden.sum() > 0 else 3)
        return self.model.lm_head(hidden)


@torch.no_grad()
def test_graph_breaks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The graphs on both sides are rewritten, and reported together."""
    model = Breaks(build(name))
    out = compare(model, tokens(2, 11))
    assert capsys.readouterr().out == "half way\n" * 2
    assert out.shape == (2, 11, 128)
    assert len(hfgraph.last_report().graphs) >= 2


@torch.no_grad()
def test_reports_do_not_mix() -> None:
    """The report of a model with graph breaks holds nothing of the model before it."""
    first, second = build("qwen3"), Breaks(build("llama"))
    compare(first, tokens(2, 11), use_cache=False)
    compare(second, tokens(2, 11))
    report = hfgraph.last_report()
    assert {s.module.split(".")[0] for s in report.sites} == {"model"}
    assert report.counts["rms_norm"] == 5


class BreaksFirst(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        print("nothing computed yet")
        return self.model(ids, use_cache=False).logits


@torch.no_grad()
def test_reports_do_not_mix_where_a_break_comes_before_the_first_graph() -> None:
    first, second = build("qwen3"), BreaksFirst(build("llama"))
    compare(first, tokens(2, 11), use_cache=False)
    compare(second, tokens(2, 11))
    assert len(hfgraph.last_report().graphs) == 1


@torch.no_grad()
def test_a_break_inside_every_layer() -> None:
    """One graph serves several layers; the sites of a call are counted as often as the graph runs."""
    model, ids = build("llama"), tokens(2, 11)
    for layer in model.model.layers:
        layer.mlp.forward = torch._dynamo.disable(layer.mlp.forward)
    want = model(ids, use_cache=False).logits
    assert_equal(compiled(model)(ids, use_cache=False).logits, want)
    torch._dynamo.reset()
    report = hfgraph.explain(model, ids, use_cache=False)
    assert len(report.graphs) > 2 and report.graph_breaks
    assert report.counts["rms_norm"] == 5


def test_fullgraph_refuses_breaks() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(Breaks(build("llama")), fullgraph=True)(tokens(2, 11))


# --- weights change ------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_changed_in_place_are_seen(name: str) -> None:
    model, ids = build(name), tokens(2, 11)
    f = compiled(model)
    before = compare(model, ids, f=f, use_cache=False).logits
    for p in model.parameters():
        p.mul_(1.1)
    after = compare(model, ids, f=f, use_cache=False).logits
    assert (after - before).abs().max() > 1e-3
    assert graphs() == 1


@torch.no_grad()
def test_weights_loaded_after_compilation_are_seen(name: str) -> None:
    model, ids = build(name), tokens(2, 11)
    other = build(name, seed=5)
    f = compiled(model)
    compare(model, ids, f=f, use_cache=False)
    model.load_state_dict(other.state_dict())
    assert_equal(f(ids, use_cache=False).logits, other(ids, use_cache=False).logits)
    assert graphs() == 1


@torch.no_grad()
def test_state_dict_of_a_model_compiled_in_place_keeps_its_keys() -> None:
    model = build("llama")
    keys = list(model.state_dict())
    model.compile(backend="hfgraph", options=PLAIN)
    model(tokens(2, 11))
    assert list(model.state_dict()) == keys


# --- gradients -----------------------------------------------------------------------------------------

TRAINED = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma": ("gemma", {"head_dim": 16}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}


def gradients(model: nn.Module, f: Callable[..., Any], **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    f(use_cache=False, **inputs).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    for name, w in want.items():
        assert w.abs().max() > 0, f"eager's gradient of {name} is zero: the comparison says nothing"
        error = ((got[name] - w).abs().max() / w.abs().max()).item()
        assert error <= 1e-4, f"{name}: gradient is {error:.1e} off"


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", TRAINED)
def test_gradients(case: str, train: bool) -> None:
    """Every parameter's gradient is eager's, also where the first compiled graph was one without gradients."""
    kind, config = TRAINED[case]
    model = tiny(kind, **config).train(train)
    ids = tokens(2, 13)
    f = compiled(model)
    with torch.no_grad():
        assert_equal(f(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    want = gradients(model, model, input_ids=ids, labels=ids)
    assert_gradients(gradients(model, f, input_ids=ids, labels=ids), want)
    assert len(want) == len(list(model.parameters()))
    assert graphs() == 2


@pytest.mark.parametrize("case", ["llama", "gemma"])
def test_gradients_through_inductor(case: str) -> None:
    kind, config = TRAINED[case]
    model, ids = tiny(kind, **config).train(), tokens(2, 13)
    want = gradients(model, model, input_ids=ids, labels=ids)
    assert_gradients(gradients(model, compiled(model, options={"strict": True}), input_ids=ids, labels=ids), want)


@pytest.mark.parametrize("case", TRAINED)
def test_gradients_of_embeddings(case: str) -> None:
    kind, config = TRAINED[case]
    model, ids = tiny(kind, **config), tokens(2, 13)
    found = []
    for f in (model, compiled(model)):
        embeddings = torch.randn(2, 13, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        f(inputs_embeds=embeddings, labels=ids, use_cache=False).loss.backward()
        found.append({"inputs_embeds": embeddings.grad})
    assert_gradients(found[1], found[0])


def test_training_steps() -> None:
    """Three steps of an optimizer leave the same weights."""
    models = [tiny("llama").train(), tiny("llama").train()]
    runs = [models[0], compiled(models[1])]
    for model, f in zip(models, runs, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step in range(3):
            ids = tokens(2, 13, seed=step)
            optimizer.zero_grad()
            f(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_gradient_checkpointing() -> None:
    """Checkpointed layers cannot be retraced: their graph stays as it is, with the reason in the report, and gradients are right."""
    model, ids = tiny("llama").train(), tokens(2, 13)
    model.activation_checkpointing_enable()
    want = gradients(model, model, input_ids=ids, labels=ids)
    assert_gradients(gradients(model, compiled(model), input_ids=ids, labels=ids), want)
    reasons = [g.unrewritten for g in hfgraph.last_report().graphs]
    assert any("activation checkpointing" in r for r in reasons), reasons


# --- odd and bad inputs: a clear error or eager's result -----------------------------------------------


def outcome(f: Callable[[], Any]) -> Any:
    """A result, or the exception raised."""
    try:
        return f()
    except Exception as e:
        return e


def assert_same_or_clear(f: Callable[..., Any], model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Eager's result; where eager raises, an error of the same class or one of hfgraph's own."""
    want, got = outcome(lambda: model(*args, **kwargs)), outcome(lambda: f(*args, **kwargs))
    if isinstance(want, Exception):
        assert isinstance(got, type(want) | HfgraphError | torch._dynamo.exc.TorchDynamoException), repr(got)
        assert str(got)
    else:
        assert not isinstance(got, Exception), repr(got)
        assert_equal(got, want)
    return got


@torch.no_grad()
def test_empty_batch(name: str) -> None:
    model = build(name)
    assert_same_or_clear(compiled(model), model, tokens(0, 11), use_cache=False)


@torch.no_grad()
def test_zero_length_sequence(name: str) -> None:
    model = build(name)
    assert_same_or_clear(compiled(model), model, tokens(2, 0), use_cache=False)


@torch.no_grad()
def test_empty_batch_of_a_compiled_model_with_symbolic_sizes() -> None:
    model = build("llama")
    f = compiled(model, dynamic=True)
    compare(model, tokens(2, 11), f=f, use_cache=False)
    assert_same_or_clear(f, model, tokens(0, 11), use_cache=False)
    assert_same_or_clear(f, model, tokens(2, 0), use_cache=False)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float64, torch.float16])
def test_norms_of_other_dtypes(dtype: torch.dtype) -> None:
    """The arithmetic of a norm on numbers that no model norms: eager's result."""
    x, weight = torch.randn(4, 16, dtype=dtype), torch.randn(16, dtype=dtype)
    got = assert_same_or_clear(compiled(norm), norm, x, weight)
    assert isinstance(got, Tensor) and got.dtype == dtype
    assert hfgraph.last_report().graphs[0].unrewritten == ""


def test_integers_where_floats_belong() -> None:
    assert_same_or_clear(compiled(norm), norm, torch.arange(1, 65).view(4, 16), torch.ones(16))


@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning", "ignore:.*quantiz.*:UserWarning")
def test_quantised_tensors() -> None:
    x = torch.quantize_per_tensor(torch.randn(4, 16), 0.1, 0, torch.qint8)

    def dequantised(x: Tensor, weight: Tensor) -> Tensor:
        return norm(x.dequantize(), weight)

    assert_same_or_clear(compiled(dequantised), dequantised, x, torch.ones(16))


def test_token_ids_out_of_range() -> None:
    model = build("llama")
    got = assert_same_or_clear(compiled(model), model, torch.tensor([[5, 4000]]), use_cache=False)
    assert isinstance(got, Exception)


def test_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = copy.deepcopy(build("llama")).to("meta")
    with pytest.raises(Exception, match=r"meta device and hold no values .*from_pretrained"):
        compiled(model)(torch.zeros(1, 5, dtype=torch.long, device="meta"), use_cache=False)


@pytest.mark.parametrize("call", [hfgraph.explain, hfgraph.verify])
def test_something_that_is_no_model(call: Callable[..., Any]) -> None:
    with pytest.raises(HfgraphError, match=r"takes a torch\.nn\.Module or a function as its first argument, not str"):
        call("llama", tokens(1, 5))
