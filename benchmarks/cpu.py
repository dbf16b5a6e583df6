"""What benchmarks of one op on a CPU have in common: flags, the clock, a row's numbers, the file of results; and the whole of an op against a convolution."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from norms import Clock, Run, machine, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

EAGER, BASELINE = "convolution", "convolution, compiled"


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


@dataclass(frozen=True)
class Row:
    """One candidate at one shape: medians over rounds; `ratio` is the time of the compiled convolution over this one's, so above 1 is faster."""

    shape: str
    dtype: str
    candidate: str
    microseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


def rows(shape: str, dtype: str, exact: Tensor, runs: Mapping[str, Run], rounds: int, clock: Clock) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a result that is further from `exact` than the eager convolution's."""
    errors = {name: (run().double() - exact).abs().max().item() for name, run in runs.items()}
    for name, error in errors.items():
        if not error <= 1.25 * errors[EAGER] + 1e-6 * exact.abs().max().item():
            print(f"{name} at {shape}, {dtype}: {error:.3g} from float64, the convolution {errors[EAGER]:.3g}. No times are shown.", file=sys.stderr)
            raise SystemExit(1)
    samples = measure(runs, "cpu", rounds, clock)
    return [Row(shape, dtype, name, *numbers(samples[name], samples[BASELINE])) for name in runs]


def against_a_convolution(
    description: str | None, op: str, title: str, shapes: Iterable[str], candidates: Callable[[str, str], tuple[Tensor, Mapping[str, Run]]]
) -> None:
    """The whole program: `candidates` gives, for a shape and a dtype, the exact result and what can run, two convolutions among them."""
    parser = flags(description, rounds=7)
    parser.add_argument("--shapes", choices=list(shapes), nargs="+", default=list(shapes))
    chosen = parser.parse_args()
    clock = prepared(chosen.busy)
    with torch.no_grad():
        found = [row for s in chosen.shapes for d in chosen.dtypes for row in rows(s, d, *candidates(s, d), chosen.rounds, clock)]
    where = place(chosen.busy)
    shown = Table("shape", "dtype", "candidate", "µs", f"x {BASELINE}", "(low - high)")
    shown.title = f"{title} on {where['device']}, {where['threads']} threads, torch {where['torch']}"
    for r in found:
        shown.add_row(r.shape, r.dtype, r.candidate, f"{r.microseconds:.0f}", f"{r.ratio:.2f}", f"{r.ratio_low:.2f} - {r.ratio_high:.2f}")
    Console().print(shown)
    if chosen.json:
        chosen.json.write_text(as_json(where, op, map(asdict, found)))
