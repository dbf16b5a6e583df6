"""Short convolutions: as models write them, with what stands around them, eagerly and compiled by Inductor, and with the op, compiled.

    python benchmarks/short_conv.py [--shapes tokens-512 one-token] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first, then candidates take turns, as in `norms.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from cpu import as_json, flags, numbers, place, prepared
from norms import DTYPES, Clock, Run, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["short_conv"]
# Sequences, tokens, channels: prompts, a batch of short ones, and one token behind what a cache kept.
SHAPES = {"tokens-512": (1, 512, 2048), "tokens-128": (1, 128, 6144), "batch-8": (8, 32, 2048), "tokens-16": (1, 16, 2048), "one-token": (8, 1, 2048)}
TAPS = 4
BASELINE = "convolution, compiled"


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


def layer(convolution: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution between the transposes and the activation that models have around it: (B, T, C)."""
    return F.silu(convolution(x.transpose(1, 2), weight, bias)).transpose(1, 2)


def as_written(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, T): zeros before many tokens, nothing where a cache's stand before one."""
    one = x.shape[2] == TAPS
    return F.conv1d(x, weight, bias, padding=0 if one else TAPS - 1, groups=weight.shape[0])[..., : 1 if one else x.shape[2]]


def as_op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return OP.reference(x, weight, bias, int(x.shape[2] != TAPS))


def candidates(given: list[Tensor]) -> dict[str, Run]:
    """What can run, by name."""
    torch._dynamo.reset()
    convolution = torch.compile(lambda x, w, b: layer(as_written, x, w, b), dynamic=False)
    op = torch.compile(lambda x, w, b: layer(as_op, x, w, b), dynamic=False)
    x, weight, bias = given
    return {
        "convolution": lambda: layer(as_written, x, weight, bias),
        BASELINE: lambda: convolution(x, weight, bias),
        "op, compiled": lambda: op(x, weight, bias),
    }


def table(shape: str, dtype: str, rounds: int, clock: Clock) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a wrong result."""
    generator = torch.Generator().manual_seed(0)
    batch, tokens, channels = SHAPES[shape]
    sizes = ((batch, tokens if tokens > 1 else TAPS, channels), (channels, 1, TAPS), (channels,))
    given = [torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in sizes]
    with torch.no_grad():
        x, weight, bias = (t.double() for t in given)
        exact = layer(as_written, x, weight, bias)
        runs = candidates(given)
        errors = {name: (run().double() - exact).abs().max().item() for name, run in runs.items()}
        for name, error in errors.items():
            if not error <= 1.25 * errors["convolution"] + 1e-6 * exact.abs().max().item():
                print(f"{name} at {shape}, {dtype}: {error:.3g} from float64, the convolution {errors['convolution']:.3g}. No times.", file=sys.stderr)
                raise SystemExit(1)
        samples = measure(runs, "cpu", rounds, clock)
    return [Row(shape, dtype, name, *numbers(samples[name], samples[BASELINE])) for name in runs]


def show(title: str, found: list[Row], console: Console) -> None:
    shown = Table("shape", "dtype", "candidate", "µs", f"x {BASELINE}", "(low - high)", title=title)
    for r in found:
        shown.add_row(r.shape, r.dtype, r.candidate, f"{r.microseconds:.0f}", f"{r.ratio:.2f}", f"{r.ratio_low:.2f} - {r.ratio_high:.2f}")
    console.print(shown)


def main() -> None:
    parser = flags(__doc__, rounds=7)
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    chosen = parser.parse_args()
    clock = prepared(chosen.busy)
    found = [row for s in chosen.shapes for d in chosen.dtypes for row in table(s, d, chosen.rounds, clock)]
    where = place(chosen.busy)
    show(f"short convolutions on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        chosen.json.write_text(as_json(where, "short_conv", map(asdict, found)))


if __name__ == "__main__":
    main()
