"""RMSNorm, three ways: the reference run eagerly, the reference compiled by Inductor, and (on a GPU) the Triton kernel.

    python benchmarks/norms.py [--op add_rms_norm] [--rows 1 8 512] [--widths 896 2048 4096] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first: a candidate that is further from float64 than the eager reference stops the run with status 1. Then
candidates take turns, round by round, and ratios are taken within a round, so that a machine that changes speed changes both.
Inputs are warm, as they are behind the operation that made them; the copy beside each row moves the same bytes equally warm.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hfgraph.graph.op import Op
from hfgraph.kernels import all_ops

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Run = Callable[[], Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One candidate at one shape: medians over rounds; `ratio` is the baseline's time over this one's, so above 1 is faster."""

    candidate: str
    rows: int
    width: int
    dtype: str
    microseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    gb_per_s: float
    copy_gb_per_s: float


def inputs(op: Op, rows: int, width: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of the commonest form: float32 arithmetic, rounded before the weight."""
    made = op.inputs.make(dtype, sizes={"B": 1, "T": rows, "D": width}, device=device)
    return {**made, "compute_dtype": torch.float32, "round_dtype": dtype}


def candidates(op: Op, arguments: Mapping[str, Any], device: str) -> dict[str, Run]:
    """What can run here, by name; the first is the baseline."""
    torch._dynamo.reset()
    compiled = torch.compile(op.reference, dynamic=False)
    found: dict[str, Run] = {"eager": lambda: op.reference(**arguments), "inductor": lambda: compiled(**arguments)}
    if device == "cuda":
        kernel = op.implementations["triton"].load()
        found["triton"] = lambda: kernel(**arguments)
    return found


def wrong(op: Op, run: Run, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with a candidate's result, in words."""
    want, got, exact = (_tuple(r) for r in (op.reference(**arguments), run(), op.reference(**{n: _double(a) for n, a in arguments.items()})))
    for i, (w, g, e) in enumerate(zip(want, got, exact, strict=True)):
        if (g.dtype, g.shape) != (w.dtype, w.shape):
            return f"output {i} is {g.dtype} {tuple(g.shape)}, the reference's {w.dtype} {tuple(w.shape)}"
        error, usual = ((t.double() - e).abs().max().item() for t in (g, w))
        if not error <= 1.25 * usual + 4 * torch.finfo(torch.float32).eps * e.abs().max().item():
            return f"output {i} is {error:.3g} from float64, the reference {usual:.3g}"
    return None


def measure(runs: Mapping[str, Run], device: str, rounds: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds per call, one sample per round; candidates take turns and the order is turned round every time."""
    calls = {name: _calibrate(run, device, clock) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs) if i % 2 else reversed(list(runs)):
            samples[name].append(_seconds(runs[name], calls[name], device, clock) / calls[name])
    return samples


def _calibrate(run: Run, device: str, clock: Clock) -> int:
    """Calls that take at least two milliseconds together."""
    calls = 1
    for _ in range(3):  # compile, warm up
        run()
    while _seconds(run, calls, device, clock) < 2e-3:
        calls *= 2
    return calls


def _seconds(run: Run, calls: int, device: str, clock: Clock) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(calls):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def table(op: Op, rows: int, width: int, dtype: str, device: str, rounds: int, clock: Clock) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a wrong result."""
    arguments = inputs(op, rows, width, DTYPES[dtype], device)
    with torch.no_grad():
        runs = candidates(op, arguments, device)
        for name, run in runs.items():
            if (problem := wrong(op, run, arguments)) is not None:
                print(f"{op.name} by {name} at {rows} x {width} {dtype}: {problem}. No times are shown for wrong results.", file=sys.stderr)
                raise SystemExit(1)
        moved = float(op.cost(*op.bind((), arguments).values()).bytes)
        source = torch.empty(int(moved) // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        samples = measure({**runs, "copy": lambda: target.copy_(source)}, device, rounds, clock)
    copy, baseline = statistics.median(samples["copy"]), samples[next(iter(runs))]
    return [_row(name, (rows, width, dtype), samples[name], baseline, moved, copy) for name in runs]


def _row(name: str, shape: tuple[int, int, str], own: list[float], baseline: list[float], moved: float, copy: float) -> Row:
    ratios = sorted(b / o for b, o in zip(baseline, own, strict=True))
    median = statistics.median(own)
    return Row(name, *shape, median * 1e6, statistics.median(ratios), ratios[0], ratios[-1], moved / median / 1e9, moved / copy / 1e9)


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor() or 'CPU'}, {torch.backends.cpu.get_cpu_capability()}"


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _double(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.double()
    return torch.float64 if isinstance(argument, torch.dtype) else argument


def show(title: str, found: list[Row], console: Console) -> None:
    shown = Table("rows", "width", "dtype", "candidate", "µs", "x eager", "(low - high)", "GB/s", "copy GB/s", title=title)
    for r in found:
        spread = f"{r.ratio_low:.2f} - {r.ratio_high:.2f}"
        numbers = (f"{r.microseconds:.2f}", f"{r.ratio:.2f}", spread, f"{r.gb_per_s:.1f}", f"{r.copy_gb_per_s:.1f}")
        shown.add_row(str(r.rows), str(r.width), r.dtype, r.candidate, *numbers)
    console.print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=("rms_norm", "add_rms_norm"), default="rms_norm")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 896, 2048, 4096])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--busy", action="store_true", help="one thread and its CPU time instead of the wall clock: for a CPU shared with others")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.busy and device != "cpu":
        parser.error("--busy measures a CPU; this machine has a GPU")
    clock = time.process_time if chosen.busy else time.perf_counter
    if chosen.busy:
        torch.set_num_threads(1)
    op = all_ops()[chosen.op]
    found = [row for d in chosen.dtypes for n in chosen.rows for w in chosen.widths for row in table(op, n, w, d, device, chosen.rounds, clock)]
    where = {**machine(device), "clock": "CPU time" if chosen.busy else "wall"}
    show(f"{op.name} on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": where, "op": op.name, "rows": [asdict(r) for r in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
