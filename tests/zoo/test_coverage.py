"""Every architecture of the zoo: the rewritten graph equals eager, what eager computes is found, module by module, and the table in the docs says so.

`HFGRAPH_SEED` picks weights and inputs. Where a change of the table is meant, `hfgraph zoo NAME ... --out docs/coverage.json` writes it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_cases import PATIENT, SEED

import hfgraph
from hfgraph import zoo
from hfgraph.zoo.record import TOLERANCE, Record, examine, match
from hfgraph.zoo.table import Coverage

FILE = Path(__file__).parents[2] / "docs" / "coverage.json"
TABLE = Coverage.load(FILE)
pytestmark = PATIENT


@pytest.mark.parametrize("name", zoo.names())
def test_coverage(name: str) -> None:
    """Logits equal eager's, and the sites are those of the table, module by module."""
    check(examine(name, seed=SEED))


def check(record: Record) -> None:
    """Compare with the table's record.

    Raises:
        AssertionError: naming the architecture, the modules, what was expected and what was found.
    """
    name, known = record.name, TABLE.records[record.name]
    assert not record.failed, f"{name}: {record.failed}"
    assert record.error <= TOLERANCE, f"{name}: logits differ from eager's by {record.error:.2e}"
    new = [m for m in record.missed if m not in known.missed]
    assert not new, f"{name} computes, and hfgraph does not find: {[f'{m.count} {m.kind} in {m.module} ({m.reason})' for m in new]}"
    seen, told = told_of(record), told_of(known)
    wrong = {k: (told[k], seen[k]) for k in told if told[k] != seen[k]}
    assert not wrong, f"{name}: (docs/coverage.json, found): {wrong}. If the change is meant: hfgraph zoo {name} --out docs/coverage.json"


def told_of(record: Record) -> dict[str, Any]:
    """What does not depend on seed and machine. Where a model breaks depends on values."""
    told = {"model": record.model, "expected": record.expected, "counts": record.counts, "missed": record.missed}
    return {**told, "graphs": record.graphs} if record.graphs == 1 else told


def test_the_table_lists_every_architecture_and_no_other() -> None:
    assert sorted(TABLE.records) == sorted(zoo.names())


def test_the_shares_that_are_promised() -> None:
    """Of what models that trace in one graph compute."""
    for family in ("", *zoo.FAMILIES):
        for kind in ("norm", "rope", "attention", "glu"):
            share = TABLE.share(kind, family)
            assert share.found >= (0.97 if family == "causal" else 0.95) * share.expected, f"{kind} in {family or 'all'}: {share}"
    assert (moe := TABLE.share("moe")).found >= 0.9 * moe.expected > 0, f"moe: {moe}"
    assert all(m.reason for r in TABLE.records.values() for m in r.missed)


def test_a_changed_count_is_noticed() -> None:
    record = Record.from_dict(TABLE.records["llama"].to_dict())
    record.counts = record.counts | {"rms_norm": 4}
    with pytest.raises(AssertionError, match=r"llama: .*'rms_norm': 5.*'rms_norm': 4.*hfgraph zoo llama --out"):
        check(record)


def test_a_site_in_another_module_is_noticed() -> None:
    """Equal totals do not hide that one module's norm was missed and another counted twice."""
    for whole in (True, False):
        assert match(Counter({"a.norm": 1, "b.norm": 1}), Counter({("a.norm",): 2}), whole=whole) == (Counter({"b.norm": 1}), Counter({"a.norm": 1}))
    assert match(Counter({"x.a.norm": 1, "x.b.norm": 2}), Counter({("norm",): 2, ("a.norm",): 1}), whole=False) == (Counter(), Counter())


def test_a_rule_that_is_off_is_noticed_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfgraph.zoo import record

    options = record.Options(inductor=False, strict=True, merge_always=True, disable=frozenset({"attention"}))
    monkeypatch.setattr(record, "Options", lambda **_: options)
    with pytest.raises(AssertionError, match=r"llama computes, and hfgraph does not find: .*1 attention in model\.layers\.0\.self_attn \(nothing"):
        check(examine("llama", seed=SEED))


def test_a_wrong_rewrite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a falsified rule the logits are not eager's: the comparison above can fail."""
    from hfgraph import explaining, pipeline

    monkeypatch.setattr(explaining, "Context", lambda options: pipeline.Context(options, sabotage="rms_norm_weight"))
    with pytest.raises(AssertionError, match="llama: logits differ from eager's"):
        check(examine("llama", seed=SEED))


@pytest.mark.parametrize("name", ["ctrl", "reformer"])
@torch.no_grad()
def test_graph_breaks_are_reported(name: str) -> None:
    """`explain` finds several graphs, and says why."""
    report = hfgraph.explain(zoo.build(name, SEED), **zoo.inputs(name, 2, 13, SEED))
    assert report.graph_breaks and all(report.graph_breaks)
    assert len(report.graphs) > 1 and TABLE.records[name].graphs > 1 and TABLE.records[name].breaks
