"""Figures from samples, and how they are shown: pure functions on made-up results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bench_cases import made_up

from hfgraph.bench import plot, show
from hfgraph.bench.cores import Attempt
from hfgraph.bench.limits import Limits, best
from hfgraph.bench.plan import plot_files
from hfgraph.bench.results import Sample, ratios
from hfgraph.bench.running import Timing
from hfgraph.tables import render


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([1.0, 2.0, 1.0], [0.5, 1.0, 0.4]) == (2.0, 2.0, 2.5)


def test_the_roofline_is_the_slower_of_both() -> None:
    limits = Limits(bandwidth=10.0, gemm=100.0)
    assert limits.seconds(flops=100.0, moved=1.0) == 1.0
    assert limits.seconds(flops=100.0, moved=50.0) == 5.0


def test_a_figure() -> None:
    found = {(f.task, f.system): f for f in made_up().figures()}
    ours = found["decode-1", "hfgraph"]
    assert ours.seconds == 0.5 and ours.rate == 2.0 and ours.first == pytest.approx(0.05)
    assert (ours.ratio, ours.low, ours.high) == (2.0, 2.0, 2.5)
    # 1e9 bytes at 4, 2 and 4 GB/s are 0.25, 0.5 and 0.25 s; taken were 0.5, 0.8 and 0.5 s.
    assert ours.share == pytest.approx(0.5)
    assert ours.disturbed == 0, "the undisturbed attempt counts"
    assert found["prefill", "eager"].ratio == 1.0
    assert found["prefill", "eager"].share == pytest.approx(0.25)
    assert found["prefill", "eager"].rate == 512.0
    assert found["ragged", "hfgraph"].share is None
    assert found["ragged", "hfgraph"].rate == 16 * 32 / 0.5


def test_a_disturbed_round_counts_only_where_there_is_no_other() -> None:
    result = made_up(tasks=("prefill",))
    slow = Sample(0, "prefill", "eager", [Attempt(Timing(50.0, 1.0), 0.9)])
    result.samples = [slow if (s.round, s.system) == (0, "eager") else s for s in result.samples]
    ours, eager = (next(f for f in result.figures() if f.system == name) for name in ("hfgraph", "eager"))
    assert (ours.ratio, ours.high, ours.disturbed, eager.disturbed) == (pytest.approx(2.25), 2.5, 0, 1)
    result.samples = [Sample(s.round, s.task, s.system, [Attempt(s.timing, 0.5)]) for s in result.samples]
    assert next(f for f in result.figures() if f.system == "hfgraph").high == 100.0


def test_json_holds_everything() -> None:
    found = json.loads(json.dumps(made_up().to_dict(), allow_nan=False))
    assert found["ok"] and found["model"] == "smollm2-135m" and found["parameters"] == 134_515_008
    assert found["commit"] == "abc" and found["versions"] == {"torch": "2.13.0"} and found["machine"]["cores"] == 2
    assert found["tasks"]["prefill"]["prompts"] == [512]
    assert len(found["limits"]) == 3 and len(found["figures"]) == 12 and len(found["samples"]) == 36
    assert found["samples"][0]["attempts"] == [{"seconds": 9.0, "first": 9.0, "others": 0.8}, {"seconds": 1.0, "first": 0.1, "others": 0.0}]
    assert found["gate"]["reference"] == "float64" and len(found["gate"]["checks"]) == 12


def test_no_figure_where_ours_is_wrong() -> None:
    result = made_up(wrong=("hfgraph",))
    assert not result.ok and result.figures() == []
    found = result.to_dict()
    assert found["ok"] is False
    assert not {"figures", "samples", "systems", "limits", "work"} & set(found)
    text = render(show.parts(result))
    assert "WRONG: hfgraph, prefill: logits are off by 0.5, 25.0 times of what is allowed (0.02)" in text
    assert "no times are shown" in text and "tokens/s" not in text


def test_a_foreign_system_that_is_wrong_has_no_figures() -> None:
    result = made_up(wrong=("inductor",))
    assert result.ok and result.wrong == ["inductor"]
    assert {f.system for f in result.figures()} == {"eager", "inductor-freezing", "hfgraph"}
    text = render(show.parts(result))
    assert "WRONG: inductor, prefill" in text and "│ inductor " not in text


def test_an_unnoticed_sabotage_is_said_and_has_no_figures() -> None:
    result = made_up(sabotage="rms_norm")
    assert "AND THE GATE DID NOT NOTICE" in render(show.parts(result))
    assert "figures" not in result.to_dict()


def test_warnings_are_shown() -> None:
    result = made_up()
    result.systems["hfgraph"]["notes"] = ["a graph was left alone"]
    assert "hfgraph warned: a graph was left alone" in render(show.parts(result))


def test_the_table() -> None:
    text = render(show.parts(made_up()))
    assert "smollm2-135m, 134.5 M parameters, bfloat16, on A Processor, AVX2, 2 threads" in text
    assert "gate: 12 comparisons with float64, 0 wrong" in text
    line = next(x for x in text.splitlines() if "hfgraph" in x and "2.00" in x)
    assert "2.00 - 2.50" in line and "1.0e-02" in line
    assert "4.0 GB/s read (2.0 - 4.0 by round), 400 GFLOP/s in bfloat16; no sample was disturbed" in text


@pytest.mark.parametrize(("name", "written"), [("a.png", ["a.png"]), ("a.svg", ["a.svg"]), ("a-0.1", ["a-0.1.png", "a-0.1.svg"])])
def test_plots(name: str, written: list[str], tmp_path: Path) -> None:
    plot.save(made_up(), plot_files(tmp_path / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == written
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG") and len(data) > 20_000
        else:
            for text in ("smollm2-135m, random weights, bfloat16", "inductor-freezing", "times as fast as eager", "50%  hfgraph", "4 GB/s", "400 GFLOP/s"):
                assert text in data.decode(), text


def test_a_plot_without_a_roofline(tmp_path: Path) -> None:
    plot.save(made_up(tasks=("ragged",)), [tmp_path / "a.svg"])
    assert "GFLOP/s" not in (tmp_path / "a.svg").read_text()


def test_the_best_of_at_least_three_calls() -> None:
    times = iter([0.0, 0.0, 5.0, 5.0, 7.0, 7.0, 10.0, 10.0])
    assert best(lambda: None, lambda: None, seconds=9.0, clock=lambda: next(times)) == 2.0
