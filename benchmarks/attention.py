"""Attention on the CPU: a few queries over a padded cache, and a causal prompt, by each way that PyTorch has and by the C++ kernel.

    python benchmarks/attention.py [--part decode prefill] [--queries 1 4] [--keys 128 512 2048] [--batches 1 8] [--busy] [--json FILE]

Decoding attends over a static cache: all keys are there, a mask says which of them count ("all", or the first quarter). Correctness
comes first, then candidates take turns, as in `norms.py`. `repeated` is what models write: K and V repeated for every head.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cpu import as_json, flags, numbers, place, prepared
from norms import DTYPES, Clock, Run, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hfgraph.kernels import all_ops

HEADS = {"12/12x64": (12, 12, 64), "9/3x64": (9, 3, 64), "16/4x64": (16, 4, 64), "32/8x128": (32, 8, 128)}
# Keys at which flex_attention takes part in decoding: each shape takes it some ten seconds to compile.
FLEX_KEYS = 512


@dataclass(frozen=True)
class Shape:
    """What is attended to: `valid` of the keys count."""

    part: str
    batch: int
    heads: str
    queries: int
    keys: int
    valid: str
    dtype: str


@dataclass(frozen=True)
class Row:
    """One candidate at one shape: medians over rounds; `ratio` is the time of `repeated` over this one's, so above 1 is faster."""

    shape: Shape
    candidate: str
    microseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


def inputs(shape: Shape) -> dict[str, Any]:
    """q as a projection leaves it, k and v as a cache holds them, and the mask (B, 1, Q, K)."""
    heads, groups, width = HEADS[shape.heads]
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(DTYPES[shape.dtype])

    q = normal(shape.batch, shape.queries, heads, width).transpose(1, 2)
    k, v = (normal(shape.batch, groups, shape.keys, width) for _ in range(2))
    last = shape.keys if shape.valid == "all" else shape.keys // 4
    allowed = torch.arange(shape.keys) <= torch.arange(shape.queries)[:, None] + (last - shape.queries)
    mask = allowed.expand(shape.batch, 1, -1, -1).contiguous()
    return {"q": q, "k": k, "v": v, "mask": mask, "scale": width**-0.5}


def repeated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool = False) -> Tensor:
    """As models call it."""
    batch, groups, keys, width = k.shape
    k, v = (t[:, :, None].expand(batch, groups, q.shape[1] // groups, keys, width).reshape(batch, -1, keys, width) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=is_causal)


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool = False) -> Tensor:
    """The operator repeats K and V itself."""
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=is_causal, enable_gqa=True)


def folded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The heads of a group as queries of one head."""
    batch, heads, queries, width = q.shape
    share = heads // k.shape[1]
    many = q.reshape(batch, k.shape[1], share * queries, width)
    mask = mask if queries == 1 else mask.repeat(1, 1, share, 1)
    return F.scaled_dot_product_attention(many, k, v, mask, scale=scale).reshape(batch, heads, queries, -1)


def flexible(shape: Shape, mask: Tensor) -> Any:
    """flex_attention, compiled; its mask of blocks is made beforehand, as models make it once for all layers."""
    torch._dynamo.reset()
    if shape.part == "prefill":
        blocks = create_block_mask(lambda b, h, i, j: i >= j, None, None, shape.queries, shape.keys, device="cpu")
    else:
        blocks = create_block_mask(lambda b, h, i, j: mask[b, 0, i, j], shape.batch, None, shape.queries, shape.keys, device="cpu")
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v, scale: compiled(q, k, v, block_mask=blocks, scale=scale, enable_gqa=True)


def candidates(shape: Shape, given: Mapping[str, Any], flex: bool) -> dict[str, Run]:
    """What can run here, by name; the first is the baseline."""
    mask, rest = given["mask"], {n: a for n, a in given.items() if n != "mask"}
    if shape.part == "decode":
        found: dict[str, Run] = {f.__name__: lambda f=f: f(**given) for f in (repeated, grouped, folded)}
        kernel = all_ops()["attention"].implementations["cpp"].load()
        target = all_ops()["attention"].implementations["cpp"].target
        kernel(**given)  # compiles
        found["cpp"] = lambda: target(**given)
    else:
        bias = torch.where(mask, 0.0, float("-inf")).to(given["q"].dtype)
        ways = {"bool": {"mask": mask}, "float": {"mask": bias}, "is_causal": {"mask": None, "is_causal": True}}
        found = {f"{f.__name__}, {n}": lambda f=f, w=w: f(**rest, **w) for f in (repeated, grouped) for n, w in ways.items()}
    if flex and (shape.part == "prefill" or (shape.keys == FLEX_KEYS and shape.queries == 1 and shape.batch == 1)):
        attends = flexible(shape, mask)
        found["flex"] = lambda: attends(**rest)
    return found


def wrong(run: Run, given: Mapping[str, Any]) -> str | None:
    """What is wrong with a candidate's result, in words: twice as far from float64 as what models write, or more."""
    widened: dict[str, Any] = {n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()}
    exact = repeated(**widened)
    error, usual = ((t.double() - exact).abs().max().item() for t in (run(), repeated(**given)))
    return None if error <= 2 * usual + 1e-6 else f"{error:.3g} from float64, `repeated` {usual:.3g}"


def table(shape: Shape, rounds: int, clock: Clock, flex: bool) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a wrong result."""
    given = inputs(shape)
    with torch.no_grad():
        runs = candidates(shape, given, flex)
        for name, run in runs.items():
            if (problem := wrong(run, given)) is not None:
                print(f"{name} at {shape}: {problem}. No times are shown for wrong results.", file=sys.stderr)
                raise SystemExit(1)
        samples = measure(runs, "cpu", rounds, clock)
    baseline = samples[next(iter(runs))]
    return [_row(shape, name, samples[name], baseline) for name in runs]


def _row(shape: Shape, name: str, own: list[float], baseline: list[float]) -> Row:
    return Row(shape, name, *numbers(own, baseline))


def show(title: str, found: list[Row], console: Console) -> None:
    shown = Table("part", "batch", "heads", "queries", "keys", "valid", "dtype", "candidate", "µs", "x repeated", "(low - high)", title=title)
    for r in found:
        shares = (f"{r.microseconds:.1f}", f"{r.ratio:.2f}", f"{r.ratio_low:.2f} - {r.ratio_high:.2f}")
        shown.add_row(*(str(v) for v in asdict(r.shape).values()), r.candidate, *shares)
    console.print(shown)


def main() -> None:
    parser = flags(__doc__, rounds=11)
    parser.add_argument("--part", choices=("decode", "prefill"), nargs="+", default=["decode", "prefill"])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--keys", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--valid", choices=("all", "quarter"), nargs="+", default=["all", "quarter"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--heads", choices=HEADS, nargs="+", default=list(HEADS))
    parser.add_argument("--no-flex", action="store_true", help="leave flex_attention out")
    chosen = parser.parse_args()
    outer = [(h, d) for h in chosen.heads for d in chosen.dtypes]
    decode = [(b, q, k, v) for b in chosen.batches for q in chosen.queries for k in chosen.keys for v in chosen.valid]
    shapes = [Shape("decode", b, h, q, k, v, d) for h, d in outer for b, q, k, v in decode if "decode" in chosen.part]
    shapes += [Shape("prefill", 1, h, 512, 512, "all", d) for h, d in outer if "prefill" in chosen.part]
    clock = prepared(chosen.busy)
    found = [row for shape in shapes for row in table(shape, chosen.rounds, clock, not chosen.no_flex)]
    where = place(chosen.busy)
    show(f"attention on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        rows = ({**asdict(r.shape), **{n: v for n, v in asdict(r).items() if n != "shape"}} for r in found)
        chosen.json.write_text(as_json(where, "attention", rows))


if __name__ == "__main__":
    main()
