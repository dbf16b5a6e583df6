"""C++ kernels as compiled for processors with fewer instructions than this one: the vector code that the compiler splits, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = """
import sys, pytest
from torch._inductor import config
config.cpp.march = sys.argv[1]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "test_numbers and (decode or odd) or not_read", sys.argv[2]]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_numbers(march: str) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST_", "COV_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, march, str(HERE / "test_attention_cpp.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
