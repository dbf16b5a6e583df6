"""The golden file: what is found in each model of the zoo. `HFGRAPH_ACCEPT=1 pytest tests/zoo` writes it anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden.json")
ACCEPT = os.environ.get("HFGRAPH_ACCEPT") == "1"


def read() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def check(name: str, found: dict[str, Any], *, writes: bool = False) -> None:
    """Compare with the golden entry of a model; where changes are accepted, write it if this test is the one that `writes`.

    Args:
        found: all of the entry where the test `writes`, else what is comparable.

    Raises:
        AssertionError: naming the model, what was expected and what was found.
    """
    if ACCEPT:
        if writes:
            _write(name, found)
        return
    expected = read().get(name, {})
    wrong = {k: expected.get(k) for k in found if expected.get(k) != found[k]}
    assert not wrong, (
        f"{name}: expected {wrong}, found { {k: found[k] for k in wrong} }. "
        f"If the change is meant, accept it: HFGRAPH_ACCEPT=1 python -m pytest tests/zoo/test_causal.py -k 'test_float32 and {name}'"
    )


def _write(name: str, found: dict[str, Any]) -> None:
    """One model's entry; workers of pytest-xdist take turns."""
    import fcntl

    with FILE.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        table = {**json.loads(file.read() or "{}"), name: found}
        lines = [f"{json.dumps(n)}: {json.dumps(table[n], sort_keys=True)}" for n in sorted(table)]
        file.truncate(0)
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
