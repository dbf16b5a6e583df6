"""The order of things: the reference, one worker per system and its gate, then rounds in which all take turns."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from hfgraph.bench import loading, machine
from hfgraph.bench.cores import Cores, Patience, kept, undisturbed
from hfgraph.bench.gate import Check
from hfgraph.bench.limits import Probe
from hfgraph.bench.plan import Plan
from hfgraph.bench.process import Crew, crew
from hfgraph.bench.results import Result, Sample
from hfgraph.bench.running import Timing, Work
from hfgraph.bench.systems import BASELINE, SYSTEMS
from hfgraph.bench.tasks import TASKS, Task
from hfgraph.errors import DoesNotFit, RuleNotApplied, UnknownRule

Say = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
_PROCESS_BYTES = 0.7e9  # torch, transformers and compiled code
_REFERENCE = "reference"


@dataclass(frozen=True)
class Sizes:
    """What is known of a model before it is loaded."""

    parameters: int
    tasks: Mapping[str, Task]
    reference: str


def bench(plan: Plan, say: Say = lambda *_: None) -> Result:
    """Run it all.

    Raises:
        ModelNotFound, CannotBench, DoesNotFit, UnknownRule, RuleNotApplied, WorkerDied, WorkerFailed.
    """
    start = time.perf_counter()
    plan = dataclasses.replace(plan, threads=plan.threads or torch.get_num_threads())
    torch.set_num_threads(plan.threads)
    sizes = measure_up(plan)
    about = machine.machine(plan.device, plan.threads), machine.installed(), machine.commit()
    result = Result(plan, sizes.tasks, sizes.parameters, sizes.reference, *about, datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    steps = _Steps(say, 1 + len(plan.systems) * (1 + len(plan.tasks)) + (0 if plan.sabotage else plan.rounds * len(plan.tasks) * len(plan.systems)))
    with crew(plan) as workers:
        steps.next(f"{_REFERENCE} in {sizes.reference}")
        reference = workers.start(_REFERENCE)
        reference.ask("load")
        reference.ask("exact", dtype=sizes.reference)
        workers.dismiss(_REFERENCE)
        for system in plan.systems:
            admit(workers, system, result, steps)
            if not result.ok:
                break
        if result.ok and not plan.sabotage:
            take_turns(workers, result, steps)
    result.seconds = time.perf_counter() - start
    return result


class _Steps:
    """Counts for the progress bar."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total, self._done = say, total, 0

    def next(self, text: str) -> None:
        self._say(text, self._done, self._total)
        self._done += 1


def measure_up(plan: Plan) -> Sizes:
    """Sizes of model and tasks; refuses what does not fit into memory, and a rule that does not exist.

    Raises:
        ModelNotFound, CannotBench, DoesNotFit, UnknownRule.
    """
    if plan.sabotage:
        from hfgraph.rewrites import all_rules

        known = [r.name for r in all_rules()]
        if plan.sabotage not in known:
            raise UnknownRule(plan.sabotage, known)
    model = loading.skeleton(plan)
    count = sum(p.numel() for p in model.parameters())
    tasks = {name: TASKS[name].within(loading.positions(model.config)) for name in plan.tasks}
    free = torch.cuda.mem_get_info()[0] if plan.device == "cuda" else psutil.virtual_memory().available
    return Sizes(count, tasks, fitting(plan, count, free))


def fitting(plan: Plan, parameters: int, free: float) -> str:
    """The widest dtype that the reference fits in.

    Raises:
        DoesNotFit: the reference, or all systems together, do not fit at all.
    """
    weights = parameters * getattr(torch, plan.dtype).itemsize
    graphs = sum(1 if TASKS[t].new == 0 else 2 for t in plan.tasks)
    needed = sum(SYSTEMS[s].copies(graphs) * weights + _PROCESS_BYTES for s in plan.systems)
    if needed > free:
        one = weights + _PROCESS_BYTES
        do = f"Each system holds its own weights ({one / 1e9:.1f} GB, with freezing once more per graph): name fewer --systems or --tasks, or a smaller model"
        raise DoesNotFit(f"{plan.model} in {plan.dtype} by {', '.join(plan.systems)}", needed, free, do)
    for dtype, size in (("float64", 8), ("float32", 4)):
        # The weights are there in both dtypes for a moment, at most by one layer; what runs besides them is small.
        if parameters * size * 1.1 + _PROCESS_BYTES <= free:
            return dtype
    raise DoesNotFit(f"the reference of {plan.model} in float32", parameters * 4.4 + _PROCESS_BYTES, free, "Name a smaller model")


def admit(workers: Crew, system: str, result: Result, steps: _Steps) -> None:
    """Start a system and judge it at every task. One that is wrong goes.

    Raises:
        RuleNotApplied: nothing was falsified.
    """
    steps.next(f"{system}: loading and first token")
    worker = workers.start(system)
    result.systems[system] = {**worker.ask("load"), **worker.ask("first")}
    for task in result.plan.tasks:
        steps.next(f"{system}: gate, {task}")
        result.checks.append(Check(**worker.ask("gate", task=task)))
        if system == BASELINE:
            found: dict[str, Any] | None = worker.ask("work", task=task)
            result.work[task] = Work(**found) if found else None
    rule = result.plan.sabotage
    if rule and SYSTEMS[system].ours and rule not in (applied := worker.ask("state")["applied"]):
        raise RuleNotApplied(rule, applied)
    if system in result.wrong:
        workers.dismiss(system)


def take_turns(workers: Crew, result: Result, steps: _Steps) -> None:
    """In each round: what the machine can do, then every task by all systems, each round beginning with another one."""
    plan, names = result.plan, list(workers.members)
    probe = Probe(plan.device, plan.dtype)
    cores = Cores([os.getpid()])  # workers are children
    wait = Patience(cores)
    for number in range(plan.rounds):
        result.limits.append(kept(undisturbed(probe, cores, wait)).value)
        for task in plan.tasks:
            for system in rotated(names, number):
                steps.next(f"round {number + 1} of {plan.rounds}: {task}, {system}")
                worker = workers.members[system]
                attempts = undisturbed(lambda w=worker, t=task: _timing(w.ask("sample", task=t)), cores, wait)
                result.samples.append(Sample(number, task, system, attempts))
    for system in names:
        result.systems[system].update({k: v for k, v in workers.members[system].ask("state").items() if k != "applied"})


def _timing(answer: Mapping[str, Any]) -> Timing:
    return Timing(answer["seconds"], answer["first"])


def rotated(names: list[str], by: int) -> list[str]:
    """The same names, beginning elsewhere."""
    at = by % len(names) if names else 0
    return names[at:] + names[:at]
