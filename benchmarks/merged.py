"""Linears of one input, apart and merged, both compiled through hfgraph by Inductor.

    python benchmarks/merged.py [--rows 1 8 64 512] [--dtypes bf16 fp32] [--shapes qkv-2048 ...] [--busy] [--json FILE]

A model of a few layers, each with weights of its own, so that these come from memory as they do in a model. What reads the
projections is pointwise. Correctness comes first: results further from float64 than eager's, on average, stop the run with status 1. Then the two
take turns, round by round; ratios are taken within a round, so that a machine that changes speed changes both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from norms import DTYPES, Clock, machine, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

# Width of the input, and of the linears that read it.
SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "qkv-2048": (2048, (2048, 512, 512)),
    "gate-up-2048": (2048, (5632, 5632)),
    "qkv-576": (576, (576, 192, 192)),
    "gate-up-576": (576, (1536, 1536)),
}
LAYERS = 4


@dataclass(frozen=True)
class Row:
    """Medians over rounds, for one layer; `ratio` is the time apart over the time merged: above 1 merging is faster.

    The quarters are the quartiles of the rounds' ratios.
    """

    shape: str
    rows: int
    dtype: str
    apart: float
    merged: float
    ratio: float
    ratio_quarter: float
    ratio_three_quarters: float


class Layer(nn.Module):
    """Projections of one input, and something pointwise that reads them all."""

    def __init__(self, width: int, outs: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, n, bias=False) for n in outs)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (linear(x) for linear in self.linears)
        if len(others) == 1:
            return x + (F.silu(first) * others[0])[..., : x.shape[-1]]
        k, v = others
        return x + first * (k * v).mean(-1, keepdim=True)


def compiled(model: nn.Module, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="hfgraph", dynamic=False, options={**options, "strict": True})


def wrong(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """What is wrong with a result, in words."""
    exact = copy.deepcopy(model).double()(x.double())
    error, usual = ((r.double() - exact).square().mean().sqrt().item() for r in (run(x), model(x)))
    return None if error <= 1.25 * usual + 1e-6 * exact.square().mean().sqrt().item() else f"{error:.3g} from float64, eager {usual:.3g}"


def row(shape: str, rows: int, dtype: str, device: str, rounds: int, clock: Clock) -> Row:
    """Check, then time. Raises SystemExit(1) on a wrong result."""
    torch.manual_seed(0)
    width, outs = SHAPES[shape]
    model = nn.Sequential(*(Layer(width, outs) for _ in range(LAYERS))).to(device, DTYPES[dtype])
    x = torch.randn(1, rows, width, device=device, dtype=DTYPES[dtype])
    with torch.no_grad():
        runs = {name: compiled(copy.deepcopy(model), how) for name, how in (("apart", {"disable": ["merged_linear"]}), ("merged", {"merge_always": True}))}
        for name, run in runs.items():
            if (problem := wrong(model, run, x)) is not None:
                print(f"{shape} {name} at {rows} rows in {dtype}: {problem}. No times are shown for wrong results.", file=sys.stderr)
                raise SystemExit(1)
        samples = measure({name: lambda run=run: run(x) for name, run in runs.items()}, device, rounds, clock)
    ratios = [a / m for a, m in zip(samples["apart"], samples["merged"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    apart, merged = (statistics.median(samples[name]) / LAYERS * 1e6 for name in ("apart", "merged"))
    return Row(shape, rows, dtype, apart, merged, middle, low, high)


def show(title: str, found: list[Row], console: Console) -> None:
    shown = Table("shape", "rows", "dtype", "apart µs", "merged µs", "x apart", "(quartiles)", title=title)
    for r in found:
        numbers = (f"{r.apart:.1f}", f"{r.merged:.1f}", f"{r.ratio:.2f}", f"{r.ratio_quarter:.2f} - {r.ratio_three_quarters:.2f}")
        shown.add_row(r.shape, str(r.rows), r.dtype, *numbers)
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--busy", action="store_true", help="one thread and its CPU time instead of the wall clock: for a CPU shared with others")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.busy and device != "cpu":
        parser.error("--busy measures a CPU; this machine has a GPU")
    if chosen.busy:
        torch.set_num_threads(1)
    clock = time.process_time if chosen.busy else time.perf_counter
    found = []
    for dtype, shape, rows in product(chosen.dtypes, chosen.shapes, chosen.rows):
        found.append(row(shape, rows, dtype, device, chosen.rounds, clock))
        print(found[-1], file=sys.stderr)
    where = {**machine(device), "clock": "CPU time" if chosen.busy else "wall", "layers": LAYERS}
    show(f"linears of one input on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": where, "rows": [asdict(r) for r in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
