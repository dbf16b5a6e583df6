"""Recurrences get their names by what they compute: token by token, in chunks, as a scan, one token with a cache. What computes something else has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import hfgraph
from hfgraph import zoo
from hfgraph.rewrites.recurrences import naming
from hfgraph.rewrites.recurrences.naming import all_kinds
from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence

PLAIN = {"inductor": False, "strict": True}
SIZES = {"H": 3, "K": 4, "V": 6, "P": 5, "N": 2, "D": 7}
BATCH, TOKENS = 2, 6
FORMS = {f"{k.name}-{i}": (k, f) for k in all_kinds() for i, f in enumerate(k.forms)}
every_form = pytest.mark.parametrize("name", FORMS)


def inputs(form: Form, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Numbers like those of models: decays below one."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, letters in form.inputs.items():
        own = [SIZES[letter] for letter in letters.split()]
        shape = own if name in form.constant else [BATCH, tokens, *own]
        found[name] = torch.rand(shape, generator=generator) * (-0.3 if name == "decay" else 0.6)
    return found


def unrolled(kind: Recurrence, form: Form) -> Callable[..., Tensor]:
    """The recurrence as a loop over tokens."""

    def loop(given: Mapping[str, Tensor]) -> Tensor:
        return kind.run(form, given, SIZES, None)

    return loop


def named(function: Callable[..., Any], *args: Any) -> list[tuple[str, str]]:
    """Names and notes of what is found; and nothing is changed by it."""
    torch._dynamo.reset()
    got = torch.compile(function, backend="hfgraph", options=PLAIN)(*args)
    torch.testing.assert_close(got, function(*args), atol=1e-6, rtol=1e-6)
    kinds = {k.name for k in all_kinds()}
    return [(s.rule, s.note) for s in hfgraph.last_report().sites if s.rule in kinds]


@every_form
def test_a_loop_over_tokens(name: str) -> None:
    kind, form = FORMS[name]
    state = " x ".join(map(str, kind.state_shape(SIZES)))
    (found,) = named(unrolled(kind, form), inputs(form))
    assert found[0] == kind.name and found[1].startswith(f"state of {state} per sequence"), found


def _late(step: Callable[..., Any]) -> Callable[..., Any]:
    """The output comes of the state of before."""

    def mutant(state: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        still = {k: torch.zeros_like(v) if k in ("x", "v", "v_beta", "k_beta", "beta") else v for k, v in given.items()}
        return step(state, **given)[0], step(state, **still)[1]

    return mutant


def _growing(step: Callable[..., Any]) -> Callable[..., Any]:
    """The state gains a little with every token."""

    def mutant(state: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        return step(state * 1.01, **given)

    return mutant


@every_form
@pytest.mark.parametrize("mutate", [_late, _growing], ids=["reads too early", "grows"])
def test_what_computes_something_else_has_no_name(name: str, mutate: Callable[..., Any]) -> None:
    kind, form = FORMS[name]
    mutant = Form(mutate(form.step), form.inputs, form.constant)
    assert named(unrolled(kind, mutant), inputs(form)) == []


def test_selected_tokens_that_do_not_hang_together_have_no_name() -> None:
    """As of a packed projection: all three of its parts are selected."""

    def attention(qkv: Tensor, other: Tensor) -> Tensor:
        q, k, v = (qkv[:, :, i] for i in range(3))
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v + other[:, :, 0] + other[:, :, 1] * other[:, :, 2]

    assert named(attention, torch.randn(2, 5, 3, 4, 4), torch.randn(2, 5, 3, 4, 4)) == []


def test_where_much_is_joined_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways in which values fit grow with the factorial of their number."""
    monkeypatch.setattr(naming, "Player", lambda *_: pytest.fail("it is played"))

    def mixed(a: Tensor, b: Tensor, others: list[Tensor]) -> Tensor:
        state, outputs = torch.zeros(2, 7), []
        for t in range(TOKENS):
            state = state * a[:, t] + b[:, t]
            for other in others:
                state = state * other
            outputs.append(state)
        return torch.stack(outputs, 1)

    assert named(mixed, torch.rand(2, TOKENS, 7), torch.rand(2, TOKENS, 7), [torch.rand(7) for _ in range(15)]) == []


def test_single_numbers_are_no_states_and_no_sequences() -> None:
    """A counter that is written, a sum of one number, and a length that is not known."""

    def counted(count: Tensor, x: Tensor) -> Tensor:
        count.copy_(count * 0.5 + x.sum().cumsum(0))
        return x.cumsum(-1).reshape(x.shape[0], -1, 2) * count

    torch._dynamo.reset()
    f = torch.compile(counted, backend="hfgraph", options=PLAIN, dynamic=True)
    for i, shape in enumerate(((2, 6), (3, 8))):
        mine, eager, x = torch.ones(()), torch.ones(()), torch.rand(shape)
        with torch._dynamo.config.patch(error_on_recompile=bool(i)):
            torch.testing.assert_close(f(mine, x), counted(eager, x))
        torch.testing.assert_close(mine, eager)


def test_a_symbolic_batch_stays_one() -> None:
    """In chunks, with a cut of known length: looking for recurrences asks nothing of the batch."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule as chunked

    form = FORMS["gated_delta_rule-0"][1]
    given = inputs(form)
    for t in given.values():
        torch._dynamo.mark_dynamic(t, 0)
    torch._dynamo.reset()
    function = lambda g: chunked(g["q"], g["k"], g["v"], g["decay"], g["beta"])[0]  # noqa: E731
    f = torch.compile(function, backend="hfgraph", options=PLAIN)
    torch.testing.assert_close(f(given), function(given), atol=1e-6, rtol=1e-6)
    assert hfgraph.last_report().counts == {"gated_delta_rule": 1}
    more = {n: torch.cat([t, t, t]) for n, t in given.items()}
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(f(more), function(more), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [5, 70, 128], ids=["one chunk", "places left over", "whole chunks"])
def test_the_delta_rule_in_chunks(tokens: int) -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule as chunked

    form = FORMS["gated_delta_rule-0"][1]
    given = inputs(form, tokens)
    found = named(lambda g: chunked(g["q"], g["k"], g["v"], g["decay"], g["beta"])[0], given)
    assert found == [("gated_delta_rule", "state of 3 x 4 x 6 per sequence; left as the model computes it")]


def test_a_delta_rule_that_does_not_correct_has_another_name() -> None:
    """Without what a key holds already it is linear attention with a decay, as Mamba-2 is."""

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        state = state * decay.exp()[..., None, None] + v.unsqueeze(-1) * k.unsqueeze(-2)
        return state, (state * q.unsqueeze(-2)).sum(-1)

    form = Form(step, {"q": "H N", "k": "H N", "v": "H P", "decay": "H"})
    kind = next(k for k in all_kinds() if k.name == "mamba2")
    assert [n for n, _ in named(unrolled(kind, form), inputs(form))] == ["mamba2"]


def test_many_heads_are_played_with_few() -> None:
    """Sizes in the report are the model's."""
    kind, form = FORMS["mamba2-0"]
    given = {n: t.repeat(1, 1, 16, *[1] * (t.ndim - 3)) for n, t in inputs(form).items()}
    sizes = {**SIZES, "H": 48}
    found = named(lambda g: kind.run(form, g, sizes, None), given)
    assert found == [("mamba2", "state of 48 x 5 x 2 per sequence; left as the model computes it")]


def _one_token(state: Tensor, decay: Tensor, x: Tensor, c: Tensor) -> Tensor:
    new = state * decay.exp() + x
    state.copy_(new)
    return (new * c[:, :, None]).sum(-1)


def _outer(state: Tensor, decay: Tensor, x: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The decay spread over the state before anything is computed of it, as for kernels."""
    return _one_token(state, decay[:, :, None, None].expand(state.shape), x[..., None] * b[:, :, None], c)


@pytest.mark.parametrize(("function", "shapes", "names"), [
    (_outer, ((3,), (3, 5), (3, 4), (3, 4)), ["mamba2"]),
    (_one_token, ((3, 5, 4), (3, 5, 4), (3, 4)), []),  # a decay for each entry
    (_one_token, ((3, 1, 1), (3, 5, 4), (3, 4)), []),  # no outer product is added
], ids=["one decay per head", "a decay per entry", "anything added"])  # fmt: skip
def test_one_token_and_a_state(function: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...], names: list[str]) -> None:
    """What makes a name is how the values are made, not how they are laid out: all of these have the same shapes in the sum."""
    given = [torch.rand(2, *shape) * -0.3 for shape in shapes]
    torch._dynamo.reset()
    mine, eager = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    eager.copy_(mine)
    torch.testing.assert_close(torch.compile(function, backend="hfgraph", options=PLAIN)(mine, *given), function(eager, *given))
    torch.testing.assert_close(mine, eager)
    kinds = {k.name for k in all_kinds()}
    assert [s.rule for s in hfgraph.last_report().sites if s.rule in kinds] == names


# Models, and what they keep of the past.
CACHED = {
    "mamba": ("mamba", "128 x 8"),
    "mamba2": ("mamba2", "8 x 16 x 8"),
    "qwen3_next": ("gated_delta_rule", "4 x 16 x 16"),
}


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning")
@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_a_prompt_and_one_token_more(name: str) -> None:
    """With a cache: in each of the two graphs each layer is found, and its convolution; logits are eager's."""
    kind, state = CACHED[name]
    model, given = zoo.build(name, 1), zoo.inputs(name, 2, 9, 1) | {"use_cache": True}
    layers = sum(t == "linear_attention" for t in model.config.layer_types)
    more = torch.full((2, 1), 7)
    torch._dynamo.reset()
    f = torch.compile(model, backend="hfgraph", options=PLAIN)
    out, want = f(**given), model(**given)
    _check(kind, state, layers)
    torch.testing.assert_close(out.logits, want.logits, atol=1e-5, rtol=0)
    got = f(input_ids=more, cache=_cache(out), use_cache=True).logits
    _check(kind, state, layers)
    torch.testing.assert_close(got, model(input_ids=more, cache=_cache(want), use_cache=True).logits, atol=1e-5, rtol=0)


def _cache(out: Any) -> Any:
    return next(out[k] for k in ("cache", "past_key_values", "cache_params") if k in out)


def _check(kind: str, state: str, layers: int) -> None:
    report = hfgraph.last_report()
    notes = [s.note for s in report.sites if s.rule == kind]
    assert len(notes) == layers and all(n.startswith(f"state of {state} per sequence") for n in notes)
    assert report.counts["short_conv"] == layers
    assert kind in str(report) and state in str(report)
