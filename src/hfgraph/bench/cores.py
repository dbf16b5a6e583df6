"""Who uses the cores: a sample that others disturbed is taken again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

DISTURBED = 0.1  # of a core used by others
_TRIES = 3
_PATIENCE = 10.0  # longest wait for idle cores
_PATIENCE_IN_ALL = 60.0  # on a machine that is never idle, a bench must end
_GLANCE = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A sample, and how many cores other processes used meanwhile."""

    value: T
    others: float

    @property
    def disturbed(self) -> bool:
        """Whether that is too many."""
        return self.others > DISTURBED


class Cores:
    """The machine's processor time, and that of our own processes."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._processes = {p.pid: p for pid in pids for p in family(pid)}.values()  # each once: a child may be named as well

    def busy(self) -> float:
        """Processor seconds that the whole machine has spent; time stolen by other virtual machines counts."""
        t = psutil.cpu_times()
        return sum(getattr(t, name, 0.0) for name in ("user", "system", "nice", "irq", "softirq", "steal"))

    def own(self) -> float:
        """Of these, our own."""
        return sum(_spent(p) for p in self._processes)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _spent(process: psutil.Process) -> float:
    try:
        t = process.cpu_times()
        return t.user + t.system
    except psutil.Error:
        return 0.0


def attempt(take: Callable[[], T], cores: Cores, clock: Callable[[], float] = time.perf_counter) -> Attempt[T]:
    """Take a sample once and see who else worked."""
    start, busy, own = clock(), cores.busy(), cores.own()
    value = take()
    own, busy, seconds = cores.own() - own, cores.busy() - busy, clock() - start
    return Attempt(value, max(0.0, busy - own) / max(seconds, 1e-9))


def undisturbed(take: Callable[[], T], cores: Cores, wait: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> list[Attempt[T]]:
    """All attempts at a sample: one, or up to three where others disturb it."""
    found: list[Attempt[T]] = []
    while len(found) < _TRIES and not (found and not found[-1].disturbed):
        wait()
        found.append(attempt(take, cores, clock))
    return found


def kept(attempts: Iterable[Attempt[T]]) -> Attempt[T]:
    """The least disturbed."""
    return min(attempts, key=lambda a: a.others)


class Patience:
    """Waits for idle cores before each sample, until a bench has waited long enough; then it only looks."""

    def __init__(self, cores: Cores, wait: Callable[[Cores, float], float] | None = None) -> None:
        self._cores, self._wait, self.left = cores, wait or wait_idle, _PATIENCE_IN_ALL

    def __call__(self) -> None:
        """Before one sample."""
        self.left = max(0.0, self.left - self._wait(self._cores, min(_PATIENCE, self.left)))


def wait_idle(cores: Cores, patience: float, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep) -> float:
    """Wait while anything uses the cores, our own threads that spin before they sleep included; at most `patience` seconds.

    Returns:
        the seconds waited, not counting the glance that finds the cores idle.
    """
    start = clock()
    while True:
        before, busy = clock(), cores.busy()
        sleep(_GLANCE)
        if cores.busy() - busy <= DISTURBED * _GLANCE:
            return before - start
        if clock() - start >= patience:
            return clock() - start
