"""The page of what is recognised in every architecture, from `coverage.json`, which `hfgraph zoo` writes and the tests check."""

from __future__ import annotations

from itertools import groupby

from _generate.text import ROOT, page, table
from hfgraph.kernels.short_conv import short_conv
from hfgraph.rewrites.recurrences.naming import all_kinds
from hfgraph.zoo import FAMILIES
from hfgraph.zoo.expected import KINDS
from hfgraph.zoo.show import broken, cell, missed, surplus
from hfgraph.zoo.table import Coverage

_TITLES = {"causal": "Causal language models", "seq2seq": "Encoder-decoders", "mlm": "Encoders", "vlm": "Image-text models"}
_KINDS = {
    "norm": "RMSNorm and LayerNorm; not what makes vectors of length one (Dory), which no rule knows",
    "rope": "tensors that are rotated",
    "attention": "attentions",
    "glu": "gated MLPs",
    "moe": "mixtures of experts",
    "merged": "tensors that several linears read, which could run as one",
}


def pages() -> dict[str, str]:
    """Every page, by path."""
    return {"coverage.md": coverage_page(Coverage.load(ROOT / "docs" / "coverage.json"))}


def coverage_page(coverage: Coverage) -> str:
    """Shares by family, each architecture, every miss with its reason, every graph break."""
    versions = "; ".join(f"{n} of them with {v}" if len(coverage.versions) > 1 else f"with {v}" for v, n in coverage.versions.most_common())
    parts = [
        "# Coverage",
        f"What {len(coverage.records)} architectures of transformers compute, and what hfgraph finds of it. Each is built tiny, with random weights, and "
        "run in eager mode, where calls of functions and modules are counted; then it is traced and rewritten, and what is found is compared, module by "
        f"module. `hfgraph zoo` does so anywhere; the tests do it for this table. Seen {versions}.",
        "Columns: " + "; ".join(f"**{kind}**: {words}" for kind, words in _KINDS.items()) + ".",
        "## Of models that trace in one graph",
        table(("", "models", "in one graph", *KINDS), [_family(coverage, family, title) for family, title in {**_TITLES, "": "All"}.items()]),
        *_architectures(coverage),
        "## What is not found, and why",
        table(("architecture", "what", "module", "sites", "reason"), list(missed(coverage))),
        *_surplus(coverage),
        "## Models that Dynamo breaks into several graphs",
        "Each graph is rewritten; what crosses from one to the next is not seen.",
        table(("architecture", "graphs", "reason"), list(broken(coverage))),
        *_recurrences(coverage),
    ]
    return page(*parts, *_dynamo(coverage))


def _recurrences(coverage: Coverage) -> list[str]:
    """What architectures keep instead of keys and values, and the convolutions before it."""
    columns = (*(k.name for k in all_kinds()), short_conv.name)
    found = [(r.name, [r.counts.get(c, 0) for c in columns]) for r in coverage.records.values()]
    rows = [(f"`{name}`", *(str(n) if n else "" for n in counts)) for name, counts in found if any(counts)]
    words = (
        "Layers that keep a state of a fixed size, by what they compute for one token: they have their name in the report, and stay as they are. "
        "Convolutions before them are an op."
    )
    return ["## Recurrences", words, table(("architecture", *(f"`{c}`" for c in columns)), rows)]


def _family(coverage: Coverage, family: str, title: str) -> tuple[str, ...]:
    counts = (c[family] if family else c.total() for c in (coverage.families, coverage.in_one_graph))
    return (title, *map(str, counts), *(str(coverage.share(kind, family)) for kind in KINDS))


def _architectures(coverage: Coverage) -> list[str]:
    parts = []
    ordered = sorted(coverage.records.values(), key=lambda r: (FAMILIES.index(r.family), r.name))
    for family, records in groupby(ordered, key=lambda r: r.family):
        rows = [(f"`{r.name}`", str(r.graphs), *(cell(r, kind) for kind in KINDS)) for r in records]
        parts += [f"## {_TITLES[family]}", table(("architecture", "graphs", *KINDS), rows)]
    return parts


def _surplus(coverage: Coverage) -> list[str]:
    rows = list(surplus(coverage))
    return ["## What is found where none was counted", table(("architecture", "what", "module", "sites"), rows)] if rows else []


def _dynamo(coverage: Coverage) -> list[str]:
    """Models that `torch.compile` changes by itself."""
    rows = [(r.name, f"{r.error_of_dynamo:.2g}") for r in coverage.records.values() if r.error_of_dynamo]
    if not rows:
        return []
    words = (
        'Compiled by Dynamo alone (`torch.compile(model, backend="eager")`), these give other logits than uncompiled; hfgraph gives those that Dynamo gives.'
    )
    return ["## Models that Dynamo changes", words, table(("architecture", "largest difference of a logit"), rows)]
