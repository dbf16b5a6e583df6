"""`make demo` runs this: the main job on real weights. Its exit status must tell the truth."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hfgraph
from hfgraph.report import Report
from hfgraph.verdict import Verdict

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # beside another worker, two threads wait for each other


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


def test_the_demo_holds(tmp_path: Path) -> None:
    asked = ["--tokens", "12", "--bench", "none", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, DEMO, *asked], capture_output=True, text=True, timeout=600, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("In the beginning of the months of the") == 2
    assert "verify: holds" in done.stdout
    assert "add_rms_norm" in done.stdout
    assert " NO " not in done.stdout
    assert done.stderr == ""
    assert "LlamaForCausalLM" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8") and "report.html" in done.stdout


@pytest.mark.parametrize("status", [0, 1])
def test_a_red_gate_of_the_bench_is_a_failure(demo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(demo.subprocess, "run", lambda command, check: asked.append(command) or argparse.Namespace(returncode=status))
    assert demo.bench(argparse.Namespace(bench="smollm2-135m", out=tmp_path)) is (status == 0)
    from hfgraph.cli import parser

    given = parser().parse_args(asked[0][3:])  # what the demo asks for exists
    assert (given.command, given.model) == ("bench", "smollm2-135m")


@pytest.mark.parametrize(
    ("eager", "compiled", "sabotage", "holds"),
    [([1, 2], [1, 2], True, True), ([1, 2], [1, 3], True, False), ([1, 2], [1], True, False), ([1, 2], [1, 2], False, False)],
)
def test_a_difference_is_a_failure(
    demo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eager: list[int], compiled: list[int], sabotage: bool, holds: bool
) -> None:
    written = [demo.Written(torch.tensor(tokens), "In the beginning", 1.0) for tokens in (eager, compiled)]
    monkeypatch.setattr(demo, "write_both", lambda *_: written)
    monkeypatch.setattr(hfgraph, "last_report", Report, raising=False)
    monkeypatch.setattr(hfgraph, "verify", lambda *_, **__: Verdict(sabotage={"rms_norm": sabotage}), raising=False)
    given = argparse.Namespace(model=str(DEMO.parent / "tinylm"), prompt="In the beginning", tokens=2, dtype="float32", bench="none", out=tmp_path)
    assert demo.run(given) is holds


def test_an_unknown_model_is_wrong_usage() -> None:
    done = subprocess.run([sys.executable, DEMO, "./nosuch"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("demo: cannot load the model './nosuch'")
    assert "Traceback" not in done.stderr
