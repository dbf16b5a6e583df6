"""Encoders and encoder-decoders: padding on either side, cross-attention, both caches under `generate`, pooling and heads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from recipes import PLAIN, assert_equal, build, compiled, tokens
from torch import Tensor

import hfgraph
from hfgraph import zoo

# What their attentions' masks are: of the encoder, the decoder, and of the one on the other. T5's masks are part of its bias.
_PLAIN = {"full, padding as a tensor": 4, "causal": 2}
SEQ2SEQ = {"bart:seq2seq": _PLAIN, "m2m_100": _PLAIN, "t5": {"full, bias as a tensor": 4, "full, padding as a tensor": 2}}


def padded(side: str) -> dict[str, Tensor]:
    """Three sources of 9, 6 and 1 tokens."""
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, real in enumerate((9, 6, 1)):
        pads = slice(0, 9 - real) if side == "left" else slice(real, 9)
        ids[row, pads], mask[row, pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SEQ2SEQ)
@torch.no_grad()
def test_padded_sources(name: str, side: str) -> None:
    """The mask of the source is that of the encoder and of cross-attention; the target has one of its own."""
    model, given = build(name), {**padded(side), "decoder_input_ids": tokens(3, 7, seed=1), "use_cache": False}
    assert_equal(compiled(model)(**given).logits, model(**given).logits)
    sites = [s for s in hfgraph.last_report().sites if s.rule == "attention"]
    assert Counter(s.note for s in sites if s.status == "recognised") == SEQ2SEQ[name] and len(sites) == 6


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_generate(name: str, how: dict[str, Any]) -> None:
    """Keys and values of the source are computed once, those of the target grow."""
    more = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, **padded("right"), **how}
    want = build(name).generate(**more)
    model = build(name)
    model.compile(backend="hfgraph", options=PLAIN)
    got = model.generate(**more)
    assert torch.equal(got.sequences, want.sequences)
    assert_equal(got.logits, want.logits, atol=2e-5)
    assert hfgraph.last_report().counts["attention"] >= 4


@torch.no_grad()
def test_the_encoder_alone_and_then_the_decoder() -> None:
    model = build("t5")
    source = tokens(2, 9)
    seen = compiled(model.get_encoder())(source)
    assert_equal(seen.last_hidden_state, model.get_encoder()(source).last_hidden_state)
    target = {"encoder_outputs": seen, "decoder_input_ids": tokens(2, 5), "use_cache": False}
    assert_equal(compiled(model)(**target).logits, model(input_ids=source, decoder_input_ids=tokens(2, 5), use_cache=False).logits)


HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "Model")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["Bert", "Roberta", "MPNet"])
@torch.no_grad()
def test_heads_and_pooling(name: str, head: str) -> None:
    config = zoo.build(name.lower()).config
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")(config).eval()
    given = padded("right")
    if head == "ForMultipleChoice":
        given = {k: v.repeat(1, 2).view(3, 2, 9) for k, v in given.items()}
    assert_equal(compiled(model)(**given), model(**given))
    counts = hfgraph.last_report().counts
    assert counts["attention"] == 2 and counts["layer_norm"] >= 5
