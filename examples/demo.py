"""The main job: a model with real weights writes the same text in eager and through hfgraph, `verify` proves it, and a
benchmark times a larger geometry. The report and the plot are left in a folder.

    python examples/demo.py                                         # the small model beside this file
    python examples/demo.py Qwen/Qwen2.5-0.5B-Instruct --prompt "The capital of France is"

Exit status: 0 holds, 1 does not hold, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

import hfgraph
from hfgraph import models, tables
from hfgraph.errors import HfgraphError

TINYLM = os.path.relpath(Path(__file__).parent / "tinylm")
ROUNDS = 3
BENCH = "smollm2-135m"  # 135 million parameters; its weights are random, as speed does not depend on them
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass
class Written:
    """What one side wrote, and its best time."""

    tokens: Tensor
    text: str
    ms_per_token: float


def main() -> int:
    given = arguments()
    models.quiet()
    start = time.perf_counter()
    try:
        held = run(given)
    except HfgraphError as e:
        print(f"demo: {e}", file=sys.stderr)
        return 2
    console.print(f"[dim]{time.perf_counter() - start:.0f} s in all[/dim]")
    return 0 if held else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=TINYLM, metavar="MODEL", help="a hub name or a local folder (default: examples/tinylm)")
    parser.add_argument("--prompt", default="In the beginning", help="what the text begins with")
    parser.add_argument("--tokens", type=int, default=48, help="how many tokens to write (default: 48)")
    # In bfloat16 two tokens are often equally likely up to rounding, and any compiler may prefer the other one.
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32", help="of the weights (default: float32)")
    parser.add_argument("--bench", default=BENCH, metavar="PRESET", help=f"what `hfgraph bench` times at the end, or none (default: {BENCH})")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where the page and the plot go (default: out)")
    return parser.parse_args()


def run(given: argparse.Namespace) -> bool:
    with console.status("loading the model"):
        model = models.load(given.model, given.dtype)
        prompt = models.encoded(model, given.prompt)
    console.print(introduction(given, model))

    console.rule("[bold]1  the same text", align="left")
    eager, compiled = write_both(model, prompt, given.tokens)
    equal = torch.equal(eager.tokens, compiled.tokens)
    console.print(comparison(given.prompt, eager, compiled, equal))

    console.rule("[bold]2  what was rewritten", align="left")
    report = hfgraph.last_report()
    console.print(*tables.report_parts(report), sep="\n")
    given.out.mkdir(parents=True, exist_ok=True)
    report.to_html(given.out / "report.html")

    console.rule("[bold]3  the proof", align="left")
    with console.status("comparing eager, rewritten and compiled in float64, then falsifying each rule"):
        verdict = hfgraph.verify(models.load(given.model, given.dtype), sabotage=True, **proof_inputs(given, model))
    console.print(*tables.verdict_parts(verdict), sep="\n")

    right = given.bench == "none" or bench(given)
    console.print(conclusion(equal, verdict))
    console.print(f"the page: {given.out / 'report.html'}" + ("" if given.bench == "none" else f"   the plot: {given.out / 'bench.png'}"))
    return equal and verdict.ok and right


def bench(given: argparse.Namespace) -> bool:
    """`hfgraph bench`, at its quickest: two tasks, without freezing. Returns whether its gate was green."""
    console.rule(f"[bold]4  the speed of {given.bench}", align="left")
    console.print("[dim]a few minutes: each system compiles from an empty cache, and is judged in float64 before it is timed[/dim]")
    asked = ["--tasks", "prefill,decode-1", "--systems", "inductor,hfgraph", "--rounds", "3"]
    left = ["--out", str(given.out / "bench.json"), "--plot", str(given.out / "bench")]
    return subprocess.run([sys.executable, "-m", "hfgraph.cli", "bench", given.bench, *asked, *left], check=False).returncode == 0


def write_both(model: Any, prompt: dict[str, Any], count: int) -> tuple[Written, Written]:
    """The model in eager and compiled in place, by turns; the stance switches."""

    def write() -> tuple[Tensor, float]:
        start = time.perf_counter()
        tokens = model.generate(**prompt | {"use_cache": True}, max_new_tokens=count, do_sample=False)
        return tokens[0], (time.perf_counter() - start) * 1e3 / (tokens.shape[1] - prompt["input_ids"].shape[1])

    model.compile(backend="hfgraph")
    with console.status("compiling: a graph for the prompt, one for the first step, one for steps of any length"):
        tokens, _ = write()
    times: dict[str, list[float]] = {"eager": [], "hfgraph": []}
    reference = tokens
    with console.status("writing, by turns"):
        for _ in range(ROUNDS):
            with torch.compiler.set_stance("force_eager"):
                reference, ms = write()
            times["eager"].append(ms)
            tokens, ms = write()
            times["hfgraph"].append(ms)
    decode = models.tokenizer(model).decode
    return Written(reference, decode(reference), min(times["eager"])), Written(tokens, decode(tokens), min(times["hfgraph"]))


def proof_inputs(given: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Text that the model has not seen, where it comes with some; else the prompt."""
    held_out = Path(given.model) / "held-out.txt"
    text = held_out.read_text(encoding="utf-8")[:2000] if held_out.is_file() else given.prompt
    return models.encoded(model, text, limit=128)


# --- what is shown -----------------------------------------------------------------------------------


def introduction(given: argparse.Namespace, model: Any) -> Panel:
    count = sum(p.numel() for p in model.parameters())
    lines = Text.assemble(
        ('model.compile(backend="hfgraph")\n\n', "bold cyan"),
        f"{type(model).__name__} from {given.model}: {count / 1e6:,.1f} M parameters, {str(model.dtype).removeprefix('torch.')}\n",
        (f"torch {torch.__version__}, {torch.get_num_threads()} threads", "dim"),
    )
    return Panel(lines, title=f"hfgraph {hfgraph.__version__}", title_align="left", border_style="cyan")


def comparison(prompt: str, eager: Written, compiled: Written, equal: bool) -> Columns:
    style = "green" if equal else "red"
    width = (console.width - 2) // 2
    return Columns([passage("eager", prompt, eager, style, width), passage("hfgraph", prompt, compiled, style, width)])


def passage(title: str, prompt: str, written: Written, style: str, width: int) -> Panel:
    rest = written.text.removeprefix(prompt)
    text = Text.assemble((prompt if rest != written.text else "", "bold"), rest)
    speed = f"{written.ms_per_token:.1f} ms per token, best of {ROUNDS}"
    return Panel(text, title=title, title_align="left", subtitle=speed, subtitle_align="right", border_style=style, width=width)


def conclusion(equal: bool, verdict: Any) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for holds, claim in (
        (equal, "eager and hfgraph write the same tokens"),
        (all(o.ok for o in verdict.outputs), "every output agrees with float64 as well as eager's does"),
        (all(s.ok for s in verdict.sites), f"so does every rewritten site ({len(verdict.sites)})"),
        (all(verdict.sabotage.values()), f"every falsified rule was caught ({len(verdict.sabotage)})"),
    ):
        table.add_row("[bold green]yes[/]" if holds else "[bold red]NO[/]", claim)
    return table


if __name__ == "__main__":
    sys.exit(main())
