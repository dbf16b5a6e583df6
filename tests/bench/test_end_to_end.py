"""Real processes: the gate, green and red, through the command line; and how processes end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hfgraph import cli
from hfgraph.bench import drive
from hfgraph.bench.plan import Plan
from hfgraph.bench.process import crew
from hfgraph.errors import WorkerDied, WorkerFailed

FLAGS = ["--tasks", "prefill", "--systems", "hfgraph", "--rounds", "1", "--device", "cpu", "--threads", "1", "--json"]


def test_green(llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(drive, "Patience", lambda _: lambda: None)  # other tests run beside this one
    assert cli.main(["bench", str(llama), *FLAGS]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found["gate"]["reference"] == "float64" and found["tasks"]["prefill"]["prompts"] == [32]
    assert [(c["system"], c["ok"]) for c in found["gate"]["checks"]] == [("eager", True), ("hfgraph", True)]
    assert [f["system"] for f in found["figures"]] == ["eager", "hfgraph"]
    for f in found["figures"]:
        assert f["seconds"] > 0 and f["rate"] > 0 and f["share"] > 0 and f["low"] <= f["ratio"] <= f["high"]
    for s in found["systems"].values():
        assert s["first_token_seconds"] > 0 and s["load_seconds"] > 0 and s["peak_bytes"] > 50e6
    assert found["systems"]["hfgraph"]["first_token_seconds"] > found["systems"]["eager"]["first_token_seconds"]
    assert found["limits"][0]["bandwidth"] > 1e8 and found["limits"][0]["gemm"] > 1e8


@pytest.mark.parametrize(("dtype", "system"), [("bfloat16", "hfgraph"), ("float32", "hfgraph")])
def test_red_on_a_falsified_rule(llama: Path, dtype: str, system: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(llama), *FLAGS, "--systems", system, "--sabotage", "rms_norm", "--dtype", dtype]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["gate"]["wrong"] == [system]
    wrong = next(c for c in found["gate"]["checks"] if not c["ok"])
    assert wrong["error"] > 1.5 * wrong["allowed"]
    assert "figures" not in found


def test_a_worker_that_dies_says_why(llama: Path) -> None:
    with crew(Plan(str(llama), source=str(llama), dtype="float33")) as workers:
        worker = workers.start("eager")
        with pytest.raises(WorkerDied, match=r"died \(load\)(.|\n)*float33"):
            worker.ask("load")
    assert not psutil.pid_exists(worker.pid)


def test_a_worker_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    with crew(Plan("x", source=str(tmp_path))) as workers, pytest.raises(WorkerFailed, match="cannot load the model"):
        workers.start("eager").ask("load")


def test_a_compiler_that_is_switched_off(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else eager would be timed under another name."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with crew(Plan(str(llama), source=str(llama), tasks=("prefill",))) as workers:
        worker = workers.start("hfgraph")
        worker.ask("load")
        with pytest.raises(WorkerFailed, match="without compiling any graph"):
            worker.ask("first")


def test_an_interrupt_ends_all_processes(llama: Path) -> None:
    command = [sys.executable, "-m", "hfgraph.cli", "bench", str(llama), *FLAGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as bench:
        end = time.monotonic() + 120
        workers: list[psutil.Process] = []
        while not workers and time.monotonic() < end and bench.poll() is None:
            time.sleep(0.1)
            workers = [p for p in psutil.Process(bench.pid).children() if "hfgraph.bench.worker" in p.cmdline()]
        assert workers
        bench.send_signal(signal.SIGINT)
        _, err = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert b"Traceback" not in err
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
