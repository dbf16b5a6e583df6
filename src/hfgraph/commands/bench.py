"""`hfgraph bench MODEL`: how fast a model is by eager, Inductor and hfgraph, once it is right."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgraph.bench.plan import DTYPES, Plan, check_outputs, plot_files
from hfgraph.bench.presets import NAMES
from hfgraph.bench.systems import SYSTEMS
from hfgraph.bench.tasks import TASKS
from hfgraph.commands import DOES_NOT_HOLD, HOLDS, Command
from hfgraph.commands._console import print_parts, steps
from hfgraph.commands._model import positive
from hfgraph.errors import NoSuchDevice

if TYPE_CHECKING:
    from hfgraph.bench.results import Result

_TEXT = f"""\
Time a model by eager, Inductor (on a CPU also with freezing) and hfgraph, in turns. First the gate: logits of
all systems in the timed shapes are compared with float64, and where hfgraph is wrong no figure is shown. Then rounds; each
begins with what the machine can do (bytes read, matrix products), so that shares of the limit stay true when it changes speed.
Ratios are taken within a round. A sample that other processes disturbed is taken again.

presets, with random weights unless said: {", ".join(NAMES)} (tinylm: real ones, from a clone)
tasks: {"; ".join(f"{t.name} ({t.text})" for t in TASKS.values())}
systems: {", ".join(SYSTEMS)}

exit status: 0 hfgraph is right and was timed (or a sabotage went unnoticed), 1 the gate is red, 2 wrong usage"""

_EXAMPLE = "hfgraph bench smollm2-135m --tasks prefill,decode-1 --rounds 3 --out bench.json --plot bench.png"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a preset, a hub name, or a local folder with config.json")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else")
    parser.add_argument("--tasks", type=_names, metavar="A,B", help="what to time (default: all)")
    parser.add_argument("--systems", type=_names, metavar="A,B", help="what to compare; eager always takes part (default: all)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="how often each is timed (default: 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: bfloat16, what models are published in)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--threads", type=positive, default=0, metavar="N", help="of each process (default: what torch chooses)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and tokens (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON, all samples in it, to this file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures: FILE.png, FILE.svg, or both where FILE has neither ending")
    parser.add_argument("--sabotage", metavar="RULE", help="falsify a rule of hfgraph by three per cent: the gate must go red, nothing is timed")


def _run(given: argparse.Namespace) -> int:
    result = run(given)
    if given.out:
        given.out.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    if given.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        from hfgraph.bench import show
        from hfgraph.tables import render

        print_parts(lambda: render(show.parts(result)), lambda: show.parts(result))
    if given.plot and result.samples:
        from hfgraph.bench import plot

        plot.save(result, plot_files(given.plot))
    return HOLDS if result.ok else DOES_NOT_HOLD


def run(given: argparse.Namespace) -> Result:
    """Check what was asked for, then do it, with a progress bar on a terminal's standard error."""
    check_outputs(given.out, given.plot)
    rest: dict[str, Any] = {name: getattr(given, name) for name in ("dtype", "threads", "rounds", "seed", "sabotage", "tasks", "systems")}
    plan = Plan.of(given.model, device=given.device or "cpu", **rest)  # names are checked before torch is loaded
    with steps(given.json) as say:
        say("starting torch and transformers", 0, 0)
        import torch

        from hfgraph.bench.drive import bench

        if given.device == "cuda" and not torch.cuda.is_available():
            raise NoSuchDevice(given.device)
        if given.device is None and torch.cuda.is_available():
            plan = Plan.of(given.model, device="cuda", **rest)
        return bench(plan, say)


COMMAND = Command("bench", "how fast a model is by eager, Inductor and hfgraph, once it is right", _TEXT, _EXAMPLE, _arguments, _run)
