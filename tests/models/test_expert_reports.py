"""Public reports on gates and on mixtures of experts (`B12`, `B41`): the activation and the router are the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import PLAIN, assert_equal, compiled, tiny, tokens
from torch import nn

import hfgraph

# A gate's activation, and whether hfgraph knows it.
GATES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma, silu": ("gemma", {"hidden_act": "silu"}, "glu_silu"),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}, "glu_gelu"),
    "gemma, gelu_pytorch_tanh": ("gemma", {"hidden_act": "gelu_pytorch_tanh"}, "glu_gelu_tanh"),
    "gemma, gelu_new": ("gemma", {"hidden_act": "gelu_new"}, "glu_gelu_new"),
    "gemma, relu": ("gemma", {"hidden_act": "relu"}, ""),
    "phi3, one product for both": ("phi3", {"hidden_act": "gelu"}, "glu_gelu"),
}


@pytest.mark.parametrize("case", GATES)
@torch.no_grad()
def test_b12_the_activation_is_the_models(case: str) -> None:
    """The two GELUs differ by 5e-4 at most; what is not known is left alone."""
    kind, config, rule = GATES[case]
    model, ids = tiny(kind, **config), tokens(2, 7)
    assert_equal(compiled(model)(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    found = [s for s in hfgraph.last_report().sites if s.rule == "glu" and s.status == "recognised"]
    assert {s.steps[0] for s in found} == ({rule} if rule else set()) and len(found) == (2 if rule else 0)


def test_b12_the_activations_can_be_told_apart() -> None:
    """The comparison above would notice one taken for another."""
    ids = tokens(2, 7)
    with torch.no_grad():
        exact, nearly = (tiny("llama", hidden_act=act)(ids, use_cache=False).logits for act in ("gelu", "gelu_pytorch_tanh"))
    assert (exact - nearly).abs().max() > 1e-4


EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe, renormalised": ("qwen2_moe", {**EXPERTS, "num_experts": 4, "norm_topk_prob": True, "shared_expert_intermediate_size": 32}),
    "qwen2_moe, as it is": ("qwen2_moe", {**EXPERTS, "num_experts": 4, "norm_topk_prob": False, "shared_expert_intermediate_size": 32}),
    "granitemoe, softmax after selection": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3, groups and a bias": (
        "deepseek_v3",
        {**EXPERTS, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0, "q_lora_rank": 24, "kv_lora_rank": 16,
         "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4},
    ),
    "gpt_oss, biases": ("gpt_oss", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
}  # fmt: skip


def routed(case: str, push: str = "") -> nn.Module:
    """A model whose routers choose by `push`: one expert takes all, no logit is positive, all are equal, or as the weights say."""
    kind, config = ROUTERS[case]
    model = tiny(kind, **config)
    for module in model.modules():
        bias = getattr(module, "e_score_correction_bias", None)
        if bias is not None:
            bias.copy_(torch.linspace(-0.3, 0.4, bias.numel()))
        if "Router" not in type(module).__name__ and not type(module).__name__.endswith("Gate"):
            continue
        for weight in (p for p in module.parameters(recurse=False) if p.ndim == 2):
            if push == "one expert":
                weight[1] = 30.0 * weight[1].sign()
            elif push == "negative":
                weight.copy_(-weight.abs())
            elif push == "ties":
                weight.zero_()
    return model


@pytest.mark.parametrize("push", ["", "one expert", "negative", "ties"])
@pytest.mark.parametrize("case", ROUTERS)
@torch.no_grad()
def test_b41_the_router_is_the_models(case: str, push: str) -> None:
    model = routed(case, push)
    for count in (5,) if push else (1, 2, 17):
        ids = tokens(1, count)
        torch._dynamo.reset()
        assert_equal(compiled(model)(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
        assert hfgraph.last_report().counts["moe"] == 2


@pytest.mark.parametrize("case", ROUTERS)
@torch.no_grad()
def test_b41_in_the_kernel(case: str) -> None:
    """The C++ kernel, asked for by name, with experts that get no token."""
    model, ids = routed(case, "one expert"), tokens(1, 3)
    f = compiled(model, options={**PLAIN, "kernels": {"moe": "cpp"}})
    assert_equal(f(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=5e-5)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning")
@torch.no_grad()
def test_b41_a_router_in_float32_inside_of_a_bfloat16_model() -> None:
    """Rounded to bfloat16 it would choose other experts: hfgraph leaves it where it is."""
    model = routed("deepseek_v3, groups and a bias").bfloat16()
    for module in model.modules():
        if "Router" in type(module).__name__:
            module.float()
    ids = tokens(2, 9)
    want, got = model(ids, use_cache=False).logits, compiled(model)(ids, use_cache=False).logits
    exact = routed("deepseek_v3, groups and a bias")(ids, use_cache=False).logits  # no product of groups takes float64
    assert (got - exact).abs().max() <= 1.1 * (want - exact).abs().max()
