"""Made-up results, and workers that answer from a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hfgraph.bench.cores import Attempt
from hfgraph.bench.gate import Check
from hfgraph.bench.limits import Limits
from hfgraph.bench.plan import Plan
from hfgraph.bench.results import Result, Sample
from hfgraph.bench.running import Timing, Work
from hfgraph.bench.tasks import TASKS

MACHINE = {"processor": "A Processor, AVX2", "cores": 2, "threads": 2, "memory_gb": 8.0, "system": "Linux 6"}
# Seconds by round; the machine is twice as slow in the second round.
SECONDS = {
    "eager": (1.0, 2.0, 1.0),
    "inductor": (0.5, 1.0, 0.4),
    "inductor-freezing": (0.25, 0.5, 0.2),
    "hfgraph": (0.5, 0.8, 0.5),
}


def made_up(wrong: tuple[str, ...] = (), tasks: tuple[str, ...] = ("prefill", "decode-1", "ragged"), **plan: Any) -> Result:
    """Three rounds of all systems; what is in `wrong` failed the gate at the first task."""
    given = Plan("smollm2-135m", rounds=3, threads=2, tasks=tasks, **plan)
    about = MACHINE, {"torch": "2.13.0"}, {"commit": "abc", "changed": False}, "2026-01-02"
    result = Result(given, {t: TASKS[t] for t in tasks}, 134_515_008, "float64", *about)
    result.checks = [Check(s, t, 0.5 if s in wrong and t == tasks[0] else 0.01, 0.02, 0.01, s not in wrong or t != tasks[0]) for s in SECONDS for t in tasks]
    start = {"first_token_seconds": 3.0, "first_token_task": tasks[0], "load_seconds": 1.0, "peak_bytes": 2_000_000_000, "peak_gpu_bytes": None}
    result.systems = {s: dict(start) for s in SECONDS}
    result.work = {t: None if t == "ragged" else Work(flops=1e9 if t == "decode-1" else 1e11, bytes=1e9) for t in tasks}
    result.limits = [Limits(4e9, 4e11), Limits(2e9, 2e11), Limits(4e9, 4e11)]
    if result.ok:
        result.samples = [_sample(i, t, s) for i in range(3) for t in tasks for s in SECONDS if s not in result.wrong]
    return result


def _sample(number: int, task: str, system: str) -> Sample:
    """A disturbed attempt that took far too long, then an undisturbed one."""
    seconds = SECONDS[system][number]
    return Sample(number, task, system, [Attempt(Timing(9.0, 9.0), 0.8), Attempt(Timing(seconds, seconds / 10), 0.0)])


@dataclass
class FakeWorkers:
    """In place of processes.

    Attributes:
        wrong: what is wrong at the gate.
        applied: what a falsified hfgraph applies.
        asked: system, request and task, in order.
    """

    wrong: tuple[str, ...] = ()
    applied: tuple[str, ...] = ("rms_norm",)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)

    def start(self, system: str) -> Any:
        self.members[system] = _FakeWorker(self, system)
        return self.members[system]

    def dismiss(self, system: str) -> None:
        del self.members[system]

    @contextmanager
    def crew(self, plan: Plan) -> Iterator[FakeWorkers]:
        yield self


@dataclass
class _FakeWorker:
    crew: FakeWorkers
    system: str
    pid: int = 0

    def ask(self, request: str, doing: str = "", **arguments: Any) -> Any:
        task = arguments.get("task", "")
        self.crew.asked.append((self.system, request, task))
        bad = self.system in self.crew.wrong
        answers: Mapping[str, Any] = {
            "load": {"load_seconds": 1.0},
            "first": {"first_token_seconds": 2.0, "first_token_task": "prefill"},
            "gate": {"system": self.system, "task": task, "error": 1.0, "allowed": 0.1 if bad else 2.0, "relative": 0.1, "ok": not bad},
            "work": {"flops": 1e9, "bytes": 1e9},
            "sample": {"seconds": 0.5, "first": 0.1, "runs": 1},
            "state": {"peak_bytes": 10**9, "peak_gpu_bytes": None, "notes": [], "applied": list(self.crew.applied)},
        }
        return answers.get(request)
