"""The order of things, with workers that answer from a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench_cases import FakeWorkers

from hfgraph import cli
from hfgraph.bench import drive
from hfgraph.bench.limits import Limits
from hfgraph.bench.plan import Plan
from hfgraph.errors import RuleNotApplied


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    workers = FakeWorkers()
    monkeypatch.setattr(drive, "crew", workers.crew)
    monkeypatch.setattr(drive, "Probe", lambda *_: lambda: Limits(1e10, 1e12))
    monkeypatch.setattr(drive, "undisturbed", lambda take, cores, wait: [drive_attempt(take())])
    return workers


def drive_attempt(value: Any) -> Any:
    from hfgraph.bench.cores import Attempt

    return Attempt(value, 0.0)


def plan(llama: Path, **given: Any) -> Plan:
    return Plan.of(str(llama), device="cpu", **{"tasks": ["prefill", "decode-1"], "rounds": 2, **given})


def test_the_gate_comes_first_and_all_take_turns(llama: Path, fakes: FakeWorkers) -> None:
    steps: list[tuple[str, int, int]] = []
    result = drive.bench(plan(llama, systems=["inductor", "hfgraph"]), lambda *step: steps.append(step))
    requests = [r for _, r, _ in fakes.asked]
    assert fakes.asked[:2] == [("reference", "load", ""), ("reference", "exact", "")]
    assert max(i for i, r in enumerate(requests) if r == "gate") < requests.index("sample")
    order = [(s, t) for s, r, t in fakes.asked if r == "sample"]
    first = [(s, t) for t in ("prefill", "decode-1") for s in ("eager", "inductor", "hfgraph")]
    second = [(s, t) for t in ("prefill", "decode-1") for s in ("inductor", "hfgraph", "eager")]
    assert order == first + second
    assert [done for _, done, _ in steps] == list(range(len(steps))) and {total for *_, total in steps} == {len(steps)}
    assert len(result.limits) == 2 and len(result.samples) == 12
    assert result.systems["hfgraph"]["peak_bytes"] == 10**9
    assert "reference" not in fakes.members


def test_ours_wrong_stops_before_any_time_is_taken(llama: Path, fakes: FakeWorkers) -> None:
    fakes.wrong = ("hfgraph",)
    result = drive.bench(plan(llama))
    assert not result.ok and not result.samples
    assert "sample" not in {r for _, r, _ in fakes.asked}


def test_another_one_wrong_leaves(llama: Path, fakes: FakeWorkers) -> None:
    fakes.wrong = ("inductor",)
    result = drive.bench(plan(llama))
    assert result.ok and result.wrong == ["inductor"]
    assert {s for s, r, _ in fakes.asked if r == "sample"} == {"eager", "inductor-freezing", "hfgraph"}
    assert {f.system for f in result.figures()} == {"eager", "inductor-freezing", "hfgraph"}


def test_a_sabotage_takes_no_times(llama: Path, fakes: FakeWorkers) -> None:
    result = drive.bench(plan(llama, sabotage="rms_norm"))
    assert not result.samples and "sample" not in {r for _, r, _ in fakes.asked}


def test_a_sabotage_that_had_nothing_to_falsify(llama: Path, fakes: FakeWorkers) -> None:
    fakes.applied = ("add_rms_norm",)
    with pytest.raises(RuleNotApplied, match="Rules applied: add_rms_norm"):
        drive.bench(plan(llama, sabotage="rms_norm"))


@pytest.mark.parametrize(("wrong", "status"), [((), 0), (("inductor",), 0), (("hfgraph",), 1)])
def test_exit_status_and_files(
    llama: Path, fakes: FakeWorkers, wrong: tuple[str, ...], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.wrong = wrong
    out, drawing = tmp_path / "a.json", tmp_path / "a.svg"
    assert cli.main(["bench", str(llama), "--rounds", "1", "--device", "cpu", "--json", "--out", str(out), "--plot", str(drawing)]) == status
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found == json.loads(out.read_text())
    assert found["ok"] == (status == 0)
    assert drawing.exists() == ("figures" in found) == (status == 0)
    assert found["versions"]["torch"] and found["machine"]["processor"] and found["plan"]["model"] == str(llama)


@pytest.mark.parametrize(("names", "by", "expected"), [(list("abc"), 0, "abc"), (list("abc"), 1, "bca"), (list("abc"), 5, "cab"), ([], 1, "")])
def test_each_round_begins_with_another_one(names: list[str], by: int, expected: str) -> None:
    assert drive.rotated(names, by) == list(expected)
