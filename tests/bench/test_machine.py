"""What a result says about where it was found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import hfgraph
from hfgraph.bench import machine


def test_the_machine() -> None:
    found = machine.machine("cpu", 3)
    assert found["threads"] == 3 and found["cores"] >= 1 and found["memory_gb"] > 0.1
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]
    assert "gpu" not in found


def test_versions() -> None:
    found = machine.installed()
    assert found["torch"] == torch.__version__ and found["hfgraph"] == hfgraph.__version__ and found["python"].startswith("3.")


def test_the_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the clone that hfgraph lies in; whether only other folders have changed does not matter."""

    def git(*arguments: str) -> str:
        made = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(made, capture_output=True, text=True, check=True).stdout.strip()

    sources = tmp_path / "src" / "hfgraph"
    (sources / "bench").mkdir(parents=True)
    (sources / "a.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(sources / "bench" / "machine.py"))
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    (tmp_path / "notes").write_text("")
    assert machine.commit() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (sources / "a.py").write_text("x = 1")
    assert machine.commit()["changed"] is True


def test_outside_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_git", lambda *_: None)
    assert machine.commit() == {"commit": None, "changed": None}


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit()["commit"] is None
