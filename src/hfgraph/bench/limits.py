"""What the machine can do right now: bytes read and operations per second. Probed beside each round, because it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_BYTES = 512 << 20  # far more than any cache holds
_SIDE = 2048
_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """Bytes per second read from memory, and operations per second of a matrix product."""

    bandwidth: float
    gemm: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for some work: the roofline."""
        return max(moved / self.bandwidth, flops / self.gemm)


class Probe:
    """Measures both with torch alone; a dot product reads two streams, and does nothing else that costs."""

    def __init__(self, device: str, dtype: str) -> None:
        half = torch.ones(_BYTES // 8, dtype=torch.float32, device=device)
        self._halves = half, half.clone()
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(_SIDE, _SIDE, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2)]
        self._factors = made[0], made[1]
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self) -> Limits:
        """Both, now."""
        read = best(lambda: torch.dot(*self._halves), self._wait)
        multiplied = best(lambda: torch.nn.functional.linear(*self._factors), self._wait)
        return Limits(_BYTES / read, 2 * _SIDE**3 / multiplied)


def best(run: Callable[[], object], wait: Callable[[], object], seconds: float = _SECONDS, clock: Callable[[], float] = time.perf_counter) -> float:
    """The least time of a call, of at least three, for about so many seconds."""
    run()
    wait()
    end, found, calls = clock() + seconds, float("inf"), 0
    while calls < 3 or clock() < end:
        start = clock()
        run()
        wait()
        found = min(found, clock() - start)
        calls += 1
    return found
