"""One architecture: its sites as eager mode counts them beside those that hfgraph finds, and the reason for every miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfgraph.backend import source_digest
from hfgraph.explaining import observed
from hfgraph.models import sentence
from hfgraph.options import Options
from hfgraph.report import Report
from hfgraph.zoo import models
from hfgraph.zoo.expected import KINDS, run

BATCH, LENGTH, SEED = 2, 13, 5
TOLERANCE = 1e-5  # of logits in float32, absolute
# What hfgraph counts sites as, by kind.
RULES: Mapping[str, tuple[str, ...]] = {
    "norm": ("rms_norm", "layer_norm"),
    "rope": ("rope",),
    "attention": ("attention",),
    "glu": ("glu",),
    "moe": ("moe",),
    "merged": ("merged_linear",),
}
_NOTHING = "nothing in the graph comes near"


@dataclass(frozen=True)
class Miss:
    """Sites of one kind that a module computes and hfgraph does not find."""

    kind: str
    module: str
    count: int
    reason: str


@dataclass
class Record:
    """What was seen of one architecture.

    Attributes:
        sources: a digest of the hfgraph that saw it.
        expected, found: sites by kind; rotations count tensors.
        counts: sites by the op or rule that the report counts them as.
        graphs: that one call of the model runs.
        breaks: why Dynamo ended a graph, where it did.
        error: the largest difference of the logits from eager's, or, where Dynamo alone changes them, from those that Dynamo gives.
        error_of_dynamo: how far `torch.compile` alone (backend="eager") is from eager, where that is more than rounding.
        failed: what went wrong; then nothing else is known.
    """

    name: str
    model: str
    family: str
    sources: str = ""
    expected: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    missed: list[Miss] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    graphs: int = 0
    breaks: list[str] = field(default_factory=list)
    error: float = 0.0
    error_of_dynamo: float = 0.0
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Record:
        return cls(**{**given, "missed": [Miss(**m) for m in given["missed"]]})


def examine(name: str, *, seed: int = SEED) -> Record:
    """Build an architecture, run it by eager and by hfgraph without Inductor, and compare.

    Raises:
        UnknownArchitecture: there is no such entry.
    """
    record = Record(name, models.class_name(name), models.family(name), source_digest())
    try:
        model, inputs = models.build(name, seed), models.inputs(name, BATCH, LENGTH, seed)
        with torch.no_grad():
            torch._dynamo.reset()
            _compare(record, model, inputs)
    except Exception as e:  # whatever a model of another library raises is what this table is there to show
        record.failed = f"{type(e).__name__}: {sentence(e)}"
    return record


def _compare(record: Record, model: nn.Module, inputs: Mapping[str, Any]) -> None:
    torch.manual_seed(0)  # a few models draw random numbers
    want, expected = run(model, inputs)
    torch.manual_seed(0)
    out, report = observed(model, (), inputs, Options(inductor=False, strict=True, merge_always=True))
    got = models.logits(out)
    if not farthest(got, want) <= TOLERANCE:
        torch._dynamo.reset()
        torch.manual_seed(0)
        alone = models.logits(torch.compile(model, backend="eager")(**inputs))
        record.error_of_dynamo = farthest(alone, want)
        want = alone
    record.error = farthest(got, want)
    account(record, expected, report)


def account(record: Record, expected: Mapping[str, Counter[str]], report: Report) -> None:
    """Fill in what was found, and what of the sites that eager mode computes was not, with reasons."""
    record.counts = dict(sorted(report.counts.items()))
    record.graphs = sum(g.calls for g in report.graphs)
    record.breaks = sorted({b.reason.splitlines()[0] for b in report.breaks})
    for kind in KINDS:
        sites = found_sites(kind, report)
        if expected[kind] or sites:
            record.expected[kind], record.found[kind] = expected[kind].total(), sites.total()
        left, _ = match(expected[kind], sites)
        record.missed += [Miss(kind, module, n, _reason(kind, module, report)) for module, n in sorted(left.items())]


def farthest(a: Tensor, b: Tensor) -> float:
    """The largest difference; not a number where one of them holds some."""
    return float((a.double() - b.double()).abs().max())


def found_sites(kind: str, report: Report) -> Counter[str]:
    """Sites of one kind by module; of rotations, the tensors that they turn; of gated MLPs, also those inside of experts."""
    found: Counter[str] = Counter()
    for site in report.sites:
        if site.rule in RULES[kind] and site.status == ("fused" if kind == "merged" else "recognised"):
            found[site.module] += 2 if "rope" in site.steps else 1
        elif kind == "glu" and (site.rule, site.status) == ("moe", "recognised") and any(step.startswith("glu") for step in site.steps):
            found[site.module] += 1
    return found


def match(expected: Counter[str], found: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Sites expected and not found, and the other way round, by module path.

    A site may give the tail of a path: after a graph break Dynamo knows a module only by its path below the function that
    it resumes in. What is left then may lie where the result is used, around the other module or beside it, if nothing is expected there.
    """
    left, beyond = expected.copy(), found.copy()
    for fits in (_same, _tail, _nested, _beside):
        for site in sorted(beyond, key=len, reverse=True):
            if fits is _beside and site in expected:
                continue
            for path in left:
                if fits(path, site):
                    taken = min(beyond[site], left[path])
                    left[path] -= taken
                    beyond[site] -= taken
    return +left, +beyond


def _same(path: str, site: str) -> bool:
    return path == site


def _tail(path: str, site: str) -> bool:
    return not site or path.endswith(f".{site}")


def _nested(path: str, site: str) -> bool:
    return f".{site}." in f".{path}" or site.startswith(f"{path}.") or not path


def _beside(path: str, site: str) -> bool:
    around, around_site = path.rpartition(".")[0], site.rpartition(".")[0]
    return around == around_site or (around_site != "" and around.endswith(f".{around_site}"))


def _reason(kind: str, module: str, report: Report) -> str:
    """Why a graph was not rewritten, what kept the nearest site of this kind apart, or that nothing came near."""
    unread = next((g.unrewritten for g in report.graphs if g.unrewritten), "")
    near = [s for s in report.near_misses if s.rule in RULES[kind] and (module.endswith(s.module) or s.module.startswith(module))]
    if unread or near:
        return unread or near[0].reason
    return _NOTHING if len(report.graphs) == 1 else f"{_NOTHING}, and between graphs nothing is compiled"
