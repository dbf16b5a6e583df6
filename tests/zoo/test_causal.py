"""Every causal model of the zoo: the rewritten graph equals eager, and every RMSNorm that eager calls is found, module by module.

`HFGRAPH_SEED` picks weights, inputs and samples; `HFGRAPH_ACCEPT=1` writes the golden counts anew.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import golden
import pytest
import torch
import zoo
from torch import Tensor, nn

import hfgraph

NAMES = sorted(zoo.names("causal"))
SEED = int(os.environ.get("HFGRAPH_SEED", "1"))

# Modules named *RMSNorm that compute something else.
OTHER_FUNCTIONS = {
    "HYV4UnweightedRMSNorm": "returns the inverse root mean square alone; its caller multiplies a projection by it",
}

pytestmark = pytest.mark.filterwarnings(
    # Dynamo itself, where a model calls a custom autograd function.
    "ignore:.*torch.autograd.function.Function.*should not be instantiated:DeprecationWarning",
    # transformers caches its look-up of optional kernels (mamba, falcon_mamba, jamba); tracing through the cache is right.
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning",
)


def sample(count: int, why: str) -> list[str]:
    """`count` names, the same for one seed, others for other reasons."""
    return sorted(random.Random(f"{SEED} {why}").sample(NAMES, count))


# --- what eager calls, what hfgraph finds --------------------------------------------------------------


def is_norm(module: nn.Module) -> bool:
    """An RMSNorm by name that holds no other one (a few models wrap a norm and a gate in a module named like a norm)."""
    return type(module).__name__.endswith("RMSNorm") and not any(is_norm(m) for m in module.children())


@dataclass
class Eager:
    logits: Tensor
    norms: Counter[str]
    """Calls of RMSNorm modules by module path."""


def run_eager(model: nn.Module, inputs: dict[str, Any]) -> Eager:
    norms: Counter[str] = Counter()
    counted = [(p, m) for p, m in model.named_modules() if is_norm(m) and type(m).__name__ not in OTHER_FUNCTIONS]
    hooks = [m.register_forward_hook(lambda *_, path=p: norms.update([path])) for p, m in counted]
    logits = zoo.logits(model(**inputs))
    for hook in hooks:
        hook.remove()
    return Eager(logits, norms)


def match(called: Counter[str], sites: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Calls without a site, and sites without a call, by module path.

    After a graph break Dynamo knows a module only by its path below the function that it resumes in, so a site may
    give the tail of the path. The longest tails are settled first.
    """
    calls, beyond = called.copy(), Counter[str]()
    for site in sorted(sites, key=len, reverse=True):
        left = sites[site]
        for path in sorted(calls, key=lambda p: p != site):
            if path == site or not site or path.endswith(f".{site}"):
                taken = min(left, calls[path])
                calls[path] -= taken
                left -= taken
        if left:
            beyond[site] = left
    return +calls, beyond


def counted(report: hfgraph.Report) -> dict[str, Any]:
    return {"graphs": len(report.graphs), "rms_norm": report.counts.get("rms_norm", 0), "add_rms_norm": report.counts.get("add_rms_norm", 0)}


def norm_sites(report: hfgraph.Report) -> Counter[str]:
    return Counter(s.module for s in report.sites if s.rule == "rms_norm" and s.status == "recognised")


def compiled(model: nn.Module, **how: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="hfgraph", options={"inductor": False, "strict": True}, **how)


def check_sites(name: str, model: nn.Module, inputs: dict[str, Any], eager: Eager) -> None:
    """Sites = calls, module by module, and the counts are those of the golden file."""
    report = hfgraph.last_report()
    if len(report.graphs) > 1:  # graphs may run several times in one call; `explain` counts how often
        torch._dynamo.reset()
        report = hfgraph.explain(model, **inputs)
    assert not [g.unrewritten for g in report.graphs if g.unrewritten]
    missed, beyond = match(eager.norms, norm_sites(report))
    assert not missed, f"{name}: RMSNorm modules called without a site: {dict(missed)}. Near misses: {[s.reason for s in report.near_misses]}"
    golden.check(name, counted(report) | {"beyond": dict(sorted(beyond.items()))})


# --- float32: all models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_float32(name: str) -> None:
    """Logits equal eager's, and the sites are exactly those expected."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    eager = run_eager(model, inputs)
    got = zoo.logits(compiled(model)(**inputs))
    assert torch.isfinite(eager.logits).all()
    torch.testing.assert_close(got, eager.logits, atol=1e-5, rtol=0)
    check_sites(name, model, inputs, eager)


# --- other dtypes, symbolic sizes, Inductor: samples ---------------------------------------------------


@pytest.mark.parametrize("name", sample(len(NAMES) // 3, "bfloat16"))
@torch.no_grad()
def test_bfloat16(name: str) -> None:
    """Bit-equal to eager, or no further from float64 than eager is; and the same sites as in float32."""
    model, inputs = zoo.build(name, seed=SEED).bfloat16(), cast(zoo.inputs(name, 2, 13, seed=SEED), torch.bfloat16)
    eager = run_eager(model, inputs)
    got = zoo.logits(compiled(model)(**inputs))
    check_sites(name, model, inputs, eager)
    if not torch.equal(got, eager.logits):
        exact = zoo.logits(model.double()(**cast(inputs, torch.float64)))
        error, allowed = ((x.double() - exact).abs().max().item() for x in (got, eager.logits))
        assert error <= 1.1 * allowed, f"{name}: {error:.3g} from float64, eager only {allowed:.3g}"


@pytest.mark.parametrize("name", sample(len(NAMES) // 3, "dynamic"))
@torch.no_grad()
def test_dynamic(name: str) -> None:
    """Symbolic sizes: the same sites, and another batch and length give eager's logits too."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    eager = run_eager(model, inputs)
    f = compiled(model, dynamic=True)
    got = zoo.logits(f(**inputs))
    torch.testing.assert_close(got, eager.logits, atol=1e-5, rtol=0)
    report = hfgraph.last_report()
    missed, beyond = match(eager.norms, norm_sites(report))
    if len(report.graphs) == 1:
        assert not missed, f"{name}: RMSNorm modules called without a site: {dict(missed)}"
        golden.check(name, counted(report) | {"beyond": dict(sorted(beyond.items()))})


@pytest.mark.parametrize("name", sample(12, "inductor"))
@torch.no_grad()
def test_inductor(name: str) -> None:
    """The whole way: Inductor compiles the rewritten graph."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    want = zoo.logits(model(**inputs))
    got = zoo.logits(torch.compile(model, backend="hfgraph", options={"strict": True})(**inputs))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert hfgraph.last_report().counts.get("rms_norm", 0) == golden.read()[name]["rms_norm"]


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


# --- the tests themselves ------------------------------------------------------------------------------


def test_the_golden_file_lists_every_model_and_no_other() -> None:
    assert golden.ACCEPT or sorted(golden.read()) == NAMES


def test_a_changed_count_is_noticed() -> None:
    entry = golden.read()["llama"]
    with pytest.raises(AssertionError, match=r"llama: expected \{'rms_norm': 5\}, found \{'rms_norm': 4\}.*HFGRAPH_ACCEPT=1"):
        golden.check("llama", entry | {"rms_norm": 4})


def test_a_site_in_another_module_is_noticed() -> None:
    """Equal totals do not hide that one module's norm was missed and another counted twice."""
    assert match(Counter({"a.norm": 1, "b.norm": 1}), Counter({"a.norm": 2})) == (Counter({"b.norm": 1}), Counter({"a.norm": 1}))
    assert match(Counter({"x.a.norm": 1, "x.b.norm": 2}), Counter({"norm": 2, "a.norm": 1})) == (Counter(), Counter())


@torch.no_grad()
def test_a_wrong_rewrite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a falsified rule the logits are not eager's: the comparison above can fail."""
    from hfgraph import backend, pipeline

    monkeypatch.setattr(backend, "Context", lambda options: pipeline.Context(options, sabotage="rms_norm_weight"))
    model, inputs = zoo.build("llama", seed=SEED), zoo.inputs("llama", 2, 13, seed=SEED)
    want, got = zoo.logits(model(**inputs)), zoo.logits(compiled(model)(**inputs))
    assert (got - want).abs().max() > 1e-3
