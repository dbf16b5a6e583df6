"""benchmarks/run.py: presets, files named after them, and flags handed on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "run.py"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("run_benchmarks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []
    monkeypatch.setattr(module.cli, "main", lambda arguments: module.calls.append(arguments) or len(module.calls) % 2)
    return module


def test_presets_and_flags(run: Any, tmp_path: Path) -> None:
    assert run.main(["tinylm", "qwen3-0.6b", "--rounds", "3", "--folder", str(tmp_path), "--device", "cpu"]) == 1
    stem = str(tmp_path / "bench-qwen3-0.6b-cpu")
    assert run.calls[1] == ["bench", "qwen3-0.6b", "--device", "cpu", "--out", f"{stem}.json", "--plot", stem, "--rounds", "3"]
    assert [c[1] for c in run.calls] == ["tinylm", "qwen3-0.6b"]


def test_by_default_two_presets(run: Any, tmp_path: Path) -> None:
    run.main(["--folder", str(tmp_path)])
    assert tuple(c[1] for c in run.calls) == run.PRESETS


def test_an_unknown_preset(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["tinylm", "smolm2"])
    assert ended.value.code == 2 and not run.calls
    assert "no such preset: smolm2" in capsys.readouterr().err
