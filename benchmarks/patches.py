"""Patch embeddings: the convolution as models write it, eagerly and compiled by Inductor, and the op's matmul, compiled.

    python benchmarks/patches.py [--shapes images-16 film-rows] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first, then candidates take turns, as in `norms.py`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from cpu import as_json, flags, numbers, place, prepared
from norms import DTYPES, Clock, Run, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["patch_embedding"]
# Images (or films) and weight: towers of usual sizes, and films that a processor has cut into rows of patches.
SHAPES = {
    "images-16": ((1, 3, 224, 224), (768, 3, 16, 16)), "images-14": ((2, 3, 378, 378), (1152, 3, 14, 14)),
    "film": ((1, 3, 16, 224, 224), (768, 3, 2, 16, 16)), "film-rows": ((1024, 3, 2, 14, 14), (1280, 3, 2, 14, 14)),
}  # fmt: skip
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


def candidates(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Run]:
    """What can run, by name."""
    torch._dynamo.reset()
    convolution = F.conv3d if x.ndim == 5 else F.conv2d
    stride = tuple(weight.shape[2:])
    compiled = torch.compile(lambda x: convolution(x, weight, bias, stride=stride), dynamic=False)
    matmul = torch.compile(OP.reference, dynamic=False)
    return {
        "convolution": lambda: convolution(x, weight, bias, stride=stride),
        BASELINE: lambda: compiled(x),
        "matmul, compiled": lambda: matmul(x, weight, bias),
    }


def table(shape: str, dtype: str, rounds: int, clock: Clock) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a wrong result."""
    generator = torch.Generator().manual_seed(0)
    image, kernel = SHAPES[shape]
    given = [torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in (image, kernel, kernel[:1])]
    with torch.no_grad():
        exact = OP.reference(*(t.double() for t in given))
        runs = candidates(*given)
        errors = {name: (run().double() - exact).abs().max().item() for name, run in runs.items()}
        for name, error in errors.items():
            if not error <= 1.25 * errors["convolution"] + 1e-6 * exact.abs().max().item():
                print(
                    f"{name} at {shape}, {dtype}: {error:.3g} from float64, the convolution {errors['convolution']:.3g}. No times are shown.", file=sys.stderr
                )
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
    show(f"patch embeddings on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        chosen.json.write_text(as_json(where, "patch_embedding", map(asdict, found)))


if __name__ == "__main__":
    main()
