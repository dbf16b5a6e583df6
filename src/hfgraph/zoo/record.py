"""One architecture: its sites as eager mode counts them beside those that hfgraph finds, and the reason for every miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hfgraph import versions
from hfgraph.backend import source_digest
from hfgraph.explaining import observed
from hfgraph.models import sentence
from hfgraph.options import Options
from hfgraph.report import Report, Site
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
Modules = tuple[str, ...]  # of a site: its own, then those in which the nodes were made that it stands for
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
        versions: of torch and transformers, with which it was seen.
        expected, found: sites by kind; rotations count tensors.
        surplus: sites found where none are expected, by kind and module.
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
    versions: dict[str, str] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    missed: list[Miss] = field(default_factory=list)
    surplus: dict[str, dict[str, int]] = field(default_factory=dict)
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
    record = begun(name)
    try:
        model, inputs = models.build(name, seed), models.inputs(name, BATCH, LENGTH, seed)
        with torch.no_grad():
            torch._dynamo.reset()
            _compare(record, model, inputs)
    except Exception as e:  # whatever a model of another library raises is what this table is there to show
        record.failed = f"{type(e).__name__}: {sentence(e)}"
    return record


def begun(name: str) -> Record:
    """A record of which nothing is known yet but what it is made with."""
    return Record(name, models.class_name(name), models.family(name), source_digest(), installed())


def installed() -> dict[str, str]:
    """Versions of what decides, besides hfgraph, what is seen."""
    return {p: v for p in ("torch", "transformers") if (v := versions.installed(p)) is not None}


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
        left, beyond = match(expected[kind], sites, whole=record.graphs == 1)
        if beyond:
            record.surplus[kind] = dict(sorted(beyond.items()))
        record.missed += [Miss(kind, module, n, _reason(kind, module, report)) for module, n in sorted(left.items())]


def farthest(a: Tensor, b: Tensor) -> float:
    """The largest difference; not a number where one of them holds some."""
    return float((a.double() - b.double()).abs().max())


def found_sites(kind: str, report: Report) -> Counter[Modules]:
    """Sites of one kind by module; of rotations, the tensors that they turn; of gated MLPs, also those inside of experts."""
    found: Counter[Modules] = Counter()
    for site, modules in placed(report):
        if site.rule in RULES[kind] and site.status == ("fused" if kind == "merged" else "recognised"):
            found[modules] += 2 if "rope" in site.steps else 1
        elif kind == "glu" and (site.rule, site.status) == ("moe", "recognised") and any(step.startswith("glu") for step in site.steps):
            found[modules] += 1
    return found


def placed(report: Report) -> Iterator[tuple[Site, Modules]]:
    """Every site, and the modules that it has to do with."""
    for graph in report.graphs:
        made_in = {n.name: n.module for n in graph.before.nodes}
        for site in graph.sites * graph.calls:
            yield site, tuple(dict.fromkeys((site.module, *(made_in.get(n, "") for n in site.nodes))))


def match(expected: Counter[str], found: Counter[Modules], *, whole: bool) -> tuple[Counter[str], Counter[str]]:
    """Sites expected and not found, and the other way round, by module path.

    Only a site that has to do with a module is taken for what that one computes: it is its own, or some of its nodes are, or those of a
    module within. After a graph break Dynamo knows a module by its path below the function that it resumes in, or not at all.

    Args:
        whole: one graph holds the model, and every path is known.
    """
    left, beyond = expected.copy(), found.copy()
    for fits in (*_FITS, *(() if whole else _FITS_OF_PARTS)):
        for site in sorted(beyond, key=lambda s: len(s[0]), reverse=True):
            for path in left:
                if fits(path, site):
                    taken = min(beyond[site], left[path])
                    left[path] -= taken
                    beyond[site] -= taken
    surplus: Counter[str] = Counter()
    for site, n in beyond.items():
        surplus[site[0]] += n
    return +left, +surplus


def _same(path: str, site: Modules) -> bool:
    return path == site[0]


def _of_nodes(path: str, site: Modules) -> bool:
    return path in site


def _within(path: str, site: Modules) -> bool:
    return path != "" and any(m.startswith(f"{path}.") for m in site)


def _own_tail(path: str, site: Modules) -> bool:
    return site[0] != "" and path.endswith(f".{site[0]}")


def _tail(path: str, site: Modules) -> bool:
    return any(path.endswith(f".{m}") for m in site if m)


def _within_tail(path: str, site: Modules) -> bool:
    return any(path.endswith(f".{head}") for m in site if m for head in accumulate(m.split("."), "{}.{}".format))


def _unknown(_: str, site: Modules) -> bool:
    return site[0] == ""


# From what is certain to what is likely.
_FITS = (_same, _of_nodes, _within)
_FITS_OF_PARTS = (_own_tail, _tail, _within_tail, _unknown)


def _reason(kind: str, module: str, report: Report) -> str:
    """Why a graph was not rewritten, what kept the nearest site of this kind apart, or that nothing came near."""
    unread = next((g.unrewritten for g in report.graphs if g.unrewritten), "")
    near = [s for s in report.near_misses if s.rule in RULES[kind] and (module.endswith(s.module) or s.module.startswith(module))]
    if unread or near:
        return unread or near[0].reason
    return _NOTHING if len(report.graphs) == 1 else f"{_NOTHING}, and between graphs nothing is compiled"
