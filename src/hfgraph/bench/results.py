"""What was found: samples, and the figures that follow from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hfgraph.bench.cores import Attempt, kept
from hfgraph.bench.gate import Check
from hfgraph.bench.limits import Limits
from hfgraph.bench.plan import Plan
from hfgraph.bench.running import Timing, Work
from hfgraph.bench.systems import BASELINE, SYSTEMS
from hfgraph.bench.tasks import Task


@dataclass(frozen=True)
class Sample:
    """One system at one task in one round; the least disturbed attempt counts, all are kept."""

    round: int
    task: str
    system: str
    attempts: Sequence[Attempt[Timing]]

    @property
    def timing(self) -> Timing:
        """That of the attempt that counts."""
        return kept(self.attempts).value

    @property
    def disturbed(self) -> bool:
        """Whether others disturbed even that."""
        return kept(self.attempts).disturbed


@dataclass(frozen=True)
class Figure:
    """One system at one task.

    Attributes:
        seconds: of the task's unit, the median over rounds.
        rate: tokens per second.
        first: seconds until the first token of a request, all compiled.
        ratio, low, high: the baseline's time over this one's in the same round: median, least and largest.
        share: of the roofline in the same round; None where the task's work is not known.
        intensity, speed: operations per byte and per second, for the drawing.
        disturbed: samples that others disturbed even at the last attempt.
    """

    task: str
    system: str
    seconds: float
    rate: float
    first: float
    ratio: float
    low: float
    high: float
    share: float | None
    intensity: float | None
    speed: float | None
    disturbed: int


@dataclass
class Result:
    """A run of the bench.

    Attributes:
        tasks: with the sizes that the model takes.
        reference: the dtype that results were judged in.
        systems: system -> how long it took to load and to its first token, and its peak memory.
        limits: what the machine could do, by round.
    """

    plan: Plan
    tasks: Mapping[str, Task]
    parameters: int
    reference: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: Mapping[str, Any]
    started: str
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    work: dict[str, Work | None] = field(default_factory=dict)
    limits: list[Limits] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def red(self) -> list[Check]:
        """Checks that failed."""
        return [c for c in self.checks if not c.ok]

    @property
    def ok(self) -> bool:
        """Whether hfgraph is right; others may be wrong, they are shown without figures."""
        return not any(SYSTEMS[c.system].ours for c in self.red)

    @property
    def wrong(self) -> list[str]:
        """Systems that have no figures."""
        return sorted({c.system for c in self.red})

    def figures(self) -> list[Figure]:
        """A line for each task and each system that is right; nothing at all where hfgraph is wrong."""
        if not self.ok:
            return []
        pairs = [(t, s) for t in self.tasks for s in self.systems if s not in self.wrong]
        return [self._figure(t, s) for t, s in pairs if self._of(t, s)]

    def _figure(self, task: str, system: str) -> Figure:
        rounds = self._rounds(task, system)
        own, base = [m.timing.seconds for m, _ in rounds], [b.timing.seconds for _, b in rounds]
        ratio, low, high = ratios(base, own)
        seconds, work = statistics.median(own), self.work.get(task)
        share = statistics.median(self.limits[m.round].seconds(work.flops, work.bytes) / m.timing.seconds for m, _ in rounds) if work else None
        return Figure(
            task, system, seconds, self.tasks[task].tokens / seconds, statistics.median(m.timing.first for m, _ in rounds), ratio, low, high,
            share, work.flops / work.bytes if work else None, work.flops / seconds if work else None, sum(m.disturbed for m in self._of(task, system)),
        )  # fmt: skip

    def _of(self, task: str, system: str) -> list[Sample]:
        return [x for x in self.samples if (x.task, x.system) == (task, system)]

    def _rounds(self, task: str, system: str) -> list[tuple[Sample, Sample]]:
        """A system's samples beside the baseline's; rounds in which one was disturbed to the last count only where there are no others."""
        pairs = list(zip(self._of(task, system), self._of(task, BASELINE), strict=True))
        return [(m, b) for m, b in pairs if not (m.disturbed or b.disturbed)] or pairs

    @property
    def median_limits(self) -> Limits | None:
        """Over the rounds."""
        if not self.limits:
            return None
        return Limits(*(statistics.median(getattr(x, name) for x in self.limits) for name in ("bandwidth", "gemm")))

    def to_dict(self) -> dict[str, Any]:
        """Plain values. Where hfgraph is wrong there are no times in it."""
        head = {"ok": self.ok, "model": self.plan.model, "parameters": self.parameters, "plan": self.plan.to_dict()}
        about = {"machine": dict(self.machine), "versions": dict(self.versions), **self.commit, "started": self.started, "seconds": round(self.seconds, 1)}
        tasks = {name: {**asdict(t), "prompts": list(t.prompts)} for name, t in self.tasks.items()}
        gate = {"reference": self.reference, "wrong": self.wrong, "checks": [_plain(asdict(c)) for c in self.checks]}
        found = {**head, **about, "tasks": tasks, "gate": gate}
        if not self.ok or self.plan.sabotage:
            return found
        timed = {"systems": self.systems, "limits": [asdict(x) for x in self.limits], "work": {t: asdict(w) if w else None for t, w in self.work.items()}}
        return {**found, **timed, "figures": [asdict(f) for f in self.figures()], "samples": [_sample(s) for s in self.samples]}


def ratios(base: Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """Of times taken in the same round: the median, the least and the largest. Above 1 is faster than the baseline."""
    each = [b / o for b, o in zip(base, own, strict=True)]
    return statistics.median(each), min(each), max(each)


def _sample(sample: Sample) -> dict[str, Any]:
    attempts = [{**asdict(a.value), "others": round(a.others, 3)} for a in sample.attempts]
    return {"round": sample.round, "task": sample.task, "system": sample.system, "attempts": attempts}


def _plain(check: dict[str, Any]) -> dict[str, Any]:
    """JSON holds no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in check.items()}
