"""Models of the zoo in bfloat16, causal ones with symbolic sizes, and through Inductor: samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from test_coverage import TABLE
from torch import Tensor, nn
from zoo_cases import CAUSAL, PATIENT, SEED, sample

import hfgraph
from hfgraph import zoo
from hfgraph.rewrites.recurrences.naming import all_kinds
from hfgraph.zoo.expected import KINDS, run
from hfgraph.zoo.record import farthest, found_sites, match

pytestmark = PATIENT
PLAIN = {"inductor": False, "strict": True, "merge_always": True}
# The dozens of graphs that some models break into may exceed Dynamo's limit; it would then run eager, which proves nothing.
UNLIMITED = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
# For bfloat16: by chance alone a model whose logits are few can be a quarter further from float64 than eager on one input, and nearer on the next.
INPUTS = 8
# Models in which other sites are found than in float32 with sizes as traced, and why. Their logits must be eager's all the same.
OTHERWISE = {
    "bfloat16": {
        "beam": "its experts' gates are computed in float32, its norms of queries and keys end in bfloat16",
        "flint": "its values and weights stay float32 there, which the op does not take beside bfloat16 queries",
        "gpt_neo": "its queries and keys are made float32, its values are not, and the op takes one dtype",
        "lfm3": "its norms of queries and keys end in bfloat16",
        **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "zaya"), "its residual stays float32, and begins with a cast"),
    },
    "dynamic": {
        "deepseek_v4": "how many compressed keys it has, and so how many are rotated, is a symbol",
        "xlm": "its mask is expanded like the scores, whose sizes are not known then",
    },
}


def check_sites(name: str, expected: dict[str, Any], unnamed: Collection[str] = ()) -> None:
    """Every graph was rewritten; where there is one, what is found is what the table says, and nothing else is missed. `unnamed` may be missing."""
    report, known = hfgraph.last_report(), TABLE.records[name]
    assert not [g.unrewritten for g in report.graphs if g.unrewritten]
    if known.graphs > 1:
        return
    left = {n: count for n, count in known.counts.items() if n in report.counts or n not in unnamed}
    assert dict(sorted(report.counts.items())) == left
    told = {(m.kind, m.module) for m in known.missed}
    missed = {(kind, module) for kind in KINDS for module in match(expected[kind], found_sites(kind, report), whole=True)[0]}
    assert missed <= told, f"{name} computes, and hfgraph does not find: {sorted(missed - told)}"


@pytest.mark.parametrize("name", sample(len(CAUSAL) // 8, "bfloat16", zoo.names()))
@UNLIMITED
@torch.no_grad()
def test_bfloat16(name: str) -> None:
    """Bit-equal to eager, or no further from float64 than eager is, over several inputs. And the same sites as in float32."""
    model, given = zoo.build(name, SEED).bfloat16(), [cast(zoo.inputs(name, 2, 13, SEED + i), torch.bfloat16) for i in range(INPUTS)]
    compiled = torch.compile(model, backend="hfgraph", options=PLAIN)
    want, expected = run(model, given[0])
    got = zoo.logits(compiled(**given[0]))
    if name not in OTHERWISE["bfloat16"]:
        check_sites(name, expected)
    if not torch.equal(got, want):
        wanted, found = ([first, *(zoo.logits(f(**x)) for x in given[1:])] for first, f in ((want, model), (got, compiled)))
        exact = judged(model, given)
        aside = int("moe" in TABLE.records[name].counts)
        error, allowed = distance(found, exact, aside), distance(wanted, exact, aside)
        assert error <= 1.1 * allowed, f"{name}: {error:.3g} from float64, eager only {allowed:.3g}"


def distance(found: Sequence[Tensor], exact: Sequence[Tensor], aside: int) -> float:
    """Root mean square, with so many of each input's worst tokens left aside: of two experts that are as good a router may choose the other."""
    tokens = [(a.double() - b.double()).square().mean(-1).flatten().sort().values for a, b in zip(found, exact, strict=True)]
    return float(torch.cat([t[: len(t) - aside] for t in tokens]).mean().sqrt())


def judged(model: nn.Module, given: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Logits in float64; in float32, where a model has operators or numbers that float64 does not take."""
    try:
        model.double()
        return [zoo.logits(model(**cast(x, torch.float64))) for x in given]
    except RuntimeError:
        model.float()
        return [zoo.logits(model(**cast(x, torch.float32))) for x in given]


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", sample(len(CAUSAL) // 8, "dynamic"))
@UNLIMITED
@torch.no_grad()
def test_dynamic(name: str) -> None:
    """Symbolic sizes: the same sites, and another batch and length give eager's logits too."""
    model, inputs = zoo.build(name, SEED), zoo.inputs(name, 2, 13, SEED)
    want, expected = run(model, inputs)
    f = torch.compile(model, backend="hfgraph", options=PLAIN, dynamic=True)
    torch.testing.assert_close(zoo.logits(f(**inputs)), want, atol=1e-5, rtol=0)
    if name not in OTHERWISE["dynamic"]:
        check_sites(name, expected, unnamed=[k.name for k in all_kinds()])  # of symbolic length
    other = zoo.inputs(name, 3, 9, SEED)
    torch.testing.assert_close(zoo.logits(f(**other)), zoo.logits(model(**other)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sample(8, "inductor", zoo.names()))
@torch.no_grad()
def test_inductor(name: str) -> None:
    """The whole way, by the backend's name: Inductor compiles the rewritten graph."""
    model, inputs = zoo.build(name, SEED), zoo.inputs(name, 2, 13, SEED)
    want = zoo.logits(model(**inputs))
    got = zoo.logits(torch.compile(model, backend="hfgraph", options={"strict": True})(**inputs))
    if TABLE.records[name].graphs == 1:
        assert hfgraph.last_report().counts.get("rms_norm", 0) == TABLE.records[name].counts.get("rms_norm", 0)
    if not torch.allclose(got, want, atol=1e-5, rtol=1e-4):
        alone = zoo.logits(torch.compile(model, backend="inductor")(**inputs))
        assert farthest(got, want) <= 1.5 * farthest(alone, want), "farther from eager than Inductor is by itself"
