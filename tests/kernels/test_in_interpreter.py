"""Run the tests of Triton's numbers in Triton's interpreter, one process per part, so that a laptop checks every kernel.

TRITON_INTERPRET must be set before triton is imported and turns every kernel of the process into an interpreted one, which can
be neither compiled nor used by Inductor: hence processes of their own, which also lets pytest-xdist run the parts side by side.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
# Parts by words in the tests' names; together they must be everything.
PARTS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "others": "not (fp32 or fp16 or bf16)"}


@pytest.mark.parametrize("part", PARTS)
def test_numbers(part: str) -> None:
    done = _run("-k", PARTS[part])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 10, done.stdout[-2000:]
    assert not re.search(r"\d+ (?:skipped|xfailed|failed|error)", done.stdout), done.stdout[-2000:]


def test_a_failure_would_show(tmp_path: Path) -> None:
    failing = tmp_path / "test_fails.py"
    failing.write_text("import triton\n\ndef test_interpreted():\n    assert not triton.knobs.runtime.interpret\n")
    assert _run(files=[failing]).returncode == 1


def _run(*options: str, files: list[Path] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST_", "COV_"))}
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    chosen = files or sorted(HERE.glob("test_*_numbers.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, *map(str, chosen)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
