"""Mixtures of experts on the CPU: each way that transformers has, eagerly and compiled by Inductor, the op's reference, and the C++ kernel.

    python benchmarks/moe.py [--shapes 8x2 64x8] [--tokens 1 4 16 128 512] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first, then candidates take turns, as in `norms.py`. `grouped` is what models run on a CPU: rows sorted by expert,
`grouped_mm`. `batched` gathers each row's own matrices, what `generate` may switch to. Tokens choose their experts at random.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from cpu import as_json, flags, numbers, place, prepared
from norms import DTYPES, Clock, Run, measure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.integrations.moe import _default_apply_gate, batched_mm_experts_forward, grouped_mm_experts_forward

from hfgraph.kernels import all_ops

OP = all_ops()["moe"]
# Experts, how many of them for each token, width, inner width; `t` marks matrices that lie transposed, as in gpt-oss.
SHAPES = {
    "8x2": (8, 2, 1024, 2048), "64x8": (64, 8, 1024, 256), "32x4": (32, 4, 768, 768), "8x2t": (8, 2, 1024, 2048),
}  # fmt: skip
# Rows up to which the batched way takes part: it holds a copy of both matrices for each.
MOST_GATHERED = 64


@dataclass(frozen=True)
class Row:
    """One candidate at one shape: medians over rounds; `ratio` is the time of `grouped, compiled` over this one's, so above 1 is faster."""

    shape: str
    tokens: int
    dtype: str
    candidate: str
    microseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


def inputs(shape: str, tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the op, of a usual size."""
    experts, choices, width, inner = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, by: float = 1.0) -> Tensor:
        made = (torch.randn(sizes, generator=generator) * by).to(dtype)
        return made.transpose(1, 2).contiguous().transpose(1, 2) if shape.endswith("t") and len(sizes) == 3 else made

    router = torch.randn(tokens, experts, generator=generator).softmax(-1)
    weights, ids = router.topk(choices)
    gate_up, down = normal(experts, 2 * inner, width, by=width**-0.5), normal(experts, width, inner, by=inner**-0.5)
    return {"x": normal(tokens, width), "expert_ids": ids, "expert_weights": weights.to(dtype), "gate_up": gate_up, "down": down}


def candidates(shape: str, given: Mapping[str, Any]) -> dict[str, Run]:
    """What can run here, by name; the second is the baseline."""
    torch._dynamo.reset()
    transposed = shape.endswith("t")
    laid = {n: given[n].transpose(1, 2) if transposed else given[n] for n in ("gate_up", "down")}
    module = SimpleNamespace(
        num_experts=len(given["down"]), has_gate=True, has_bias=False, has_post_expert_norm=False, is_transposed=transposed, _is_expert_parallel=False,
        gate_up_proj=laid["gate_up"], down_proj=laid["down"], act_fn=torch.nn.functional.silu,
    )  # fmt: skip
    module._apply_gate = lambda rows: _default_apply_gate(module, rows)  # type: ignore[arg-type]
    routed = (given["x"], given["expert_ids"], given["expert_weights"])

    def calls(function: Callable[..., Tensor], *args: Any) -> dict[str, Run]:
        compiled = torch.compile(function, dynamic=False)
        return {"": lambda: function(*args), ", compiled": lambda: compiled(*args)}

    found: dict[str, Run] = {f"grouped{n}": r for n, r in calls(grouped_mm_experts_forward, module, *routed).items()}
    if given["expert_ids"].numel() <= MOST_GATHERED:
        found |= {f"batched{n}": r for n, r in calls(batched_mm_experts_forward, module, *routed).items()}
    reference = torch.compile(OP.reference, dynamic=False)
    found["reference, compiled"] = lambda: reference(**given)
    OP.implementations["cpp"].load()(**given)  # compiles
    found["cpp"] = lambda: OP.implementations["cpp"].target(**given)
    return found


def wrong(run: Run, given: Mapping[str, Any]) -> str | None:
    """What is wrong with a candidate's result, in words: twice as far from float64 as the op's reference, or more."""
    exact = OP.reference(**{n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()})
    error, usual = ((t.double() - exact).abs().max().item() for t in (run(), OP.reference(**given)))
    return None if error <= 2 * usual + 1e-6 else f"{error:.3g} from float64, the reference {usual:.3g}"


def table(shape: str, tokens: int, dtype: str, rounds: int, clock: Clock) -> list[Row]:
    """Check, then time, every candidate at one shape. Raises SystemExit(1) on a wrong result."""
    given = inputs(shape, tokens, DTYPES[dtype])
    with torch.no_grad():
        runs = candidates(shape, given)
        for name, run in runs.items():
            if (problem := wrong(run, given)) is not None:
                print(f"{name} at {shape}, {tokens} tokens, {dtype}: {problem}. No times are shown for wrong results.", file=sys.stderr)
                raise SystemExit(1)
        samples = measure(runs, "cpu", rounds, clock)
    return [_row((shape, tokens, dtype), name, samples[name], samples["grouped, compiled"]) for name in runs]


def _row(shape: tuple[str, int, str], name: str, own: list[float], baseline: list[float]) -> Row:
    return Row(*shape, name, *numbers(own, baseline))


def show(title: str, found: list[Row], console: Console) -> None:
    shown = Table("experts", "tokens", "dtype", "candidate", "µs", "x grouped, compiled", "(low - high)", title=title)
    for r in found:
        shown.add_row(r.shape, str(r.tokens), r.dtype, r.candidate, f"{r.microseconds:.0f}", f"{r.ratio:.2f}", f"{r.ratio_low:.2f} - {r.ratio_high:.2f}")
    console.print(shown)


def main() -> None:
    parser = flags(__doc__, rounds=7)
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 128, 512])
    chosen = parser.parse_args()
    clock = prepared(chosen.busy)
    found = [row for s in chosen.shapes for d in chosen.dtypes for t in chosen.tokens for row in table(s, t, d, chosen.rounds, clock)]
    where = place(chosen.busy)
    show(f"mixtures of experts on {where['device']}, {where['threads']} threads, torch {where['torch']}", found, Console())
    if chosen.json:
        chosen.json.write_text(as_json(where, "moe", map(asdict, found)))


if __name__ == "__main__":
    main()
