"""What benchmarks of one op on a CPU have in common: flags, the clock, a row's numbers, the file of results."""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from norms import Clock, machine


def flags(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the flags that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", choices=("bf16", "fp32"), nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--busy", action="store_true", help="one thread and its CPU time instead of the wall clock: for a CPU shared with others")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    return parser


def prepared(busy: bool) -> Clock:
    """The clock that was asked for; on a busy machine one thread runs."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    if busy:
        torch.set_num_threads(1)
    return time.process_time if busy else time.perf_counter


def place(busy: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    return {**machine("cpu"), "clock": "CPU time" if busy else "wall"}


def numbers(own: list[float], baseline: list[float]) -> tuple[float, float, float, float]:
    """Microseconds, then the ratio of a baseline's time to this one's within a round: the median, the lowest, the highest."""
    ratios = sorted(b / o for b, o in zip(baseline, own, strict=True))
    return round(statistics.median(own) * 1e6, 2), *(round(r, 3) for r in (statistics.median(ratios), ratios[0], ratios[-1]))  # type: ignore[return-value]


def as_json(where: Mapping[str, Any], op: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Results as a file has them, a line for each row."""
    lines = ",\n  ".join(json.dumps(r) for r in rows)
    return f'{{"machine": {json.dumps(where)},\n "op": "{op}",\n "rows": [\n  {lines}\n ]}}\n'
