"""Tasks on a small model: inputs, logits, times, and how much work they are, against counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hfgraph.bench import gate, loading, running
from hfgraph.bench.plan import Plan
from hfgraph.bench.tasks import TASKS, Task

H, F, V, D, Q, K, L = 32, 48, 64, 16, 2, 1, 1  # as in conftest
LAYER = H * Q * D * 2 + H * K * D * 2 + 3 * H * F  # weights of a layer that are matrices
NORMS = (2 * L + 1) * H


@pytest.fixture(scope="module")
def model(llama: Path) -> Any:
    return loading.build(Plan.of(str(llama), device="cpu", dtype="float32"))


def ready(model: Any, name: str) -> running.Ready:
    return running.prepare(model, TASKS[name].within(32), seed=0)


def test_operations_of_a_prompt(model: Any) -> None:
    found = running.work(model, ready(model, "prefill"))
    attention = 2 * 2 * 32 * 32 * Q * D * L
    assert found is not None
    assert found.flops == 2 * 32 * LAYER * L + attention + 2 * H * V
    assert found.bytes == 4 * (LAYER * L + H * V + NORMS), "the embedding is only looked up, the head is multiplied"


def test_operations_and_bytes_of_a_step(model: Any) -> None:
    task = ready(model, "decode-8")
    found = running.work(model, task)
    length, new = task.task.length, task.task.new
    attention = 2 * 2 * (length + new) * Q * D * L
    assert found is not None
    assert found.flops == 8 * (2 * LAYER * L + attention + 2 * H * V)
    cached = 4 * 8 * 2 * K * D * L * (length + new / 2)
    assert found.bytes == 4 * (LAYER * L + H * V + NORMS) + cached


def test_a_mixed_task_has_no_limit(model: Any) -> None:
    assert running.work(model, ready(model, "ragged")) is None


def test_a_tied_embedding_is_multiplied() -> None:
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=F, num_hidden_layers=L, num_attention_heads=Q, num_key_value_heads=K, tie_word_embeddings=True
    )  # fmt: skip
    assert loading.multiplied(transformers.LlamaForCausalLM(config)) == 4 * (LAYER * L + H * V + NORMS)


def test_a_window_keeps_no_more_than_it_holds() -> None:
    config = transformers.Gemma2Config(
        vocab_size=V, hidden_size=H, intermediate_size=F, num_hidden_layers=2, num_attention_heads=Q, num_key_value_heads=K, head_dim=D, sliding_window=4
    )  # fmt: skip
    made = transformers.Gemma2ForCausalLM(config).eval()
    cache = running.prepare(made, Task("x", "", (12,), 8, "step"), 0).cache
    assert cache is not None
    assert running.cached_bytes(cache, 16) == 4 * 2 * K * D * (16 + 4)


def test_prompts_of_unequal_length_are_padded_on_the_left(model: Any) -> None:
    task = ready(model, "ragged")
    assert task.mask.sum(1).tolist() == list(task.task.prompts)
    assert (task.mask.diff(dim=1) >= 0).all()
    assert not task.ids[task.mask == 0].any()


@pytest.mark.parametrize("name", TASKS)
def test_logits_are_those_of_the_prescribed_tokens(model: Any, name: str) -> None:
    """A plain forward pass over prompt and prescribed tokens gives the same."""
    task = ready(model, name)
    for _ in range(2):  # the cache is used again
        found = running.logits(model, task)
        assert found.dtype == torch.float32
    ids = torch.cat([task.ids, task.forced[:, :-1]], 1) if task.task.new else task.ids
    tokens = found.shape[1]
    mask = torch.cat([task.mask, torch.ones_like(ids[:, : ids.shape[1] - task.mask.shape[1]])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -tokens:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert tokens == (running.GATE_TOKENS if task.task.new else 1)


@pytest.mark.parametrize("name", TASKS)
def test_times(model: Any, name: str) -> None:
    found = running.timing(model, ready(model, name))
    assert found.first > 0
    assert 0 < found.seconds < 60


@pytest.mark.parametrize(("timed", "seconds"), [("prompt", 2.0), ("step", 0.5), ("all", 3.5)])
def test_what_counts_of_a_run(timed: str, seconds: float) -> None:
    assert running.timed(Task("x", "", (8,), 4, timed), [2.0, 2.4, 3.0, 3.5]) == running.Timing(seconds, 2.0)


def test_inputs_are_the_same_in_every_process(model: Any) -> None:
    one, other = ready(model, "ragged"), ready(model, "ragged")
    assert torch.equal(one.ids, other.ids) and torch.equal(one.forced, other.forced)


def test_random_weights_are_the_same_and_no_vector_is_flat() -> None:
    plan = Plan("smollm2-135m", dtype="bfloat16")
    small: Any = transformers.LlamaConfig(vocab_size=V, hidden_size=H, intermediate_size=F, num_hidden_layers=1, num_attention_heads=Q, attention_bias=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "configuration", lambda _: small)
        one, other = (loading.build(plan).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], other[k]) and one[k].dtype == torch.bfloat16 for k in one)
    assert all(v.float().std() > 0.05 for v in one.values() if v.ndim == 1)


# --- the gate ----------------------------------------------------------------------------------------


def test_the_reference_stays_in_float64(model: Any, llama: Path) -> None:
    """transformers casts to float32 within norms and softmax; taken at its word, it would be off by 1e-8."""
    wide = loading.build(Plan.of(str(llama), device="cpu", dtype="float32")).double()
    task = ready(wide, "prefill")
    with gate.reference(torch.float64):
        exact = running.logits(wide, task)
    with gate.reference(torch.float32):
        nearly = running.logits(wide, task)
    assert exact.dtype == torch.float64
    assert 1e-12 < (exact - nearly).abs().max() < 1e-5
    with gate.Widened():
        assert torch.ones(2).double().to(torch.float32).dtype == torch.float64


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.03, False), (float("nan"), False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_per_cent_are_seen(tmp_path: Path, factor: float, ok: bool, dtype: torch.dtype) -> None:
    exact = torch.randn(2, 4, 500).double()
    eager = (exact * (1 + torch.finfo(dtype).eps * torch.randn_like(exact))).to(dtype)
    kept = gate.Logits(str(tmp_path))
    kept.put("exact", "t", exact)
    kept.put("eager", "t", eager)
    found = kept.check("hfgraph", "t", eager * factor)
    assert found.ok is ok
    assert kept.check("hfgraph", "t", eager[:, :1]).ok is False
