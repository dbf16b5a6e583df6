"""Every causal model of the zoo: the rewritten graph equals eager, every RMSNorm that eager calls is found, module by module, and of
attentions, rotations, gated MLPs and mixtures of experts as many as eager computes.

`HFGRAPH_SEED` picks weights, inputs and samples; `HFGRAPH_ACCEPT=1` writes the golden counts anew.
"""

from __future__ import annotations

import copy
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import eager
import golden
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.fx import GraphModule

import hfgraph
from hfgraph.backend import hfgraph as hfgraph_backend

NAMES = sorted(zoo.names("causal"))
SEED = int(os.environ.get("HFGRAPH_SEED", "1"))

# Modules named *RMSNorm that compute something else.
OTHER_FUNCTIONS = {
    "HYV4UnweightedRMSNorm": "returns the inverse root mean square alone; its caller multiplies a projection by it",
}

# Models that eager cannot run in bfloat16.
NOT_IN_BFLOAT16 = {
    "inkling2_loop_text": "its router multiplies float32 values by bfloat16 weights",
    "inkling2_text": "its router multiplies float32 values by bfloat16 weights",
    "xlstm": "its recurrence multiplies float32 states by bfloat16 weights",
}

pytestmark = pytest.mark.filterwarnings(
    # Dynamo itself, where a model calls a custom autograd function.
    "ignore:.*torch.autograd.function.Function.*should not be instantiated:DeprecationWarning",
    # transformers caches its look-up of optional kernels (mamba, falcon_mamba, jamba); tracing through the cache is right.
    "ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning",
)


def sample(count: int, why: str) -> list[str]:
    """`count` names, the same for one seed, others for other reasons."""
    return sorted(random.Random(f"{SEED} {why}").sample(sorted(set(NAMES) - set(NOT_IN_BFLOAT16)), count))


# --- what eager calls, what hfgraph finds --------------------------------------------------------------


def is_norm(module: nn.Module) -> bool:
    """An RMSNorm by name that holds no other one (a few models wrap a norm and a gate in a module named like a norm)."""
    return type(module).__name__.endswith("RMSNorm") and not any(is_norm(m) for m in module.children())


_TOKENS = "its sink depends on the token"
_CAPPED = "its experts multiply a gate that is capped by the sigmoid of the gate without the cap"
_LOOP = "its experts are called in a loop between graphs"
# Of what eager computes, what is not found, and why.
MISSED: dict[str, dict[str, str]] = {
    "inkling2_loop_text": {"attention": _TOKENS, "moe": _CAPPED},
    "inkling2_text": {"attention": _TOKENS, "moe": _CAPPED},
    "dbrx": {"moe": _LOOP},
    "jetmoe": {"moe": _LOOP},
    "longcat_flash": {"glu": _LOOP, "moe": _LOOP},
    "openai-gpt": {"attention": "scores are multiplied by a table and lowered by 10000, which masks only nearly"},
}


# Models in which other sites are found than in float32 with sizes as traced, and why. Their logits must be eager's all the same.
OTHERWISE = {
    "bfloat16": {"flint": "its values and weights stay float32 there, which the op does not take beside bfloat16 queries"},
    "dynamic": {"xlm": "its mask is expanded like the scores, whose sizes are not known then"},
}


@dataclass
class Eager:
    logits: Tensor
    norms: Counter[str]
    """Calls of RMSNorm modules by module path."""
    computed: Counter[str]
    """Attentions, rotated tensors, gated MLPs and mixtures of experts."""


def run_eager(model: nn.Module, inputs: dict[str, Any]) -> Eager:
    norms: Counter[str] = Counter()
    counted = [(p, m) for p, m in model.named_modules() if is_norm(m) and type(m).__name__ not in OTHER_FUNCTIONS]
    hooks = [m.register_forward_hook(lambda *_, path=p: norms.update([path])) for p, m in counted]
    logits = zoo.logits(model(**inputs))
    for hook in hooks:
        hook.remove()
    return Eager(logits, norms, eager.counted(model, inputs))


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


OPS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "attention", "rope", "glu", "moe", "softcap")


def recognised(what: str, report: hfgraph.Report) -> int:
    """Sites of one kind; of rotations, the tensors that they turn; of gated MLPs, also those inside of experts."""
    sites = [s for s in report.sites if s.status == "recognised"]
    inside = sum(s.rule == "moe" and any(step.startswith("glu") for step in s.steps) for s in sites) if what == "glu" else 0
    return inside + sum(2 if what == "rope" and "rope" in s.steps else 1 for s in sites if s.rule == what)


def norm_sites(report: hfgraph.Report) -> Counter[str]:
    return Counter(s.module for s in report.sites if s.rule == "rms_norm" and s.status == "recognised")


# The dozens of graphs that some models break into may exceed Dynamo's limit; it would then run eager, which proves nothing.
UNLIMITED = {"recompile_limit": 10_000, "accumulated_recompile_limit": 10_000}


def run_rewritten(model: nn.Module, inputs: dict[str, Any], dynamic: bool | None = None) -> tuple[Callable[..., Any], Tensor, hfgraph.Report]:
    """The model compiled without Inductor, its logits, and the report of its graphs with how often this call ran each."""
    graphs = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        rewritten = hfgraph_backend(gm, example_inputs, options={"inductor": False, "strict": True})
        found = hfgraph.last_report().graphs[-1]
        found.calls = 0
        graphs.append(found)

        def counted(*args: Any) -> Any:
            found.calls += 1
            return rewritten(*args)

        return counted

    f = torch.compile(model, backend=backend, dynamic=dynamic)
    logits = zoo.logits(f(**inputs))
    return f, logits, hfgraph.Report(copy.deepcopy(graphs))


def check_sites(name: str, report: hfgraph.Report, called: Eager, *, writes: bool = False) -> None:
    """Every graph was rewritten, sites = calls module by module, and the counts are those of the golden file."""
    assert not [g.unrewritten for g in report.graphs if g.unrewritten]
    missed, beyond = match(called.norms, norm_sites(report))
    assert not missed, f"{name}: RMSNorm modules called without a site: {dict(missed)}. Near misses: {[s.reason for s in report.near_misses]}"
    counts = {op: report.counts.get(op, 0) for op in OPS}
    short = {what: (n, found) for what, n in called.computed.items() if (found := recognised(what, report)) < n and what not in MISSED.get(name, {})}
    assert not short, f"{name}: (computed by eager, found): {short}. Near misses: {[s.reason for s in report.near_misses]}"
    entry = {**{op: n for op, n in counts.items() if n}, "beyond": dict(sorted(beyond.items()))}
    if writes or golden.read()[name]["graphs"] == 1:  # where a model breaks depends on dtypes and sizes too
        entry["graphs"] = len(report.graphs)
    golden.check(name, entry, writes=writes)


# --- float32: all models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch._dynamo.config.patch(UNLIMITED)
@torch.no_grad()
def test_float32(name: str) -> None:
    """Logits equal eager's, and the sites are exactly those expected."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    called = run_eager(model, inputs)
    _, logits, report = run_rewritten(model, inputs)
    assert torch.isfinite(called.logits).all()
    torch.testing.assert_close(logits, called.logits, atol=1e-5, rtol=0)
    check_sites(name, report, called, writes=True)


# --- other dtypes, symbolic sizes, Inductor: samples ---------------------------------------------------


@pytest.mark.parametrize("name", sample(len(NAMES) // 4, "bfloat16"))
@torch._dynamo.config.patch(UNLIMITED)
@torch.no_grad()
def test_bfloat16(name: str) -> None:
    """Bit-equal to eager, or no further from float64 than eager is; and the same sites as in float32."""
    model, inputs = zoo.build(name, seed=SEED).bfloat16(), cast(zoo.inputs(name, 2, 13, seed=SEED), torch.bfloat16)
    called = run_eager(model, inputs)
    _, logits, report = run_rewritten(model, inputs)
    if name not in OTHERWISE["bfloat16"]:
        check_sites(name, report, called)
    if not torch.equal(logits, called.logits):
        exact = judged(model, inputs)
        error, allowed = ((x.double() - exact).abs().max().item() for x in (logits, called.logits))
        assert error <= 1.1 * allowed, f"{name}: {error:.3g} from float64, eager only {allowed:.3g}"


@pytest.mark.parametrize("name", sample(len(NAMES) // 4, "dynamic"))
@torch._dynamo.config.patch(UNLIMITED)
@torch.no_grad()
def test_dynamic(name: str) -> None:
    """Symbolic sizes: the same sites, and another batch and length give eager's logits too."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    called = run_eager(model, inputs)
    f, logits, report = run_rewritten(model, inputs, dynamic=True)
    torch.testing.assert_close(logits, called.logits, atol=1e-5, rtol=0)
    if name not in OTHERWISE["dynamic"]:
        check_sites(name, report, called)
    other = zoo.inputs(name, 3, 9, seed=SEED)
    torch.testing.assert_close(zoo.logits(f(**other)), zoo.logits(model(**other)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sample(12, "inductor"))
@torch.no_grad()
def test_inductor(name: str) -> None:
    """The whole way, by the backend's name: Inductor compiles the rewritten graph."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    want = zoo.logits(model(**inputs))
    got = zoo.logits(torch.compile(model, backend="hfgraph", options={"strict": True})(**inputs))
    if golden.read()[name]["graphs"] == 1:
        assert hfgraph.last_report().counts.get("rms_norm", 0) == golden.read()[name].get("rms_norm", 0)
    if not torch.allclose(got, want, atol=1e-5, rtol=1e-4):
        alone = zoo.logits(torch.compile(model, backend="inductor")(**inputs))
        assert farthest(got, want) <= 1.5 * farthest(alone, want), "farther from eager than Inductor is by itself"


def farthest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def judged(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Logits in float64; in float32, where a model has operators or numbers that float64 does not take."""
    try:
        return zoo.logits(model.double()(**cast(inputs, torch.float64)))
    except RuntimeError:
        return zoo.logits(model.float()(**cast(inputs, torch.float32))).double()


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


# --- the tests themselves ------------------------------------------------------------------------------


def test_the_golden_file_lists_every_model_and_no_other() -> None:
    assert golden.ACCEPT or sorted(golden.read()) == NAMES


def test_a_changed_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "ACCEPT", False)
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
    assert (run_rewritten(model, inputs)[1] - zoo.logits(model(**inputs))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ctrl", "reformer"])
@torch.no_grad()
def test_graph_breaks_are_reported(name: str) -> None:
    """`explain` finds the same graphs, and says why there are several."""
    model, inputs = zoo.build(name, seed=SEED), zoo.inputs(name, 2, 13, seed=SEED)
    report = hfgraph.explain(model, **inputs)
    assert report.graph_breaks and all(report.graph_breaks)
    assert len(report.graphs) == golden.read()[name]["graphs"] > 1
