"""Where compile time goes: Dynamo, hfgraph's retrace, its pipeline, Inductor. Fresh process and caches for each sample.

python benchmarks/compile_time.py --layers 4 24 --repeats 3 --json benchmarks/results/compile-time-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

PARTS = ("dynamo", "retrace", "pipeline", "inductor")


def sample(layers: int, dtype: str) -> dict[str, float]:
    """Compile once in this process; wall-clock seconds of each part."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import hfgraph

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=256, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    ids = torch.randint(0, 8000, (1, 64))
    torch.compile(lambda v: v.sin() + 1)(torch.randn(8))  # the toolchain is probed before the clock starts
    torch._dynamo.reset()
    start = time.perf_counter()
    with torch.no_grad():
        torch.compile(model, backend="hfgraph")(ids, use_cache=False)
    total = time.perf_counter() - start
    graph = hfgraph.last_report().graphs[0]
    parts = {"retrace": graph.capture_seconds, "pipeline": graph.rewrite_seconds, "inductor": graph.compile_seconds}
    return {"dynamo": total - sum(parts.values()), **parts}


def in_fresh_process(layers: int, dtype: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--sample", str(layers), "--dtype", dtype]
        out = subprocess.run(command, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}, capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def measure(layers: list[int], dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Samples of all depths in turn, so that a slow minute of the machine hits them alike."""
    samples: dict[int, list[dict[str, float]]] = {n: [] for n in layers}
    for _ in track(range(repeats), description="rounds"):
        for n in layers:
            samples[n].append(in_fresh_process(n, dtype))
    rows = []
    for n in layers:
        seconds = {p: median(s[p] for s in samples[n]) for p in PARTS}
        share = {p: median(s[p] / s["inductor"] for s in samples[n]) for p in ("retrace", "pipeline")}
        rows.append({"layers": n, "dtype": dtype, "seconds": seconds, "share_of_inductor": share, "samples": samples[n]})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="compile time, wall seconds (medians)")
    for column in ("layers", *PARTS, "retrace / Inductor", "pipeline / Inductor"):
        shown.add_column(column, justify="right")
    for r in rows:
        share = r["share_of_inductor"]
        shown.add_row(str(r["layers"]), *(f"{r['seconds'][p]:.2f}" for p in PARTS), f"{share['retrace']:.1%}", f"{share['pipeline']:.1%}")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--sample", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sample:
        print(json.dumps(sample(args.sample, args.dtype)))
        return 0
    rows = measure(args.layers, args.dtype, args.repeats)
    Console().print(table(rows))
    if args.json:
        import torch

        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        machine |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
