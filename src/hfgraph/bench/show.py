"""The result as tables."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from hfgraph.bench.results import Figure, Result


def parts(result: Result) -> list[RenderableType]:
    """The verdict of the gate first; figures only where it holds."""
    found: list[RenderableType] = [_head(result)]
    found += [f"WRONG: {check.sentence}" for check in result.red]
    if not result.ok:
        return [*found, "hfgraph's results are wrong: no times are shown."]
    if result.plan.sabotage:
        return [*found, f"rule {result.plan.sabotage} was falsified, AND THE GATE DID NOT NOTICE."]
    if not result.samples:
        return found
    notes = [f"{name} warned: {note}" for name, s in result.systems.items() for note in s.get("notes", ())]
    return [*found, speeds(result), starts(result), *notes, *_limits(result)]


def _head(result: Result) -> str:
    where = result.machine.get("gpu") or f"{result.machine['processor']}, {result.plan.threads} threads"
    gate = f"gate: {len(result.checks)} comparisons with {result.reference}, {len(result.red)} wrong"
    return f"{result.plan.model}, {result.parameters / 1e6:.1f} M parameters, {result.plan.dtype}, on {where}\n{gate}"


def speeds(result: Result) -> Table:
    """Each task by each system."""
    table = Table(title=f"medians of {result.plan.rounds} rounds", title_justify="left")
    table.add_column("task")
    table.add_column("system")
    for column in ("tokens/s", "x eager", "low - high", "of the limit", "first token ms", "error"):
        table.add_column(column, justify="right")
    errors = {(c.task, c.system): c.relative for c in result.checks}
    figures, last = result.figures(), ""
    for f in figures:
        if last and f.task != last:
            table.add_section()
        table.add_row(f.task if f.task != last else "", f.system, *_numbers(f), f"{errors[f.task, f.system]:.1e}")
        last = f.task
    return table


def _numbers(f: Figure) -> tuple[str, ...]:
    share = f"{f.share:.0%}" if f.share is not None else ""
    return f"{f.rate:,.0f}" if f.rate >= 1000 else f"{f.rate:.3g}", f"{f.ratio:.2f}", f"{f.low:.2f} - {f.high:.2f}", share, f"{f.first * 1e3:.1f}"


def starts(result: Result) -> Table:
    """What a system needs before it is warm, and its memory."""
    task = next((s["first_token_task"] for s in result.systems.values()), "")
    table = Table(title=f"from nothing compiled to the first token of {task}", title_justify="left")
    table.add_column("system")
    for column in ("first token s", "load s", "peak memory GB"):
        table.add_column(column, justify="right")
    for name, s in result.systems.items():
        if name not in result.wrong:
            peak = s.get("peak_gpu_bytes") or s.get("peak_bytes") or 0
            table.add_row(name, f"{s['first_token_seconds']:.1f}", f"{s['load_seconds']:.1f}", f"{peak / 1e9:.2f}")
    return table


def _limits(result: Result) -> list[str]:
    limits = result.median_limits
    if limits is None:
        return []
    bandwidths = sorted(x.bandwidth / 1e9 for x in result.limits)
    spread = f"{bandwidths[0]:.1f} - {bandwidths[-1]:.1f} by round"
    probed = f"{limits.bandwidth / 1e9:.1f} GB/s read ({spread}), {limits.gemm / 1e9:.0f} GFLOP/s in {result.plan.dtype}"
    disturbed = sum(f.disturbed for f in result.figures())
    noise = f"; {disturbed} of {len(result.samples)} samples were disturbed by other processes" if disturbed else "; no sample was disturbed"
    return [f"limits: {probed}{noise}", "error: of the logits from float64, as a share of their size (root mean square)"]
